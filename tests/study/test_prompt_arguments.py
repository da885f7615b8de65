"""What templates and processors are told: think blocks, dates, tools, sizes; nothing in vain."""

from typing import Any

import numpy as np
import pytest
import real_templates as real
import tiny
import torch
from families import model_of
from hypothesis import given, settings
from hypothesis import strategies as st

import interventions as iv
from interventions.errors import PromptError
from interventions.prompt.thoughts import THOUGHTS, behind_thoughts, closed, opened, said_from
from twohop.ask.study import Decoding, answers
from twohop.items.formats import chat_template_of, end_of_turn

CHAT = [{"role": "user", "content": "Is <think> a tag?"}]
PICTURE = tiny.picture((400, 300))
EMPTY = "<think>\n\n</think>\n\n"


def text_of(messages: Any = CHAT, **told: Any) -> str:
    return model_of("llama").prompt(messages, template_kwargs=told).texts[0]


@pytest.mark.parametrize("template", [real.DEEPSEEK_R1, real.QWEN3_OPEN])
def test_a_row_is_not_left_inside_a_think_block(template: str) -> None:
    open_ = text_of(chat_template=template, enable_thinking=True)
    assert open_.endswith("<think>\n")
    for told in ({}, {"enable_thinking": False}):
        text = text_of(chat_template=template, **told)
        assert text.endswith(EMPTY)
        assert text.removesuffix(EMPTY) == open_.removesuffix("<think>\n")
        assert "Is <think> a tag?" in text
    begun = [*CHAT, {"role": "assistant", "content": "<think>It may"}]
    if template == real.QWEN3_OPEN:
        assert text_of(begun, chat_template=template).endswith("<think>It may")


def test_thinking_that_a_template_can_be_told_of() -> None:
    assert text_of(chat_template=real.QWEN3).endswith("assistant\n")
    assert text_of(chat_template=real.QWEN3, enable_thinking=True).endswith("assistant\n")
    assert text_of(chat_template=real.QWEN3, enable_thinking=False).endswith(EMPTY)
    named = real.QWEN3_OPEN.replace(
        "enable_thinking is defined and enable_thinking is false", "not thinking"
    )
    assert text_of(chat_template=named, thinking=True).endswith("<think>\n")
    assert text_of(chat_template=named).endswith(EMPTY)


@pytest.mark.parametrize("wanted", [True, False])
def test_thinking_that_a_template_knows_nothing_of(wanted: bool) -> None:
    with pytest.raises(PromptError, match="'enable_thinking', and opens no think block"):
        text_of(chat_template=real.LLAMA3, enable_thinking=wanted)


WORDS = st.text(st.sampled_from("ab \n."), max_size=8)


@settings(max_examples=200, deadline=None)
@given(before=WORDS, thought=WORDS, answer=WORDS, marks=st.sampled_from(THOUGHTS))
def test_what_is_said_stands_behind_the_block(
    before: str, thought: str, answer: str, marks: tuple[str, str]
) -> None:
    opening, closing = marks
    whole = f"{before.strip()}{opening}{thought}"
    assert opened(whole) == closing
    ended = closed(whole, closing)
    assert ended.startswith(whole)
    assert opened(ended) is None
    assert opened(whole, len(whole)) is None
    assert behind_thoughts(f" {opening}{thought}{closing}{answer}") == answer.lstrip()
    assert behind_thoughts(f"{thought}{closing}{answer}") == answer.lstrip()
    assert behind_thoughts(f" {opening}{thought}") == ""
    assert behind_thoughts(answer) == answer
    assert said_from(answer) == 0


def test_arguments_reach_the_template() -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    told = {"date_string": "1 Jan 2000", "tools": [tool]}
    text = text_of(chat_template=real.LLAMA3, **told)
    assert "Today: 1 Jan 2000" in text
    assert '"name": "look"' in text
    ends = text_of(chat_template=real.LLAMA3, add_generation_prompt=False)
    assert ends.endswith("<|eot_id|>")
    seeing = model_of("qwen2_5_vl").prompt(
        [{"role": "user", "content": [{"type": "image", "image": PICTURE}, "What?"]}],
        template_kwargs={"chat_template": real.QWEN_VL, "add_vision_id": True},
    )
    assert "Picture: <|vision_start|>" in seeing.texts[0]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"date_strin": "now"}, "no argument 'date_strin'.*Did you mean 'date_string'"),
        ({"message": 1}, "no argument 'message'"),
        ({"tokenize": True}, "'tokenize' is set by prompt"),
        ({"add_generation_prompt": "no"}, "expected True or False"),
        ({"enable_thinking": "no"}, "expected True or False"),
    ],
)
def test_arguments_that_a_template_passes_over_are_refused(told: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        text_of(chat_template=real.LLAMA3, **told)
    for no_settings in (["enable_thinking"], "think", True, {3: 4}):
        wrong: Any = no_settings
        with pytest.raises(PromptError, match=r"template_kwargs is .*Expected a (Mapping|str)"):
            model_of("llama").prompt(CHAT, template_kwargs=wrong)
    with pytest.raises(PromptError, match="'chat_template' is int, expected the template's text"):
        model_of("llama").prompt(CHAT, template_kwargs={"chat_template": 5})
    with pytest.raises(PromptError, match="no row is a chat"):
        model_of("llama").prompt("Hi", template_kwargs={"date_string": "now"})


# Processors


def test_sizes_reach_the_image_processor() -> None:
    model = model_of("qwen2_5_vl")
    processor: Any = model.processor
    side = processor.image_processor.patch_size * processor.image_processor.merge_size
    usual = model.prompt("<image>", images=PICTURE)
    for n in (6, 12):
        told = {"min_pixels": side**2, "max_pixels": n * side**2}
        found = model.prompt("<image>", images=PICTURE, processor_kwargs=told)
        n_tokens = len(found.at("image").index[0])
        assert n // 2 <= n_tokens <= n < len(usual.at("image").index[0])
        direct = processor.image_processor(
            [PICTURE],
            size={"shortest_edge": side**2, "longest_edge": n * side**2},
            return_tensors="pt",
        )
        assert torch.equal(found.inputs["pixel_values"], direct["pixel_values"])
        nested = model.prompt("<image>", images=PICTURE, processor_kwargs={"images_kwargs": told})
        assert torch.equal(nested.inputs["pixel_values"], found.inputs["pixel_values"])
        assert torch.isfinite(iv.run(model, found).logits).all()  # pyright: ignore
    again = model.prompt("<image>", images=PICTURE)
    assert torch.equal(again.inputs["pixel_values"], usual.inputs["pixel_values"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("idefics3", {"do_image_splitting": False}),
        ("smolvlm", {"do_image_splitting": False}),
        ("pixtral", {"size": {"longest_edge": 12}}),
        ("mistral3", {"size": {"longest_edge": 12}}),
        ("llava", {"do_center_crop": False, "size": {"height": 16, "width": 16}}),
        ("gemma3", {"do_normalize": False}),
        ("internvl", {"do_normalize": False}),
        ("mllama", {"do_normalize": False}),
    ],
)
def test_what_each_processor_can_be_told_changes_what_it_makes(name: str, told: Any) -> None:
    model = model_of(name)
    if name == "llava":
        side = model.module.config.vision_config.image_size
        told = {**told, "size": {"height": side, "width": side}}
    usual = model.prompt("<image>What?", images=PICTURE)
    found = model.prompt("<image>What?", images=[[PICTURE]], processor_kwargs=told)
    one, other = usual.inputs["pixel_values"], found.inputs["pixel_values"]
    assert one.shape != other.shape or not torch.equal(one, other)
    two = model.prompt("<image>or <image>", images=[PICTURE] * 2, processor_kwargs=told)
    assert torch.isfinite(iv.run(model, two).logits).all()  # pyright: ignore


@pytest.mark.parametrize("name", tiny.VLMS)
def test_what_a_processor_passes_over_is_refused(name: str) -> None:
    model = model_of(name)
    for told in (
        {"min_pixel": 9},
        {"padding": True},
        {"return_tensors": "np"},
        {"text_kwargs": {}},
    ):
        with pytest.raises(PromptError, match=r"does not use|is not to be changed"):
            model.prompt("<image>What?", images=PICTURE, processor_kwargs=told)
    if not name.startswith(("qwen", "glm")):  # these have an area between two
        with pytest.raises(PromptError, match="does not use 'max_pixels'"):
            model.prompt("<image>What?", images=PICTURE, processor_kwargs={"max_pixels": 9})
    with pytest.raises(PromptError, match="no row has an image"):
        model.prompt("What?", processor_kwargs={"size": 9})


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"min_pixels": 900, "max_pixels": 90}, "the first no larger than the second"),
        ({"max_pixels": None}, "max_pixels=None"),
        ({"min_pixels": None}, "min_pixels=None"),
        ({"max_pixels": "many"}, "whole numbers"),
        ({"max_pixels": 900, "size": {"shortest_edge": 9}}, "give either 'size'"),
        ({"do_resize": 3, "images_kwargs": {"do_resize": True}}, "given twice"),
        ({"size": "large"}, "cannot process"),
        ({"do_center_crop": True}, "does not use 'do_center_crop'"),
        (["max_pixels"], "processor_kwargs is .*Expected a Mapping"),
        ({"images_kwargs": 3}, "images_kwargs of processor_kwargs is 3"),
        ({5: 3}, "a name in processor_kwargs is 5"),
    ],
)
def test_sizes_that_cannot_be_are_refused(told: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        model_of("qwen2_5_vl").prompt("<image>", images=PICTURE, processor_kwargs=told)
    with pytest.raises(PromptError, match=r"no row has an image|processor_kwargs is"):
        model_of("llama").prompt("Hi", processor_kwargs=told)


def test_sizes_may_be_numbers_of_numpy() -> None:
    def made(kind: Any) -> torch.Tensor:
        told = {"max_pixels": kind(4_000), "min_pixels": kind(3_000)}
        prompt = model_of("qwen2_5_vl").prompt("<image>", images=PICTURE, processor_kwargs=told)
        return prompt.inputs["pixel_values"]

    for kind in (np.int64, np.uint16, torch.tensor):
        assert torch.equal(made(kind), made(int))


# The study's chats


@pytest.mark.parametrize("template", [real.DEEPSEEK_R1, real.QWEN3, real.QWEN3_OPEN])
def test_a_study_asks_with_the_think_block_closed(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = model_of("qwen2_5_vl").processor
    monkeypatch.setattr(processor, "chat_template", template)
    write = chat_template_of(processor, name="a model")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}]
    assert write(asked).endswith(EMPTY)
    assert "{image}\nWho?" in write(asked), "the template takes no image"
    assert end_of_turn(processor) == "<|im_end|>"


@pytest.mark.parametrize(
    ("says", "kept"),
    [
        ("<think>\nIt is red.\n\nSo</think>\n\nRome\nor", "Rome"),
        ("so</think> Rome\n", "Rome"),
        ("Rome\nor", "Rome"),
        ("<think>\nIt is\nred", ""),
    ],
)
def test_an_answer_is_read_behind_its_think_block(says: str, kept: str) -> None:
    module: Any
    module, tokenizer = tiny.build("llama")
    model = iv.load(module, tokenizer=tokenizer)
    prompt = model.prompt("What is the capital?")
    script = tokenizer(says, add_special_tokens=False)["input_ids"]
    steps = iter([*script, *[tokenizer.eos_token_id] * 9])

    def speak(_module: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(logits, -30.0)
        forced[..., next(steps)] = 30.0
        return forced

    with_script = module.get_output_embeddings().register_forward_hook(speak)
    decoding = Decoding(max_new_tokens=len(script) + 2, stop="\n", end=None)
    [answer] = answers(model, prompt, None, decoding)
    with_script.remove()
    assert answer["text"] == kept


def test_a_study_is_told_what_its_template_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = model_of("llava").processor
    monkeypatch.setattr(processor, "chat_template", "{{ raise_exception('Not today') }}")
    write = chat_template_of(processor, name="a model")
    with pytest.raises(PromptError, match="a model refuses these messages: Not today"):
        write(CHAT)
