"""How good forecasts of right and wrong are: ranking, calibration, and error, over entities.

A forecast gives each item a probability of being right. Intervals come of resampled entities; that
of the area under the curve is the exact binomial one on the number of independent items that the
resamples' spread is worth, as resampling alone gives a perfect ranking no width at all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from twohop.protocol import DEFAULT, Protocol
from twohop.statistics import TAIL, Estimate, Labels, interval, mean

CHUNK = 200  # resamples at a time, so that thousands of items need little memory


@dataclass(frozen=True)
class Forecast:
    """Probabilities of being right, and what was.

    Attributes
    ----------
    expected : ndarray [item]
    right : ndarray of bool [item]
    clusters : ndarray of str [item]
        The entity of each.
    """

    expected: np.ndarray
    right: np.ndarray
    clusters: np.ndarray

    def __len__(self) -> int:
        return len(self.right)

    def why_not(self, *, protocol: Protocol = DEFAULT) -> str:
        """Why nothing can be said of it; empty if something can."""
        entities = len({*self.clusters})
        if entities < protocol.least_clusters:
            return f"{entities} entities, fewer than {protocol.least_clusters}"
        if self.right.all():
            return "no item is lost"
        return "" if self.right.any() else "every item is lost"

    def resampled(
        self, measure: Callable[[np.ndarray], np.ndarray], *, seed: int, protocol: Protocol
    ) -> np.ndarray:
        """Measure samples of the entities, as many as the protocol's ``resamples``.

        Parameters
        ----------
        measure : callable
            ``measure(weights)`` of how often each item is in a sample [sample, item] gives
            [sample, ...].
        seed : int
        protocol : Protocol

        Returns
        -------
        ndarray [resample, ...]
        """
        codes, index = np.unique(self.clusters, return_inverse=True)
        generator = np.random.default_rng(seed)
        draws = generator.multinomial(
            len(codes), np.full(len(codes), 1 / len(codes)), size=protocol.resamples
        ).astype(float)
        parts = [draws[i : i + CHUNK][:, index] for i in range(0, len(draws), CHUNK)]
        return np.concatenate([measure(weights) for weights in parts])


def areas(scores: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the curve for weighted items, [sample]; NaN where all are right, or all wrong.

    The probability that a right item has a higher score than a wrong one; ties count half.

    Parameters
    ----------
    scores : ndarray [item]
    right : ndarray of bool [item]
    weights : ndarray [sample, item]

    Examples
    --------
    >>> areas(np.array([0.1, 0.7, 0.7]), np.array([False, True, False]), np.ones((1, 3)))
    array([0.75])
    """
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    ordered, won = weights[:, order], right[order]
    winners = np.add.reduceat(ordered * won, starts, axis=1)
    losers = np.add.reduceat(ordered * ~won, starts, axis=1)
    below = losers.cumsum(1) - losers
    pairs = winners.sum(1) * losers.sum(1)
    better = (winners * (below + losers / 2)).sum(1)
    return np.where(pairs > 0, better / np.where(pairs > 0, pairs, 1), np.nan)


def area(forecast: Forecast, *, seed: int, protocol: Protocol = DEFAULT) -> Estimate:
    """Area under the curve, with its interval over entities."""
    nothing = Estimate(np.nan, np.nan, np.nan, len(forecast))
    if forecast.why_not(protocol=protocol):
        return nothing
    everyone = np.ones((1, len(forecast)))
    value = float(areas(forecast.expected, forecast.right, everyone)[0])
    drawn = forecast.resampled(
        lambda weights: areas(forecast.expected, forecast.right, weights),
        seed=seed,
        protocol=protocol,
    )
    low, high = _bounds(value, float(np.nanvar(drawn)), _fewer(forecast))
    return Estimate(value, low, high, len(forecast))


def _fewer(forecast: Forecast) -> int:
    """Entities with a right item, or with a wrong one, whichever are fewer."""
    won, lost = ({*forecast.clusters[which]} for which in (forecast.right, ~forecast.right))
    return min(len(won), len(lost))


def _bounds(value: float, variance: float, fewest: int) -> tuple[float, float]:
    """Interval of an area whose resamples have a variance: exact, on as many items as it is worth.

    No more than twice the smaller class, which is what it is worth near 1.
    """
    # Loaded where it is used: importing the package is to stay light.
    from scipy.special import betaincinv

    spread = value * (1 - value)
    worth = min(spread / variance, 2 * fewest) if variance > 0 and spread > 0 else float(fewest)
    won, lost = value * worth, (1 - value) * worth
    low = float(betaincinv(won, lost + 1, TAIL)) if won > 0 else 0.0
    high = float(betaincinv(won + 1, lost, 1 - TAIL)) if lost > 0 else 1.0
    return min(low, value), max(high, value)


def gain(
    forecast: Forecast, other: np.ndarray, *, seed: int, protocol: Protocol = DEFAULT
) -> Estimate:
    """Area of a forecast minus that of other scores [item] for the same items.

    Its interval is of resamples of the entities, both areas of each of the same ones.
    """
    if forecast.why_not(protocol=protocol):
        return Estimate(np.nan, np.nan, np.nan, len(forecast))

    def both(weights: np.ndarray) -> np.ndarray:
        mine = areas(forecast.expected, forecast.right, weights)
        return mine - areas(other, forecast.right, weights)

    value = float(both(np.ones((1, len(forecast))))[0])
    drawn = forecast.resampled(both, seed=seed, protocol=protocol)
    return Estimate(value, *interval(drawn), len(forecast))


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities mean what they say.

    Attributes
    ----------
    slope, intercept : Estimate
        Of the straight line of right on expected; 1 and 0 where they do. Not measured where all
        items are expected alike.
    brier : Estimate
        Mean squared error of the probabilities; its reference, that of giving all items the share
        that is right, is ``base``.
    base : float
    skill : Estimate
        Share of the reference's error that the probabilities do without: 1 is perfect, 0 is no
        better than the share alone, which no forecast made without the answers knows.
    """

    slope: Estimate
    intercept: Estimate
    brier: Estimate
    base: float
    skill: Estimate


def calibration(forecast: Forecast, *, seed: int, protocol: Protocol = DEFAULT) -> Calibration:
    """Line, error and skill of a forecast, with intervals of resampled entities."""
    nothing = Estimate(np.nan, np.nan, np.nan, len(forecast))
    if forecast.why_not(protocol=protocol):
        return Calibration(nothing, nothing, nothing, np.nan, nothing)
    x, y = forecast.expected, forecast.right.astype(float)

    def measure(weights: np.ndarray) -> np.ndarray:
        total = weights.sum(1)
        mean_x, mean_y = weights @ x / total, weights @ y / total
        varying = weights @ x**2 / total - mean_x**2
        together = weights @ (x * y) / total - mean_x * mean_y
        varies = varying > 1e-12
        slope = np.where(varies, together / np.where(varies, varying, 1), np.nan)
        brier, base = weights @ (x - y) ** 2 / total, mean_y * (1 - mean_y)
        skill = np.where(base > 0, 1 - brier / np.where(base > 0, base, 1), np.nan)
        return np.stack([slope, mean_y - slope * mean_x, brier, skill], axis=1)

    values = measure(np.ones((1, len(forecast))))[0]
    drawn = forecast.resampled(measure, seed=seed, protocol=protocol)
    slope, intercept, brier, skill = (
        Estimate(float(value), *interval(of_value), len(forecast))
        if not np.isnan(value)
        else nothing
        for value, of_value in zip(values, drawn.T, strict=True)
    )
    return Calibration(slope, intercept, brier, float(y.mean() * (1 - y.mean())), skill)


def binned(forecast: Forecast, *, protocol: Protocol = DEFAULT) -> list[tuple[float, Estimate]]:
    """For bins of equal width from 0 to 1: what is expected on average, and the share right.

    As many as the protocol's ``calibration_bins``; a bin without items is not measured.
    """
    bins = protocol.calibration_bins
    place = np.minimum((forecast.expected * bins).astype(int), bins - 1)
    rows = []
    for number in range(bins):
        inside = place == number
        expected = float(forecast.expected[inside].mean()) if inside.any() else np.nan
        rows.append((expected, mean(forecast.right[inside], forecast.clusters[inside])))
    return rows


def permuted(
    forecast: Forecast, strata: Labels, *, seed: int, protocol: Protocol = DEFAULT
) -> np.ndarray:
    """Areas of forecasts that were dealt out anew over the entities, [resample].

    An entity gets the probability of another of its stratum, for all of its items.

    Parameters
    ----------
    forecast : Forecast
        Of one probability for all items of an entity.
    strata : sequence of str [item]
        The same for all items of an entity.
    """
    codes, first, index = np.unique(forecast.clusters, return_index=True, return_inverse=True)
    _, groups = np.unique(np.asarray(strata, dtype=str)[first], return_inverse=True)
    generator = np.random.default_rng(seed)
    everyone = np.ones((1, len(forecast)))
    dealt = np.empty(protocol.resamples)
    for draw in range(protocol.resamples):
        # Sorting by group and chance, and by group alone, pairs the entities of each group.
        shuffled = np.lexsort((generator.random(len(codes)), groups))
        source = np.empty(len(codes), dtype=int)
        source[np.argsort(groups, kind="stable")] = shuffled
        scores = forecast.expected[first][source][index]
        dealt[draw] = areas(scores, forecast.right, everyone)[0]
    return dealt
