"""Where a recall window ends: numbers of its curves over blocks, with intervals over entities."""

from dataclasses import dataclass

import numpy as np

from twohop.protocol import DEFAULT, Protocol
from twohop.statistics import Labels, cluster_sums, interval


def last_below(curves: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Last index at which curves [..., edge] are below levels [...]; -1: none.

    Of the edge at which ablation begins, it is the last block that is needed.
    """
    below = curves < np.asarray(level)[..., None] - 1e-12
    return np.where(below.any(-1), below.shape[-1] - 1 - below[..., ::-1].argmax(-1), -1)


def half_point(curves: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Where curves [..., edge] first reach the middle between their two ends, interpolated.

    Unlike the last place below a level it is no extreme: one more item wrong moves it by little.

    Parameters
    ----------
    curves : ndarray [..., edge]
    at : ndarray [edge]
        Number of blocks that each edge stands for.

    Returns
    -------
    ndarray [...]
        In blocks; NaN where a curve does not end higher than it begins.

    Examples
    --------
    >>> import numpy as np
    >>> half_point(np.array([0.2, 0.4, 0.8, 1.0]), np.arange(4)).round(2).tolist()
    1.5
    """
    first, last = curves[..., 0], curves[..., -1]
    level = (first + last) / 2
    reached = curves >= level[..., None]
    reached[..., 0] = False
    behind = np.maximum(reached.argmax(-1), 1)
    high, low = (
        np.take_along_axis(curves, index[..., None], -1)[..., 0] for index in (behind, behind - 1)
    )
    rise = np.where(high > low, high - low, 1)
    part = (level - low) / rise
    point = at[behind - 1] + part * (at[behind] - at[behind - 1])
    return np.where(last > first, point, np.nan)


@dataclass(frozen=True)
class Ends:
    """Numbers of a curve, each with the ends of its interval: [value, low, high].

    Attributes
    ----------
    last, half : ndarray [3]
        Last index at which it is below a share of its end, and its half-point.
    """

    last: np.ndarray
    half: np.ndarray


def ends_of(
    answered: np.ndarray, entities: Labels, *, seed: int, protocol: Protocol = DEFAULT
) -> Ends:
    """Numbers of the mean curve of items, with percentile intervals of resampled entities.

    Both are functions of a curve, not shares of items, so there is no closed form. Items and edges
    that were not measured are left out. NaN where nothing was.

    Parameters
    ----------
    answered : ndarray [edge, item]
        NaN where it was not measured.
    entities : sequence of str [item]
    seed : int
    protocol : Protocol
    """
    if np.isnan(answered).all():
        return Ends(np.array([-1.0, np.nan, np.nan]), np.full(3, np.nan))
    curve, drawn, at = _resampled(answered, entities, seed=seed, protocol=protocol)

    def last(curves: np.ndarray) -> np.ndarray:
        index = last_below(curves, protocol.window_keeps * curves[..., -1])
        return np.where(index < 0, -1, at[index])

    return Ends(
        np.array([last(curve), *interval(last(drawn).astype(float))], dtype=float),
        np.array([half_point(curve, at), *interval(half_point(drawn, at))], dtype=float),
    )


def readout_end(
    follows: np.ndarray, entities: Labels, *, seed: int, protocol: Protocol = DEFAULT
) -> np.ndarray:
    """Last block whose swap answers follow, with its percentile interval: [value, low, high].

    At the protocol's ``readout_follows`` of the most that follow at any block; -1: at none. The
    ends are NaN where nothing was measured.

    Parameters
    ----------
    follows : ndarray [block, item]
        NaN where it was not measured.
    entities : sequence of str [item]
    seed : int
    protocol : Protocol
    """
    if np.isnan(follows).all():
        return np.array([-1.0, np.nan, np.nan])
    curve, drawn, at = _resampled(follows, entities, seed=seed, protocol=protocol)

    def last(curves: np.ndarray) -> np.ndarray:
        level = np.maximum(protocol.readout_follows * curves.max(-1), 1e-12)
        above = curves >= level[..., None] - 1e-12
        index = above.shape[-1] - 1 - above[..., ::-1].argmax(-1)
        return np.where((curves > 1e-12).any(-1), at[index], -1).astype(float)

    return np.array([last(curve), *interval(last(drawn))], dtype=float)


def _resampled(
    values: np.ndarray, entities: Labels, *, seed: int, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over items of values [place, item], its resamples [resample, place], and the places.

    Of items and places at which something was measured (not NaN).
    """
    items, places = ~np.isnan(values).all(0), ~np.isnan(values).all(1)
    there = values[np.ix_(places, items)]
    labels = np.asarray(entities, dtype=str)[items]
    sums, counts = cluster_sums(there.T, labels, seed=seed, protocol=protocol)
    return there.mean(1), sums / counts[:, None], np.flatnonzero(places)
