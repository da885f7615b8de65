"""From which layer on each entity is read, and medians of entities of which some are never read.

Nothing here is a share of a curve's own maximum: every entity has an onset of its own or none, and
what is said of many are shares of entities, and a median where most have an onset.
"""

from dataclasses import dataclass

import numpy as np

from twohop.protocol import DEFAULT, Protocol
from twohop.statistics import TAIL, Estimate

NEVER = -1
LEAST_ENTITIES = 6
"""Below, no two of the entities in order bracket the median in 95 of 100 samples."""


def layers_running(n_layers: int, *, protocol: Protocol = DEFAULT) -> int:
    """At how many layers in a row an entity must be read, of so many: not by luck, nor in passing.

    Examples
    --------
    >>> layers_running(9), layers_running(31)
    (2, 5)
    """
    return max(protocol.onset_layers, round(protocol.onset_share * n_layers))


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
class Median:
    """A median over all entities.

    Attributes
    ----------
    value : Estimate
        Not measured where it is not defined.
    reason : str
        Why it was not measured; empty where it was.
    """

    value: Estimate
    reason: str = ""


def median(numbers: np.ndarray) -> Median:
    """Median over all entities of numbers that some have not.

    Who has none is later than any: so there is a median only where more than half of them have one.
    Its interval is between two of the entities in order (Thompson, 1936): of the number of entities
    below the true median nothing is assumed but that each is with even odds. Where that interval
    reaches the entities that have none, nothing is said either.

    Parameters
    ----------
    numbers : ndarray [entity]
        Infinite for none, which is later than any; minus infinity for earlier than any.

    Examples
    --------
    >>> print(median(np.array([-3.0] * 162 + [23.0] * 28)).value)
    -3.00 [-3.00, -3.00] (n 190)
    >>> median(np.array([19.0] * 50 + [np.inf] * 950)).reason
    'only 50 of 1000 entities are read, and a median needs more than half of them'
    """
    # Loaded where it is used: importing the package is to stay light.
    from scipy.stats import binom

    n, read = len(numbers), int((numbers < np.inf).sum())
    nothing = Estimate(np.nan, np.nan, np.nan, n)
    if n < LEAST_ENTITIES:
        return Median(nothing, f"{n} entities are too few for an interval of a median")
    if read * 2 <= n:
        return Median(
            nothing,
            f"only {read} of {n} entities are read, and a median needs more than half of them",
        )
    ordered = np.sort(numbers)
    rank = int(binom.ppf(TAIL, n, 1 / 2))  # so many at most are below, in 25 of 1,000 samples
    low, high = ordered[rank - 1], ordered[n - rank]
    if np.isposinf(high):
        return Median(
            nothing,
            f"{read} of {n} entities are read: the interval of the median reaches those that are "
            "not",
        )
    if np.isneginf(low):
        return Median(
            nothing,
            f"{int(np.isneginf(ordered).sum())} of {n} entities come earlier than any deadline: "
            "the interval of the median reaches those",
        )
    return Median(Estimate(float(np.median(ordered)), float(low), float(high), n))
