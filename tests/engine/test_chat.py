"""Chat messages become prompts: what the library makes of them, with roles and spans placed."""

from typing import Any

import pytest
import tiny
import torch
from families import model_of

import interventions as iv
from interventions.errors import PromptError

PICTURES = (tiny.picture((40, 30)), tiny.picture((24, 60), seed=1))
QUESTION = "what is the capital of France?"
Chat = list[dict[str, Any]]


@pytest.fixture(params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> iv.Model:
    return model_of(request.param)


@pytest.fixture(params=tiny.VLMS)
def vlm(request: pytest.FixtureRequest) -> iv.Model:
    return model_of(request.param)


def chat(n_images: int, *, pictures: bool = False, country: str = "Italy") -> Chat:
    """Three turns; the first has text before, between and behind its images."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": "Look: "}]
    for i in range(n_images):
        image = {"type": "image", "image": PICTURES[i]} if pictures else {"type": "image"}
        parts += [image, {"type": "text", "text": f" so, picture {i} and "}]
    parts.append({"type": "text", "text": QUESTION})
    return [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "Paris."}]},
        {"role": "user", "content": [{"type": "text", "text": f"And that of {country}?"}]},
    ]


def plain(n_images: int) -> Chat:
    """The same as plain strings, for models that see no images."""
    turns = chat(n_images)
    return [
        {"role": turn["role"], "content": "".join(part["text"] for part in turn["content"])}
        for turn in turns
    ]


def librarys_ids(source: Any, messages: Chat) -> list[int]:
    """Ids by a processor's or tokenizer's own chat template and call."""
    encoded = source.apply_chat_template(
        [messages], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    return encoded["input_ids"][0].tolist()


def words(model: iv.Model, prompt: iv.Prompt, role: str, row: int = 0) -> str:
    """Text of the tokens of a role."""
    ids = prompt.inputs["input_ids"][row][prompt.roles[row][role]]
    return str(model.tokenizer.decode(ids)).strip()


def test_text_is_what_the_library_makes_of_it(model: iv.Model) -> None:
    prompt = model.prompt(plain(0), spans={"entity": "Italy", "first": "France"})
    assert prompt.inputs["input_ids"][0].tolist() == librarys_ids(model.tokenizer, plain(0))
    assert words(model, prompt, "entity") == "Italy"
    assert words(model, prompt, "first") == "France"
    assert prompt.roles[0]["last"] == [prompt.length - 1]
    assert set(prompt.roles[0]["entity"]) < set(prompt.roles[0]["question"])
    check_begin(model, prompt)


@pytest.mark.filterwarnings("ignore:.*__array__:DeprecationWarning")  # PaliGemma's labels
@pytest.mark.parametrize("n", [1, 2])
def test_images_are_what_the_library_makes_of_them(vlm: iv.Model, n: int) -> None:
    spans = {"before": "Look", "entity": "Italy", "first": "France", "inner": "picture 0"}
    prompt = vlm.prompt(chat(n), images=[list(PICTURES[:n])], spans=spans)
    ids = prompt.inputs["input_ids"][0].tolist()
    assert ids == librarys_ids(vlm.processor, chat(n, pictures=True))
    for role, text in spans.items():
        assert words(vlm, prompt, role) == text
    check_begin(vlm, prompt)
    token = vlm.anatomy.image_token_id
    if vlm.anatomy.cross_blocks:
        assert "image" not in prompt.roles[0]
        return
    roles = prompt.roles[0]
    assert roles["image"] == [i for i, one in enumerate(ids) if one == token]
    assert roles["image"] == [one for i in range(n) for one in roles[f"image_{i}"]]
    assert max(roles["before"]) < min(roles["image_0"])
    assert max(roles["image_0"]) < min(roles["inner"]) < min(roles["first"])
    if n == 2:
        assert max(roles["inner"]) < min(roles["image_1"])


def check_begin(model: iv.Model, prompt: iv.Prompt) -> None:
    bos = model.tokenizer.bos_token_id
    assert bos is None or prompt.inputs["input_ids"][0, :2].tolist() != [bos, bos]


def test_several_rows_of_chat_and_text(vlm: iv.Model) -> None:
    rows = [chat(1), chat(1, country="the Republic of Ireland")]
    names = ["Italy", "the Republic of Ireland"]
    prompt = vlm.prompt(rows, images=list(PICTURES), spans={"entity": names})
    assert len(prompt) == 2
    for row, name in enumerate(names):
        assert words(vlm, prompt, "entity", row) == name
        alone = vlm.prompt(rows[row], images=PICTURES[row], spans={"entity": name})
        n = alone.length
        assert torch.equal(prompt.inputs["input_ids"][row, -n:], alone.inputs["input_ids"][0])
        for role, found in alone.roles[0].items():
            assert prompt.roles[row][role] == [i + prompt.length - n for i in found]


def test_rows_of_chat_beside_a_row_of_text(model: iv.Model) -> None:
    text = "The capital of Italy is"
    prompt = model.prompt([plain(0), text], spans={"entity": "Italy"})
    alone = model.prompt(text)
    assert torch.equal(prompt.inputs["input_ids"][1, -alone.length :], alone.inputs["input_ids"][0])
    assert [words(model, prompt, "entity", row) for row in range(2)] == ["Italy", "Italy"]


def test_a_chat_runs_and_is_patched(model: iv.Model) -> None:
    prompt = model.prompt(plain(0), spans={"entity": "Italy"})
    patch = iv.Patch("resid_post", 0, prompt.at("entity"), torch.tensor(0.0), "scale")
    clean, edited = iv.run(model, prompt).logits, iv.run(model, prompt, patches=[patch]).logits
    assert clean is not None
    assert edited is not None
    assert torch.isfinite(clean).all()
    assert not torch.equal(clean, edited)


def test_a_span_that_the_template_holds_too_is_refused(model: iv.Model) -> None:
    messages = [{"role": "user", "content": "USER user: does the user know Italy?"}]
    with pytest.raises(PromptError, match="must occur exactly once"):
        model.prompt(messages, spans={"who": "user"})


def test_images_and_parts_of_a_chat_must_be_as_many(vlm: iv.Model) -> None:
    with pytest.raises(PromptError, match=r"1 image\(s\) were given for a text with 2"):
        vlm.prompt(chat(2), images=PICTURES[0])
    with pytest.raises(PromptError, match=r"0 image\(s\) were given for a text with 1"):
        vlm.prompt(chat(1))


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_nothing_is_cut_off(name: str) -> None:
    module, processor = tiny.build(name)
    short: Any = processor.tokenizer if name in tiny.VLMS else processor
    model = (
        iv.load(module, processor=processor)
        if name in tiny.VLMS
        else iv.load(module, tokenizer=processor)
    )
    short.model_max_length = 16
    short.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    text = f"{'Paris is in France. ' * 10} {QUESTION}"
    images: dict[str, Any] = {}
    if name in tiny.VLMS:
        text, images = (model.image_token or "") + text, {"images": PICTURES[0]}
    prompt = model.prompt(text, **images)
    assert prompt.length > 60
    written = model.tokenizer.decode(prompt.inputs["input_ids"][0])
    assert written.count("Paris is in France.") == 10
    assert QUESTION in written
