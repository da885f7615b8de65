"""Maps of the vision tower: what they hold, how they are drawn and checked, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from families import Case, case_of
from floors import FLOOR32, noise

import interventions as iv
from interventions.errors import PatchError, PromptError, RoleError, SiteError
from interventions.sweeping.schedule import cell, groups, path_of

ASKED: dict[str, Any] = {"answers": "river", "foils": "town"}


def pair(name: str) -> tuple[Case, iv.Prompt]:
    """A case in float64, and its texts beside other pictures."""
    case = case_of(name, torch.float64, "sdpa")
    pictures = [tiny.picture(own.size, seed=7 + i) for i, own in enumerate(case.pictures)]
    return case, case.model.prompt(list(case.texts), images=pictures)


def margin(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 3] - logits[:, 5]


def width_of(model: iv.Model) -> int:
    assert model.anatomy.tower is not None
    return model.anatomy.tower.width


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "mllama"])
def test_a_map_says_where_its_patches_lie_and_is_drawn_on_the_picture(
    name: str, tmp_path: Path
) -> None:
    case, source = pair(name)
    scores = iv.attribute(
        case.model, case.prompt, source, components="vision.resid_post", verify=False, **ASKED
    )
    grid = case.prompt.image_grid(of="tower")
    for item in range(2):
        own = grid.isel(token=np.flatnonzero(grid["row"] == item))
        shown = np.isfinite(own["x0"].values)
        boxes = np.stack([own[edge].values[shown] for edge in ("x0", "y0", "x1", "y1")])
        here = np.isfinite(scores["x0"].values[item])
        found = np.stack([scores[edge].values[item, here] for edge in ("x0", "y0", "x1", "y1")])
        assert np.array_equal(found, boxes)
        assert set(scores["role"].values[item][here].tolist()) == {"image"}
        drawn = iv.overlay(scores, case.pictures[item], item=item)
        assert drawn.values.shape[:2] == (1, len(scores["layer"]))
        assert np.isfinite(drawn.values).any()
        drawn.save(tmp_path / "map.png")
    swept = iv.sweep(
        case.model,
        case.prompt,
        source,
        metrics=["logit_diff"],
        components="vision.resid_post",
        roles=["image"],
        each=True,
        layers=[0],
        progress=False,
        **ASKED,
    )
    drawn = iv.heatmap(swept, item=1, over=case.pictures[1])
    drawn.savefig(tmp_path / "sweep.png")
    assert "token" not in swept.coords


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "mllama"])
def test_estimates_are_checked_by_exact_cells(name: str) -> None:
    case, source = pair(name)
    roles: Any = {"roles": ["image[0]", "image[3]"]}
    components = ["vision.head_out", "vision.resid_post"]
    scores = iv.attribute(
        case.model, case.prompt, source, components=components, verify=2, **roles, **ASKED
    )
    assert scores["spearman"].shape == (2, 2)
    assert "head_score" in scores
    n_checked = dict.fromkeys(components, 0)
    asked: Any = {"metrics": ["logit_diff"], "progress": False, **roles, **ASKED}
    for component in components:
        heads = range(4) if component == "vision.head_out" else None
        swept = iv.sweep(
            case.model, case.prompt, source, components=component, heads=heads, **asked
        )
        change = swept["logit_diff"] - swept["clean_logit_diff"]
        for i in np.flatnonzero(scores["checked_component"].values == component):
            checked = scores.isel(checked=i)
            place = {
                "item": int(checked["checked_item"]),
                "layer": int(checked["checked_layer"]),
                "role": int(checked["checked_column"]),
                "component": 0,
            }
            if heads is not None:
                place["head"] = int(checked["checked_head"])
            assert float(change.isel(place)) == pytest.approx(
                float(checked["checked_effect"]), abs=1e-5
            )
            n_checked[component] += 1
    assert all(n_checked.values())
    again = iv.verify(case.model, scores, case.prompt, source, k=2, **ASKED)
    assert np.array_equal(again["checked_effect"], scores["checked_effect"])


def test_lines_between_values_of_the_tower_are_complete() -> None:
    case, source = pair("llava")
    scores = iv.attribute(
        case.model,
        case.prompt,
        source,
        components=["vision.mlp_out", "vision.resid_post"],
        roles=["image"],
        method="ig-activations",
        steps=24,
        verify=False,
        **ASKED,
    )
    change = (scores["source_metric"] - scores["run_metric"]).values
    assert np.abs(scores["completeness_error"].values).max() < 1e-3 * np.abs(change).max()


@pytest.mark.parametrize("source", ["noise", "layers", "number", "vector"])
def test_other_sources_are_written_as_plain_runs_write_them(source: str) -> None:
    case, _ = pair("gemma3")
    model, prompt = case.model, case.prompt
    at = prompt.at("image", 2, of="tower")
    [own] = iv.read(model, prompt, [iv.Site("vision.resid_post", slice(None), at)])
    vector = noise((width_of(model),))
    given: Any = {
        "noise": iv.Noise(seed=3),
        "layers": iv.FromLayers([0]),
        "number": 0.0,
        "vector": vector,
    }[source]
    asked: Any = {"components": "vision.resid_post", "layers": [1], "roles": ["image[2]"]}
    swept = iv.sweep(model, prompt, given, metrics=["kl", margin], **asked)
    values = {"layers": own[0], "number": torch.zeros(()), "vector": vector}
    cells = swept["margin"].values.reshape(-1)
    if source == "noise":
        again = iv.sweep(model, prompt, given, metrics=[margin], **asked)
        assert np.array_equal(cells, again["margin"].values.reshape(-1))
        assert (swept["kl"].values > 0).all()
        return
    patch = iv.Patch("vision.resid_post", 1, at, values[source])
    logits = iv.run(model, prompt, patches=[patch]).logits
    assert logits is not None
    assert np.allclose(cells, margin(logits), atol=1e-5)


def test_batches_of_rows_and_a_run_that_goes_on_give_the_same(tmp_path: Path) -> None:
    case, source = pair("qwen2_5_vl")
    asked: Any = {
        "components": ["vision.attn_out", "vision.resid_post"],
        "roles": ["image[0]", "class", "image"][::2],
        "metrics": ["logit_diff", "kl"],
        "progress": False,
        **ASKED,
    }
    whole = iv.sweep(case.model, case.prompt, source, out=tmp_path / "s", **asked)
    again = iv.sweep(case.model, case.prompt, source, out=tmp_path / "s", **asked)
    small = iv.sweep(case.model, case.prompt, source, budget=8_000_000, **asked)
    scale = np.abs(whole["logit_diff"]).max()
    assert np.array_equal(whole["logit_diff"], again["logit_diff"])
    assert float(np.abs(whole["logit_diff"] - small["logit_diff"]).max() / scale) < FLOOR32
    assert whole.attrs["path"] == "plain"
    assert "tower" in whole.attrs["path_reason"]
    scores = [
        iv.attribute(
            *(case.model, case.prompt, source),
            components="vision.resid_post",
            batch_size=size,
            verify=False,
            **ASKED,
        )["score"].values
        for size in (1, 2)
    ]
    assert np.allclose(*scores, atol=1e-9, equal_nan=True)


def test_cells_of_the_tower_are_rows_of_few_passes_and_equal_single_runs() -> None:
    case, _ = pair("gemma3")
    model, prompt = case.model, case.prompt
    at = prompt.at("image", 1, of="tower")
    cells = [
        [iv.Patch(f"vision.{name}", layer, at, noise((width_of(model),), layer))]  # pyright: ignore
        for name in ("mlp_out", "resid_post")
        for layer in (0, 1)
    ]
    cells.append([*cells[0], iv.ablated("mlp_out", 1, prompt.at("last"))])
    together = iv.replay(model, prompt, cells)
    for own, logits in zip(cells, together, strict=True):
        alone = iv.run(model, prompt, patches=own).logits
        assert alone is not None
        assert float((logits[:, 0] - alone).abs().max() / alone.abs().max()) < FLOOR32
    prepared = [cell(model, own) for own in cells]
    path, _ = path_of(model, prompt, tower=True)
    budget = iv_budget(model)
    assert len(groups(model, prompt, prepared, path, budget)) == 1


def iv_budget(model: iv.Model) -> Any:
    from interventions.running.budget import Budget

    return Budget.of(model, 10**9)


def test_what_has_no_place_in_the_tower_is_refused(llm: iv.Model, named: iv.Prompt) -> None:
    case, source = pair("llava")
    model, prompt = case.model, case.prompt
    tower: Any = {"components": "vision.resid_post", **ASKED}
    with pytest.raises(SiteError, match="not the same"):
        iv.sweep(model, prompt, source, **{**tower, "components": ["resid_post", "vision.mlp_out"]})
    with pytest.raises(SiteError, match="not taken here"):
        iv.attribute(model, prompt, source, **{**tower, "components": "vision.attn_pattern"})
    for method in ("ig", "relp"):
        with pytest.raises(SiteError, match="Of the tower use"):
            iv.attribute(model, prompt, source, method=method, **tower)
    with pytest.raises(PatchError, match="a baseline enters the first block"):
        iv.attribute(model, prompt, 0.0, **tower)
    with pytest.raises(RoleError, match="no role 'entity' there"):
        iv.sweep(model, prompt, source, roles=["entity"], **tower)
    with pytest.raises(PatchError, match="gives nothing to the language model"):
        iv.sweep(model, prompt, source, layers=[model.anatomy.tower.n_used], **tower)  # pyright: ignore
    with pytest.raises(PatchError, match="vector of 32"):
        iv.sweep(model, prompt, torch.zeros(48), **tower)
    with pytest.raises(SiteError, match="text-only"):
        iv.sweep(llm, named, 0.0, metrics="kl", components="vision.resid_post")
    text = model.prompt(["What is it?"])
    with pytest.raises(SiteError, match="no image"):
        iv.attribute(model, text, text, **tower)
    with pytest.raises(PromptError, match="rows"):
        iv.sweep(model, prompt, source.select([0]), **tower)
    qwen, _ = pair("qwen2_5_vl")
    smaller = [tiny.picture((56, 56), seed=i) for i in range(2)]
    other = qwen.model.prompt(list(qwen.texts), images=smaller)
    with pytest.raises(RoleError, match="differ in their pictures"):
        iv.attribute(qwen.model, qwen.prompt, other, **tower)


@pytest.mark.parametrize("of", ["vision.", ""])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "glm4v", "internvl"])
def test_tokens_of_a_wide_and_a_high_picture_do_not_correspond(name: str, of: str) -> None:
    """They are as many, and neither patched nor attributed to as if they lay at the same places."""
    model = case_of(name, torch.float64, "sdpa").model
    text = f"Q: what is {model.image_token} to France? A:"
    sizes = ((120, 60), (60, 120), (120, 60))
    wide, high, other = (
        model.prompt([text], images=[tiny.picture(size, seed=i)]) for i, size in enumerate(sizes)
    )
    asked: dict[str, Any] = {**ASKED, "components": f"{of}resid_post", "layers": [0]}
    alone: dict[str, Any] = {**asked, "verify": False}
    assert wide.length == high.length
    chosen: Any
    for chosen in ({}, {"roles": ["image"]}, {"roles": ["image"], "each": True}):
        with pytest.raises(RoleError, match=r"another shape.* \[\(120, 60\)\] .*\[\(60, 120\)\]"):
            iv.attribute(model, wide, high, **alone, **chosen)
        iv.attribute(model, wide, other, **alone, **chosen)
    with pytest.raises(RoleError, match="another shape"):
        iv.sweep(model, wide, high, roles=["image"], **asked)
    iv.sweep(model, wide, high, roles=["image[-1]"], **asked)
    iv.sweep(model, wide, high, roles=["image"], read_roles=["image"], **asked)
