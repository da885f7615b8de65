"""Answers have the tokens that a tokenizer gives them where they stand behind a prompt."""

from collections.abc import Sequence

import pytest
import tiny
from families import model_of

import interventions as iv
from interventions.errors import PromptError
from interventions.prompt.answer_tokens import candidate_ids, spaced, token_ids
from interventions.running.forced_choice import choose_by
from interventions.sweeping.metrics import target

ANSWERS = ("Paris", "the Hague", "42 people", "Île-de-France")
TURN = ({"role": "user", "content": "What is the capital of France?"},)
SPACED = {"llama2": True, "llama3": False, "tekken": False, "qwen": False, "gemma": False}
ONE_OF_EACH = {"vicuna": "llama2", "llama": "llama3", "mistral": "tekken", "qwen2": "qwen"} | {
    "gemma3_text": "gemma",
    "llava": "llama2",
    "pixtral": "tekken",
    "qwen2_5_vl": "qwen",
    "gemma3": "gemma",
    "mllama": "llama3",
}


def behind(model: iv.Model, text: str, answers: Sequence[str], *, gap: str) -> list[list[int]]:
    """What the tokenizer makes of prompt and answer together, without the prompt."""
    before = model.tokenizer(text)["input_ids"]
    found = []
    for answer in answers:
        whole = model.tokenizer(f"{text}{gap}{answer}")["input_ids"]
        assert whole[: len(before)] == before
        found.append(whole[len(before) :])
    return found


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_behind_a_chats_header_an_answer_is_what_the_tokenizer_writes(family: str) -> None:
    model = model_of(family)
    text = model.prompt([list(TURN)]).texts[0].rstrip(" ")
    prompt = model.prompt(text)
    space = SPACED[model.module.config.tiny_style]
    assert spaced(model, prompt) == space
    expected = behind(model, text, ANSWERS, gap=" " if space else "")
    assert candidate_ids(model, ANSWERS, space=space) == expected
    assert token_ids(model, ANSWERS, space=space) == expected
    assert target(model, prompt, ANSWERS[1]).answers == [expected[1]]
    assert model.tokenizer.decode(expected[0]).strip() == "Paris"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_behind_a_question_frame_an_answer_has_a_space(family: str) -> None:
    model = model_of(family)
    text = "Question: What is the capital of France?\nAnswer:"
    prompt = model.prompt(text)
    assert spaced(model, prompt)
    assert candidate_ids(model, ANSWERS) == behind(model, text, ANSWERS, gap=" ")
    assert token_ids(model, [" Paris"]) == token_ids(model, ["Paris"])


def test_rows_that_end_in_both_ways_are_refused() -> None:
    model = model_of("qwen2")
    prompt = model.prompt(["What is it? A:", "What is it?\n"])
    with pytest.raises(PromptError, match="row 1 of the prompt ends in white space"):
        spaced(model, prompt)
    with pytest.raises(PromptError, match="prompts of their own"):
        target(model, prompt, "Paris")


def test_an_image_at_the_end_is_followed_by_a_space() -> None:
    vlm = model_of("qwen2_5_vl")
    prompt = vlm.prompt(f"This is {vlm.image_token}", images=tiny.picture((40, 30)))
    assert spaced(vlm, prompt)


def test_the_mark_that_ends_a_turn_ends_a_candidate() -> None:
    model = model_of("qwen2")
    prompt = model.prompt([list(TURN)])
    [short, long] = candidate_ids(model, ["Paris", "Paris Rome"], stop="<|im_end|>", space=False)
    assert short[-1] == model.tokenizer.eos_token_id != long[-1]
    asked = iv.complete(
        model, prompt, candidates=["Paris", "Paris Rome"], stop="\n", end="<|im_end|>"
    )
    prefill = iv.run(model, prompt, keep_cache=True)
    assert asked.logprobs == choose_by(model, prefill, [short, long]).scores.amax(-1).tolist()
