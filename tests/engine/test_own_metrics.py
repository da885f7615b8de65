"""Metrics of one's own: functions of logits and directions, in sweeps and attributions."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from families import Case, case_of, part, raw_run, set_at
from floors import FLOOR32, relative

import interventions as iv
from interventions.errors import InterventionsError, PromptError, ResultsError
from interventions.results import read_provenance
from interventions.sweeping.heatmap_data import chosen_map
from interventions.sweeping.own_metrics import UNKNOWN, metric_digest, metric_name

TOKENS = [3, 5, 8]


def margin(logits: torch.Tensor) -> torch.Tensor:
    """How far the likeliest token is above the second."""
    top = logits.topk(2).values
    return top[:, 0] - top[:, 1]


def entropy(logits: torch.Tensor) -> torch.Tensor:
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def among(logits: torch.Tensor, *, tokens: list[int]) -> torch.Tensor:
    return logits.log_softmax(-1)[:, tokens].logsumexp(-1)


def final_of(case: Case, edits: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Last logits and last residual stream of a plain run."""
    last = case.model.n_layers - 1
    logits, [final] = raw_run(case, edits=edits, reads=[("resid_post", last)])
    return logits[:, -1], final[:, -1]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_cells_and_slopes_of_any_metric_equal_plain_hooks(name: str) -> None:
    """In a sweep each cell; in an attribution, the slope along the source's change."""
    case = case_of(name)
    model, prompt = case.model, case.prompt
    other = prompt.select([1, 0])
    u = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    resid = iv.Direction(u, name="resid_u")
    over = iv.Direction(
        torch.randn(model.anatomy.vocab, generator=torch.Generator().manual_seed(1)),
        space="logits",
        name="logits_w",
    )
    layer = model.anatomy.self_blocks[1]
    swept = iv.sweep(
        model,
        prompt,
        other,
        metrics=[entropy, resid, over, "kl"],
        components=["mlp_out", "resid_post"],
        layers=[layer, model.n_layers - 1],
        roles=["entity[-1]", "last"],
        progress=False,
    )
    runs = {"clean": final_of(case, [])}
    for role in ("entity[-1]", "last"):
        place = case.place if role != "last" else prompt.at("last")
        site = iv.Site("resid_post", layer, place)
        [value] = iv.read(model, other, [iv.Site("resid_post", layer, _swapped(place))])
        assert site.positions is not None
        runs[role] = final_of(case, [("resid_post", layer, set_at(place, value))])
    for role, (logits, final) in runs.items():
        asked = "" if role != "clean" else "clean_"
        cell = swept if asked else swept.sel(component="resid_post", layer=layer, role=role)
        for named, theirs in (
            ("entropy", entropy(logits)),
            ("resid_u", final @ u),
            ("logits_w", logits @ over.vector),
        ):
            ours = torch.from_numpy(cell[f"{asked}{named}"].values.copy())
            assert relative(ours, theirs) < FLOOR32, (role, named)
    assert swept["entropy"].attrs["units"] == "as entropy gives it"
    assert {"source_entropy", "source_resid_u"} <= {*swept.data_vars}
    assert "source_kl" not in swept


def with_gradients(case: Case, layer: int, leaf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Last logits and last residual stream, as functions of a block's result at the last token."""
    kept: list[torch.Tensor] = []

    def write(_module: Any, _args: Any, out: Any) -> Any:
        old = out[0] if isinstance(out, tuple) else out
        new = torch.cat([old[:, :-1].detach(), leaf[:, None]], 1)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    def keep(_module: Any, _args: Any, out: Any) -> None:
        kept.append(out[0] if isinstance(out, tuple) else out)

    last = case.model.n_layers - 1
    handles = [
        part(case.name, case.model.module, "resid_post", layer).register_forward_hook(write),
        part(case.name, case.model.module, "resid_post", last).register_forward_hook(keep),
    ]
    try:
        logits = case.model.module(**case.arguments).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits[:, -1], kept[0][:, -1]


def _swapped(place: iv.Positions) -> iv.Positions:
    return place.rows([1, 0])


@pytest.mark.parametrize("name", ["llama", "qwen2_5_vl", "gemma3", "mllama", "llava"])
@pytest.mark.parametrize("which", ["entropy", "resid", "logits"])
def test_slopes_are_those_of_autograd(name: str, which: str) -> None:
    case = case_of(name, torch.float64, "sdpa")
    model, prompt = case.model, case.prompt
    other = prompt.select([1, 0])
    u = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.randn(model.anatomy.vocab, generator=torch.Generator().manual_seed(1)).double()
    metric: Any = {
        "entropy": entropy,
        "resid": iv.Direction(u),
        "logits": iv.Direction(w, "logits"),
    }
    layer = model.anatomy.self_blocks[1]
    scores = iv.attribute(
        model,
        prompt,
        other,
        metric=metric[which],
        components=["resid_post"],
        layers=[layer],
        roles=["last"],
        verify=False,
    )
    site = iv.Site("resid_post", layer, prompt.at("last"))
    [here] = iv.read(model, prompt, [site])
    [there] = iv.read(model, other, [iv.Site("resid_post", layer, other.at("last"))])
    leaf = here.clone().requires_grad_()
    logits, final = with_gradients(case, layer, leaf)
    values = {"entropy": entropy(logits), "resid": final @ u, "logits": logits @ w}[which]
    [slope] = torch.autograd.grad(values.sum(), leaf)
    expected = ((there - here) * slope).sum(-1)
    ours = torch.from_numpy(scores["score"].values[:, 0, 0, 0].copy())
    assert relative(ours, expected) < FLOOR32
    named = "entropy" if which == "entropy" else "projection"
    assert scores.attrs["metric"] == named
    assert read_provenance(scores)["settings"]["metric"] == named


def test_verify_takes_the_metric_again_and_no_other() -> None:
    case = case_of("llama", torch.float64, "sdpa")
    model, prompt = case.model, case.prompt
    asked: Any = {"components": ["mlp_out"], "layers": [1, 2], "roles": ["last"]}
    other = prompt.select([1, 0])
    tokens = TOKENS

    def mass(logits: torch.Tensor) -> torch.Tensor:
        return among(logits, tokens=tokens)

    at_once = iv.attribute(model, prompt, other, metric=mass, verify=2, **asked)
    scores = iv.attribute(model, prompt, other, metric=mass, verify=False, **asked)
    later = iv.verify(model, scores, prompt, other, metric=mass, k=2)
    assert np.array_equal(later["checked_effect"], at_once["checked_effect"])
    with pytest.raises(ResultsError, match="no metric was given"):
        iv.verify(model, scores, prompt, other)
    with pytest.raises(ResultsError, match="'entropy' was given"):
        iv.verify(model, scores, prompt, other, metric=entropy)
    tokens = [1, 2]
    with pytest.raises(ResultsError, match="foils or metric"):
        iv.verify(model, scores, prompt, other, metric=mass)


def test_a_sweep_is_not_gone_on_with_by_another_function(tmp_path: Path) -> None:
    case = case_of("llama")
    asked: Any = {"roles": ["last"], "layers": [1], "progress": False}

    def swept(metric: Any) -> Any:
        return iv.sweep(case.model, case.prompt, 0.0, metrics=metric, out=tmp_path / "s", **asked)

    k = 3
    first = swept(lambda logits: logits[:, k])
    before = case.model.requests
    again = swept(lambda logits: logits[:, k])
    assert np.array_equal(first["lambda"], again["lambda"])
    assert before == case.model.requests
    k = 4
    with pytest.raises(ResultsError, match=r"metric_code\.lambda"):
        swept(lambda logits: logits[:, k])

    class Holder:
        token = 3

    held = Holder()
    with pytest.raises(PromptError, match="cannot be told whether it is the same"):
        swept(lambda logits: logits[:, held.token])


HELD: Any = object()


def through_another(logits: torch.Tensor) -> torch.Tensor:
    return uses_what_is_unknown(logits)


def uses_what_is_unknown(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0] * (HELD is not None)


def test_digests_tell_functions_apart() -> None:
    assert metric_digest(entropy) != metric_digest(margin)
    assert metric_digest(partial(among, tokens=[1])) != metric_digest(partial(among, tokens=[2]))
    assert metric_name(partial(among, tokens=[1])) == "among"
    assert metric_digest(through_another) == UNKNOWN
    vectors = [iv.Direction(torch.ones(4) * k) for k in (1, 1, 2)]
    one, same, other = (metric_digest(vector) for vector in vectors)
    assert one == same != other


@pytest.mark.parametrize(
    ("metric", "what"),
    [
        (lambda logits: logits, r"gave a tensor \[3, 109\].*Expected a number for each row"),
        (lambda logits: logits.mean(), r"gave a tensor \[\]"),
        (lambda logits: float(logits[0, 0]), "Expected a tensor"),
        (lambda logits: logits[:, 0] / 0, "is not finite in 3 of 3 rows"),
        (lambda logits: logits[:, 200], "failed on logits.*IndexError"),
        (lambda logits: logits[:, 0] - logits[:, 0].mean(), "beside other rows"),
        (lambda logits: logits[:, 0] * torch.arange(len(logits)), "beside other rows"),
        (iv.Direction(torch.ones(5)), "has 5 numbers. Expected 64: d_model"),
        (iv.Direction(torch.ones(64), "logits"), "Expected 109: the vocabulary"),
        (iv.Direction(torch.ones(64), name="layer"), "cannot be called 'layer'"),
        (["kl", iv.Direction(torch.ones(64), name="kl")], "names one twice"),
        ([entropy, entropy], "names one twice: entropy"),
        (iv.Direction(torch.ones(64), name="rank"), "the name of another metric"),
        ("logprob", "of an answer: give answers="),
        (3, "metric"),
    ],
)
def test_what_is_no_metric_is_refused(
    metric: Any, what: str, llm: iv.Model, named: iv.Prompt
) -> None:
    with pytest.raises(PromptError, match=what):
        iv.sweep(llm, named, 0.0, metrics=metric, roles=["last"])


def test_what_has_no_gradient_is_not_attributed(llm: iv.Model, named: iv.Prompt) -> None:
    other = named.select([1, 0, 3, 2])
    for metric in (lambda logits: logits.argmax(-1).float(), lambda logits: logits[:, 0].detach()):
        with pytest.raises(PromptError, match="has no gradient"):
            iv.attribute(llm, named, other, metric=metric, roles=["last"])
    with pytest.raises(PromptError, match="not finite"):
        iv.sweep(llm, named, 0.0, metrics=lambda logits: (logits[:, 0] - 99).log(), roles=["last"])


@pytest.mark.parametrize(
    "asked",
    [
        {"vector": torch.ones(2, 2)},
        {"vector": torch.tensor([torch.nan])},
        {"vector": torch.ones(2), "space": "head"},
        {"vector": "north"},
    ],
)
def test_what_is_no_direction_is_refused(asked: Any) -> None:
    with pytest.raises(InterventionsError, match=r"vector|space"):
        iv.Direction(**asked)


def test_a_map_of_any_metric_is_of_its_change() -> None:
    case = case_of("llama")
    swept = iv.sweep(
        case.model, case.prompt, 0.0, metrics=[entropy, "kl"], roles=["last"], progress=False
    )
    change, _ = chosen_map(swept, "entropy")
    assert change.name == "change of entropy"
    assert np.allclose(change, swept["entropy"] - swept["clean_entropy"])
    assert chosen_map(swept, "kl")[0].name == "kl"


def test_a_metric_that_writes_in_place_leaves_the_others_alone(llm: iv.Model) -> None:
    def among(logits: torch.Tensor) -> torch.Tensor:
        logits[:, 60:] = -1e9
        return logits.log_softmax(-1)[:, 51]

    prompt = llm.prompt(["Question : What is the capital of Avaria ? Answer :"])
    where: Any = {"roles": ["last"], "layers": [3], "components": ["mlp_out"]}
    plain: Any = ["logprob", "kl"]
    alone = iv.sweep(llm, prompt, 0.0, answers="Marlow", metrics=plain, **where)
    for metrics in ([among, *plain], [*plain, among]):
        beside = iv.sweep(llm, prompt, 0.0, answers="Marlow", metrics=metrics, **where)
        for name in ("logprob", "clean_logprob", "kl"):
            assert np.array_equal(beside[name].values, alone[name].values)


@pytest.mark.parametrize("name", ["clean_logprob", "change_logprob", "route", "cluster", "edges"])
def test_names_that_results_have_are_refused(llm: iv.Model, name: str) -> None:
    prompt = llm.prompt(["Question : What is the capital of Avaria ? Answer :"])
    metric = iv.Direction(torch.ones(llm.d_model), name=name)
    with pytest.raises(PromptError, match="cannot be called"):
        iv.knockout_curves(llm, prompt, ["question -> last"], metrics=[metric])


def test_a_direction_beside_answers_of_several_lengths(llm: iv.Model) -> None:
    question = "Question : What is the capital of Avaria ? Answer :"
    towards = iv.Direction(torch.ones(llm.d_model), name="towards")
    where: Any = {"roles": ["last"], "layers": [3], "components": ["mlp_out"]}
    both = iv.sweep(
        llm,
        llm.prompt([question] * 2),
        0.0,
        answers=["Marlow", "Quenlo City"],
        metrics=["logprob", towards],
        **where,
    )
    alone = iv.sweep(llm, llm.prompt([question]), 0.0, metrics=towards, **where)
    for row in range(2):
        assert abs(float(both["towards"][row].squeeze()) - float(alone["towards"].squeeze())) < 1e-4
