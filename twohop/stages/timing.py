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
from twohop.stages.resolution.onset import Median, layers_running, median, onsets
from twohop.statistics import difference

READS = ("transfer", "transfer_centred")
"""Probes that read an entity in the backbone's form."""
NULLS = ("transfer_null", "transfer_null_centred")
"""The same, fitted on shuffled labels."""
STATES = ("early", "between", "late", "never", "unknown")
"""Of an entity: read before its form's deadline, within the deadline's interval, only after it, at
no layer; or read, while of its form no deadline is known."""


@dataclass(frozen=True)
class Timing:
    """When the entities come, each at the place chosen on the other half of them.

    Attributes
    ----------
    state : ndarray of str [entity]
        One of :data:`STATES`.
    blocks : ndarray of int [entity]
        Blocks of the backbone that are done where it is first read; -1 for never.
    form : ndarray of int [entity]
        Its form there; -1 for none.
    """

    state: np.ndarray
    blocks: np.ndarray
    form: np.ndarray

    @property
    def read(self) -> np.ndarray:
        """Whether it is read at all, [entity]."""
        return self.state != "never"


def blocks_done(resolution: xr.Dataset) -> np.ndarray:
    """How many of the backbone's blocks are done at each of the VLM's layers, [layer]."""
    return blocks_done_at(resolution, resolution["layer"].values)


def blocks_done_at(resolution: xr.Dataset, layers: np.ndarray) -> np.ndarray:
    """The same at some of the VLM's layers, [layer]."""
    blocks = np.atleast_1d(resolution.attrs["vlm_blocks"])
    return (blocks[None] < layers[:, None]).sum(1)


def deadline_ends(timetable: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of each form's deadline, by the number of blocks done, [form] each.

    Forms between those that were measured have a deadline between theirs. Infinite where a form
    serves at all blocks; NaN where it is not known.
    """
    low, high = (timetable[f"deadline_{end}"].values.astype(float) for end in ("low", "high"))
    return of_every_form(timetable, low), of_every_form(timetable, high)


def deadline_itself(timetable: xr.Dataset) -> np.ndarray:
    """Each form's deadline, as :func:`deadline_ends` has its ends, [form]."""
    behind = timetable["deadline_state"].values == "not reached"
    return of_every_form(timetable, np.where(behind, np.inf, timetable["deadline"].values))


def of_every_form(timetable: xr.Dataset, values: np.ndarray) -> np.ndarray:
    """Blocks of the measured forms, as straight lines have them of every form, [form]."""
    every = np.arange(int(timetable.attrs["n_layers"]) + 1)
    last = float(every[-1] + 1)  # what is not reached comes after all that is
    at_most = np.where(np.isinf(values), last, values)
    between = np.interp(every, timetable["form"].values, at_most)
    return np.where(between >= last, np.inf, between)


def at_places(resolution: xr.Dataset, variable: str) -> xr.DataArray:
    """A variable (role, entity, ...) at each entity's place, without the role."""
    roles = resolution["role"].values.tolist()
    places = xr.DataArray(
        [roles.index(role) for role in resolution["chosen_role"].values], dims="entity"
    )
    return resolution[variable].isel(
        role=places, entity=xr.DataArray(range(len(places)), dims="entity")
    )


def read_anywhere(resolution: xr.Dataset, kind: str, *, protocol: Protocol) -> np.ndarray:
    """Whether a probe has an onset of each entity at some place, [entity]."""
    hits = resolution["probe"].sel(kind=kind).transpose("role", "layer", "entity").values
    running = layers_running(hits.shape[1], protocol=protocol)
    return np.any(onsets(hits, running=running) >= 0, axis=0)


def usual_forms(form: np.ndarray) -> np.ndarray:
    """Form in which entities are at each layer, of [layer, entity] with -1 for none: [layer].

    The median of those that are read there; where none is, that of the nearest layer where one is;
    -1 if there is none.
    """
    medians = np.array([np.median(row[row >= 0]) if (row >= 0).any() else -1 for row in form])
    there = np.nonzero(medians >= 0)[0]
    if not len(there):
        return np.full(len(form), -1)
    nearest = there[np.abs(np.arange(len(form))[:, None] - there).argmin(1)]
    return medians[nearest].astype(int)


def timing(
    resolution: xr.Dataset,
    timetable: xr.Dataset,
    *,
    kinds: tuple[str, ...] = READS,
    protocol: Protocol = DEFAULT,
) -> Timing:
    """Say of each entity when it comes.

    Parameters
    ----------
    resolution, timetable : Dataset
        From the stages of these names.
    kinds : tuple of str
        The probes that read it: :data:`READS`, or their null. What the null reads by luck has no
        form of its own; it is held to the one that entities usually have there.
    protocol : Protocol
    """
    probe, form = (at_places(resolution, name) for name in ("probe", "form"))
    hits = probe.sel(kind=list(kinds))
    return _timed(hits, form, blocks_done(resolution), timetable, protocol=protocol)


def elsewhere(
    resolution: xr.Dataset, timetable: xr.Dataset, read: Timing, *, protocol: Protocol
) -> np.ndarray:
    """Whether an entity that comes late, or never, is read all the same, [entity].

    Where it is late: before the end of its deadline at a place at which it is not told. Where it is
    never read: at any place, if only in passing, at fewer layers running than an onset takes. Of so
    many places and layers some are read by luck, so that this counts for those that are late, or
    for those that are never read, if among them it is shown to be more than on shuffled labels.
    """
    own, null = (
        _read_somewhere(resolution, timetable, kinds, protocol) for kinds in (READS, NULLS)
    )
    names, there = resolution["entity"].values, np.zeros(len(read.state), dtype=bool)
    for state in own:
        of_it = read.state == state
        first, second = own[state][of_it], null[state][of_it]
        there[of_it] = first & (difference(first, second, names[of_it]).low > 0)
    return there


def _read_somewhere(
    resolution: xr.Dataset, timetable: xr.Dataset, kinds: tuple[str, ...], protocol: Protocol
) -> dict[str, np.ndarray]:
    """Whether probes read an entity where it is not late, or not never, by these, [entity]."""
    hits, done = resolution["probe"].sel(kind=list(kinds)), blocks_done(resolution)
    in_time: np.ndarray = np.zeros(resolution.sizes["entity"], dtype=bool)
    for place in range(resolution.sizes["role"]):
        form = resolution["form"].isel(role=place)
        at = _timed(hits.isel(role=place), form, done, timetable, protocol=protocol)
        in_time |= np.isin(at.state, ("early", "between"))
    every = hits.transpose("kind", "role", "layer", "entity").values
    passing = onsets(every, running=protocol.onset_layers) >= 0
    return {"late": in_time, "never": np.any(passing, axis=(0, 1))}


def _timed(
    probe: xr.DataArray,
    form: xr.DataArray,
    blocks: np.ndarray,
    timetable: xr.Dataset,
    *,
    protocol: Protocol,
) -> Timing:
    """When the entities come, of hits and forms at one place of each; ``blocks`` [layer] done."""
    hits = probe.transpose("kind", "layer", "entity").values
    first = onsets(hits, running=layers_running(hits.shape[1], protocol=protocol))
    forms = form.transpose("layer", "entity").values
    forms = np.where(forms >= 0, forms, usual_forms(forms)[:, None])
    at = np.maximum(first, 0)
    own = np.take_along_axis(forms, at, axis=0)
    done = blocks[at]
    last = int(timetable.attrs["n_layers"]) - 1  # behind it, no block is left to read anything
    low, high = (np.minimum(ends[np.maximum(own, 0)], last) for ends in deadline_ends(timetable))
    known = (first >= 0) & (own >= 0) & ~np.isnan(low) & ~np.isnan(high)
    early, late = known & (done <= low), known & (done > high)
    # Of several probes the first of these decides; of those alike, the one that reads it first.
    turn = np.select([early, known & ~late, late, first >= 0], [0, 1, 2, 3], 4)
    best = (turn * (int(done.max(initial=0)) + 2) + done).argmin(0)
    picked = best, np.arange(hits.shape[2])
    state = np.array(STATES, dtype=object)[[0, 1, 2, 4, 3]][turn[picked]]
    gone = state == "never"
    return Timing(state, np.where(gone, -1, done[picked]), np.where(gone, -1, own[picked]))


def median_delay(read: Timing, timetable: xr.Dataset) -> Median:
    """Median over all entities of the blocks from their deadline to where they are read.

    Positive is too late. An entity that is never read, or in a form of which no deadline is known,
    is later than any; one in a form that serves at all blocks is earlier.
    """
    deadline = deadline_itself(timetable)[np.maximum(read.form, 0)]
    known = read.read & (read.form >= 0) & ~np.isnan(deadline)
    return median(np.where(known, read.blocks - np.where(known, deadline, 0), np.inf))
