"""Contents as texts, parts and both; pictures inside; whom a chat goes on with; what is refused."""

from types import MappingProxyType
from typing import Any

import pytest
import real_templates as real
import tiny
import torch
from families import model_of
from hypothesis import given, settings
from hypothesis import strategies as st

import interventions as iv
from interventions.errors import PromptError

PICTURES = [tiny.picture((40, 30)), tiny.picture((24, 60), seed=1), tiny.picture((30, 30), seed=2)]
TEXT = {"type": "text", "text": "What is it?"}
IMAGE = {"type": "image"}
Chat = list[dict[str, Any]]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def text_of(model: iv.Model, messages: Any, template: str | None = None, **more: Any) -> str:
    """The text of one chat, by the model's template or another."""
    told = {"chat_template": template} if template else None
    return model.prompt(messages, template_kwargs=told, **more).texts[0]


def reference(model: iv.Model, template: str, messages: Chat) -> str:
    """The library's text of messages in the form that the template takes."""
    going_on = messages[-1]["role"] == "assistant"
    return model.tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=not going_on,
        continue_final_message=going_on,
        **({"enable_thinking": False} if "enable_thinking" in template else {}),
    )


@pytest.fixture
def templated(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a model another template of its own."""

    def give(name: str, template: Any) -> iv.Model:
        model = model_of(name)
        source = model.processor if model.processor is not None else model.tokenizer
        monkeypatch.setattr(source, "chat_template", template)
        return model

    return give


def test_a_text_does_not_vanish_where_a_template_takes_parts(templated: Any) -> None:
    model = templated("llava", real.LLAVA)
    asked = model.prompt([user("What is the capital?")], spans={"entity": "capital"})
    assert asked.texts == ["USER: What is the capital? ASSISTANT:"]
    assert asked.roles[0]["entity"]
    assert model.prompt([user([TEXT])]).texts == ["USER: What is it? ASSISTANT:"]


@pytest.mark.parametrize("name", real.AS_TEXT)
def test_parts_are_joined_where_a_template_takes_texts(name: str, templated: Any) -> None:
    model = templated("llama", real.AS_TEXT[name])
    parts = [{"type": "text", "text": "What is "}, "it?"]
    assert model.prompt([user(parts)]).texts == model.prompt([user("What is it?")]).texts
    assert "'type'" not in model.prompt([user(parts)]).texts[0]


WORDS = st.text(st.sampled_from("ab CD.,?!0é\n{}%'\""), min_size=1, max_size=12).map(
    lambda text: f"x{text}x"
)


@st.composite
def contents(draw: st.DrawFn) -> tuple[str, Any]:
    """A text, and a way to write it as a message's content."""
    pieces = draw(st.lists(WORDS, min_size=1, max_size=3))
    whole = "".join(pieces)
    shapes = [
        lambda piece: piece,
        lambda piece: {"type": "text", "text": piece},
        lambda piece: MappingProxyType({"type": "text", "content": piece}),
        lambda piece: {"text": piece},
    ]
    parts = [draw(st.sampled_from(shapes))(piece) for piece in pieces]
    forms = [whole, parts, tuple(parts), {"type": "text", "text": whole}]
    return whole, draw(st.sampled_from(forms))


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(real.EVERY)), turns=st.lists(contents(), min_size=1, max_size=4))
def test_however_it_is_written_a_chat_is_the_librarys(name: str, turns: list[Any]) -> None:
    roles = [("user", "assistant")[i % 2] for i in range(len(turns))]
    template, model = real.EVERY[name], model_of("llama")
    ours = [{"role": role, "content": way} for role, (_, way) in zip(roles, turns, strict=True)]
    theirs: Chat = []
    for role, (whole, way) in zip(roles, turns, strict=True):
        if name not in real.AS_PARTS:
            theirs.append({"role": role, "content": whole})
            continue
        parts = way if isinstance(way, list | tuple) else [whole]
        texts = [
            one if isinstance(one, str) else one.get("text", one.get("content")) for one in parts
        ]
        theirs.append({"role": role, "content": [{"type": "text", "text": t} for t in texts]})
    told: dict[str, Any] = {"chat_template": template}
    if "enable_thinking" in template:
        told["enable_thinking"] = False
    expected = reference(model, template, theirs)
    if expected.endswith("<think>\n"):
        expected += "\n</think>\n\n"
    assert model.prompt(ours, template_kwargs=told).texts == [expected]


def test_one_conversation_in_several_forms(templated: Any) -> None:
    model = templated("smolvlm", real.SMOLVLM)
    held = {"type": "image", "image": PICTURES[0]}
    mixed = [system("Be brief."), user([held, TEXT]), said("A flag."), user("Whose?")]
    found = model.prompt(mixed).texts[0]
    assert found == (
        "<|im_start|>System: Be brief.<end_of_utterance>\nUser:<image>What is it?"
        "<end_of_utterance>\nAssistant: A flag.<end_of_utterance>\nUser: Whose?"
        "<end_of_utterance>\nAssistant:"
    )
    parts = [system([{"type": "text", "text": "Be brief."}]), *mixed[1:]]
    assert model.prompt(parts).texts == [found]


def test_nothing_at_all_is_an_empty_content(templated: Any) -> None:
    model = templated("llama", real.LLAMA3)
    for empty in ("", [], None, [""]):
        assert "user<|end_header_id|>\n\n<|eot_id|>" in model.prompt([user(empty)]).texts[0]


# The assistant's last words


@pytest.mark.parametrize("name", sorted(real.EVERY))
@pytest.mark.parametrize("begun", ["The answer is", "The answer is ", [TEXT, "It is"], ""])
def test_the_assistant_is_gone_on_with(name: str, begun: Any) -> None:
    model = model_of("llama")
    more: dict[str, Any] = {"chat_template": real.EVERY[name]}
    text = model.prompt([user("Why?"), said(begun)], template_kwargs=more).texts[0]
    last = begun if isinstance(begun, str) else "It is"
    assert text.endswith(last)
    opened = model.prompt([user("Why?")], template_kwargs=more).texts[0]
    closed = {**more, "continue_final_message": False}
    if last:
        again = model.prompt([user("Why?"), said(begun)], template_kwargs=closed).texts[0]
        assert len(again) > len(text)
    assert "Why?" in opened


def test_an_answer_that_is_begun_by_parts_with_pictures_before_it(templated: Any) -> None:
    model = templated("llava", real.LLAVA)
    asked = [user([IMAGE, TEXT]), said([{"type": "text", "text": "It is the"}])]
    prompt = model.prompt(asked, images=PICTURES[0], spans={"begun": "It is the"})
    assert prompt.texts == ["USER: <image>\nWhat is it? ASSISTANT: It is the"]
    assert prompt.roles[0]["begun"][-1] == prompt.roles[0]["last"][0]


def test_thoughts_before_what_is_gone_on_with_do_not_vanish(templated: Any) -> None:
    model = templated("llama", real.DEEPSEEK_R1)
    for begun in ("<think>Hm.</think>It is", "<think>Hm.</think>\n\nIt is ", "<think></think>It"):
        with pytest.raises(PromptError, match="leaves out some of the last message"):
            model.prompt([user("Hi"), said(begun)])
    inside = model.prompt([user("Hi"), said("<think>Hm, it")]).texts[0]
    assert inside.endswith("<|Assistant|><think>Hm, it")
    model = templated("llama", real.MISTRAL)
    assert model.prompt([user("Hi"), said("<think>Hm.</think>It")]).texts[0].endswith(">It")


def test_half_a_character_is_refused() -> None:
    for name in ("llama", "llava"):
        for text in ("a\ud83d b", [user("a\udc00")]):
            with pytest.raises(PromptError, match="half a character"):
                model_of(name).prompt(text)


def test_a_call_of_a_tool_cannot_be_gone_on_with(templated: Any) -> None:
    model = templated("llama", real.QWEN_VL)
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    tool = {"role": "tool", "content": "a flag"}
    assert "a flag" in model.prompt([user("x"), call, tool]).texts[0]
    told = {"continue_final_message": True}
    with pytest.raises(PromptError, match="does not end with a text"):
        model.prompt([user("x"), call], template_kwargs=told)
    shown = [user("x"), said([TEXT, {**IMAGE, "image": PICTURES[0]}])]
    with pytest.raises(PromptError, match="does not end with a text"):
        model_of("llava").prompt(shown)


# Pictures in messages


@pytest.mark.parametrize("name", tiny.VLMS)
def test_pictures_in_messages_are_those_beside_them(name: str) -> None:
    model = model_of(name)
    asked = [user([{**IMAGE, "image": PICTURES[0]}, TEXT])]
    inside, beside = model.prompt(asked), model.prompt([user([IMAGE, TEXT])], images=PICTURES[0])
    nowhere = model.prompt([user("What is it?")], images=PICTURES[0])
    for one in (inside, nowhere):
        assert one.texts == beside.texts
        assert set(one.inputs) == set(beside.inputs)
        for key, value in beside.inputs.items():
            assert torch.equal(one.inputs[key], value)
        assert one.roles == beside.roles


def test_every_way_to_hold_a_picture(tmp_path: Any) -> None:
    import base64

    model, path = model_of("llava"), tmp_path / "flag.png"
    PICTURES[0].save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    address = f"data:image/png;base64,{text}"
    expected = model.prompt([user([IMAGE, TEXT])], images=PICTURES[0]).inputs["pixel_values"]
    ways: list[Any] = [
        PICTURES[0],
        {"image": PICTURES[0]},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": str(path)},
        {"type": "image", "base64": text},
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "image_url", "image_url": address},
        {"type": "image", "source": {"type": "base64", "data": text}},
        {"type": "image", "image": PICTURES[0], "path": None},
    ]
    for way in ways:
        found = model.prompt([user([way, TEXT])]).inputs["pixel_values"]
        assert torch.equal(found, expected)


def pixels(model: iv.Model, picture: Any) -> torch.Tensor:
    return model.prompt("<image>", images=picture).inputs["pixel_values"][0]


def test_pictures_of_several_turns_and_rows_keep_their_order() -> None:
    model = model_of("llava")
    held = [{**IMAGE, "image": picture} for picture in PICTURES]
    rows = [
        [user([held[0], TEXT, IMAGE]), said("A flag."), user([held[2], "And this?"])],
        "What is it?",
        [user("Nothing to see.")],
        [user([held[1], held[0]])],
    ]
    prompt = model.prompt(rows, images=[[PICTURES[1]], [], [], []])
    assert prompt.entries["pixel_values"] == [3, 0, 0, 2]
    order = [0, 1, 2, 1, 0]
    for found, number in zip(prompt.inputs["pixel_values"], order, strict=True):
        assert torch.equal(found, pixels(model, PICTURES[number]))
    assert [len(roles.get("image_2", ())) > 0 for roles in prompt.roles] == [True] + [False] * 3


def test_a_template_that_puts_images_first_puts_the_right_one_first(templated: Any) -> None:
    model = templated("llava", real.LLAVA)
    mixed = [user(["<image> and ", {**IMAGE, "image": PICTURES[0]}])]
    prompt = model.prompt(mixed, images=PICTURES[1])
    assert prompt.texts == ["USER: <image>\n<image> and  ASSISTANT:"]
    for found, picture in zip(prompt.inputs["pixel_values"], PICTURES, strict=False):
        assert torch.equal(found, pixels(model, picture))


def test_a_template_of_texts_has_the_images_written_in(templated: Any) -> None:
    model = templated("qwen2_5_vl", real.QWEN3)
    asked = [user([{**IMAGE, "image": PICTURES[0]}, TEXT])]
    prompt = model.prompt(asked)
    assert f"user\n{model.image_token}\nWhat is it?" in prompt.texts[0]
    assert len(prompt.at("image").index[0]) > 1
    between = [user(["See ", {**IMAGE, "image": PICTURES[0]}, " here"])]
    assert f"See {model.image_token} here" in model.prompt(between).texts[0]


def test_pictures_that_do_not_fit_are_refused() -> None:
    model = model_of("qwen2_5_vl")
    held = {**IMAGE, "image": PICTURES[0]}
    for content, images, words in (
        (
            [held, IMAGE],
            None,
            r"0 image\(s\) were given for a chat with 1 place\(s\) to fill; 1 of",
        ),
        ([held], PICTURES[0], r"1 image\(s\) were given for a chat with 0 place"),
        ([{**held, "path": "flag.png"}], None, "holds a picture as image and as path"),
        ([{"type": "image", "url": "https://flags.org/fr.png"}], None, "Nothing is downloaded"),
        ([{"type": "image_url", "image_url": {"url": "http://x.org/a"}}], None, "Nothing is down"),
        ([{"type": "image_url", "image_url": {"detail": "low"}}], None, "no picture in its"),
        ([{"type": "video", "video": "x.mp4"}], None, "of type 'video'"),
        ([{"type": "text"}], None, "holds no text"),
        ([{"text": "What?", "image": PICTURES[0]}], None, "is a text and holds image too"),
        ([{**held, "text": "What?"}], None, "is an image and holds a text too"),
        ([{**held, "max_pixels": 50_000}], None, "'max_pixels', which would change nothing"),
        ([None], None, "part 0 of message 0"),
        ([3], None, "part 0 of message 0"),
    ):
        with pytest.raises(PromptError, match=words):
            model.prompt([user(content)], images=images)
    with pytest.raises(PromptError, match="text-only model"):
        model_of("llama").prompt([user([held, TEXT])])


# What is no chat


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([[]], "has no messages"),
        ([{"role": "user"}], "has no content"),
        ([{"from": "human", "value": "Hi"}], "has the role None and the keys"),
        ([{"role": "", "content": "Hi"}], "has the role ''"),
        ([user("Hi"), "Hi"], "message 1 of a chat is str 'Hi'"),
        ([["Hi", user("Hi")]], "message 0 of a chat is str 'Hi'"),
        (None, "a row of a prompt is NoneType"),
        ([3], "a row of a prompt is int '3'"),
        (b"Hi", "a row of a prompt is bytes"),
    ],
)
def test_what_is_no_chat_is_refused(messages: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        model_of("llama").prompt(messages)


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (real.GEMMA, [system("Be brief."), user("Hi")], "System role not supported"),
        (real.GEMMA, [user("Hi"), user("Ho")], "Conversation roles must alternate"),
        (real.MISTRAL, [system("Be brief."), user("Hi")], "Only user and assistant roles"),
        (
            real.DEEPSEEK_R1,
            [system("Be brief."), user("Hi")],
            r"message 0 \('system'\), 'Be brief.'",
        ),
        (real.DEEPSEEK_R1, [user("Hi"), {"role": "judge", "content": "No."}], "'judge'"),
        ("{% for m in messages %}{{ m.content }}", [user("Hi")], "is none: .*endfor"),
        ("{{ messages[0].content / 2 }}", [user("Hi")], "unsupported operand"),
        ("{{ messages[0]['content'][0]['text'][0] + 1 }}", [user("Hi")], "refuses these messages"),
        ("deaf", [user("Hi")], r"leaves out the text of message 0 \('user'\), 'Hi'"),
        ("{{ messages }}", [user([TEXT])], "writes a list of parts as a list"),
        (
            "{% for m in messages %}{{ m.content }}<image>{% endfor %}",
            [user("Hi")],
            r"1 image\(s\)",
        ),
    ],
)
def test_what_a_template_cannot_take_is_said(template: str, messages: Chat, words: str) -> None:
    with pytest.raises(PromptError, match=words) as found:
        text_of(model_of("llava"), messages, template)
    assert "chat template of" in str(found.value)


def test_a_template_that_is_not_there(templated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = templated("llama", None)
    with pytest.raises(PromptError, match="has no chat template"):
        model.prompt([user("Hi")])
    seeing = templated("llava", None)
    assert "Hi" in seeing.prompt([user("Hi")]).texts[0], "the tokenizer has one"
    monkeypatch.setattr(seeing.tokenizer, "chat_template", None)
    with pytest.raises(PromptError, match="has no chat template"):
        seeing.prompt([user("Hi")])


def test_one_of_several_templates(templated: Any) -> None:
    model = templated("llama", {"default": real.LLAMA3, "rag": real.GEMMA})
    assert "<|start_header_id|>user" in model.prompt([user("Hi")]).texts[0]
    assert "<start_of_turn>user" in text_of(model, [user("Hi")], "rag")
    with pytest.raises(PromptError, match=r"none is called 'rga'.*Did you mean 'rag'"):
        text_of(model, [user("Hi")], "rga")
    model = templated("llama", {"rag": real.GEMMA})
    with pytest.raises(PromptError, match="none is called 'default'"):
        model.prompt([user("Hi")])
