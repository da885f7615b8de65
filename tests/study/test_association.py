"""Slopes and rank correlations over pairs of models: known answers, tests, and coverage."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from twohop.report.association import LEAST_PAIRS, association, together


def test_numbers_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    for n in (5, 9, 14):
        x = generator.integers(0, 8, n).astype(float)
        y = x + generator.normal(size=n) * 3
        found = association("a", x.tolist(), y.tolist())
        slope, _, _, _, spread = stats.linregress(x, y)
        assert found.slope.value == pytest.approx(slope)
        assert found.slope.low == pytest.approx(slope - stats.t.ppf(0.975, n - 2) * spread)
        assert found.spearman.value == pytest.approx(stats.spearmanr(x, y)[0])
        assert found.kendall.value == pytest.approx(stats.kendalltau(x, y)[0])
        assert found.n == n


def test_all_orders_are_tried_of_few_pairs() -> None:
    x, y = [1.0, 2, 3, 4, 5, 6], [1.0, 3, 2, 4, 6, 5]
    every = [np.corrcoef(np.stack([x, order]))[0, 1] for order in permutations(y)]
    expected = np.mean(np.abs(every) >= np.corrcoef(np.stack([x, y]))[0, 1] - 1e-9)
    assert association("a", x, y).p == pytest.approx(expected)
    perfect = association("a", x, x)
    assert perfect.p == pytest.approx(2 / math.factorial(6))
    assert perfect.spearman.high == 1
    many = list(np.arange(20.0))
    assert association("a", many, many).p == pytest.approx(1 / 10_000)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_nothing_is_claimed_of_few_pairs(n: int) -> None:
    [found] = together([association("a", list(range(n)), list(range(n)))])
    assert not found.claimable
    assert not found.shown
    assert math.isnan(found.p_holm)
    assert found.slope.measured == (n >= 3)
    assert math.isnan(found.spearman.low)
    assert found.as_dict()["p_holm"] is None


def test_a_number_that_is_the_same_everywhere_goes_with_nothing() -> None:
    found = association("a", [0.5] * 6, [1.0, 2, 3, 4, 5, 6])
    assert not found.slope.measured
    assert math.isnan(found.p)


def test_what_is_between_families_is_not_within_them() -> None:
    """Simpson's: within each family the second falls, over all it rises."""
    x = [1.0, 2, 3, 11, 12, 13]
    y = [3.0, 2, 1, 13, 12, 11]
    family = [*"aaabbb"]
    assert association("all", x, y).slope.value > 0.5
    within = association("within", x, y, families=family)
    assert within.slope.value == pytest.approx(-1)
    assert within.spearman.value == pytest.approx(-1)
    assert within.kendall.value == pytest.approx(-1)
    assert within.p == pytest.approx(2 / 36)
    alone = association("within", [*x, 99.0], [*y, 99.0], families=[*family, "c"])
    assert alone == within
    assert not association("within", x, y, families=[*"abcdef"]).slope.measured


def test_holm_counts_only_what_may_be_claimed() -> None:
    x = [1.0, 2, 3, 4, 5, 6]
    few, first, second = together(
        [association("few", x[:3], x[:3]), association("a", x, x), association("b", x, x)]
    )
    assert math.isnan(few.p_holm)
    assert first.p_holm == pytest.approx(2 * first.p)
    assert first.shown
    assert second.shown


@pytest.mark.parametrize("n", [LEAST_PAIRS, 14])
def test_intervals_hold_what_they_promise(n: int) -> None:
    generator = np.random.default_rng(n)
    slopes, ranks = [], []
    for rho in (0.0, 0.6, 0.95):
        truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's, of normal numbers
        for _ in range(100):
            x, left = generator.normal(size=(2, n))
            y = rho * x + np.sqrt(1 - rho**2) * left
            found = association("a", x.tolist(), y.tolist())
            slopes.append(found.slope.low <= rho <= found.slope.high)
            ranks.append(found.spearman.low <= truth <= found.spearman.high)
    assert np.mean(slopes) > 0.93
    assert np.mean(ranks) > 0.93
