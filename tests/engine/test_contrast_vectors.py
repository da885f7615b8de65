"""Steering vectors by contrast: against means taken by hand, and plain hooks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from families import arguments_of, model_of, part, sees
from floors import FLOOR32, relative
from sklearn.metrics import roc_auc_score

import interventions as iv
from interventions.directions.separation import auc, split
from interventions.errors import PatchError, PromptError, RoleError, SiteError
from interventions.results import read_provenance

N = 14
WORDS = ["river", "town", "north", "capital", "mayor", "big", "first"]


def prompts_of(name: str) -> tuple[iv.Model, iv.Prompt, iv.Prompt]:
    """Two sets of prompts of different lengths, with pictures where there are eyes."""
    model = model_of(name, attn="eager")
    sides = []
    for lead in ("is it", "what of"):
        words = [f"{lead} the {WORDS[i % 7]}{' to France' * (i % 3)}" for i in range(N)]
        shown = model.image_token if sees(name) else ""
        pictures = [tiny.picture((24, 24), seed=i) for i in range(N)] if shown else None
        sides.append(model.prompt([f"{shown}{text}" for text in words], images=pictures))
    return model, sides[0], sides[1]


def steered_by_hand(
    model: iv.Model, name: str, prompt: iv.Prompt, layer: int, vector: torch.Tensor
) -> torch.Tensor:
    """Last logits [row, vocab] with a vector added to a block's result at the last token."""

    def add(_module: Any, _args: Any, out: Any) -> Any:
        new = (out[0] if isinstance(out, tuple) else out).clone()
        new[:, -1] += vector
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = part(name, model.module, "resid_post", layer).register_forward_hook(add)
    try:
        with torch.no_grad():
            return model.module(**arguments_of(prompt)).logits[:, -1]
    finally:
        handle.remove()


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_vectors_and_effects_equal_plain_hooks(name: str) -> None:
    model, positive, negative = prompts_of(name)
    layers = [model.anatomy.self_blocks[1], model.n_layers - 1]
    token = 7
    vectors = iv.contrast_vectors(
        model,
        positive,
        negative,
        layers=layers,
        metric=lambda logits: logits[:, token],
        controls=3,
        scale=2.0,
    )
    out = vectors["held_out_negative"].values
    assert np.array_equal(out, vectors["held_out_positive"].values), "rows side by side"
    fitted = np.setdiff1d(np.arange(N), out)
    for layer in layers:
        means = [
            iv.read(model, side, [iv.Site("resid_post", layer, side.at("last"))])[0][fitted].mean(0)
            for side in (positive, negative)
        ]
        vector = torch.from_numpy(vectors["vector"].sel(layer=layer).values)
        assert relative(vector, means[0] - means[1]) < FLOOR32
    rows = negative.select(out.tolist())
    plain = steered_by_hand(model, name, rows, layers[0], torch.zeros(model.d_model))[:, token]
    assert float(vectors["baseline"]) == pytest.approx(float(plain.mean()), abs=1e-4)
    for layer in layers:
        vector = torch.from_numpy(vectors["vector"].sel(layer=layer).values)
        changed = steered_by_hand(model, name, rows, layer, 2 * vector)[:, token]
        at = vectors.sel(layer=layer)
        assert float(at["effect"]) == pytest.approx(float((changed - plain).mean()), abs=2e-4)
        assert float(at["effect_low"]) <= float(at["effect"]) <= float(at["effect_high"])
        assert float(at["norm"]) == pytest.approx(float(vector.norm()), rel=1e-5)


def test_separation_is_that_of_the_projections_held_out() -> None:
    model, positive, negative = prompts_of("llama")
    vectors = iv.contrast_vectors(model, positive, negative, layers=[2])
    [vector] = torch.from_numpy(vectors["vector"].values)
    scores = []
    for side, name in ((positive, "positive"), (negative, "negative")):
        rows = side.select(vectors[f"held_out_{name}"].values.tolist())
        [value] = iv.read(model, rows, [iv.Site("resid_post", 2, rows.at("last"))])
        scores.append((value @ vector).numpy())
    labels = [1] * len(scores[0]) + [0] * len(scores[1])
    expected = roc_auc_score(labels, np.concatenate(scores))
    assert float(vectors["auc"][0]) == pytest.approx(expected)
    assert float(vectors["auc_low"][0]) <= expected <= float(vectors["auc_high"][0])
    assert "effect" not in vectors


def test_a_direction_that_is_there_beats_its_controls_and_one_that_is_not_does_not() -> None:
    """Controls are as long as the vector; noise for a vector is one of them."""
    model, positive, negative = prompts_of("llama")
    last = model.n_layers - 1
    weight = model.module.get_output_embeddings().weight.detach()
    towards = iv.Direction(weight[7], name="towards")
    vectors = iv.contrast_vectors(
        model, positive, negative, layers=[last], metric=towards, controls=200
    )
    effect, controls = float(vectors["effect"][0]), vectors["control_effect"].values[0]
    vector = vectors["vector"].values[0]
    assert effect == pytest.approx(float(vector @ weight[7].numpy()), rel=1e-3)
    expected = float(vectors["norm"][0]) * float(weight[7].norm()) / model.d_model**0.5
    assert controls.std() == pytest.approx(expected, rel=0.25), "drawn evenly, and as long"
    assert abs(controls.mean()) < 4 * expected / 200**0.5
    assert float(vectors["p_control"][0]) == pytest.approx(
        (1 + (np.abs(controls) >= abs(effect)).sum()) / 201
    )
    low, high = np.quantile(controls, (0.025, 0.975))
    assert vectors["control_low"].values[0] == pytest.approx(low)
    assert vectors["control_high"].values[0] == pytest.approx(high)


def test_steering_takes_what_was_found_also_back_from_disk(tmp_path: Path) -> None:
    model, positive, negative = prompts_of("llama")
    vectors = iv.contrast_vectors(model, positive, negative, component="mlp_out", layers=[1, 3])
    vectors.to_netcdf(tmp_path / "vectors.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "vectors.nc", engine="h5netcdf") as stored:
        again = stored.load()
    at = negative.at("last")
    for given in (vectors, again):
        single = iv.steering(3, at, given, scale=2.0, steps="all")
        assert (single.component, single.layers, single.mode) == ("mlp_out", 3, "add")
        assert torch.equal(single.value, 2 * torch.from_numpy(vectors["vector"].values[1]))
        both = iv.steering([3, 1], at, given)
        assert torch.equal(both.value, torch.from_numpy(vectors["vector"].values[[1, 0]]))
        assert iv.steering(slice(1, 4, 2), at, given).layers == [1, 3]
        run = iv.run(model, negative, patches=[both])
        assert run.logits is not None
        assert iv.complete(model, negative, patches=[single], max_new_tokens=2).texts
    with pytest.raises(PatchError, match=r"layer\(s\) \[2\]. There are some of \[1, 3\]"):
        iv.steering(2, at, vectors)
    with pytest.raises(PatchError, match="holds no steering vectors"):
        iv.steering(2, at, xr.Dataset())
    record = read_provenance(again)
    assert record["settings"]["component"] == "mlp_out"
    assert record["seed"] == 0


@pytest.mark.parametrize(
    ("asked", "error", "what"),
    [
        ({"held_out": 0.1}, PromptError, "Expected 4 of each at the least: 35 prompts"),
        ({"held_out": 0.9}, PromptError, "Expected 4 of each at the least"),
        ({"held_out": 1.0}, PromptError, "above 0, below 1"),
        ({"component": "head_out"}, SiteError, "adds up to the residual stream"),
        ({"role": "question"}, SiteError, "one token per row"),
        ({"role": "entity", "index": -1}, RoleError, "entity"),
        ({"answers": "Paris"}, PromptError, "give metric= too"),
        ({"metric": "logprob"}, PromptError, "give answers="),
        ({"metric": lambda logits: logits.mean()}, PromptError, "number for each row"),
        ({"controls": 1}, PromptError, "controls"),
        ({"layers": 99}, SiteError, "no layer 99"),
    ],
)
def test_what_cannot_be_is_refused(asked: Any, error: Any, what: str) -> None:
    model, positive, negative = prompts_of("llama")
    with pytest.raises(error, match=what):
        iv.contrast_vectors(model, positive, negative, **asked)


def test_splits_hold_out_a_share_of_each_side() -> None:
    same = split(20, 20, share=0.3, seed=1)
    assert np.array_equal(same[0], same[1])
    assert same[0].sum() == 6
    other = split(20, 40, share=0.3, seed=1)
    assert [side.sum() for side in other] == [6, 12]
    with pytest.raises(PromptError, match="11 positive prompts leave 8 to fit on and 3 held out"):
        split(11, 40, share=0.3, seed=1)


def test_ties_count_half() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(2, 5, 9)).astype(float)
    labels = [1] * 9 + [0] * 9
    expected = [roc_auc_score(labels, np.concatenate(pair)) for pair in zip(*scores, strict=True)]
    assert np.allclose(auc(*scores), expected)
