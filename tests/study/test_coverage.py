"""Intervals hold the truth as often as they say, measured by simulation.

Nominal 95 %; items in clusters that are alike to different degrees, shares from .03 to .97, 12 to
400 items. At least .93 of 2,000 samples must hold the truth in every case.
"""

from itertools import pairwise, product

import numpy as np
import pytest
from scipy.stats import binomtest

from twohop.statistics import difference, differences, mean, shares

SAMPLES = 2000
LEAST = 0.93
ITEMS = (12, 24, 60, 400)
SIZES = (1, 3, 6)
ALIKE = (0.0, 0.3, 0.6, 1.0)
CASES = [
    (n, size, alike)
    for n, size, alike in product(ITEMS, SIZES, ALIKE)
    if n // size > 1 and (size > 1 or not alike)
]
SHARES = (0.03, 0.08, 0.13, 0.35, 0.5, 0.65, 0.87, 0.97)
CHANGES = ((0.03, 0.0), (0.03, 0.03), (0.1, 0.05), (0.2, 0.01), (0.3, 0.1), (0.5, 0.1), (0.01, 0.9))
"""Shares of items that only the first has right, and that only the second has."""


def outcomes(n: int, size: int, alike: float, chances: tuple[float, ...]) -> np.ndarray:
    """How many items of each entity have each outcome, [outcome, sample, entity].

    ``alike`` is the correlation of the items of one entity.
    """
    rng = np.random.default_rng([n, size, int(10 * alike), *(int(1000 * p) for p in chances)])
    entities = (SAMPLES, n // size)
    of_all = np.array(chances)
    if alike in (0.0, 1.0):
        drawn = rng.multinomial(1 if alike else size, of_all, entities) * (size if alike else 1)
    else:
        parts = rng.gamma(np.maximum(of_all * (1 - alike) / alike, 1e-9), size=(*entities, 3))
        drawn = rng.multinomial(size, parts / parts.sum(-1, keepdims=True))
    return np.moveaxis(drawn, -1, 0)


@pytest.mark.parametrize(("n", "size", "alike"), CASES)
def test_a_share_is_in_its_interval(n: int, size: int, alike: float) -> None:
    for share in SHARES:
        right = outcomes(n, size, alike, (share, 1 - share, 0.0))[0]
        found = shares(right, np.full(n // size, size))
        held = np.mean((found.low <= share) & (share <= found.high))
        assert held >= LEAST, (share, held)


@pytest.mark.parametrize(("n", "size", "alike"), CASES)
def test_a_paired_difference_is_in_its_interval(n: int, size: int, alike: float) -> None:
    sizes = np.full(n // size, size)
    for won, lost in CHANGES:
        first, second, _ = outcomes(n, size, alike, (won, lost, 1 - won - lost))
        _, low, high = differences(shares(first, sizes), shares(second, sizes))
        held = np.mean((low <= won - lost) & (won - lost <= high))
        assert held >= LEAST, (won, lost, held)


@pytest.mark.parametrize("n", [12, 60, 400])
def test_shares_of_several_draws_are_in_their_intervals(n: int) -> None:
    rng = np.random.default_rng(n)
    for share in (0.03, 0.15, 0.5):
        chance = rng.beta(share / 2, (1 - share) / 2, (SAMPLES, n))
        found = shares(rng.binomial(20, chance) / 20, np.ones(n))
        assert np.mean((found.low <= share) & (share <= found.high)) >= LEAST


@pytest.mark.parametrize("n", [24, 120])
def test_a_part_is_in_its_interval(n: int) -> None:
    rng = np.random.default_rng(n)
    names = [str(i) for i in range(n)]
    held = 0
    for _ in range(1000):
        first = rng.random(n) < 0.8
        second = first & (rng.random(n) < 0.6)
        part = difference(first, second, names, relative=True)
        held += part.low <= 0.4 <= part.high
    assert held / 1000 >= LEAST


@pytest.mark.parametrize(("right", "n"), [(0, 24), (1, 24), (5, 12), (60, 60), (13, 200)])
def test_of_one_item_for_each_entity_it_is_the_exact_binomial_one(right: int, n: int) -> None:
    # Where answers differ, how alike they are is estimated, which costs as much as one item.
    found = mean([1.0] * right + [0.0] * (n - right), [str(i) for i in range(n)])
    exact = binomtest(right, n).proportion_ci(method="exact")
    of_less = binomtest(right, n).proportion_ci(method="exact", confidence_level=0.97)
    assert of_less.low <= found.low <= exact.low + 1e-9
    assert exact.high - 1e-9 <= found.high <= of_less.high


def test_more_right_answers_never_lower_an_end() -> None:
    names = [str(i // 3) for i in range(24)]
    found = [mean([1.0] * k + [0.0] * (24 - k), [str(i) for i in range(24)]) for k in range(25)]
    assert all(one.low < two.low and one.high < two.high for one, two in pairwise(found[1:-1]))
    assert found[0].high < found[1].high
    clustered = mean([1.0] * 3 + [0.0] * 21, names)
    assert clustered.high > found[3].high


def test_a_difference_changes_its_sign_with_its_sides() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 60)) < 0.4
    names = [str(i // 2) for i in range(60)]
    one, other = difference(first, second, names), difference(second, first, names)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


def test_what_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="values from 0 to 1"):
        mean([1.5], ["a"])
