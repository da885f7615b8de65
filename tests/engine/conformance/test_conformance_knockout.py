"""Cut edges of every family, as cells of a replay: each is a plain run whose scores we mask."""

from typing import Any

import numpy as np
import pytest
import torch
from families import Case, arguments_of, attending, case_of, raw_run
from floors import FLOOR32, FLOOR64, relative
from raw_attention import without_edges

import interventions as iv
from interventions.running.complete import following
from interventions.sweeping.metrics import target

ANSWERS = ["Paris", "the big river"]


def hidden_edges(
    case: Case,
    length: int,
    queries: list[list[int]],
    keys: list[list[int]],
    heads: list[int] | None,
) -> torch.Tensor:
    """True at what is cut, [row, head, query, key]: written with loops."""
    n_heads = case.model.anatomy.n_heads
    hidden = torch.zeros(len(queries), n_heads, length, length, dtype=torch.bool)
    for row, (sinks, sources) in enumerate(zip(queries, keys, strict=True)):
        for head in range(n_heads) if heads is None else heads:
            for sink in sinks:
                for source in sources:
                    if sink != source:
                        hidden[row, head, sink, source] = True
    return hidden


def off(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def routes_of(case: Case) -> dict[str, tuple[str, str]]:
    pictures = any("image" in roles for roles in case.prompt.roles)
    routes = {"entity -> last": ("entity", "last"), "entity -> entity": ("entity", "entity")}
    if pictures:
        routes |= {"image -> entity": ("image", "entity"), "image -> answer": ("image", "answer")}
    return routes


def expected_logprobs(
    case: Case, cuts: dict[int, list[int] | None], queries: str, keys: str
) -> np.ndarray:
    """Log-probability of the whole answers, from one plain run."""
    asked = target(case.model, case.prompt, ANSWERS)
    scored = following(case.prompt, asked.answers, pad_id=asked.pad_id, token_type=asked.token_type)
    sinks = [roles[queries] for roles in scored.roles]
    sources = [roles[keys] for roles in scored.roles]
    hidden = {
        layer: hidden_edges(case, scored.length, sinks, sources, heads)
        for layer, heads in cuts.items()
    }
    logits = without_edges(case, hidden, arguments_of(scored)).log_softmax(-1)
    return np.array(
        [
            sum(
                float(logits[row, position, token])
                for position, token in zip(scored.roles[row]["answer"], tokens, strict=True)
            )
            for row, tokens in enumerate(asked.answers)
        ]
    )


def test_every_window_and_route_is_one_plain_run(case: Case) -> None:
    routes = routes_of(case)
    curves = iv.knockout_curves(case.model, case.prompt, list(routes), answers=ANSWERS, window=2)
    assert curves["logprob"].dims == ("item", "layer", "route")
    for first in (0, case.model.n_layers // 2, case.model.n_layers - 1):
        among = case.model.anatomy.self_blocks
        recurrent = [i for i in among if case.model.anatomy.parts[i].recurrent]
        window = [i for i in (first, first + 1) if i in among and i not in recurrent]
        for name, (keys, queries) in routes.items():
            ours = curves["logprob"].sel(layer=first, route=name).values
            if not window:
                assert np.isnan(ours).all()
                continue
            theirs = expected_logprobs(case, dict.fromkeys(window), queries, keys)
            assert off(ours, theirs) < FLOOR32


def test_heads_apart_and_sets_of_them_across_layers(case: Case) -> None:
    first, second = attending(case)[:2] if len(attending(case)) > 1 else attending(case) * 2
    route = ("entity -> last",)
    asked: dict[str, Any] = {"answers": ANSWERS, "layers": [first]}
    by_head = iv.knockout_curves(case.model, case.prompt, route, heads=[0, -1], **asked)
    n_heads = case.model.anatomy.n_heads
    assert by_head["head"].values.tolist() == [0, n_heads - 1]
    for head in by_head["head"].values.tolist():
        ours = by_head["logprob"].sel(layer=first, head=head, route=route[0]).values
        theirs = expected_logprobs(case, {first: [head]}, "last", "entity")
        assert off(ours, theirs) < FLOOR32
    sets = {"both": {first: [0, 1], second: None}, "one": [(second, 1)]}
    window = second - first + 1
    by_set = iv.knockout_curves(case.model, case.prompt, route, heads=sets, window=window, **asked)
    cuts: dict[str, dict[int, list[int] | None]] = {
        "both": {first: [0, 1]} | {second: None},
        "one": {second: [1]},
    }
    for name, by_layer in cuts.items():
        ours = by_set["logprob"].sel(layer=first, head_set=name, route=route[0]).values
        theirs = expected_logprobs(case, by_layer, "last", "entity")
        assert off(ours, theirs) < FLOOR32


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "gemma3_text", "qwen3_vl"])
def test_in_float64_cells_are_plain_runs_to_twelve_digits(name: str) -> None:
    case = case_of(name, torch.float64, "sdpa")
    last, entity, layers = case.prompt.at("last"), case.prompt.at("entity"), attending(case)
    cuts = [
        iv.Knockout(layers[:2], last, entity, heads=[1], keep_self=True),
        iv.Knockout(layers[1:], last, entity),
        iv.Knockout(layers[0], entity, entity, heads=[0, 1], keep_self=True),
    ]
    steer = iv.steering(layers[1], last, torch.ones(case.model.d_model), scale=0.1)
    cells = [[cuts[0]], [cuts[1]], [cuts[2], cuts[1]], [cuts[0], steer]]
    replayed = iv.replay(case.model, case.prompt, cells)
    ids = [[roles[role] for roles in case.prompt.roles] for role in ("last", "entity")]
    n = case.prompt.length
    at_last = {
        heads: hidden_edges(case, n, ids[0], ids[1], [*heads] or None) for heads in ((), (1,))
    }
    inside = hidden_edges(case, n, ids[1], ids[1], [0, 1])
    expected = [
        dict.fromkeys(layers[:2], at_last[1,]),
        dict.fromkeys(layers[1:], at_last[()]),
        {layers[0]: inside} | dict.fromkeys(layers[1:], at_last[()]),
    ]
    for found, hidden in zip(replayed[:, :, 0], expected, strict=False):
        theirs = without_edges(case, hidden, case.arguments)[:, -1]
        assert relative(found, theirs) < FLOOR64
    # With a patch beside the cut: the same as one run with both.
    both = iv.run(case.model, case.prompt, knockouts=[cuts[0]], patches=[steer]).logits
    assert both is not None
    assert relative(replayed[3, :, 0], both) < FLOOR64


def test_without_the_picture_of_blocks_apart_is_a_plain_run_whose_block_adds_nothing() -> None:
    case = case_of("mllama", torch.float64, "sdpa")
    curves = iv.knockout_curves(
        case.model, case.prompt, ["image -> last", "entity -> last"], answers=[[7], [9]], window=4
    )

    def nothing(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[:, -1] = 0
        return changed

    logits, _ = raw_run(case, edits=[("attn_out", 1, nothing), ("attn_out", 4, nothing)])
    theirs = logits[:, -1].log_softmax(-1)[[0, 1], [7, 9]].numpy()
    ours = curves["logprob"].sel(layer=1, route="image -> last").values
    assert np.abs(ours - theirs).max() < 1e-6  # kept as float32
    assert np.isnan(curves["logprob"].sel(layer=5, route="image -> last").values).all()
    assert np.isnan(curves["edges"].sel(route="image -> last").values).all()
