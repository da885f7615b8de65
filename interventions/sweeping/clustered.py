"""Means over items that come in clusters: intervals, and tests by flipping signs.

Items of one cluster (of one entity, picture or fact) are not taken for independent: clusters are
what is counted, and whose signs are flipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

TAIL = 0.025  # on each side of what is called an interval everywhere: 95 %
CLEAR = 0.05  # a p-value below it is called clear
LEAST_CLUSTERS = 6
"""With fewer, no p-value of a two-sided test by signs can be below 0.05: 2^-(5-1) = 0.0625."""
LEAST_ICC = 0.2
"""Correlation of the items of one cluster that is assumed where so few clusters show less."""
BATCH = 4_000_000  # numbers of flipped sums that are held at once
TIE = 1e-9  # relative: what differs by less is equal
Correction = Literal["max", "holm", "fdr"]
CORRECTIONS: tuple[Correction, ...] = ("max", "holm", "fdr")
Labels = Sequence[str] | np.ndarray


def cluster_totals(values: np.ndarray, clusters: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values [..., item] over each cluster's items [..., cluster], and their numbers."""
    codes, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sizes = np.bincount(index, minlength=len(codes))
    member = np.zeros((len(index), len(codes)))
    member[np.arange(len(index)), index] = 1
    return values @ member, sizes


@dataclass(frozen=True)
class Shares:
    """Shares of clustered items and their intervals, of as many samples as one likes.

    Attributes
    ----------
    value, low, high : ndarray [...]
    residuals : ndarray [..., cluster]
        What each cluster's items add beyond the share.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    residuals: np.ndarray


def shares(totals: np.ndarray, sizes: np.ndarray, *, tail: float = TAIL) -> Shares:
    """Shares with the intervals of Korn and Graubard (1998) for clustered samples.

    Parameters
    ----------
    totals : ndarray [..., cluster]
        Sums of the values, from 0 to 1 each, of a cluster's items.
    sizes : ndarray [cluster]
        How many items these are.
    tail : float
        Of the interval, on each side; smaller where several are looked at together.
    """
    # Loaded where it is used: importing the package is to stay light.
    from scipy.special import betaincinv, stdtrit

    totals, sizes = np.asarray(totals, float), np.asarray(sizes, float)
    n, clusters = sizes.sum(), len(sizes)
    value = totals.sum(-1) / n
    residuals = totals - value[..., None] * sizes
    spread = value * (1 - value)
    varies = (spread > 0) & (clusters > 1)
    seen = (residuals**2).sum(-1) / np.where(varies, spread, 1)
    seen = seen * clusters / max(clusters - 1, 1) / n
    least = 1 + ((sizes**2).sum() / n - 1) * LEAST_ICC
    # Where all are alike, nothing is seen of how alike one cluster's items are.
    worth = np.where(varies, n / np.maximum(seen, least), clusters)
    if clusters > 1:  # the design effect is itself an estimate, from as many clusters
        worth = worth * (stdtrit(n - 1, tail) / stdtrit(clusters - 1, tail)) ** 2
    won, lost = value * worth, (1 - value) * worth
    few = np.finfo(float).tiny
    low = np.where(won > 0, betaincinv(np.maximum(won, few), lost + 1, tail), 0.0)
    high = np.where(lost > 0, betaincinv(won + 1, np.maximum(lost, few), 1 - tail), 1.0)
    return Shares(value, np.minimum(low, value), np.maximum(high, value), residuals)


def means(
    totals: np.ndarray, sizes: np.ndarray, *, tail: float = TAIL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over clustered items, and the ends of their intervals by Student's t.

    The standard error is the one that is robust to clusters (Liang and Zeger, 1986), with as many
    degrees of freedom as there are clusters, less one (Cameron and Miller, 2015).

    Parameters
    ----------
    totals : ndarray [..., cluster]
        Sums of the values of a cluster's items.
    sizes : ndarray [cluster]
        How many items these are.
    tail : float
        Of the interval, on each side.

    Returns
    -------
    value, low, high : ndarray [...]
        The ends are NaN where there is one cluster only.
    """
    from scipy.special import stdtrit

    n, clusters = sizes.sum(), len(sizes)
    value = totals.sum(-1) / n
    if clusters < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    residuals = totals - value[..., None] * sizes
    error = np.sqrt((residuals**2).sum(-1) * clusters / (clusters - 1)) / n
    reach = stdtrit(clusters - 1, 1 - tail) * error
    return value, value - reach, value + reach


def signs(n_clusters: int, flips: int, seed: int) -> np.ndarray:
    """Signs of each cluster [flip, cluster], the first of them those that were seen.

    All that differ, where they are no more than ``flips`` + 1: turning every sign around changes
    no two-sided test, so there are 2 to the ``n_clusters`` - 1 of them. Else so many drawn ones.
    """
    if n_clusters - 1 <= np.log2(flips + 1):
        numbers = np.arange(2 ** (n_clusters - 1))[:, None]
        turned = (numbers >> np.arange(n_clusters - 1)) & 1
        return 1.0 - 2.0 * np.pad(turned, ((0, 0), (1, 0)))
    drawn = np.random.default_rng(seed).integers(0, 2, size=(flips, n_clusters))
    return 1.0 - 2.0 * np.pad(drawn, ((1, 0), (0, 0)))


def flipped(totals: np.ndarray, flips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P-values of the hypothesis that clusters are as likely to be turned around, two-sided.

    What is compared is a cell's sum over clusters, divided by the root of its sum of squares, which
    no flip changes; so cells of other scale, and of other clusters, can be held against each other.

    Parameters
    ----------
    totals : ndarray [cell, cluster]
        Sums of the values of a cluster's items; 0 for a cluster that a cell lacks.
    flips : ndarray [flip, cluster]
        As :func:`signs` gives them.

    Returns
    -------
    p : ndarray [cell]
        Of each cell alone.
    p_max : ndarray [cell]
        Corrected for all cells: the share of flips whose largest value in any cell is as large
        (Westfall and Young, 1993; Nichols and Holmes, 2002). It holds the chance of even one false
        alarm in the map.
    """
    norms = np.sqrt((totals**2).sum(-1, keepdims=True))
    scaled = totals / np.where(norms > 0, norms, 1)
    seen = np.abs(scaled.sum(-1)) * (1 - TIE)
    p, largest = np.empty(len(totals)), np.zeros(len(flips))
    step = max(1, BATCH // len(flips))
    for start in range(0, len(totals), step):
        part = slice(start, start + step)
        turned = np.abs(flips @ scaled[part].T)
        p[part] = (turned >= seen[part]).mean(0)
        np.maximum(largest, turned.max(1), out=largest)
    order = np.sort(largest)
    return p, 1 - np.searchsorted(order, seen, side="left") / len(order)


def adjusted(p: np.ndarray, correction: Correction) -> np.ndarray:
    """P-values [cell] corrected for all of them: ``"holm"`` or ``"fdr"`` (Benjamini-Hochberg).

    NaN are no tests, and stay.
    """
    corrected = np.full_like(p, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    n = len(order)
    if correction == "holm":
        steps = np.maximum.accumulate(p[order] * np.arange(n, 0, -1))
    else:
        steps = p[order] * n / np.arange(1, n + 1)
        steps = np.minimum.accumulate(steps[::-1])[::-1]
    corrected[order] = np.minimum(steps, 1)
    return corrected
