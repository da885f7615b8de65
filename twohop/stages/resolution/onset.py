"""From which layer on each entity is read, and how that lies to the end of a recall window.

Nothing here is a share of a curve's own maximum: every entity has an onset of its own or none, and
what is said of many are shares of entities, and a median where most have an onset.
"""

from dataclasses import dataclass

import numpy as np

from twohop.statistics import NOT_MEASURED, TAIL, Estimate, difference, mean

NEVER = -1
LEAST_ENTITIES = 6
"""Below, no two of the entities in order bracket the median in 95 of 100 samples."""


def onsets(hits: np.ndarray, *, running: int) -> np.ndarray:
    """First layer from which on each entity is read at so many layers running, [..., entity].

    Parameters
    ----------
    hits : ndarray of bool [..., layer, entity]
    running : int

    Returns
    -------
    ndarray of int
        -1 where there is none.

    Examples
    --------
    >>> import numpy as np
    >>> hits = np.array([[True, False], [False, True], [True, True], [True, False]])
    >>> onsets(hits, running=2).tolist()
    [2, 1]
    """
    by_entity = np.moveaxis(hits, -2, -1)
    n = by_entity.shape[-1] - running + 1
    if n < 1:
        return np.full(by_entity.shape[:-1], NEVER)
    lasting = np.stack([by_entity[..., ahead : ahead + n] for ahead in range(running)]).all(0)
    return np.where(lasting.any(-1), lasting.argmax(-1), NEVER)


@dataclass(frozen=True)
class Timing:
    """When entities are there, as shares of all of them; the three add up to 1.

    Attributes
    ----------
    in_time, late, never : Estimate
        First read at a layer in which recall can still read it; first read behind; not read.
    in_time_above_null, late_above_null : Estimate
        The paired difference between the share and that of a probe fitted on shuffled labels.
    """

    in_time: Estimate
    late: Estimate
    never: Estimate
    in_time_above_null: Estimate
    late_above_null: Estimate


def shares_by(onset: np.ndarray, end: int, *, null: np.ndarray) -> Timing:
    """Shares of the entities that are there in time, late and never, by closed-form intervals.

    Parameters
    ----------
    onset : ndarray of int [entity]
        First layer at which each is read, the input of the block of that number; -1: never.
    end : int
        Last block of the window: in time is up to its input. -1: there is no window, and nothing is
        measured.
    null : ndarray of int [entity]
        The onsets of a probe fitted on shuffled labels.

    Examples
    --------
    >>> timing = shares_by(np.array([2] * 17 + [28] * 3), 5, null=np.full(20, -1))
    >>> print(timing.in_time, "|", timing.late.value, timing.never.value)
    0.85 [0.61, 0.97] (n 20) | 0.15 0.0
    """
    own, luck = _classes(onset, end), _classes(null, end)
    if end < 0 or not len(onset):
        return Timing(*[NOT_MEASURED] * 5)
    entities = np.arange(len(onset)).astype(str)
    return Timing(
        *(mean(own[name], entities) for name in ("in_time", "late", "never")),
        *(difference(own[name], luck[name], entities) for name in ("in_time", "late")),
    )


def _classes(onset: np.ndarray, end: int) -> dict[str, np.ndarray]:
    read = onset != NEVER
    return {"in_time": read & (onset <= end), "late": read & (onset > end), "never": ~read}


@dataclass(frozen=True)
class MedianLateness:
    """How many layers behind the window's end the median entity is first read.

    Attributes
    ----------
    layers : Estimate
        Positive is too late. Not measured where it is not defined.
    reason : str
        Why it was not measured; empty where it was.
    """

    layers: Estimate
    reason: str = ""


def median_lateness(onset: np.ndarray, end: int) -> MedianLateness:
    """Median over all entities of their onset minus the window's end.

    An entity that is never read is later than any. So there is a median only where more than half
    of them have an onset. Its interval is between two of the entities in order (Thompson, 1936):
    of the number of entities below the true median nothing is assumed but that each is with even
    odds. Where that interval reaches the entities that are never read, nothing is said either.

    Parameters
    ----------
    onset : ndarray of int [entity]
        -1: never.
    end : int
        Last block of the window; -1: there is none.

    Examples
    --------
    >>> print(median_lateness(np.array([2] * 162 + [28] * 28), 5).layers)
    -3.00 [-3.00, -3.00] (n 190)
    >>> median_lateness(np.array([24] * 50 + [-1] * 950), 5).reason
    'only 50 of 1000 entities have an onset, and a median needs more than half of them'
    """
    # Loaded where it is used: importing the package is to stay light.
    from scipy.stats import binom

    n, read = len(onset), int((onset != NEVER).sum())
    nothing = Estimate(np.nan, np.nan, np.nan, n)
    if end < 0:
        return MedianLateness(nothing, "the recall window was not found")
    if n < LEAST_ENTITIES:
        return MedianLateness(nothing, f"{n} entities are too few for an interval of a median")
    if read * 2 <= n:
        return MedianLateness(
            nothing,
            f"only {read} of {n} entities have an onset, and a median needs more than half of them",
        )
    ordered = np.sort(np.where(onset == NEVER, np.inf, onset - float(end)))
    rank = int(binom.ppf(TAIL, n, 0.5))  # so many at most are below, in 25 of 1,000 samples
    low, high = ordered[rank - 1], ordered[n - rank]
    if np.isinf(high):
        return MedianLateness(
            nothing,
            f"{read} of {n} entities have an onset: the interval of the median reaches those that "
            "have none",
        )
    return MedianLateness(Estimate(float(np.median(ordered)), float(low), float(high), n))
