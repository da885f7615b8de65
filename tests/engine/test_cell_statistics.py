"""What many items say of a cell: intervals hold what they promise, and so do p-values."""

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

import interventions as iv
from interventions.errors import ResultsError
from interventions.sweeping.clustered import (
    CORRECTIONS,
    LEAST_CLUSTERS,
    adjusted,
    cluster_totals,
    flipped,
    means,
    shares,
    signs,
)

mpl.use("Agg")
FOUR_ERRORS = 4.0
"""Simulated shares may be so many of their standard errors from what is promised."""


def drawn_map(
    n_items: int, shape: tuple[int, int], *, seed: int, per_cluster: int = 1, effect: float = 0.0
) -> xr.Dataset:
    """A map of changes whose items share half of their noise with their cluster."""
    generator = np.random.default_rng(seed)
    n_clusters = n_items // per_cluster
    owner = np.repeat(np.arange(n_clusters), per_cluster)
    values = generator.normal(size=(n_items, *shape)) + generator.normal(size=(n_clusters, *shape))[
        owner
    ] * (per_cluster > 1)
    values[:, 0, 0] += effect
    layers, roles = range(shape[0]), [f"r{k}" for k in range(shape[1])]
    return xr.Dataset(
        {
            "logprob": (("item", "layer", "role"), values.astype(np.float32), {"units": "nats"}),
            "clean_logprob": ("item", np.zeros(n_items, np.float32)),
        },
        coords={"item": range(n_items), "layer": layers, "role": roles}
        | {"cluster": ("item", [f"c{k}" for k in owner])},
    )


def near(share: float, promised: float, n: int) -> bool:
    return abs(share - promised) < FOUR_ERRORS * np.sqrt(promised * (1 - promised) / n)


@pytest.mark.parametrize(("n_clusters", "per_cluster"), [(6, 1), (8, 3), (24, 1)])
def test_under_the_null_p_is_uniform(n_clusters: int, per_cluster: int) -> None:
    n = 3000
    generator = np.random.default_rng(n_clusters)
    own = generator.normal(size=(n, n_clusters * per_cluster))
    owner = np.repeat(np.arange(n_clusters), per_cluster)
    own += generator.normal(size=(n, n_clusters))[:, owner]
    totals, _ = cluster_totals(own, owner.astype(str))
    p, _ = flipped(totals, signs(n_clusters, 999, seed=0))
    for level in (1 / 16, 1 / 8, 1 / 4, 1 / 2):  # such as all flips of six can give
        assert near(float((p <= level).mean()), level, n)


def test_items_of_one_cluster_taken_for_independent_give_too_small_p() -> None:
    """The control: what clusters are for."""
    generator = np.random.default_rng(1)
    values = np.repeat(generator.normal(size=(2000, 8)), 4, axis=1)
    p, _ = flipped(values, signs(32, 999, seed=0))
    assert (p <= 0.05).mean() > 0.25
    totals, _ = cluster_totals(values, np.repeat(np.arange(8), 4).astype(str))
    p, _ = flipped(totals, signs(8, 999, seed=0))
    assert (p <= 0.05).mean() <= 0.05 + FOUR_ERRORS * np.sqrt(0.05 * 0.95 / 2000)


def test_a_map_without_effects_has_a_clear_cell_in_one_of_twenty() -> None:
    n, generator, flips = 600, np.random.default_rng(2), signs(10, 999, seed=0)
    uncorrected = corrected = 0
    for _ in range(n):
        common = generator.normal(size=10)
        totals = generator.normal(size=(40, 10)) + common  # cells of a map go together
        p, p_max = flipped(totals, flips)
        uncorrected += bool((p <= 0.05).any())
        corrected += bool((p_max <= 0.05).any())
        assert (p_max >= p).all()
    assert near(corrected / n, 0.05, n)
    assert uncorrected / n > 0.4


def test_an_effect_is_seen_and_its_neighbours_are_not() -> None:
    swept = drawn_map(30, (8, 5), seed=3, effect=1.5)
    by_cell = iv.cell_statistics(swept)
    expected = np.zeros((8, 5), dtype=bool)
    expected[0, 0] = True
    assert (by_cell["clear"].values == expected).all()
    assert by_cell["low"][0, 0] > 0.8
    assert by_cell["high"][0, 0] < 2.2
    assert by_cell["change"].attrs["units"] == "nats"
    assert by_cell.attrs["n_clusters"] == 30
    assert by_cell.attrs["smallest_p"] == 1 / 10000


@pytest.mark.parametrize(("n_clusters", "per_cluster"), [(6, 1), (8, 4), (20, 2)])
def test_intervals_cover_what_they_promise(n_clusters: int, per_cluster: int) -> None:
    n, truth = 4000, 0.7
    generator = np.random.default_rng(10 + n_clusters)
    owner = np.repeat(np.arange(n_clusters), per_cluster)
    values = truth + generator.normal(size=(n, len(owner)))
    values += generator.normal(size=(n, n_clusters))[:, owner]
    _, low, high = means(*cluster_totals(values, owner.astype(str)))
    assert near(float(((low <= truth) & (truth <= high)).mean()), 0.95, n)


def test_intervals_of_shares_are_those_of_clustered_samples() -> None:
    n, truth = 2000, 0.3
    generator = np.random.default_rng(20)
    values = (generator.random((n, 24)) < truth).astype(float)
    share = shares(*cluster_totals(values, np.repeat(np.arange(12), 2).astype(str)))
    covered = float(((share.low <= truth) & (truth <= share.high)).mean())
    assert covered > 0.95 - FOUR_ERRORS * np.sqrt(0.95 * 0.05 / n)


def test_all_flips_of_few_clusters_are_those_written_out() -> None:
    totals = np.random.default_rng(4).normal(size=(3, 6))
    p, p_max = flipped(totals, signs(6, 999, seed=0))
    scaled = totals / np.sqrt((totals**2).sum(1, keepdims=True))
    every = np.array([scaled @ np.array(turn) for turn in product((1, -1), repeat=6)])
    seen = np.abs(scaled.sum(1))
    assert p == pytest.approx([(np.abs(every[:, i]) >= seen[i] - 1e-12).mean() for i in range(3)])
    largest = np.abs(every).max(1)
    assert p_max == pytest.approx([(largest >= one - 1e-12).mean() for one in seen])


def test_other_corrections_are_the_textbooks() -> None:
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.2])
    assert adjusted(p, "holm") == pytest.approx([0.04, 0.09, np.nan, 0.09, 0.2], nan_ok=True)
    assert adjusted(p, "fdr") == pytest.approx([0.04, 0.16 / 3, np.nan, 0.16 / 3, 0.2], nan_ok=True)
    swept = drawn_map(30, (4, 3), seed=5, effect=2.0)
    for correction in CORRECTIONS:
        by_cell = iv.cell_statistics(swept, correction=correction)
        assert bool(by_cell["clear"][0, 0])
        assert by_cell.attrs["correction"] == correction


def test_too_few_are_refused_with_what_they_could_show() -> None:
    swept = drawn_map(15, (4, 3), seed=6, per_cluster=3)
    with pytest.raises(ResultsError, match=r"5 independent .* 0\.0625.*at least 6"):
        iv.cell_statistics(swept)
    assert iv.cell_statistics(swept, clusters=range(15)).attrs["n_clusters"] == 15
    with pytest.raises(ResultsError, match="2 clusters for 15 items"):
        iv.cell_statistics(swept, clusters=["a", "b"])
    with pytest.raises(ResultsError, match="no dim item"):
        iv.cell_statistics(swept.isel(item=0))


def test_infinite_changes_are_refused_and_not_left_out() -> None:
    swept = drawn_map(12, (3, 2), seed=8)
    swept["logprob"][0, 1, 1] = -np.inf
    with pytest.raises(ResultsError, match=r"1 number.* are infinite"):
        iv.cell_statistics(swept)


def test_a_cell_that_few_items_have_is_not_tested_and_others_are() -> None:
    swept = drawn_map(12, (3, 2), seed=7, effect=3.0)
    swept["logprob"][: 12 - LEAST_CLUSTERS + 1, 1, 1] = np.nan
    swept["logprob"][:3, 2, 0] = np.nan
    by_cell = iv.cell_statistics(swept)
    assert int(by_cell["n"][1, 1]) == LEAST_CLUSTERS - 1
    assert np.isnan(by_cell["p"][1, 1])
    assert not bool(by_cell["clear"][1, 1])
    alone = iv.cell_statistics(swept.isel(item=slice(3, None), layer=[2], role=[0]))
    for name in ("change", "low", "high", "n"):
        assert by_cell[name][2, 0] == alone[name][0, 0]


def test_what_is_never_below_zero_is_not_tested() -> None:
    swept = drawn_map(12, (3, 2), seed=8).rename(logprob="changed")
    swept["changed"] = (swept["changed"] > 0).astype(np.float32)
    swept["changed"][:, 0, 0] = 0
    by_cell = iv.cell_statistics(swept, "changed")
    assert np.isnan(by_cell["p"]).all()
    assert by_cell["low"][0, 0] == 0
    assert 0.2 < by_cell["high"][0, 0] < 0.4  # 0 of 12
    assert "not tested" in iv.heatmap(swept, "changed").get_supxlabel()


def hatched(figure: Any) -> int:
    """How many cells of a figure are hatched."""
    parts = [part for axes in figure.axes for part in axes.collections if part.get_hatch()]
    assert all(len(part.get_facecolor()) == 0 for part in parts)
    return sum(len(part.get_paths()) for part in parts)


def test_maps_hatch_what_is_not_clear_and_say_so(tmp_path: Path) -> None:
    swept = drawn_map(30, (4, 3), seed=9, effect=2.0)
    figure = iv.heatmap(swept)
    assert hatched(figure) == 4 * 3 - 1
    assert "n = 30; clear: p < 0.05, corrected for all cells" in figure.get_supxlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["not clear"]
    figure.savefig(tmp_path / "map.png")
    everything = swept.assign(logprob=swept["logprob"] * 0 + 1 + swept["item"] * 0.01)
    assert hatched(iv.heatmap(everything)) == 0
    for few in (iv.heatmap(swept, item=3), iv.heatmap(swept.isel(item=[3]))):
        assert hatched(few) == 0
        assert few.get_supxlabel() == ""
    three = iv.heatmap(swept.isel(item=slice(3)))
    assert three.get_supxlabel() == "n = 3: too few to test, which takes 6"


def test_curves_have_bands_and_filled_markers(tmp_path: Path) -> None:
    swept = drawn_map(30, (4, 3), seed=9, effect=2.0)
    figure = iv.lineplot(swept, title="a title")
    axes: Any = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["r0", "r1", "r2"]
    assert len(axes.collections) == 3
    filled = [line for line in axes.lines if line.get_label() == "_clear"]
    assert [len(line.get_xdata()) for line in filled] == [1, 0, 0]
    assert "n = 30" in figure.get_supxlabel()
    assert "band: 95 % interval" in figure.get_supxlabel()
    figure.savefig(tmp_path / "curves.png")
    assert "too few" in iv.lineplot(swept.isel(item=slice(3))).get_supxlabel()
    with pytest.raises(ResultsError, match=r"20 curves are too many.*at most 12"):
        iv.lineplot(drawn_map(6, (3, 20), seed=0))
