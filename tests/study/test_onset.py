"""Onsets, shares in time, late and never, and a median only where there is one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twohop.stages.resolution.onset import median_lateness, onsets, shares_by
from twohop.statistics import mean

END, LAYERS = 5, 33


def read_from(*first: tuple[int, int]) -> np.ndarray:
    """Hits [layer, entity] of so many entities that are read from a layer on; -1: at none."""
    columns = [np.arange(LAYERS) >= layer if layer >= 0 else np.zeros(LAYERS) > 0
               for n, layer in first for _ in range(n)]  # fmt: skip
    return np.stack(columns, axis=1)


def nobody(n: int) -> np.ndarray:
    return np.full(n, -1)


def test_most_in_time_and_the_rest_much_later_is_not_late() -> None:
    onset = onsets(read_from((162, 2), (28, 28)), running=2)
    timing = shares_by(onset, END, null=nobody(190))
    assert round(timing.in_time.value * 190) == 162
    assert timing.in_time.low > 0.75
    assert round(timing.late.value * 190) == 28
    assert timing.never.value == 0
    assert timing.in_time_above_null.low > 0.75
    found = median_lateness(onset, END)
    assert (found.layers.value, found.layers.low, found.layers.high) == (-3, -3, -3)
    assert found.reason == ""


def test_few_that_are_read_late_are_a_small_share_and_no_lateness_of_all() -> None:
    onset = onsets(read_from((50, 24), (950, -1)), running=2)
    timing = shares_by(onset, END, null=nobody(1000))
    assert timing.late.value == pytest.approx(0.05)
    assert timing.late.high < 0.08
    assert timing.never.value == pytest.approx(0.95)
    found = median_lateness(onset, END)
    assert not found.layers.measured
    assert "only 50 of 1000 entities have an onset" in found.reason


def test_half_of_the_entities_at_all_layers_have_no_lateness() -> None:
    onset = onsets(read_from((95, 0), (95, -1)), running=2)
    assert shares_by(onset, END, null=nobody(190)).late.value == 0
    assert not median_lateness(onset, END).layers.measured
    barely = median_lateness(onsets(read_from((100, 0), (90, -1)), running=2), END)
    assert not barely.layers.measured
    assert "reaches those that have none" in barely.reason


def test_a_curve_that_is_flat_by_luck_is_not_late() -> None:
    """Read at half of the layers, drawn anew at each: the two layers running come early."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        onset = onsets(rng.random((LAYERS, 190)) < 0.5, running=2)
        assert median_lateness(onset, END).layers.high <= 0


def test_really_late_is_late() -> None:
    onset = onsets(read_from((20, 2), (150, 24), (20, -1)), running=2)
    timing = shares_by(onset, END, null=nobody(190))
    assert timing.late.value == pytest.approx(150 / 190)
    assert median_lateness(onset, END).layers.value == 24 - END


def test_what_a_null_gives_as_well_is_not_above_it() -> None:
    onset = onsets(read_from((30, 3), (60, -1)), running=2)
    luck = onsets(read_from((60, -1), (30, 3)), running=2)
    timing = shares_by(onset, END, null=luck)
    assert timing.in_time_above_null.value == 0
    assert timing.in_time_above_null.low < 0 < timing.in_time_above_null.high


def test_without_a_window_nothing_is_measured() -> None:
    onset = np.array([2] * 20)
    timing = shares_by(onset, -1, null=nobody(20))
    assert not any(share.measured for share in vars(timing).values())
    assert median_lateness(onset, -1).reason == "the recall window was not found"
    assert "too few" in median_lateness(onset[:5], END).reason


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


def test_the_intervals_of_the_median_and_of_the_shares_cover() -> None:
    """Onsets drawn where the median and the share in time are known: 95 of 100 intervals hold."""
    rng, layers = np.random.default_rng(0), np.arange(20)
    median, share, draws = 7 - END, 0.3, 400
    weights = np.where(layers <= END, share / 6, 0.0)
    weights[6:9] = [0.15, 0.2, 0.1]
    weights[9:] = (1 - weights.sum()) / 11
    covered = {"median": 0, "share": 0}
    for _ in range(draws):
        onset = rng.choice(layers, size=60, p=weights)
        late = median_lateness(onset, END).layers
        in_time = shares_by(onset, END, null=nobody(60)).in_time
        covered["median"] += late.low <= median <= late.high
        covered["share"] += in_time.low <= share <= in_time.high
        assert in_time == mean((onset <= END).astype(float), np.arange(60).astype(str))
    assert min(covered.values()) >= 0.93 * draws
