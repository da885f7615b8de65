"""Comparisons of made-up runs whose answers are known: replicates, corrections, slopes, strata."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from twohop.report.comparison import by_class
from twohop.report.comparison_scatter import apart, gap_scatter
from twohop.report.comparison_tables import (
    association_table,
    lateness_table,
    pairs_table,
    strata_tables,
)
from twohop.report.comparison_words import lead_sentence
from twohop.report.replicates import GAP, gap_against, p_of, pairs_of
from twohop.report.strata import QUARTILES, gaps_by_stratum, quartile
from twohop.statistics import Estimate


def number(value: float, reach: float, n: int = 100) -> dict[str, float | int]:
    return {"value": value, "low": value - reach, "high": value + reach, "n": n}


def run(pair: str, gap: float, late: float | None = None, **more: Any) -> dict[str, Any]:
    """A summary of a run that has what a comparison looks at."""
    summary: dict[str, Any] = {
        "pair": pair,
        "architecture": "llava",
        "not_available": {},
        "n_items": 100,
        GAP: number(gap, 8),
    }
    if late is not None:
        summary["lateness"] = {"late": number(late, 0.08)}
        summary["prediction"] = {"expected_loss": number(late / 2, 0.05)}
    return summary | more


def several(n: int, *, noise: Sequence[float] = (0,), **more: Any) -> list[dict[str, Any]]:
    """Pairs whose gap is half of their share late, in points, and some noise."""
    late = np.linspace(0.1, 0.9, n)
    return [
        run(f"p{i}", 50 * share + noise[i % len(noise)], share, **more)
        for i, share in enumerate(late.tolist())
    ]


def words(table: Any) -> str:
    return "\n".join(" | ".join(cell.text for cell in line) for line in table.rows)


def test_nothing_is_claimed_of_three_pairs() -> None:
    runs = several(3)
    said = lead_sentence(runs)
    assert "Whether the gap goes with the share of entities late is not claimed: 3 pairs" in said
    assert "grows" not in said
    against = gap_against(pairs_of(by_class(runs)))["late"]
    assert against.overall.slope.value == pytest.approx(0.5)
    assert not against.overall.shown
    assert against.within is None
    assert "not claimed: fewer than 5 pairs" in words(association_table(by_class(runs)))


def test_an_association_of_eight_pairs_is_shown() -> None:
    runs = several(8, noise=(2, -2, 1))
    said = lead_sentence(runs)
    assert "Over 8 pairs the gap grows with the share of entities late (0.49 [" in said
    assert "Over 8 pairs the gap grows with the predicted loss (0.97 [" in said
    none = several(8, noise=(0, 60, 5, 45, 30))
    assert "Over 8 pairs the gap is not shown to go with the share" in lead_sentence(none)


def test_what_was_not_measured_is_said() -> None:
    runs = [run(f"p{i}", 30.0) for i in range(6)]
    assert "not claimed: 0 pairs, where it is not measured" in lead_sentence(runs)
    classes = by_class(runs)
    assert "not measured" in words(lateness_table(classes))
    texts = [text.get_text() for text in gap_scatter(classes).axes[0].texts]
    assert "measured\nin no run" in texts


def test_replicates_count_once_and_their_spread_is_shown() -> None:
    runs = [*several(4), run("p0", 45.0, 0.5), run("p0", 0.0, 0.2)]
    pairs = pairs_of(by_class(runs))
    assert len(pairs) == 4
    [first] = [pair for pair in pairs if pair.name == "p0"]
    mean = first.mean(GAP)
    assert mean.value == pytest.approx((5 + 45 + 0) / 3)
    assert mean.high - mean.low == pytest.approx(16), "replicates do not narrow it"
    assert first.as_dict()["gap_points"]["lowest"] == 0
    assert first.as_dict()["gap_points"]["highest"] == 45
    assert first.as_dict()["late"]["value"] == pytest.approx((0.1 + 0.5 + 0.2) / 3)
    assert gap_against(pairs)["late"].overall.n == 4
    assert "17 [9, 25]; runs 0 to 45" in words(pairs_table(by_class(runs)))
    said = lead_sentence(runs)
    assert "of 4 pairs, in 6 runs, clearly" in said
    assert "not claimed: 4 pairs" in said
    again = [*several(5), *several(5), *several(5)]
    once, thrice = (
        gap_against(pairs_of(by_class(each)))["late"].overall for each in (several(5), again)
    )
    assert once == thrice


def test_gaps_are_corrected_for_all_pairs() -> None:
    """An interval just off 0 is clear of one pair, and not of twelve."""
    alone = [run("a", 8.5)]
    assert lead_sentence(alone).startswith("1 of 1 pair clearly loses recall")
    many = [*alone, *(run(f"b{i}", 0.0) for i in range(11))]
    assert lead_sentence(many).startswith("0 of 12 pairs clearly lose")
    assert "corrected for 12 tests" in lead_sentence(many)
    strong = [*alone, *(run(f"b{i}", 30.0) for i in range(11))]
    assert lead_sentence(strong).startswith("12 of 12 pairs clearly lose")


def test_p_is_that_of_the_interval() -> None:
    assert p_of(Estimate(8.0, 0.0, 12.0, 9)) == pytest.approx(0.05)
    assert p_of(Estimate(8.0, 0.1, 12.0, 9)) < 0.05 < p_of(Estimate(8.0, -0.1, 12.0, 9))
    assert p_of(Estimate(-8.0, -30.0, -0.1, 9)) < 0.05
    assert p_of(Estimate(1.0, 1.0, 1.0, 9)) == 0
    assert np.isnan(p_of(Estimate(np.nan, np.nan, np.nan, 0)))


def test_classes_are_told_apart() -> None:
    late = [0.1, 0.2, 0.3, 0.6, 0.7, 0.8]
    gaps = [20.0, 15, 10, 60, 55, 50]
    kinds = ["llava"] * 3 + ["native"] * 3
    runs = [
        run(f"p{i}", gap, share, architecture=kind)
        for i, (gap, share, kind) in enumerate(zip(gaps, late, kinds, strict=True))
    ]
    against = gap_against(pairs_of(by_class(runs)))["late"]
    assert against.within is not None
    assert against.overall.slope.value > 0 > against.within.slope.value
    assert {*against.families} == {"llava", "native"}
    assert against.families["llava"].slope.value == pytest.approx(-0.5)
    table = words(association_table(by_class(runs)))
    assert "within classes | 6 | −0.50" in table
    assert "LLaVA-style | 3 | −0.50" in table
    two = gap_against(pairs_of(by_class(runs[:5])))["late"]
    assert {*two.families} == {"llava"}, "of two pairs there is no slope"


def test_a_scatter_of_many_pairs_can_be_read(tmp_path: Path) -> None:
    runs = several(7) + several(7, noise=(6,), architecture="native")
    runs = [each | {"pair": f"{each['architecture']}-{each['pair']}"} for each in runs]
    runs += [runs[3] | {GAP: number(33.0, 9)}]
    figure = gap_scatter(by_class(runs))
    figure.savefig(tmp_path / "scatter.png")
    left, right, key = figure.axes
    assert [len(axes.texts) for axes in (left, right)] == [14, 14]
    assert any("(2 runs)" in text.get_text() for text in key.texts)
    dashed = [line for line in left.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 3, "of all, and of each class"
    figure = gap_scatter(by_class(several(4)))
    assert not [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert "too few for a slope" in figure.axes[0].get_title("left")


def test_markers_that_would_cover_each_other_are_moved_apart() -> None:
    xs = apart([0.0] * 9, [50.0] * 9, step=0.5, near=1)
    assert len(set(xs)) == 9
    assert np.abs(np.mean(xs)) < 1e-9


def gates(n_entities: int, *, popularity: bool) -> xr.Dataset:
    """Two relations; the less known half of the entities is lost, in the first relation only."""
    entity = np.repeat(np.arange(n_entities), 2)
    relation = np.tile(["capital", "size/area"], n_entities)
    lost = (entity < n_entities // 2) & (relation == "capital")
    right = np.ones((3, len(entity)), dtype=bool)
    right[2] = ~lost
    data = xr.Dataset(
        {"right": (("gate", "item"), right), "surface": ("item", np.zeros(len(entity), bool))},
        coords={
            "gate": ["recognised", "backbone_text", "vlm_image"],
            "entity": ("item", [f"e{i}" for i in entity]),
            "relation": ("item", relation.tolist()),
        },
    )
    if popularity:
        data = data.assign_coords(popularity=("item", 10.0 ** (entity / 4)))
    return data


def test_gaps_of_strata() -> None:
    by = gaps_by_stratum(gates(16, popularity=True))
    assert by["relation"]["capital"].value == pytest.approx(50)
    assert by["relation"]["size\u2215area"].value == 0
    assert [by["popularity"][name].value for name in QUARTILES] == [50, 50, 0, 0]
    assert all(gap.n == 8 for gap in by["popularity"].values())
    assert by["popularity"]["least known"].low < 50 < by["popularity"]["least known"].high
    unknown = gaps_by_stratum(gates(16, popularity=False))
    assert unknown["popularity"] == {}
    assert (quartile(np.ones(8), np.arange(8)) == "").all()
    unknown = quartile(np.array([0, 0, 0, 0, 0, 0, 0, 2, 3, 4]), np.arange(10)).tolist()
    assert unknown == ["below the middle"] * 7 + ["best known"] * 3, (
        "the seven that nobody knows are at the bottom, however many they are"
    )


def test_strata_stand_side_by_side() -> None:
    with_popularity = gaps_by_stratum(gates(16, popularity=True))
    without = gaps_by_stratum(gates(16, popularity=False))
    runs = [
        run("a", 30.0, gap_points_by=with_popularity),
        run("b", 20.0, gap_points_by=without),
        run("c", 10.0),
    ]
    popular, relation = strata_tables(by_class(runs))
    assert popular.columns == ("run", *QUARTILES)
    assert relation.columns == ("run", "capital", "size\u2215area")
    assert popular.rows[1][1].key == "0/gap_points_by/popularity/least known"
    assert "50 [" in popular.rows[1][1].text
    assert popular.rows[2][1].text == "not measured"
    assert strata_tables(by_class([run("c", 10.0)])) == []
