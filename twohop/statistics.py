"""Intervals and tests in which the questions of one entity are not taken for independent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from twohop.protocol import DEFAULT, Protocol

TAIL = 0.025  # on each side of what is called an interval everywhere: 95 %
Labels = Sequence[str] | np.ndarray
Numbers = Sequence[float] | Sequence[bool] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes
    ----------
    value : float
        NaN where nothing could be measured.
    low, high : float
        Percentile bootstrap over entities.
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
        """The four numbers, with None for what could not be measured."""
        return {
            name: (None if isinstance(number, float) and np.isnan(number) else number)
            for name, number in vars(self).items()
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


def mean(
    values: Numbers, clusters: Labels, *, seed: int = 0, protocol: Protocol = DEFAULT
) -> Estimate:
    """Mean over items, with an interval by bootstrap over entities.

    Where all values are 0, or all 1, the interval is the exact binomial one on the number of
    entities (Clopper and Pearson, 1934).

    Parameters
    ----------
    values : array [item]
    clusters : sequence of str
        The entity of each item.
    seed : int
        Of the resampling.
    protocol : Protocol
        Says how often.

    Examples
    --------
    >>> mean([1.0, 1.0], ["a", "b"]).value
    1.0
    """
    array = np.asarray(values, dtype=float)
    if not len(array):
        return Estimate(np.nan, np.nan, np.nan, 0)
    if array.min() == array.max() and array[0] in (0.0, 1.0):
        # Resampling equal values gives no interval: take the exact binomial one, over entities.
        margin = 1 - TAIL ** (1 / len(set(np.asarray(clusters, dtype=str))))
        low, high = (0.0, margin) if array[0] == 0 else (1 - margin, 1.0)
        return Estimate(float(array[0]), low, high, len(array))
    sums, counts = cluster_sums(array, clusters, seed=seed, protocol=protocol)
    return Estimate(float(array.mean()), *interval(sums / counts), len(array))


def difference(
    first: Numbers,
    second: Numbers,
    clusters: Labels,
    *,
    relative: bool = False,
    seed: int = 0,
    protocol: Protocol = DEFAULT,
) -> Estimate:
    """Paired difference of two shares, or its part of the first one.

    With fewer entities than the protocol's ``least_clusters``, or where they all differ by the
    same, resampling tells nothing; the interval is then widened by the exact binomial margin of
    that many entities.
    """
    both = np.stack([np.asarray(first, float), np.asarray(second, float)], axis=1)
    if not len(both) or (relative and both[:, 0].sum() == 0):
        return Estimate(np.nan, np.nan, np.nan, len(both))
    sums, counts = cluster_sums(both, clusters, seed=seed, protocol=protocol)

    def gap(first_sum: Any, second_sum: Any, count: Any) -> Any:
        lost = first_sum - second_sum
        return lost / (np.where(first_sum == 0, np.nan, first_sum) if relative else count)

    value = float(gap(both[:, 0].sum(), both[:, 1].sum(), len(both)))
    low, high = interval(gap(sums[:, 0], sums[:, 1], counts))
    n_clusters = len(set(np.asarray(clusters, dtype=str)))
    if low == high or n_clusters < protocol.least_clusters:
        margin = 1 - TAIL ** (1 / n_clusters)
        low, high = min(low, value - margin), min(max(high, value + margin), 1.0)
        low = low if relative else max(low, -1.0)
    return Estimate(value, low, high, len(both))


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
