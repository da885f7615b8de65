"""What a recall timetable says: the deadline of each form, and how likely an answer is.

A mean answered right over forms and blocks is read between its measured points by straight lines.
"""

from typing import Literal

import numpy as np
import xarray as xr

from twohop.protocol import DEFAULT, Protocol
from twohop.statistics import TAIL, cluster_sums, difference

State = Literal["reached", "not reached", "not measured"]


def deadlines(
    data: xr.Dataset, *, seed: int, protocol: Protocol = DEFAULT
) -> dict[str, tuple[str, np.ndarray]]:
    """Block by which an entity must be there, in each form.

    It is where the share answered, made to fall only, has lost half of what the form gives where
    it stands by itself (on the diagonal), above what the neutral run gives; between measured
    blocks by a straight line. Its interval is of the protocol's ``resamples`` of the entities.

    Parameters
    ----------
    data : Dataset
        With ``answered`` and ``neutral``, see :func:`twohop.stages.timetable.timetable`.
    seed : int
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
    n = len(data["form"])
    value, low, high = (np.full(n, np.nan) for _ in range(3))
    state: list[State] = ["not measured"] * n
    if len({*entities}) >= protocol.least_clusters:
        sums, counts = cluster_sums(
            np.concatenate([answered.reshape(-1, len(neutral)), neutral[None]]).T,
            entities,
            seed=seed,
            protocol=protocol,
        )
        drawn = sums / counts[:, None]
        tables, floors = drawn[:, :-1].reshape(-1, n, len(blocks)), drawn[:, -1]
        for row in range(n):
            if not difference(answered[row, row], neutral, entities).low > 0:
                continue
            curve = answered[row, row:].mean(-1)
            [here] = crossing(blocks[row:], curve[None], neutral.mean()[None])
            ends = crossing(blocks[row:], tables[:, row, row:], floors)
            low[row], high[row] = np.quantile(ends, [TAIL, 1 - TAIL], method="closest_observation")
            reached = bool(np.isfinite(here))
            value[row] = here if reached else np.nan
            state[row] = "reached" if reached else "not reached"
    return {
        "deadline": ("form", value),
        "deadline_low": ("form", low),
        "deadline_high": ("form", high),
        "deadline_state": ("form", np.array(state, dtype=object)),
    }


def crossing(blocks: np.ndarray, curves: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """Where curves have come down halfway from their start to a floor, [curve]; inf for never.

    Parameters
    ----------
    blocks : ndarray [block]
    curves : ndarray [curve, block]
        Made to fall only, each by the nearest such curve in least squares.
    floors : ndarray [curve]

    Examples
    --------
    >>> crossing(np.array([0, 2, 4]), np.array([[1.0, 0.8, 0.0]]), np.zeros(1))
    array([2.75])
    """
    fall = falling(curves)
    half = (curves[:, 0] + floors) / 2
    below = fall <= half[:, None] + 1e-12
    first = below.argmax(1)
    rows, ahead = np.arange(len(curves)), np.maximum(first - 1, 0)
    start, end = fall[rows, ahead], fall[rows, first]
    drop = np.where(start > end, start - end, 1)
    part = np.clip((start - half) / drop, 0, 1)
    where = blocks[ahead] + part * (blocks[first] - blocks[ahead])
    return np.where(below.any(1), where, np.inf)


def falling(curves: np.ndarray) -> np.ndarray:
    """The nearest curves that nowhere rise, [curve, point], by least squares.

    Examples
    --------
    >>> falling(np.array([[1.0, 0.25, 0.75, 0.0]]))
    array([[1. , 0.5, 0.5, 0. ]])
    """
    n = curves.shape[1]
    total = np.concatenate([np.zeros((len(curves), 1)), curves.cumsum(1)], axis=1)
    start, stop = np.arange(n)[:, None], np.arange(n)[None] + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        means = (total[:, stop] - total[:, start]) / (stop - start)  # [curve, start, last]
    means = np.where(stop > start, means, -np.inf)
    best = np.maximum.accumulate(means[:, :, ::-1], axis=2)[:, :, ::-1]  # over all later ends
    return np.stack([best[:, : i + 1, i].min(1) for i in range(n)], axis=1)


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
