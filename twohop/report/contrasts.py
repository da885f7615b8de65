"""Paired contrasts between what was tried on the same items, and what their n could have shown.

A sentence that says that one thing does more than another rests on one of these: the difference on
the same items with its interval over entities, a test in which the signs of whole entities are
flipped, Holm's correction for the contrasts that are made together, and the smallest difference
that so many items would show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twohop.protocol import DEFAULT, Protocol
from twohop.statistics import NOT_MEASURED, Estimate, Labels, Numbers, difference

LEVEL = 0.05
POWER = 0.8
EXACT_UP_TO = 14
"""Entities with a difference up to which all patterns of signs are tried."""
FLIPS = 9999


@dataclass(frozen=True)
class PairedContrast:
    """Two arms on the same items.

    Attributes
    ----------
    name : str
    first, second : str
        What is compared.
    difference : Estimate
        First minus second, as a share of the items.
    p : float
        Two-sided, of the flipped signs; NaN where it was not measured.
    p_holm : float
        The same, corrected for the contrasts made together.
    smallest : float
        The smallest difference that so many items show with a power of 80 %, the correction
        included.
    """

    name: str
    first: str
    second: str
    difference: Estimate
    p: float
    p_holm: float
    smallest: float

    @property
    def shown(self) -> bool:
        """Whether a difference was shown, after the correction."""
        outside = self.difference.low > 0 or self.difference.high < 0
        return bool(outside and self.p_holm < LEVEL)

    def as_dict(self) -> dict[str, Any]:
        """As ``summary.json`` has it."""
        return {
            "first": self.first,
            "second": self.second,
            "difference": self.difference,
            "p": None if np.isnan(self.p) else self.p,
            "p_holm": None if np.isnan(self.p_holm) else self.p_holm,
            "smallest": None if np.isnan(self.smallest) else self.smallest,
            "shown": self.shown,
        }


def sign_flips(differences: Numbers, clusters: Labels, *, seed: int) -> float:
    """Two-sided p-value of paired differences [item], flipping the signs of whole entities.

    Under the null, which of the two an entity's items came from makes no difference. All patterns
    of signs are tried where few entities differ, else 9,999 random ones; the observed one counts.

    Examples
    --------
    >>> sign_flips([1.0] * 6, ["a", "b", "c", "d", "e", "f"], seed=0)
    0.03125
    """
    values = np.asarray(differences, dtype=float)
    codes, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.bincount(index, weights=values, minlength=len(codes))
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    observed = abs(sums.sum()) - 1e-9
    if len(sums) <= EXACT_UP_TO:
        patterns = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float((np.abs((2 * patterns - 1) @ sums) >= observed).mean())
    signs = np.random.default_rng(seed).integers(0, 2, (FLIPS, len(sums)), dtype=np.int8)
    flipped = np.abs((2 * signs.astype(float) - 1) @ sums)
    return float((1 + (flipped >= observed).sum()) / (1 + FLIPS))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values that are looked at together; NaN stays and does not count.

    Examples
    --------
    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected = [float("nan")] * len(p_values)
    there = [i for i, p in enumerate(p_values) if not np.isnan(p)]
    most = 0.0
    for turn, i in enumerate(sorted(there, key=lambda i: p_values[i])):
        most = max(most, min(1.0, p_values[i] * (len(there) - turn)))
        corrected[i] = most
    return corrected


def smallest_shown(estimate: Estimate, *, together: int = 1) -> float:
    """Smallest difference that the items behind an interval show with a power of 80 %.

    From the interval's half-width: a true difference this large is told from 0 in 80 of 100
    samples, where intervals are about as wide there as here, if it is the first of so many
    contrasts that Holm's correction looks at.
    """
    from scipy.special import ndtri

    half = (estimate.high - estimate.low) / 2
    corrected = ndtri(1 - LEVEL / (2 * together))
    return float(half * (corrected + ndtri(POWER)) / ndtri(1 - LEVEL / 2))


def contrast(
    name: str,
    arms: Mapping[str, Numbers],
    sides: tuple[str, str],
    clusters: Labels,
    *,
    seed: int,
    protocol: Protocol = DEFAULT,
) -> PairedContrast:
    """Compare two arms on the items on which both were tried (neither is NaN).

    Parameters
    ----------
    name : str
    arms : mapping of str to array [item]
        Values from 0 to 1.
    sides : (str, str)
        Which of them; the second is taken off the first.
    clusters : sequence of str
        The entity of each item.
    seed : int
    protocol : Protocol
        On fewer entities than its ``least_clusters`` nothing is compared.
    """
    nan = float("nan")
    first, second = (np.asarray(arms.get(side, []), dtype=float) for side in sides)
    if not len(first) or not len(second):
        return PairedContrast(name, *sides, NOT_MEASURED, nan, nan, nan)
    both = ~np.isnan(first) & ~np.isnan(second)
    entities = np.asarray(clusters, dtype=str)[both]
    if len(set(entities)) < protocol.least_clusters:
        nothing = replace(NOT_MEASURED, n=int(both.sum()))
        return PairedContrast(name, *sides, nothing, nan, nan, nan)
    estimate = difference(first[both], second[both], entities)
    p = sign_flips(first[both] - second[both], entities, seed=seed)
    return PairedContrast(name, *sides, estimate, p, p, smallest_shown(estimate))


def family(contrasts: Sequence[PairedContrast]) -> list[PairedContrast]:
    """Contrasts that are made together, with their p-values corrected for that."""
    corrected = holm([each.p for each in contrasts])
    together = max(sum(not np.isnan(each.p) for each in contrasts), 1)
    return [
        replace(each, p_holm=p, smallest=smallest_shown(each.difference, together=together))
        for each, p in zip(contrasts, corrected, strict=True)
    ]
