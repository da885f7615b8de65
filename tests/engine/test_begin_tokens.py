"""Every prompt begins as the model was trained to see one, and none ends with an end token."""

import copy
from typing import Any

import pytest
import real_templates as real
import tiny
from families import model_of, sees
from tokenizers import processors

import interventions as iv
from interventions.errors import PromptError, PromptWarning

PICTURE = tiny.picture((40, 30))
CHAT = [{"role": "user", "content": "What is it?"}]
SHOWN = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
BEGIN = {  # families that are trained with a begin token, which their tokenizer or processor adds
    *("llama", "vicuna", "mistral", "gemma2", "gemma3_text", "llava", "llava_next", "vipllava"),
    *("pixtral", "mistral3", "gemma3", "idefics3", "paligemma", "mllama", "llama4"),
}


def ids_of(model: iv.Model, text: Any, row: int = 0, **more: Any) -> list[int]:
    prompt = model.prompt(text, **more)
    real_ones = prompt.inputs["attention_mask"][row].bool()
    return prompt.inputs["input_ids"][row][real_ones].tolist()


def begins(model: iv.Model, ids: list[int]) -> int:
    return ids.count(model.tokenizer.bos_token_id)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_one_begin_token_however_a_prompt_is_made(name: str) -> None:
    model = model_of(name)
    tokenizer = model.tokenizer
    source: Any = model.processor if sees(name) else tokenizer
    templated = source.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    chat = ids_of(model, CHAT)
    assert ids_of(model, templated) == chat
    assert ids_of(model, [templated, "What is it?"]) == chat
    if name not in BEGIN:
        return
    begin = tokenizer.bos_token
    plain = ids_of(model, "What is it?")
    for ids in (chat, plain, ids_of(model, begin + "What is it?")):
        assert ids[0] == tokenizer.bos_token_id
        assert begins(model, ids) == 1
    rows = model.prompt([begin + "What is it?", "What is it?"]).inputs["input_ids"]
    assert [begins(model, ids) for ids in rows.tolist()] == [1, 1]


@pytest.mark.parametrize("name", [name for name in tiny.VLMS if name in BEGIN])
def test_one_begin_token_beside_images(name: str) -> None:
    model = model_of(name)
    begin, mark = model.tokenizer.bos_token, model.image_token
    texts = [f"{begin}{mark}What is it?", f"{begin}What is it?", "What is <image> here?"]
    if name != "mllama":  # its processor writes a second one behind an image that begins a text
        texts += ["What is it?", f"{mark}What is it?"]
    for text in texts:
        ids = ids_of(model, text, images=PICTURE)
        assert begins(model, ids) == 1, text
        assert name == "paligemma" or ids[0] == model.tokenizer.bos_token_id, text
    if name != "paligemma":  # it has no chat template of its own, and its processor adds one
        assert begins(model, ids_of(model, SHOWN, images=PICTURE)) == 1
        processor: Any = model.processor
        templated = processor.apply_chat_template(SHOWN, tokenize=False, add_generation_prompt=True)
        given = ids_of(model, templated, images=PICTURE)
        assert given == ids_of(model, SHOWN, images=PICTURE)


@pytest.mark.parametrize("name", ["llama", "llava", "mllama", "gemma3"])
def test_spans_by_character_count_from_what_was_given(name: str) -> None:
    model = model_of(name)
    text = f"{model.tokenizer.bos_token}Where is France?"
    start = text.index("France")
    span = (start, start + 6)
    for images in (None, PICTURE) if sees(name) else (None,):
        prompt = model.prompt(text, images=images, spans={"entity": span})
        ids = prompt.inputs["input_ids"][0][prompt.roles[0]["entity"]]
        assert str(model.tokenizer.decode(ids)).strip() == "France"


@pytest.mark.parametrize("name", tiny.VLMS)
def test_spans_by_character_behind_an_image_in_any_familys_writing(name: str) -> None:
    model = model_of(name)
    text = "See <image> of France, and <image> of it."
    start = text.index("France")
    spans: dict[str, Any] = {
        "entity": (start, start + 6),
        "end": (len(text) - 3, len(text) - 1),
        "see": (0, 3),
    }
    prompt = model.prompt(text, images=[PICTURE, PICTURE], spans=spans)
    ids = prompt.inputs["input_ids"][0]
    for role, expected in (("entity", "France"), ("end", "it"), ("see", "See")):
        assert str(model.tokenizer.decode(ids[prompt.roles[0][role]])).strip() == expected


def test_two_that_were_written_are_said() -> None:
    for name in ("llama", "llava"):
        model = model_of(name)
        begin = model.tokenizer.bos_token
        with pytest.warns(PromptWarning, match="begins with .* twice"):
            ids = ids_of(model, f"{begin}{begin}What is it?")
        assert begins(model, ids) == 2
    doubled = {"chat_template": "{{ bos_token }}" + real.LLAMA3}
    with pytest.warns(PromptWarning, match="twice"):
        model_of("llama").prompt(CHAT, template_kwargs=doubled)


@pytest.mark.parametrize("name", sorted(BEGIN))
@pytest.mark.parametrize("front", ["\n{0}", " {0}", "{0} {0}", "{0}\n{0}", "\n{0}\n{0}"])
def test_a_begin_token_that_does_not_begin_a_text_is_said(name: str, front: str) -> None:
    model = model_of(name)
    with pytest.warns(PromptWarning, match="begins with .* twice"):
        ids = ids_of(model, front.format(model.tokenizer.bos_token) + "What is it?")
    assert begins(model, ids) > 1


@pytest.mark.parametrize("name", [name for name in tiny.VLMS if name in BEGIN])
@pytest.mark.parametrize("front", ["{1}{0}", "{1}\n{0}", "{0}{1}{0}", "\n{0}{1}"])
def test_a_begin_token_behind_an_image_is_said(name: str, front: str) -> None:
    model = model_of(name)
    begin, mark = model.tokenizer.bos_token, model.image_token
    text = front.format(begin, mark) + "What is it?"
    if name == "mllama" and not text.startswith("\n"):  # it is trained with it
        model.prompt(text, images=PICTURE)
        return
    with pytest.warns(PromptWarning, match="begins with .* twice"):
        ids = ids_of(model, text, images=PICTURE)
    assert begins(model, ids) == 2


def test_begin_tokens_of_later_turns_are_as_written() -> None:
    model = model_of("mistral")
    begin = model.tokenizer.bos_token
    assert begins(model, ids_of(model, f"{begin}What is it?{begin}And this?")) == 2


def retokenized(name: str, *, front: bool, back: bool) -> iv.Model:
    """A model whose tokenizer adds a begin token, an end token, or neither."""
    module, processor = tiny.build(name)
    tokenizer = copy.deepcopy(getattr(processor, "tokenizer", processor))
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    marks = [(one, tokenizer.convert_tokens_to_ids(one)) for one in (bos, eos)]
    whole = f"{bos + ' ' if front else ''}$A{' ' + eos if back else ''}"
    made = processors.TemplateProcessing(single=whole, special_tokens=marks)
    tokenizer.backend_tokenizer.post_processor = made
    if name in tiny.VLMS:
        processor.tokenizer = tokenizer
        return iv.load(module, processor=processor)
    return iv.load(module, tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["llama", "vicuna", "llava", "mllama", "gemma3", "idefics3"])
@pytest.mark.parametrize("front", [True, False])
def test_no_prompt_ends_with_an_end_that_nobody_wrote(name: str, front: bool) -> None:
    closing = retokenized(name, front=front, back=True)
    assert closing.tokenizer("a")["input_ids"][-1] == closing.tokenizer.eos_token_id
    usual = retokenized(name, front=front, back=False)
    begin = closing.tokenizer.bos_token
    texts: list[tuple[Any, dict[str, Any]]] = [(CHAT, {}), (f"{begin}What is it?", {})]
    if front:
        texts.append(("What is it?", {}))
    if name in tiny.VLMS:
        texts.append((SHOWN, {"images": PICTURE}))
    for text, more in texts:
        ids = ids_of(closing, text, **more)
        assert ids == ids_of(usual, text, **more)
        assert ids[-1] != closing.tokenizer.eos_token_id or text in (CHAT, SHOWN)


def test_a_tokenizer_that_adds_none_leaves_the_templates() -> None:
    bare = retokenized("llama", front=False, back=False)
    assert ids_of(bare, CHAT) == ids_of(model_of("llama"), CHAT)
    with pytest.warns(PromptWarning, match="does not begin with .* its chat template begins with"):
        ids = ids_of(bare, "What is it?")
    assert begins(bare, ids) == 0
    assert begins(bare, ids_of(bare, f"{bare.tokenizer.bos_token}What is it?")) == 1


def test_image_tokens_that_no_image_fills_are_refused() -> None:
    for name in ("gemma3", "llama4", "qwen2_5_vl", "llava"):
        model = model_of(name)
        token = model.tokenizer.convert_ids_to_tokens(model.anatomy.image_token_id)
        with pytest.raises(PromptError, match=r"image token\(s\) that no image|0 image\(s\) were"):
            model.prompt(f"What is {token} here?")
    model = model_of("gemma3")
    with pytest.raises(PromptError, match=r"1 image token\(s\) that no image fills"):
        model.prompt("What is <start_of_image> <image_soft_token>?", images=PICTURE)


@pytest.mark.parametrize("name", tiny.VLMS)
def test_a_place_is_written_alike_in_every_family(name: str) -> None:
    model = model_of(name)
    ours = model.prompt(f"Is {model.image_token} it?", images=PICTURE)
    anyones = model.prompt("Is <image> it?", images=PICTURE)
    assert anyones.texts == ours.texts
    assert anyones.inputs["input_ids"].tolist() == ours.inputs["input_ids"].tolist()
    assert anyones.roles == ours.roles
    chat = [{"role": "user", "content": "<image>\nWhat is it?"}]
    assert str(model.image_token) in model.prompt(chat, images=PICTURE).texts[0]
    with pytest.raises(PromptError, match=r"0 image\(s\) were given for a text with 1"):
        model.prompt("Is <image> it?")
    with pytest.raises(PromptError, match=r"0 image\(s\) were given for a text with 1"):
        model.prompt(chat)
    with pytest.raises(PromptError, match=r"1 image\(s\) were given for a text with 2"):
        model.prompt("Is <image> or <image> it?", images=PICTURE)
    if model.placeholder != "<image>":
        with pytest.raises(PromptError, match="the text has both '<image>' and"):
            model.prompt(f"Is <image> or {model.image_token} it?", images=[PICTURE, PICTURE])


def test_a_language_model_reads_the_mark_as_text() -> None:
    model = model_of("llama")
    assert "<image>" in model.tokenizer.decode(ids_of(model, "Is <image> it?"))
