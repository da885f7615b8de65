"""When each entity comes: before the last moment at which recall can use it, after it, or never.

A state is in a *form*: it is most like the backbone's own state after so many blocks. Of each form
the recall timetable knows the *deadline*: after how many blocks it must be there for the answer to
be recalled still. Blocks are counted as the backbone's that are done: where cross-attention blocks
were put in, the VLM has more.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from twohop.protocol import DEFAULT, Protocol
from twohop.stages.resolution.onset import Median, median, onsets

READS = ("transfer", "transfer_centred")
"""Probes that read an entity in the backbone's form."""
NULLS = ("transfer_null", "transfer_null_centred")
"""The same, fitted on shuffled labels."""
STATES = ("early", "between", "late", "never", "unknown")
"""Of an entity: read before its form's deadline, within the deadline's interval, only after it, at
no layer and place; or read, while of its form no deadline is known."""


@dataclass(frozen=True)
class Timing:
    """When the entities come, at whichever place they come first.

    Attributes
    ----------
    state : ndarray of str [entity]
        One of :data:`STATES`.
    blocks : ndarray of int [entity]
        Blocks of the backbone that are done where it is first read, in the place that decides; -1
        for never.
    form : ndarray of int [entity]
        Its form there; -1 for none.
    role : ndarray of str [entity]
        That place; empty for never.
    """

    state: np.ndarray
    blocks: np.ndarray
    form: np.ndarray
    role: np.ndarray

    @property
    def read(self) -> np.ndarray:
        """Whether it is read anywhere, [entity]."""
        return self.state != "never"


def blocks_done(resolution: xr.Dataset) -> np.ndarray:
    """How many of the backbone's blocks are done at each of the VLM's layers, [layer]."""
    layers = resolution["layer"].values
    blocks = np.atleast_1d(resolution.attrs["vlm_blocks"])
    return (blocks[None] < layers[:, None]).sum(1)


def deadline_ends(timetable: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of each form's deadline, by the number of blocks done, [form] each.

    Forms between those that were measured have a deadline between theirs. Infinite where a form
    serves at all blocks; NaN where it is not known.
    """
    known = timetable["form"].values
    every = np.arange(int(timetable.attrs["n_layers"]) + 1)
    ends = []
    for name in ("deadline_low", "deadline_high"):
        values = timetable[name].values.astype(float)
        last = float(every[-1] + 1)  # what is not reached comes after all that is
        at_most = np.where(np.isinf(values), last, values)
        between = np.interp(every, known, at_most)
        ends.append(np.where(between >= last, np.inf, between))
    return ends[0], ends[1]


def timing(
    resolution: xr.Dataset,
    timetable: xr.Dataset,
    *,
    kinds: tuple[str, ...] = READS,
    protocol: Protocol = DEFAULT,
) -> Timing:
    """Say of each entity when it comes.

    An entity that is in time at any place is in time; it is late only if it is so at every place
    that has it.

    Parameters
    ----------
    resolution, timetable : Dataset
        From the stages of these names.
    kinds : tuple of str
        The probes that read it: :data:`READS`, or their null.
    protocol : Protocol
    """
    hits = resolution["probe"].sel(kind=list(kinds)).transpose("kind", "role", "layer", "entity")
    first = onsets(hits.values, running=protocol.onset_layers)  # [kind, role, entity]
    form = resolution["form"].transpose("role", "layer", "entity").values
    n_roles, n_entities = first.shape[1:]
    there = np.take_along_axis(form[None], np.maximum(first, 0)[:, :, None], axis=2)[:, :, 0]
    done = blocks_done(resolution)[np.maximum(first, 0)]
    low, high = deadline_ends(timetable)
    of_form = np.where(there >= 0, there, 0)
    known = (first >= 0) & (there >= 0) & ~np.isnan(low[of_form]) & ~np.isnan(high[of_form])
    early = known & (done <= low[of_form])
    late = known & (done > high[of_form])
    rank = np.select(
        [early, known & ~late, late, first >= 0],
        [STATES.index(name) for name in ("early", "between", "late", "unknown")],
        STATES.index("never"),
    )
    # Of several places the first of these decides; among those alike, the one that reads it first.
    turn = np.array([0, 1, 3, 4, 2])[rank]
    flat = (turn * (done.max() + 2) + done).reshape(-1, n_entities)
    best = flat.argmin(0)
    picked = (best // n_roles, best % n_roles, np.arange(n_entities))
    state = np.array(STATES, dtype=object)[rank[picked]]
    gone = state == "never"
    return Timing(
        state=state,
        blocks=np.where(gone, -1, done[picked]),
        form=np.where(gone, -1, there[picked]),
        role=np.where(gone, "", resolution["role"].values.astype(object)[picked[1]]),
    )


def median_delay(read: Timing, timetable: xr.Dataset) -> Median:
    """Median over all entities of the blocks from their deadline to where they are read.

    Positive is too late. An entity that is never read, or in a form of which no deadline is known,
    is later than any; one in a form that serves at all blocks is earlier.
    """
    low, high = deadline_ends(timetable)
    deadline = (low + high)[np.maximum(read.form, 0)] / 2
    known = read.read & (read.form >= 0) & ~np.isnan(deadline)
    return median(np.where(known, read.blocks - np.where(known, deadline, 0), np.inf))
