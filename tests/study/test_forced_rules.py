"""The forced choice under its rules, against plain PyTorch; and what was cut."""

import numpy as np
import pytest
import torch
from floors import relative
from hypothesis import given, settings
from hypothesis import strategies as st

import interventions as iv
from interventions.errors import PromptError
from interventions.prompt.answer_tokens import candidate_ids
from interventions.running.forced_choice import RULES, choose_by
from twohop.micro.world import answers

CITIES = list(answers("capital"))
UNLIKE = ["Quenlo", "Quenlo City", "Port", "Port Mira", "Tessin", "Marlow", "Avaria"]
"""Of one and of two tokens, some beginning another, some sharing a beginning."""


def scored(model: iv.Model, text: str, ids: list[list[int]]) -> torch.Tensor:
    """Log-probability of each candidate, each by a forward pass of its own."""
    asked = model.tokenizer(text)["input_ids"]
    scores = []
    for tokens in ids:
        with torch.no_grad():
            logits = model.module(torch.tensor([asked + tokens])).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[len(asked) - 1 + i, t]) for i, t in enumerate(tokens)))
    return torch.tensor(scores)


def expected(scores: torch.Tensor, ids: list[list[int]], prior: torch.Tensor) -> dict[str, int]:
    lengths = torch.tensor([len(tokens) for tokens in ids])
    by_rule = {"sum": scores, "per_token": scores / lengths, "prior_corrected": scores - prior}
    return {rule: int(values.argmax()) for rule, values in by_rule.items()}


@pytest.mark.parametrize("candidates", [CITIES, UNLIKE], ids=["cities", "unlike"])
@pytest.mark.parametrize("every", [True, False])
def test_every_rule_is_that_of_trying_all(
    llm: iv.Model, named: iv.Prompt, candidates: list[str], every: bool
) -> None:
    ids = candidate_ids(llm, candidates, stop=" .")
    assert {len(tokens) for tokens in ids} > {1}
    unnamed = "Question : What is the capital of it ? Answer :"
    anyway = iv.complete(
        llm, llm.prompt(unnamed), candidates=candidates, every_score=True, stop=" ."
    )
    prior = scored(llm, unnamed, ids)
    assert relative(torch.tensor(anyway.scores[0]), prior) < 1e-4
    assert anyway.lengths == [len(tokens) for tokens in ids]
    found = iv.complete(
        llm,
        named,
        candidates=candidates,
        rules=RULES,
        prior=anyway.scores[0],
        every_score=every,
        stop=" .",
        batch_rows=3,
    )
    assert found.choices == found.choices_by["sum"]
    for row, text in enumerate(named.texts):
        scores = scored(llm, text, ids)
        best = expected(scores, ids, prior)
        assert {rule: some[row] for rule, some in found.choices_by.items()} == best
        assert found.logprobs[row] == pytest.approx(float(scores.max()), rel=1e-4)
        if every:
            assert relative(torch.tensor(found.scores[row]), scores) < 1e-4
    assert len(found.scores) == (len(named) if every else 0)
    by_row = iv.complete(
        llm, named, candidates=candidates, rules=["prior_corrected"], stop=" .", batch_rows=3,
        prior=[anyway.scores[0]] * len(named),
    )  # fmt: skip
    assert by_row.choices == found.choices_by["prior_corrected"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rules_on_any_candidates_and_priors(llm: iv.Model, data: st.DataObject) -> None:
    """Candidates of any tokens, none twice; a prior that turns the order about."""
    words = st.lists(st.integers(5, 12), min_size=1, max_size=4).map(tuple)
    ids = [list(one) for one in data.draw(st.lists(words, min_size=1, max_size=12, unique=True))]
    # One that begins another is given an end, as candidate_ids does.
    begins = [any(b != a and b[: len(a)] == a for b in ids) for a in ids]
    ids = [[*one, 4] if more else one for one, more in zip(ids, begins, strict=True)]
    if len({tuple(one) for one in ids}) < len(ids):
        return
    prior = torch.tensor(
        data.draw(st.lists(st.floats(-30, 0), min_size=len(ids), max_size=len(ids)))
    )
    text = "Question : What is the capital of Avaria ? Answer :"
    prefill = iv.run(llm, llm.prompt(text), keep_cache=True)
    found = choose_by(llm, prefill, ids, rules=RULES, prior=prior)
    scores = scored(llm, text, ids)
    lengths = torch.tensor([len(one) for one in ids])
    for rule, values in {
        "sum": scores,
        "per_token": scores / lengths,
        "prior_corrected": scores - prior,
    }.items():
        chosen = values[found.choices[rule][0]]
        assert chosen >= values.max() - 1e-4 * values.abs().max()


def test_of_equal_candidates_the_first_is_chosen(llm: iv.Model, named: iv.Prompt) -> None:
    own = iv.complete(llm, named, candidates=CITIES, every_score=True, stop=" .")
    same = iv.complete(
        llm, named, candidates=CITIES, rules=["prior_corrected"], prior=own.scores,
        every_score=True, stop=" .",
    )  # fmt: skip
    assert same.choices == [0] * len(named), "nothing is gained over itself"


def test_a_text_at_the_limit_before_its_end_was_cut(llm: iv.Model, named: iv.Prompt) -> None:
    whole = iv.complete(llm, named, stop=" .", max_new_tokens=8)
    assert whole.cut == [False] * 4
    short = iv.complete(llm, named, stop=" .", max_new_tokens=1)
    assert short.cut == [True] * 4, "the stop was not reached"
    assert short.choices_by == {}
    assert short.lengths == short.scores == []
    exactly = max(len(llm.tokenizer(f" {text} .", add_special_tokens=False)["input_ids"])
                  for text in whole.texts)  # fmt: skip
    assert iv.complete(llm, named, stop=" .", max_new_tokens=exactly).cut == [False] * 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"candidates": CITIES, "rules": ["mean"]}, "no rule 'mean'"),
        ({"candidates": CITIES, "rules": []}, "no rule to choose by"),
        ({"candidates": CITIES, "rules": ["prior_corrected"]}, "takes each candidate's"),
        (
            {"candidates": CITIES, "rules": ["prior_corrected"], "prior": [0.0]},
            "has shape .1., exp",
        ),
        ({"candidates": CITIES, "prior": [[0.0]] * 3}, "has shape .3, 1., and the prompt 4 rows"),
        ({"candidates": CITIES, "prior": [[0.0], [0.0, 1.0]]}, "no table of numbers"),
        ({"candidates": CITIES, "prior": "high"}, "no table of numbers"),
        (
            {"candidates": CITIES[:2], "rules": ["prior_corrected"], "prior": [0.0, float("-inf")]},
            "not finite",
        ),
        ({"prior": [0.0]}, "are of candidates"),
        ({"every_score": True}, "are of candidates"),
    ],
)
def test_rules_and_priors_that_do_not_fit(
    llm: iv.Model, named: iv.Prompt, given: dict[str, object], said: str
) -> None:
    with pytest.raises(PromptError, match=said):
        iv.complete(llm, named, stop=" .", **given)  # pyright: ignore[reportArgumentType]


def test_choices_by_rule_in_a_study() -> None:
    from twohop.ask.study import text_prompt
    from twohop.running.pair_run import Settings
    from twohop.running.study import study_of
    from twohop.stages.run import run_stages

    study = study_of("micro-aligned", Settings(limit=6))
    gates = run_stages(["recall"], study)["recall"]
    assert list(gates["rule"].values) == ["sum", "per_token", "prior_corrected"]
    assert gates.attrs["forced_default"] == "sum"
    by_sum = gates["forced_choice"].sel(rule="sum")
    assert (by_sum == gates["choice"]).all()
    for gate in ("backbone_text", "vlm_text", "vlm_image", "vlm_blank"):
        assert (
            gates["forced_right"].sel(rule="sum", gate=gate) == gates["choice_right"].sel(gate=gate)
        ).all()
    corrected = gates["forced_choice"].sel(rule="prior_corrected")
    assert (corrected.sel(gate=["recognised", "vlm_blank"]) == "").all()
    assert not gates["forced_right"].sel(rule="prior_corrected", gate="vlm_blank").any()

    bench, model = study.benchmark, study.backbone
    for i, item in enumerate(bench.items):
        template, candidates = bench.templates[item.relation], bench.answer_set(item.relation)
        ids = candidate_ids(model, candidates, stop=bench.stop)
        asked = text_prompt(model, template, [item.entity], share_prefix=False).texts[0]
        prior = scored(model, template.fill_with_nothing(), ids)
        best = expected(scored(model, asked, ids), ids, prior)
        here = gates["forced_choice"].sel(gate="backbone_text").isel(item=i)
        for rule, chosen in best.items():
            assert here.sel(rule=rule).item() == candidates[chosen]

    size = bench.view(bench.items[0].entity.code, 0).size
    vlm = study.vlm
    for relation in bench.relations:
        rows = [i for i, item in enumerate(bench.items) if item.relation == relation]
        template, candidates = bench.templates[relation], bench.answer_set(relation)

        def every(
            pictures: list[object], *, template=template, candidates=candidates
        ) -> np.ndarray:
            prompt = vlm.prompt(
                [template.show(vlm.image_token or "")] * len(pictures), images=pictures
            )
            found = iv.complete(
                vlm, prompt, candidates=candidates, every_score=True, stop=bench.stop
            )
            return np.array(found.scores)

        shown = every([bench.view(bench.items[i].entity.code, 0) for i in rows])
        chosen = (shown - every([bench.blank().resize(size)])).argmax(-1)
        here = gates["forced_choice"].sel(gate="vlm_image", rule="prior_corrected").values[rows]
        assert here.tolist() == [candidates[one] for one in chosen]
