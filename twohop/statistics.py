"""Intervals and tests in which the questions of one entity are not taken for independent.

A share's interval is that of Korn and Graubard (1998) for clustered samples: the exact binomial
interval of Clopper and Pearson on the number of independent items that the entities are worth. A
paired difference's is made from those of its two parts, the items won and the items lost, by the
method of variance estimates recovery (Zou and Donner, 2008; for independent items Newcombe, 1998).
Both hold what they promise from 12 items on (``tests/study/test_coverage.py`` measures it), which
resampling does not: it gives 1 right of 24 a lower upper end than 0 of 24.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from typing import Any

import numpy as np

from interventions.sweeping.clustered import TAIL, Labels, Shares, shares
from interventions.sweeping.clustered import cluster_totals as of_entities
from twohop.protocol import DEFAULT, Protocol

Numbers = Sequence[float] | Sequence[bool] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes
    ----------
    value : float
        NaN where nothing could be measured.
    low, high : float
        Ends of its 95 % interval over entities.
    n : int
        Number of items behind it.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def measured(self) -> bool:
        """Whether there is a value."""
        return not np.isnan(self.value)

    def scaled(self, scale: float) -> "Estimate":
        """The same in another unit, of which ``scale`` make one of this."""
        return Estimate(self.value * scale, self.low * scale, self.high * scale, self.n)

    def as_dict(self) -> dict[str, float | int | None]:
        """The four numbers, with None for what was not measured, or has no end."""
        return {
            name: (number if np.isfinite(number) else None) for name, number in vars(self).items()
        }

    def __str__(self) -> str:
        if not self.measured:
            return "not measured"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] (n {self.n})"


NOT_MEASURED = Estimate(np.nan, np.nan, np.nan, 0)


def as_json(value: Any) -> Any:
    """Numbers with intervals as ``summary.json`` has them, however deep in mappings.

    Examples
    --------
    >>> as_json({"gap": NOT_MEASURED})
    {'gap': {'value': None, 'low': None, 'high': None, 'n': 0}}
    """
    if isinstance(value, Estimate):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {key: as_json(part) for key, part in value.items()}
    return value


def estimates(value: Any) -> Any:
    """What ``summary.json`` holds, its numbers with intervals as estimates: :func:`as_json` undone.

    Estimates that are there already stay.

    Examples
    --------
    >>> estimates({"gap": {"value": None, "low": None, "high": None, "n": 0}})["gap"].measured
    False
    """
    if not isinstance(value, Mapping):
        return value
    if {*value} == {"value", "low", "high", "n"}:
        middle, low, high = (
            np.nan if value[name] is None else float(value[name])
            for name in ("value", "low", "high")
        )
        return Estimate(middle, low, high, int(value["n"]))
    return {key: estimates(part) for key, part in value.items()}


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of resampled values [resample]; NaN among them is left out."""
    if np.isnan(drawn).all():
        return np.nan, np.nan
    low, high = np.nanpercentile(drawn, [100 * TAIL, 100 * (1 - TAIL)])
    return float(low), float(high)


def cluster_sums(
    values: np.ndarray, clusters: Labels, *, seed: int, protocol: Protocol = DEFAULT
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap sums and counts of ``values`` [item, ...] by resampling whole clusters.

    As many times as the protocol's ``resamples``.

    Returns
    -------
    sums : ndarray [resample, ...]
    counts : ndarray [resample]
    """
    codes, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    totals = np.zeros((len(codes), *values.shape[1:]))
    np.add.at(totals, index, values)
    sizes = np.bincount(index, minlength=len(codes)).astype(float)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(
        len(codes), np.full(len(codes), 1 / len(codes)), size=protocol.resamples
    ).astype(float)
    return np.tensordot(weights, totals, axes=1), weights @ sizes


def differences(won: Shares, lost: Shares) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences of two shares of the same items, and the ends of their intervals.

    Parameters
    ----------
    won, lost : Shares
        Of the items that are more in the first, and of those that are more in the second.
    """
    value, alike = won.value - lost.value, _together(won, lost)

    def reach(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(first**2 + second**2 - 2 * alike * first * second, 0))

    low = value - reach(won.value - won.low, lost.high - lost.value)
    high = value + reach(won.high - won.value, lost.value - lost.low)
    return value, np.maximum(low, -1), np.minimum(high, 1)


def _together(first: Shares, second: Shares) -> np.ndarray:
    """Correlation over entities of two shares of the same items; 0 where one does not vary."""
    both = (first.residuals**2).sum(-1) * (second.residuals**2).sum(-1)
    product = (first.residuals * second.residuals).sum(-1)
    return np.where(both > 0, product / np.sqrt(np.where(both > 0, both, 1)), 0.0)


def mean(values: Numbers, clusters: Labels) -> Estimate:
    """Mean over items of values in [0, 1], with its interval over entities.

    Parameters
    ----------
    values : array [item]
        Right or wrong, or the share of several draws that is right.
    clusters : sequence of str
        The entity of each item.

    Raises
    ------
    ValueError
        For values that are no shares.

    Examples
    --------
    >>> print(mean([1.0, 0.0, 1.0, 1.0], ["a", "b", "c", "d"]))
    0.75 [0.13, 1.00] (n 4)
    """
    array = np.asarray(values, dtype=float)
    if not len(array):
        return NOT_MEASURED
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError("an interval of a share needs values from 0 to 1")
    share = shares(*of_entities(array, clusters))
    return Estimate(float(share.value), float(share.low), float(share.high), len(array))


def difference(
    first: Numbers,
    second: Numbers,
    clusters: Labels,
    *,
    relative: bool = False,
) -> Estimate:
    """Paired difference of two shares of the same items, or its part of the first one.

    Parameters
    ----------
    first, second : array [item]
        Values from 0 to 1.
    clusters : sequence of str
        The entity of each item.
    relative : bool
        Divide by the first share.
    """
    before, after = np.asarray(first, float), np.asarray(second, float)
    if not len(before) or (relative and before.sum() == 0):
        return Estimate(np.nan, np.nan, np.nan, len(before))
    both = np.stack([before, after, np.maximum(before - after, 0), np.maximum(after - before, 0)])
    totals, sizes = of_entities(both, clusters)
    if relative:
        return _part(shares(totals[0], sizes), shares(totals[1], sizes), len(before))
    value, low, high = differences(shares(totals[2], sizes), shares(totals[3], sizes))
    return Estimate(float(value), float(low), float(high), len(before))


def _part(first: Shares, second: Shares, n: int) -> Estimate:
    """What part of the first share the second lacks (Donner and Zou, 2012).

    Each end is the ratio at which the interval of ``second - ratio * first`` ends at 0.
    """
    alike = float(_together(second, first))
    below, above = float(first.value), float(second.value)

    def end(reach: float, reach_below: float, sign: int) -> float:
        square = below**2 - reach_below**2
        mixed = above * below - alike * reach * reach_below
        if square <= 0:  # the first share may be as small as one likes
            return sign * np.inf
        inside = mixed**2 - square * (above**2 - reach**2)
        return (mixed + sign * sqrt(max(inside, 0.0))) / square

    low = end(above - float(second.low), float(first.high) - below, -1)
    high = end(float(second.high) - above, below - float(first.low), 1)
    value = 1 - above / below
    return Estimate(value, min(1 - high, value), min(max(1 - low, value), 1.0), n)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Exact McNemar test on paired right/wrong.

    Returns
    -------
    only_first, only_second : int
        Items that only one of the two has right.
    p : float
        Two-sided binomial p-value.

    Examples
    --------
    >>> mcnemar([True, True, False], [False, True, False])
    (1, 0, 1.0)
    """
    only_first = sum(
        bool(in_first) and not in_second for in_first, in_second in zip(first, second, strict=True)
    )
    only_second = sum(
        bool(in_second) and not in_first for in_first, in_second in zip(first, second, strict=True)
    )
    n, fewer = only_first + only_second, min(only_first, only_second)
    p = min(1.0, 2 * sum(comb(n, i) for i in range(fewer + 1)) / 2**n) if n else 1.0
    return only_first, only_second, p
