"""What a recall timetable says: the deadline of each form, and how likely an answer is.

A mean answered right over forms and blocks is read between its measured points by straight lines.
"""

from typing import Literal

import numpy as np
import xarray as xr

from twohop.protocol import DEFAULT, Protocol
from twohop.statistics import TAIL, Labels, difference, of_entities

State = Literal["reached", "not reached", "not measured"]


def deadlines(
    data: xr.Dataset, *, protocol: Protocol = DEFAULT
) -> dict[str, tuple[str, np.ndarray]]:
    """Block by which an entity must be there, in each form.

    It is where the share answered, made to fall only, has lost half of what the form gives where
    it stands by itself (on the diagonal), above what the neutral run gives; between measured
    blocks by a straight line. Its interval holds the blocks at which the paired difference to that
    half has a 95 % interval that holds 0 (Student's, with entities for clusters; near such a half
    shares are far from 0 and 1).

    Parameters
    ----------
    data : Dataset
        With ``answered`` and ``neutral``, see :func:`twohop.stages.timetable.timetable`.
    protocol : Protocol

    Returns
    -------
    dict of str to (str, ndarray [form])
        ``deadline``: NaN where there is none. ``deadline_low`` and ``deadline_high``: infinite
        where an end was not reached up to the last block. ``deadline_state``: ``"reached"``;
        ``"not reached"``: more than half is left in the last block measured, so that the deadline
        is behind it; ``"not measured"``: on fewer entities than the protocol's
        ``least_clusters``, or where the form was not shown to give more than the neutral run does.
    """
    answered, neutral = data["answered"].values, data["neutral"].values
    entities, blocks = data["entity"].values, data["block"].values
    ends = np.full((len(blocks), 3), np.nan)
    state: list[State] = ["not measured"] * len(blocks)
    enough = len({*entities}) >= protocol.least_clusters
    for row in range(len(blocks) * enough):
        by_itself = answered[row, row]
        if not difference(by_itself, neutral, entities).low > 0:
            continue
        above = student(answered[row, row:] - (by_itself + neutral) / 2, entities)
        if above[1, 0] > 0:
            ends[row] = [crossing(blocks[row:], falling(curve)) for curve in above]
            state[row] = "reached" if np.isfinite(ends[row, 0]) else "not reached"
    return {
        "deadline": ("form", np.where(np.isfinite(ends[:, 0]), ends[:, 0], np.nan)),
        "deadline_low": ("form", ends[:, 1]),
        "deadline_high": ("form", ends[:, 2]),
        "deadline_state": ("form", np.array(state, dtype=object)),
    }


def student(values: np.ndarray, clusters: Labels) -> np.ndarray:
    """Means over items of values [row, item], and the ends of their intervals, [3, row]."""
    from scipy.special import stdtrit

    totals, sizes = of_entities(values, clusters)
    n, entities = sizes.sum(), len(sizes)
    mean = totals.sum(-1) / n
    spread = ((totals - mean[:, None] * sizes) ** 2).sum(-1) * entities / (entities - 1)
    reach = -stdtrit(entities - 1, TAIL) * np.sqrt(spread) / n
    return np.stack([mean, mean - reach, mean + reach])


def crossing(blocks: np.ndarray, curve: np.ndarray) -> float:
    """Where a curve [block] that starts above 0 has come down to it; infinite for never.

    Examples
    --------
    >>> crossing(np.array([0, 2, 4]), np.array([0.5, 0.3, -0.5]))
    2.75
    """
    below = np.nonzero(curve <= 1e-12)[0]
    if not below.size:
        return np.inf
    last = int(below[0])
    start, end = curve[last - 1], curve[last]
    part = start / (start - end)
    return float(blocks[last - 1] + part * (blocks[last] - blocks[last - 1]))


def falling(curve: np.ndarray) -> np.ndarray:
    """The nearest curve that nowhere rises, [point], by least squares.

    Examples
    --------
    >>> falling(np.array([1.0, 0.25, 0.75, 0.0])).tolist()
    [1.0, 0.5, 0.5, 0.0]
    """
    from scipy.optimize import isotonic_regression

    return isotonic_regression(curve, increasing=False).x


def expected_right(data: xr.Dataset, form: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Probability of an answer about an entity that is there in a form, from a block on.

    Parameters
    ----------
    data : Dataset
        A timetable.
    form, block : ndarray of int [item]
        Numbers of blocks done. An entity in the form of a later block than where it is is taken
        to be there from that later block on.

    Returns
    -------
    ndarray [item]
        The neutral run's share behind the last block, which nothing reads.
    """
    layers, table = data["block"].values, data["accuracy"].values
    end = int(data.attrs["n_layers"])
    nothing = float(data["neutral"].mean()) if data.sizes["item"] else np.nan
    # By row: a form's curve from its own block on, and nothing behind the last one.
    curves = [
        np.interp(block, [*layers[row:], end], [*table[row, row:], nothing])
        for row in range(len(layers))
    ]
    rows = np.stack([*curves, np.full(len(block), nothing)])
    forms = np.array([*data["form"].values, end])
    later = np.clip(np.searchsorted(forms, form, side="right"), 1, len(forms) - 1)
    share = np.clip((form - forms[later - 1]) / (forms[later] - forms[later - 1]), 0, 1)
    items = np.arange(len(block))
    return (1 - share) * rows[later - 1, items] + share * rows[later, items]
