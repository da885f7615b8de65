"""Halves of the entities: what is chosen on one half is scored on the other, and vice versa."""

from collections.abc import Callable, Sequence

import numpy as np

from twohop.ask.sampling import in_turns


def halves(codes: Sequence[str], *, seed: int) -> np.ndarray:
    """Which half each row is in, 0 or 1, [row]; the rows of one entity are in the same.

    Parameters
    ----------
    codes : sequence of str
        The entity of each row.
    seed : int

    Examples
    --------
    >>> halves(["a", "b", "a", "c", "d"], seed=0).tolist()
    [1, 0, 1, 0, 1]
    """
    different = sorted(set(codes))
    order = np.random.default_rng(seed).permutation(len(different))
    half = {different[place]: turn % 2 for turn, place in enumerate(order)}
    return np.array([half[code] for code in codes], dtype=int)


def chosen_elsewhere(
    scores: np.ndarray, half: np.ndarray, *, best: Callable[[np.ndarray], int] | None = None
) -> np.ndarray:
    """For each half, the candidate that is best on the other half, [half].

    Parameters
    ----------
    scores : ndarray [candidate, row]
    half : ndarray of int [row]
    best : callable, optional
        ``best(mean)`` of the means [candidate] over the rows of a half gives the index of the
        candidate; default: that of the greatest, the first of several.

    Returns
    -------
    ndarray of int
        -1 for a half whose other half has no rows: nothing could be chosen.
    """
    choose = best or (lambda mean: int(mean.argmax()))
    return np.array(
        [
            choose(scores[:, half == other].mean(1)) if (half == other).any() else -1
            for other in (1, 0)
        ],
        dtype=int,
    )


def rows_of_both(half: np.ndarray, limit: int, *, seed: int) -> np.ndarray:
    """At most ``limit`` rows, as many of each half if possible, in their order, [picked].

    Parameters
    ----------
    half : ndarray of int [row]
    limit : int
    seed : int

    Examples
    --------
    >>> rows_of_both(np.array([0, 0, 0, 1]), 3, seed=0).tolist()
    [0, 2, 3]
    """
    shuffled = np.random.default_rng(seed).permutation(len(half))
    groups = [shuffled[half[shuffled] == part].tolist() for part in (0, 1)]
    return np.array(in_turns(groups, limit), dtype=int)
