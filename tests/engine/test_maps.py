"""Maps by token: what is asked of them, what is refused, and how they are drawn."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from families import model_of

import interventions as iv
from interventions.errors import PromptError, ResultsError, RoleError, SiteError
from interventions.results import read_provenance

SIZE = (40, 30)


def shown(name: str = "llava", n: int = 1) -> tuple[iv.Model, iv.Prompt, Any]:
    model, picture = model_of(name), tiny.picture(SIZE)
    return model, model.prompt([f"{model.image_token} what?"] * n, images=[[picture]] * n), picture


def of_row(values: np.ndarray) -> np.ndarray:
    """Values [..., position] of one row, less the columns that it lacks."""
    return values[..., np.isfinite(values).reshape(-1, values.shape[-1]).all(0)]


@pytest.mark.parametrize("asked", [{}, {"heads": [1]}, {"rollout": True}, {"layers": 2}], ids=str)
def test_a_shared_prefix_changes_no_number(asked: dict[str, Any]) -> None:
    model = model_of("llama")
    texts = ["The capital of France is", "The capital of the town is the big river"]
    prompts = [model.prompt(texts, share_prefix=share) for share in (False, True)]
    whole, cut = (iv.attention_map(model, prompt, **asked) for prompt in prompts)
    n = len(prompts[1].prefix_ids)
    assert n > 1
    [name] = whole.data_vars
    for row in range(len(texts)):
        expected, ours = (of_row(dataset[name].values[row]) for dataset in (whole, cut))
        np.testing.assert_allclose(ours, expected[..., n:], atol=1e-6)


def test_several_queries_are_averaged_and_a_map_says_how_it_was_made() -> None:
    model, prompt, _ = shown()
    tokens = prompt.roles[0]["image"]
    of_all = iv.attention_map(model, prompt, queries="image")["weight"]
    each = [iv.attention_map(model, prompt, queries=f"image[{k}]") for k in range(len(tokens))]
    mean = np.mean([dataset["weight"].values for dataset in each], axis=0)
    np.testing.assert_allclose(of_all.values, mean, atol=1e-7)
    settings = read_provenance(each[1])["settings"]
    assert settings == {"prompt": prompt.digest, "queries": "image[1]", "rollout": False}
    seen = iv.lens_map(model, prompt, "Paris")
    assert read_provenance(seen)["settings"]["words"] == "Paris"
    assert seen["looked_for"].values.tolist() == [model.tokenizer.decode(tokens_of(model, prompt))]


def tokens_of(model: iv.Model, prompt: iv.Prompt) -> list[int]:
    """The first token of the word, as a sweep's answer has it."""
    swept = iv.sweep(model, prompt, 0.0, answers="Paris", metrics="rank", layers=0, roles=["last"])
    [rank] = swept["clean_rank"].values
    logits = iv.run(model, prompt).logits
    assert logits is not None
    token = int(logits[0].argsort(descending=True)[int(rank)])
    return [token]


def test_rows_do_not_leak_and_roles_choose_columns() -> None:
    model = model_of("llama")
    texts = ["The capital of France is", "Who was the mayor of the big town?"]
    both = model.prompt(texts)
    calls: list[Any] = [
        lambda prompt: iv.lens_map(model, prompt, "Paris"),
        lambda prompt: iv.attention_map(model, prompt),
        lambda prompt: iv.attention_map(model, prompt, rollout=True),
    ]
    for call in calls:
        together = call(both)
        for row, text in enumerate(texts):
            alone = call(model.prompt(text))
            for name in alone.data_vars:
                ours = of_row(together[name].values[row])
                np.testing.assert_allclose(ours, alone[name].values[0], atol=1e-5)
    some = iv.lens_map(model, both, "Paris", roles=["last"], layers=[1, 3])
    every = iv.lens_map(model, both, "Paris")
    assert some["layer"].values.tolist() == [1, 3]
    for row in range(2):
        mine = of_row(every["logprob"].values[row])[[1, 3], -1]
        np.testing.assert_allclose(some["logprob"].values[row, :, 0], mine, atol=1e-6)


def test_what_has_no_map_is_refused_before_anything_runs() -> None:
    model, prompt, _ = shown()
    crossed = model_of("mllama")
    asked = crossed.prompt("The capital of France is")
    mixed = model_of("qwen3_5")
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lambda: iv.lens_map(model, prompt, ""), PromptError, "the word of row"),
        (lambda: iv.lens_map(model, prompt, ["a", "b"]), PromptError, "2 words for 1 rows"),
        (lambda: iv.lens_map(model, prompt, "a", component="mlp_out"), SiteError, "resid_post"),
        (lambda: iv.lens_map(model, prompt, "a", layers=99), SiteError, "99"),
        (lambda: iv.lens_map(model, prompt, "a", roles=["entity"]), RoleError, "entity"),
        (lambda: iv.attention_map(model, prompt, queries="entity"), RoleError, "entity"),
        (lambda: iv.attention_map(model, prompt, queries="image[99]"), RoleError, "no token of"),
        (lambda: iv.attention_map(model, prompt, heads=99), SiteError, "99"),
        (lambda: iv.attention_map(model, prompt, layers=[]), SiteError, "no layer is named"),
        (
            lambda: iv.attention_map(model, prompt, heads=0, rollout=True),
            SiteError,
            "mean over heads",
        ),
        (lambda: iv.attention_map(crossed, asked, layers=1), SiteError, "image's own tokens"),
        (
            lambda: iv.attention_map(crossed, asked, rollout=True),
            SiteError,
            "rollout follows attention through it",
        ),
        (
            lambda: iv.attention_map(mixed, mixed.prompt("The town"), rollout=True),
            SiteError,
            "block 0 of",
        ),
    ]
    for call, error, match in wrong:
        with pytest.raises(error, match=match):
            call()


def test_heads_are_panels() -> None:
    model, prompt, picture = shown()
    seen = iv.attention_map(model, prompt, roles=["image"], heads=[2, 0])
    drawing = iv.overlay(seen, picture)
    assert drawing.components == ["head 2", "head 0"]
    assert drawing.values[0].tolist() != drawing.values[1].tolist()
    own = iv.overlay(seen.isel(head=0, drop=True), picture)
    assert own.values[0].tolist() == drawing.values[0].tolist()
    titles = [axes.get_title() for axes in iv.heatmap(seen).axes]
    assert titles[:2] == ["head 2", "head 0"]
    swept = iv.sweep(
        model,
        prompt,
        0.0,
        answers="the",
        components="head_out",
        heads=[1, 3],
        layers=[0],
        roles=["image"],
        each=True,
    )
    assert iv.overlay(swept, picture).components == ["head 1", "head 3"]


def test_the_scale_begins_at_zero_where_nothing_is_below_it() -> None:
    model, prompt, picture = shown()
    above = iv.overlay(iv.attention_map(model, prompt, roles=["image"]), picture)
    below = iv.overlay(iv.lens_map(model, prompt, "Paris", roles=["image"]), picture, "logprob")
    assert (above.least, below.least) == (0.0, -below.most)
    assert "from 0 in white to" in above.html()
    assert "in blue to" in below.html()
    for drawing in (above, below):
        bar = drawing.figure().axes[-1]
        assert bar.get_ylim() == (drawing.least, drawing.most)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
def test_probes_of_image_tokens_lie_where_their_tokens_do(name: str) -> None:
    _, prompt, picture = shown(name)
    grid = prompt.image_grid()
    n = grid.sizes["token"]
    names = [*(f"image[{k}]" for k in range(n - 1)), "image_0[-1]", "last"]
    values = torch.arange(2.0 * len(names)).reshape(len(names), 2).numpy()
    accuracy = xr.Dataset(
        {"accuracy": (("role", "layer"), values)}, coords={"role": names, "layer": [0, 3]}
    )
    drawing = iv.overlay(accuracy, picture, grid=prompt)
    kind = "tile" if "tile" in grid["kind"].values else "picture"
    for token in np.flatnonzero(grid["kind"] == kind):
        x, y = (float(grid[f"{axis}0"][token] + grid[f"{axis}1"][token]) / 2 for axis in "xy")
        j = int(np.searchsorted(drawing.x, x, side="right")) - 1
        i = int(np.searchsorted(drawing.y, y, side="right")) - 1
        assert drawing.values[0, :, i, j].tolist() == values[token].tolist()
    for wrong in ("entity[0]", f"image[{n}]", "image_1[0]", "image", "image[x]"):
        other = accuracy.isel(role=[0]).assign_coords(role=[wrong])
        with pytest.raises(ResultsError, match="no positions of a prompt"):
            iv.overlay(other, picture, grid=prompt)


def test_routes_and_regions_lie_where_they_are_said_to() -> None:
    _, prompt, picture = shown()
    n = prompt.image_grid().sizes["token"]
    values = np.arange(2.0 * n).reshape(2, n)
    cut = xr.Dataset(
        {"logprob": (("item", "layer", "route"), values[None]), "clean_logprob": ("item", [1.0])},
        coords={
            "item": [0],
            "layer": [0, 3],
            "route": [f"image[{k}] -> last" for k in range(n)],
        },
    )
    drawing = iv.overlay(cut, picture, grid=prompt)
    assert drawing.label == "change of logprob"
    assert sorted(drawing.values[0, 0].ravel().tolist()) == (values[0] - 1).tolist()
    of_names = cut.rename(route="role").assign_coords(role=[f"image[{k}]" for k in range(n)])
    assert iv.overlay(of_names, picture, grid=prompt).values.tolist() == drawing.values.tolist()
    assert len(iv.heatmap(cut, item=0).axes) == 2

    two = cut.isel(route=[0, 1]).assign_coords(route=["left", "corner"])
    boxes = {"left": (0, 0, 20, 30), "corner": (30, 20, 99, 99), "more": (0, 0, 1, 1)}
    regions = iv.overlay(two, picture, grid=boxes)
    assert regions.x.tolist() == [0, 20, 30, 40]
    assert regions.y.tolist() == [0, 20, 30]
    assert regions.values[0, 1, 0, 0] == values[1, 0] - 1
    assert regions.values[0, 1, 1, 2] == values[1, 1] - 1
    assert np.isnan(regions.values[0, :, 0, 1:]).all()
    wrong: list[tuple[Any, str]] = [
        ({"right": (0, 0, 1, 1)}, "Name the columns"),
        ({}, "Name the columns"),
        ({"left": (0, 0, 1)}, "Expected"),
        ({"left": (5, 0, 1, 1)}, "Expected"),
        ({"left": (50, 0, 60, 9)}, "some of it in the picture"),
        ({"left": "abcd"}, "the box of 'left'"),
        ({"left": 3}, "the box of 'left'"),
    ]
    for grid, match in wrong:
        with pytest.raises(ResultsError, match=match):
            iv.overlay(two, picture, grid=grid)
