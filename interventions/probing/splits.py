"""Which rows a probe is fitted on, which it is tested on, and labels it should not learn."""

import numpy as np

from interventions.errors import ProbeError
from interventions.given import number

RESAMPLES = 2000
"""Bootstrap draws of groups for an interval."""
FEWEST_GROUPS = 4


def held_out(
    labels: np.ndarray, groups: np.ndarray, names: np.ndarray, *, share: float, seed: int
) -> np.ndarray:
    """Draw the rows to test on: of every class a share of its groups, whole.

    Parameters
    ----------
    labels : ndarray of int [row]
        Class indices.
    groups : ndarray of int [row]
        Rows of one group stay together. A group of several classes counts for its commonest.
    names : ndarray [class]
        For messages.
    share : float
        Of the groups of each class; at least one group is held out, and at least one is not.
    seed : int

    Returns
    -------
    ndarray of bool [row]

    Raises
    ------
    ProbeError
        If a class has fewer than two groups (rows, where nothing is grouped).
    """
    counts = np.zeros((groups.max() + 1, len(names)), dtype=int)
    np.add.at(counts, (groups, labels), 1)
    of_group = counts.argmax(1)
    per_class = np.bincount(of_group, minlength=len(names))
    if (per_class < 2).any():
        what = "rows" if len(counts) == len(labels) else "groups"
        lacking = [str(name) for name in names[per_class < 2]]
        raise ProbeError(
            f"{len(lacking)} of {len(names)} classes have fewer than two {what}, so they cannot be "
            f"both fitted and tested: {', '.join(lacking[:8])}. Leave out those classes, or give "
            "the held-out rows yourself as splits=[row] of bool."
        )
    generator = np.random.default_rng(seed)
    out = np.zeros(len(counts), dtype=bool)
    for label in range(len(names)):
        mine = generator.permutation(np.flatnonzero(of_group == label))
        out[mine[: min(max(round(share * len(mine)), 1), len(mine) - 1)]] = True
    return out[groups]


def control_labels(
    labels: np.ndarray, groups: np.ndarray, test: np.ndarray, *, seed: int
) -> np.ndarray:
    """Labels that say nothing of the rows: shuffled among groups, or rows, of each side.

    Where every group is of one class, groups swap labels whole, so that the rows of a group are
    as alike as in the real task. Else rows swap them.

    Returns
    -------
    ndarray of int [row]
    """
    generator = np.random.default_rng(seed)
    first = np.full(groups.max() + 1, -1)
    first[groups] = labels
    whole = bool((first[groups] == labels).all())
    control = labels.copy()
    for side in (test, ~test):
        if whole:
            mine = np.unique(groups[side])
            swapped = first.copy()
            swapped[mine] = first[generator.permutation(mine)]
            control[side] = swapped[groups[side]]
        else:
            control[side] = generator.permutation(labels[side])
    return control


def held_out_groups(group: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """Draw whole groups to test on, at least two, and at least two to fit.

    Parameters
    ----------
    group : ndarray of int [row]
    share : float
        Of the groups.
    seed : int

    Returns
    -------
    ndarray of bool [row]

    Raises
    ------
    ProbeError
        If there are fewer than four groups.
    """
    share = number(share, "test_share", above=0, below=1, error=ProbeError)
    known = np.unique(group)
    if len(known) < FEWEST_GROUPS:
        raise ProbeError(
            f"there are {len(known)} groups of rows. Fitting some and testing others, with an "
            f"interval, takes at least {FEWEST_GROUPS}."
        )
    n = min(max(2, round(share * len(known))), len(known) - 2)
    return np.isin(group, np.random.default_rng(seed).permutation(known)[:n])


def group_interval(
    values: np.ndarray, group: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of rows with their 95 % intervals, by bootstrap over groups.

    Parameters
    ----------
    values : ndarray [condition, row]
        NaN where a row does not count.
    group : ndarray of int [row]
    seed : int

    Returns
    -------
    mean, low, high : ndarray [condition]
        NaN where no row counts.
    """
    known = [np.flatnonzero(group == name) for name in np.unique(group)]
    drawn = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    sums = np.stack([np.nansum(values[:, rows], axis=1) for rows in known])  # [group, condition]
    sizes = np.stack([np.isfinite(values[:, rows]).sum(1) for rows in known])
    low, high = np.full((2, len(values)), np.nan)
    with np.errstate(invalid="ignore"):
        mean = sums.sum(0) / sizes.sum(0)
        means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    for i in np.flatnonzero(sizes.sum(0)):
        low[i], high[i] = np.nanquantile(means[:, i], [0.025, 0.975])
    return mean, low, high
