"""Metrics against their definitions, from plain logits and one token at a time."""

import math
from typing import Any

import pytest
import torch
from families import arguments_of, case_of
from floors import FLOOR32, FLOOR64, NAMES, relative

import interventions as iv
from interventions.errors import PromptError
from interventions.model.cache_names import cache_argument, returned_cache
from interventions.sweeping.metrics import METRICS, UNITS, Target, target


def logits_of(model: iv.Model, prompt: iv.Prompt, chosen: Target) -> torch.Tensor:
    scored = chosen.scored(prompt)
    found = iv.run(model, scored, logits=chosen.positions(scored)).logits
    assert found is not None
    return found


def token_by_token(model: iv.Model, prompt: iv.Prompt, answers: list[list[int]]) -> torch.Tensor:
    """Log-probabilities of answers, each row alone, one more token fed each time; plain torch."""
    found = []
    for row, tokens in enumerate(answers):
        ids = prompt.inputs["input_ids"][row][prompt.inputs["attention_mask"][row].bool()]
        total = 0.0
        for token in tokens:
            with torch.no_grad():
                logits = model.module(input_ids=ids[None]).logits[0, -1].double()
            total += float(logits.log_softmax(-1)[token])
            ids = torch.cat([ids, torch.tensor([token])])
        found.append(total)
    return torch.tensor(found)


def test_a_whole_answer_is_the_sum_over_its_tokens(llm: iv.Model, named: iv.Prompt) -> None:
    answers = ["the capital", NAMES[1], "of", "Question : What"]
    foils = [NAMES[2], "the", "is it the capital", "Answer"]
    chosen = target(llm, named, answers, foils)
    assert chosen.foils is not None
    assert len({len(one) for one in (*chosen.answers, *chosen.foils)}) > 1
    assert chosen.repeats == 2
    logits = logits_of(llm, named, chosen)
    logprob = token_by_token(llm, named, chosen.answers)
    against = token_by_token(llm, named, chosen.foils)
    assert relative(chosen.values("logprob", logits), logprob) < FLOOR32
    assert relative(chosen.values("logit_diff", logits), logprob - against) < FLOOR32


def test_answers_of_one_token_give_a_difference_of_logits(llm: iv.Model, named: iv.Prompt) -> None:
    chosen = target(llm, named, "Answer", "of")
    assert chosen.single
    assert chosen.repeats == 1
    assert chosen.foils is not None
    with torch.no_grad():
        plain = llm.module(**arguments_of(named)).logits[:, -1]
    one, other = chosen.answers[0][0], chosen.foils[0][0]
    found = chosen.values("logit_diff", logits_of(llm, named, chosen))
    assert relative(found, plain[:, one] - plain[:, other]) < FLOOR32


def test_metrics_of_the_next_token(llm: iv.Model, named: iv.Prompt) -> None:
    chosen = target(llm, named, ["the capital", NAMES[1], "of", "Answer"])
    logits = logits_of(llm, named, chosen)
    with torch.no_grad():
        clean = llm.module(**arguments_of(named)).logits[:, -1]
    changed = logits + 3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    changed[3] = logits[3]
    p = torch.distributions.Categorical(logits=clean)
    q = torch.distributions.Categorical(logits=changed[:, 0])
    expected = torch.distributions.kl_divergence(p, q)
    found = chosen.values("kl", changed, clean=clean)
    assert relative(found, expected) < FLOOR32
    assert found[3] < 1e-6 < found[:3].min()
    ranks = []
    for row in range(4):
        order = changed[row, 0].argsort(descending=True).tolist()
        ranks.append(order.index(chosen.answers[row][0]))
    assert chosen.values("rank", changed).tolist() == ranks
    top = [int(changed[row, 0].argmax()) != int(clean[row].argmax()) for row in range(4)]
    assert chosen.values("changed", changed, clean=clean).tolist() == top
    assert top[0] or top[1] or top[2]


def test_numbers_are_float32_or_wider() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        case = case_of("llama", dtype, "sdpa")
        chosen = target(case.model, case.prompt, "Paris", "the")
        logits = logits_of(case.model, case.prompt, chosen)
        wide = torch.promote_types(dtype, torch.float32)
        assert logits.dtype == wide
        assert chosen.values("logprob", logits).dtype == wide
        assert chosen.values("logit_diff", logits).dtype == wide


@pytest.mark.parametrize("name", ["llama", "gemma3", "paligemma", "mllama", "qwen2_vl"])
def test_answers_of_several_tokens_on_families_that_read_in_both_directions(name: str) -> None:
    """The answer's tokens must not be seen by the prompt that is read before them."""
    case = case_of(name, torch.float64, "sdpa")
    model, prompt = case.model, case.prompt
    chosen = target(model, prompt, ["the big river", "Paris"])
    assert len(chosen.answers[0]) > 1
    found = chosen.values("logprob", logits_of(model, prompt, chosen))
    for row, tokens in enumerate(chosen.answers):
        alone, _ = prompt.select([row]).trimmed()
        inputs: dict[str, Any] = {
            key: value.double() if value.is_floating_point() else value
            for key, value in arguments_of(alone).items()
        }
        with torch.no_grad():
            output = model.module(**inputs, use_cache=True)
        total, cache = 0.0, returned_cache(output)
        for i, token in enumerate(tokens):
            total += float(output.logits[0, -1].log_softmax(-1)[token])
            step: dict[str, Any] = {"input_ids": torch.tensor([[token]])}
            step["position_ids"] = inputs["position_ids"][..., -1:] + 1 + i
            if "cross_attention_mask" in inputs:
                step["cross_attention_mask"] = inputs["cross_attention_mask"][:, -1:]
            with torch.no_grad():
                step[cache_argument(model.module)] = cache
                output = model.module(**step, use_cache=True)
        assert math.isclose(float(found[row]), total, rel_tol=FLOOR64)


def test_every_metric_has_a_unit() -> None:
    assert set(UNITS) == set(METRICS)


@pytest.mark.parametrize(
    ("answers", "foils", "message"),
    [
        ("", None, r"answer of row\(s\) \[0, 1, 2, 3\] has no tokens \(''\)"),
        (["of", " ", "the", "is"], None, r"answer of row\(s\) \[1\] has no tokens"),
        (["of", "the"], None, "2 answers for 4 rows"),
        (["of", None, "the", "is"], None, "answer of row 1 is None, not a text"),
        ("of", "of", "begin with the same tokens"),
        ("the capital", "the", "begin with the same tokens"),
        ("of", ["the"], "1 foils for 4 rows"),
        ("of", "", "foil of row"),
    ],
)
def test_answers_that_cannot_be_scored(
    llm: iv.Model, named: iv.Prompt, answers: Any, foils: Any, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        target(llm, named, answers, foils)


def test_what_a_metric_needs_is_said(llm: iv.Model, named: iv.Prompt) -> None:
    chosen = target(llm, named, "of")
    logits = torch.zeros(4, 1, llm.anatomy.vocab)
    with pytest.raises(PromptError, match="give foils="):
        chosen.values("logit_diff", logits)
    for metric in ("kl", "changed"):
        with pytest.raises(PromptError, match="compares with the clean run"):
            chosen.values(metric, logits)
    with pytest.raises(PromptError, match="4 answers for 2 rows"):
        chosen.scored(named.select([0, 1]))


def test_an_answer_may_be_given_as_the_ids_of_its_tokens(llm: iv.Model) -> None:
    prompt = llm.prompt(["The capital of France is", "The capital of Spain is"])
    told = target(llm, prompt, ["the", "is"], "of")
    assert target(llm, prompt, told.answers, told.foils) == told
    assert target(llm, prompt, ["the", told.answers[1]], "of") == told
    refused: tuple[tuple[Any, str], ...] = (
        ([5, 6], "row 0 is 5, not a text or a list of token ids"),
        ([[5], [10**9]], "vocabulary"),
        ([[5], [0.5]], "integers"),
        ([[5], []], "no tokens"),
        ([[5], [[6]]], "a list of token ids"),
        ([[5, 6]], "1 answers for 2 rows"),
    )
    for wrong, said in refused:
        with pytest.raises(PromptError, match=said):
            target(llm, prompt, wrong)
