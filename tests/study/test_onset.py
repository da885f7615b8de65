"""Onsets, and a median only where there is one."""

import numpy as np
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from twohop.protocol import Protocol
from twohop.stages.resolution.onset import median, onsets
from twohop.stages.timing import READS, Timing, median_delay, timing

END, LAYERS = 5, 33


def read_from(*first: tuple[int, int]) -> np.ndarray:
    """Hits [layer, entity] of so many entities that are read from a layer on; -1: at none."""
    columns = [np.arange(LAYERS) >= layer if layer >= 0 else np.zeros(LAYERS) > 0
               for n, layer in first for _ in range(n)]  # fmt: skip
    return np.stack(columns, axis=1)


def delays(hits: np.ndarray) -> np.ndarray:
    """Layers from the end of a window to each onset; infinite for never."""
    first = onsets(hits, running=2)
    return np.where(first >= 0, first - float(END), np.inf)


def test_most_in_time_and_the_rest_much_later_is_not_late() -> None:
    found = median(delays(read_from((162, 2), (28, 28))))
    assert (found.value.value, found.value.low, found.value.high) == (-3, -3, -3)
    assert found.reason == ""


def test_few_that_are_read_late_have_no_median() -> None:
    found = median(delays(read_from((50, 24), (950, -1))))
    assert not found.value.measured
    assert "only 50 of 1000 entities are read" in found.reason


def test_half_of_the_entities_at_all_layers_have_no_median() -> None:
    assert not median(delays(read_from((95, 0), (95, -1)))).value.measured
    barely = median(delays(read_from((100, 0), (90, -1))))
    assert not barely.value.measured
    assert "reaches those that are not" in barely.reason


def test_a_curve_that_is_flat_by_luck_is_not_late() -> None:
    """Read at half of the layers, drawn anew at each: the two layers running come early."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert median(delays(rng.random((LAYERS, 190)) < 0.5)).value.high <= 0


def test_really_late_is_late() -> None:
    found = median(delays(read_from((20, 2), (150, 24), (20, -1))))
    assert found.value.value == 24 - END


def test_of_few_entities_there_is_none() -> None:
    assert "too few" in median(np.zeros(5)).reason


def test_who_is_earlier_than_any_deadline_is_read_and_not_late() -> None:
    some_late = median(np.array([-np.inf] * 10 + [3.0] * 3))
    assert not some_late.value.measured
    assert "10 of 13 entities come earlier than any deadline" in some_late.reason
    most_late = median(np.array([-np.inf] * 3 + [3.0] * 30))
    assert (most_late.value.value, most_late.value.low) == (3, 3)


def test_a_deadline_whose_interval_has_no_end_is_still_one() -> None:
    """Read ten blocks behind a deadline that was reached: late, however far its interval goes."""
    timetable = xr.Dataset(
        {
            "deadline": ("form", [10.0, 10.0]),
            "deadline_low": ("form", [8.0, 8.0]),
            "deadline_high": ("form", [np.inf, np.inf]),
            "deadline_state": ("form", ["reached", "reached"]),
        },
        coords={"form": [0, 23]},
        attrs={"n_layers": 24},
    )
    read = Timing(np.full(20, "between", dtype=object), np.full(20, 20), np.full(20, 1))
    assert median_delay(read, timetable).value.value == 10
    behind = timetable.assign(
        deadline=("form", [np.nan, np.nan]), deadline_state=("form", ["not reached"] * 2)
    )
    assert "earlier than any deadline" in median_delay(read, behind).reason


def test_what_is_read_only_behind_the_last_block_is_late_whatever_its_deadline() -> None:
    """Nothing is left there that could read it, even in a form that serves at all blocks."""
    hits = np.zeros((5, 2), bool)
    hits[4, 0] = hits[3:, 1] = True
    resolution = xr.Dataset(
        {
            "probe": (("kind", "role", "layer", "entity"), np.stack([hits, hits])[:, None]),
            "form": (("role", "layer", "entity"), np.full((1, 5, 2), 3)),
            "chosen_role": ("entity", ["last", "last"]),
        },
        coords={"kind": [*READS], "role": ["last"], "layer": range(5), "entity": ["a", "b"]},
        attrs={"vlm_blocks": [0, 1, 2, 3]},
    )
    timetable = xr.Dataset(
        {f"deadline_{end}": ("form", [np.inf] * 5) for end in ("low", "high")},
        coords={"form": range(5)},
        attrs={"n_layers": 4},
    )
    protocol = Protocol(onset_layers=1, onset_share=0.0)
    assert timing(resolution, timetable, protocol=protocol).state.tolist() == ["late", "early"]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 7), st.integers(0, 2**20))
def test_an_onset_is_the_first_of_so_many_layers_running(
    running: int, layers: int, seed: int
) -> None:
    hits = np.random.default_rng(seed).random((2, layers, 3)) < 0.6
    expected = [
        [
            next(
                (at for at in range(layers - running + 1) if all(column[at : at + running])),
                -1,
            )
            for column in of_kind.T
        ]
        for of_kind in hits
    ]
    assert onsets(hits, running=running).tolist() == expected


def test_the_interval_of_the_median_covers() -> None:
    """Onsets drawn where the median is known: 95 of 100 intervals hold it."""
    rng, layers, draws = np.random.default_rng(0), np.arange(20), 400
    weights = np.where(layers <= END, 0.3 / 6, 0.0)
    weights[6:9] = [0.15, 0.2, 0.1]
    weights[9:] = (1 - weights.sum()) / 11
    covered = 0
    for _ in range(draws):
        found = median(rng.choice(layers, size=60, p=weights).astype(float)).value
        covered += found.low <= 7 <= found.high
    assert covered >= 0.93 * draws
