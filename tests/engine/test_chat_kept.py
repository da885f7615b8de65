"""What a chat holds beside plain texts is kept or refused: calls, pictures, texts of a class."""

import enum
from typing import Any

import pytest
import real_templates as real
import tiny
import torch
from families import model_of

import interventions as iv
from interventions.errors import PromptError

PICTURE = tiny.picture((40, 30))
TEXT = {"type": "text", "text": "What is it?"}
SHOWN = [{"type": "image", "image": PICTURE}, TEXT]


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def text_of(model: iv.Model, messages: Any, template: str, **told: Any) -> str:
    told = {"chat_template": template, **told}
    return model.prompt(messages, template_kwargs=told).texts[0]


@pytest.mark.parametrize("content", ["", "Let me see.", None, [TEXT]])
def test_a_call_of_a_tool_is_not_cut_off(content: Any) -> None:
    model = model_of("llama")
    call = {"role": "assistant", "content": content, "tool_calls": [{"name": "look"}]}
    words = content if isinstance(content, str) else "What is it?" if content else ""
    text = text_of(model, [user("x"), call], real.CALLING)
    assert text == f"<user>x<end><assistant>{words}[CALL]look<end><assistant>"
    with pytest.raises(PromptError, match="does not end with a text"):
        text_of(model, [user("x"), call], real.CALLING, continue_final_message=True)
    begun = {**call, "content": "Let me see.", "tool_calls": []}
    text = text_of(model, [user("x"), begun], real.CALLING)
    assert text == "<user>x<end><assistant>Let me see."


def test_what_excludes_each_other_is_refused() -> None:
    chat = [user("x"), {"role": "assistant", "content": "It is"}]
    told = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(PromptError, match="give either"):
        text_of(model_of("llama"), chat, real.QWEN_VL, **told)


class Word(str, enum.Enum):  # noqa: UP042 - str() of its members is their name
    USER = "user"
    ASKED = "What is it?"


class Shouted(str):
    def __str__(self) -> str:
        return self.upper()


@pytest.mark.parametrize("asked", [Word.ASKED, Shouted("What is it?")])
def test_texts_of_classes_of_their_own_are_their_letters(asked: str) -> None:
    model = model_of("llama")
    plain = text_of(model, [user("What is it?")], real.QWEN_VL)
    for content in (asked, [asked], {"type": "text", "text": asked}):
        chat = [{"role": Word.USER, "content": content}]
        assert text_of(model, chat, real.QWEN_VL) == plain
    prompt = model.prompt([asked, "What is it?"], spans={"entity": asked})
    assert prompt.texts == ["What is it?"] * 2
    assert torch.equal(*prompt.inputs["input_ids"])
    assert torch.equal(prompt.inputs["input_ids"][:1], model.prompt(asked).inputs["input_ids"])


@pytest.mark.parametrize("key", ["image", "images", "image_url"])
def test_pictures_beside_a_content_do_not_vanish(key: str) -> None:
    model = model_of("llava")
    for shown in (PICTURE, [PICTURE], "flag.png"):
        with pytest.raises(PromptError, match=f"holds '{key}' beside its content"):
            model.prompt([user("What is it?", **{key: shown})])
    nothing = model.prompt([user("What is it?", **{key: []})])
    assert nothing.texts == model.prompt([user("What is it?")]).texts


def test_a_template_that_refuses_pictures_is_not_got_round() -> None:
    model = model_of("mllama")
    assert "<|image|>What is it?" in text_of(model, [user(SHOWN)], real.LLAMA32_VISION)
    for content in ("Be brief.", ["Be brief."]):
        brief = {"role": "system", "content": content}
        assert "Be brief." in text_of(model, [brief, user([TEXT])], real.LLAMA32_VISION)
        for more in ([], [{"role": "assistant", "content": "It is"}]):
            with pytest.raises(PromptError, match="images is incompatible with system messages"):
                text_of(model, [brief, user(SHOWN), *more], real.LLAMA32_VISION)
    # Where it is the form of a content that is refused, another is found.
    text = text_of(model_of("llava"), [user(SHOWN)], real.TEXTS_ONLY)
    assert text == "user: <image>\nWhat is it?\n"
