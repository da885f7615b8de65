"""Means of maps with their intervals, and how alike two maps are: known answers, and coverage."""

import numpy as np
import pytest
import xarray as xr

from twohop.protocol import Protocol
from twohop.report.maps import Panel, map_figure, span_of
from twohop.stages.maps.contrasts import MAP_ROLES
from twohop.stages.maps.effects import entity_means, group_effects
from twohop.stages.maps.exact import GROUPS, MAP_COMPONENTS
from twohop.stages.maps.similarity import (
    SIMILARITIES,
    ByEntity,
    jackknife,
    similarity,
    similarity_of_run,
)

WINDOWS = 8
SHAPE = (len(MAP_COMPONENTS), WINDOWS, len(MAP_ROLES))


def map_of(cells: np.ndarray, entities: list[str], groups: list[str]) -> xr.Dataset:
    """An exact map of these cells [component, window, role, item]."""
    items = [f"{entity}/{i}" for i, entity in enumerate(entities)]
    span = cells[-1, -1, -1]
    means = group_effects(
        cells,
        span,
        entities=entities,
        item_groups=groups,
        groups=GROUPS,
        cell_dims=("component", "window", "role"),
        least=0.1,
    )
    return xr.Dataset(
        {
            **means,
            "restored": (("component", "window", "role", "map_item"), cells),
            "span": ("map_item", span),
            "first_block": ("window", np.arange(WINDOWS)),
            "last_block": ("window", np.arange(WINDOWS)),
        },
        coords={
            "group": list(GROUPS),
            "component": list(MAP_COMPONENTS),
            "role": list(MAP_ROLES),
            "map_item": items,
            "map_group": ("map_item", groups),
            "map_entity": ("map_item", entities),
        },
    )


def noisy(truth: np.ndarray, n: int, *, noise: float, seed: int) -> np.ndarray:
    """Items whose mean is ``truth`` if there are many of them."""
    return truth[..., None] + noise * np.random.default_rng(seed).normal(size=(*truth.shape, n))


def truths(correlated: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two maps, and how much the second has of the first."""
    first, other = np.random.default_rng(seed).normal(size=(2, *SHAPE))
    return first, correlated * first + np.sqrt(1 - correlated**2) * other


NAMES = [f"e{i}" for i in range(24)]


def test_means_cover_what_they_are_of() -> None:
    generator = np.random.default_rng(0)
    for n_entities in (5, 12, 40):
        sizes = generator.integers(1, 4, n_entities)
        owner = np.repeat(np.arange(n_entities), sizes)
        of_entity = generator.normal(size=(2000, n_entities)) * 2
        values = 0.3 + of_entity[:, owner] + generator.normal(size=(2000, len(owner)))
        mean = entity_means(values, owner.astype(str))
        covered = (mean.low <= 0.3) & (mean.high >= 0.3)
        assert covered.mean() > 0.93


def test_the_mean_of_one_entity_has_no_interval() -> None:
    mean = entity_means(np.array([1.0, 3.0]), ["a", "a"])
    assert mean.value == 2
    assert np.isnan([mean.low, mean.high]).all()
    assert np.isnan(entity_means(np.zeros((3, 0)), []).value).all()


def test_no_share_of_a_span_that_may_be_nothing() -> None:
    truth = np.ones(SHAPE)
    small = map_of(noisy(-0.05 * truth, 24, noise=1, seed=0), NAMES, ["right"] * 24)
    assert small["share"].isnull().all()
    assert float(small["span_low"].sel(group="right")) < 0
    assert np.isfinite(small["effect"].sel(group="right")).all()
    large = map_of(noisy(4 * truth, 24, noise=1, seed=0), NAMES, ["right"] * 24)
    share = large["share"].sel(group="right").values
    assert np.allclose(share, large["effect"].sel(group="right") / 4, atol=0.25)
    assert (np.sign(share) == np.sign(large["effect"].sel(group="right"))).all()
    assert large["share"].sel(group="lost").isnull().all()


def over_cells(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation over the cells of attention and MLPs."""
    return float(np.corrcoef(np.stack([first[:2].ravel(), second[:2].ravel()]))[0, 1])


def test_the_interval_holds_the_correlation_without_noise() -> None:
    """Which lies above the one that is measured; the maps share half of their entities."""
    covered, off = [], []
    for correlated, n, noise in ((0.9, 12, 1.0), (0.3, 24, 2.0), (0.0, 12, 1.0)):
        measured = []
        here, there = np.arange(n + n // 2) < n, np.arange(n + n // 2) >= n // 2
        for seed in range(100):
            first, second = truths(correlated, seed=seed)
            shared = noisy(np.zeros(SHAPE), len(here), noise=noise / 2, seed=1000 + seed)
            maps = [
                ByEntity((noisy(truth, len(here), noise=noise, seed=i) + shared) * mine, mine * 1.0)
                for i, truth, mine in ((2000 + seed, first, here), (3000 + seed, second, there))
            ]
            expected = over_cells(first, second)
            estimate = jackknife(maps[0], maps[1], "sublayers", n=n)
            covered.append(estimate.low <= expected <= estimate.high)
            off.append(estimate.value - expected)
            measured.append(over_cells(maps[0].mean, maps[1].mean) - expected)
        assert abs(np.mean(off[-100:])) < 0.02
        if correlated > 0.5:
            assert np.mean(measured) < -0.03
    assert np.mean(covered) > 0.93


def test_same_places_are_told_from_other_places() -> None:
    first, second = truths(0.0, seed=5)
    text = map_of(noisy(first, 24, noise=1, seed=0), NAMES, ["right"] * 24)
    both = np.concatenate(
        [noisy(first, 24, noise=1, seed=1), noisy(second, 24, noise=1, seed=2)], -1
    )
    image = map_of(both, NAMES * 2, ["right"] * 24 + ["lost"] * 24)
    alike, other = (similarity(text, image, group=group, seed=0) for group in GROUPS)
    assert {*alike} == {*SIMILARITIES}
    for name in ("all", "sublayers"):
        assert alike[name].correlation.low > 0.9
        assert alike[name].as_measured <= alike[name].correlation.value
        assert alike[name].p == 0.001
        assert alike[name].correlation.n == 24
        assert other[name].correlation.high < 0.5
        assert other[name].p > 0.05
        assert other[name].null_high > other[name].as_measured
    without = other["sublayers"].correlation
    assert without.low <= over_cells(first, second) <= without.high


def test_a_map_of_noise_has_no_similarity_without_noise() -> None:
    first, _ = truths(1.0, seed=3)
    text = map_of(noisy(first, 24, noise=1, seed=0), NAMES, ["right"] * 24)
    noise = map_of(noisy(0.02 * first, 24, noise=1, seed=1), NAMES, ["lost"] * 24)
    measured = similarity(text, noise, group="lost", seed=0)["sublayers"]
    assert not measured.correlation.measured
    assert measured.reliability_image < 0.5 < measured.reliability_text
    assert measured.as_dict()["as_measured"] == measured.as_measured
    strict = Protocol(least_reliability=1.0)
    same = similarity(text, text, group="right", seed=0, protocol=strict)["all"]
    assert not same.correlation.measured


def test_few_entities_and_other_windows_are_not_compared() -> None:
    first, _ = truths(1.0, seed=3)
    text = map_of(noisy(first, 24, noise=1, seed=0), NAMES, ["right"] * 24)
    few = map_of(noisy(first, 8, noise=1, seed=1), ["a", "b", "c", "d"] * 2, ["lost"] * 8)
    for image in (few, text, few.isel(window=slice(4))):
        measured = similarity(text, image, group="lost", seed=0)["all"]
        assert not measured.correlation.measured
        assert measured.as_dict()["p"] is None


def test_a_run_says_how_many_items_its_maps_share() -> None:
    first, _ = truths(1.0, seed=3)
    text = map_of(noisy(first, 24, noise=1, seed=0), NAMES, ["right"] * 24)
    image = text.isel(map_item=slice(6, 18))
    tree = xr.DataTree.from_dict({"map_text": text, "map_image": image})
    run = similarity_of_run(tree, seed=0)
    assert [run["right"][key] for key in ("n_text", "n_image", "n_common")] == [24, 12, 12]
    assert run["lost"]["n_image"] == 0
    assert run["right"]["all"]["correlation"].measured


def test_grey_cells_are_those_whose_interval_includes_0() -> None:
    truth = np.zeros(SHAPE)
    truth[0, 0, 0], truth[1, 2, 1], truth[-1, -1, -1] = 3, -2, 4
    data = map_of(noisy(truth, 24, noise=0.2, seed=0), NAMES, ["right"] * 24)
    clear = Panel(data.sel(group="right"), "", "").clear()
    assert clear.shape == (9, WINDOWS)
    assert clear[[0, 4, 8], [0, 2, 7]].all()
    assert clear.mean() < 0.15
    assert span_of(data.sel(group="right")).startswith("4.0 [3.9, 4.1] logits")
    nothing = data.assign(effect_low=-abs(data["effect"]), effect_high=abs(data["effect"]))
    assert not Panel(nothing.sel(group="right"), "", "").clear().any()


def test_maps_have_one_scale_of_logits() -> None:
    truth = np.zeros(SHAPE)
    truth[-1] = 4
    strong = noisy(truth, 24, noise=0.1, seed=0)
    text = map_of(strong, NAMES, ["right"] * 24)
    both = np.concatenate([0.5 * strong, -0.1 * strong], -1)
    image = map_of(both, NAMES * 2, ["right"] * 24 + ["lost"] * 24)
    stages = {"map_text": text, "map_image": image}
    for medium, exact in (("text", text), ("image", image)):
        renamed = exact.drop_vars(["first_block", "last_block"]).rename(window="layer")
        renamed["layer"] = np.arange(WINDOWS)
        stages[f"attribution_{medium}"] = renamed.assign_attrs(refused="no gradient")
    figure = map_figure(xr.DataTree.from_dict(stages))
    meshes = [axes.collections[1] for axes in figure.axes[:6:2]]
    limits = {mesh.get_clim() for mesh in meshes}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high
    assert high == pytest.approx(4, abs=0.1)
    ends = [float(np.ma.filled(mesh.get_array(), 0)[-1][-1]) for mesh in meshes]  # pyright: ignore
    assert ends == pytest.approx([4, 2, -0.4], abs=0.1), "a negative span turns no colour round"
    titles = [axes.get_title("left") for axes in figure.axes]
    assert "VLM, image, lost (n 24)\nspan −0.4 [−0.4, −0.4] logits" in titles
