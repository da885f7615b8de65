"""What was shown of a pair as a whole, which verdicts on single items rest on.

Each is an estimate with its interval, and one of three: *shown* (the interval is above nothing),
*absent* (it ends below what matters: it was shown not to matter), or *open*: so many items cannot
tell. A verdict rests on what is shown or absent, never on what is open.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from twohop.ask.halves import chosen_elsewhere, halves
from twohop.protocol import DEFAULT, Protocol
from twohop.stages.timing import READS, Timing, read_anywhere
from twohop.statistics import TAIL, Estimate, Labels, differences, of_entities, shares

State = Literal["shown", "absent", "open"]
EVIDENCE = {
    "back_patching": "back-patching gives back more than another picture's states in the same cell",
    "back_patching_change": "back-patching gives back more than another picture's change, added to "
    "the own earlier state in the same cell",
    "early": "the transfer probes read entities in time, more than on shuffled labels",
    "late": "the transfer probes read entities only too late, more than on shuffled labels",
    "decodable": "the plain probe reads entities, more than on shuffled labels",
    "own_text": "the transfer probes read the VLM's own text, in most entities",
}
"""Names, and what each says if it is shown."""


def of_all(states: Iterable[State]) -> State:
    """What tests show that have to show the same; ``open`` where they do not."""
    different: set[State] = {*states}
    return different.pop() if len(different) == 1 else "open"


@dataclass(frozen=True)
class Evidence:
    """One of :data:`EVIDENCE`.

    Attributes
    ----------
    estimate : Estimate
        A difference of shares; of ``own_text``, a share.
    state : str
    """

    estimate: Estimate
    state: State


@dataclass(frozen=True)
class Measured:
    """What evidence is made of: items of each entity, and what two things tried on them gave.

    Attributes
    ----------
    entities : ndarray of str [entity]
    sizes : ndarray [entity]
        How many items are there of each.
    totals : ndarray [3, entity]
        Of these, the sum of what the first gave, and of how much more it gave than the control,
        and the control than it.
    least : float
        Where the interval must be above for it to be shown; with 0 it is that of the difference,
        else of the first alone.
    tail : float
        Of its interval, on each side; smaller where several are judged together.
    """

    entities: np.ndarray
    sizes: np.ndarray
    totals: np.ndarray
    least: float = 0.0
    tail: float = TAIL

    @classmethod
    def of(
        cls,
        first: np.ndarray,
        second: np.ndarray,
        entities: Labels,
        *,
        least: float = 0.0,
        tail: float = TAIL,
    ) -> "Measured":
        """Gather the values of items [item], the second of them those of the control."""
        first, second = np.asarray(first, float), np.asarray(second, float)
        more = np.maximum(first - second, 0), np.maximum(second - first, 0)
        totals, sizes = of_entities(np.stack([first, *more]), entities)
        return cls(np.unique(np.asarray(entities, dtype=str)), sizes, totals, least, tail)

    def judged(self, drawn: np.ndarray | None = None, *, protocol: Protocol = DEFAULT) -> Evidence:
        """Judge it, or a resample of its entities.

        Parameters
        ----------
        drawn : ndarray of int [entity], optional
            How often each entity is in the resample.
        protocol : Protocol
        """
        every = np.arange(len(self.sizes))
        picked = every if drawn is None else np.repeat(every, drawn)
        sizes, n = self.sizes[picked], int(self.sizes[picked].sum())
        if len(picked) < protocol.least_clusters:
            return Evidence(Estimate(np.nan, np.nan, np.nan, n), "open")
        first, won, lost = (shares(total[picked], sizes, tail=self.tail) for total in self.totals)
        ends = (first.value, first.low, first.high) if self.least else differences(won, lost)
        value, low, high = map(float, ends)
        most = self.least if self.least else protocol.equivalent_points / 100
        state: State = "shown" if low > self.least else "absent" if high < most else "open"
        return Evidence(Estimate(value, low, high, n), state)


MOST = 0.5
"""Share of the entities of the VLM's own text that the probes must read to be trusted on it."""


def measured(
    resolution: xr.Dataset,
    recovery: xr.Dataset,
    read: Timing,
    null: Timing,
    *,
    seed: int,
    protocol: Protocol,
) -> dict[str, Measured]:
    """Gather what evidence is made of, by name.

    Of the VLM's own text, entities of each half are read at the layer that is best on the other.

    Parameters
    ----------
    resolution, recovery : Dataset
        From the stages of these names.
    read, null : Timing
        By the transfer probes, and by their null.
    seed : int
        Of those halves.
    protocol : Protocol
    """
    entities = resolution["entity"].values.astype(str)
    plain, shuffled = (
        read_anywhere(resolution, kind, protocol=protocol) for kind in ("plain", "shuffled")
    )
    own = resolution["drift"].sel(kind=list(READS)).transpose("kind", "layer", "entity").values
    text: np.ndarray = np.zeros(len(entities), dtype=bool)
    if own.size:
        half = halves(entities.tolist(), seed=seed)
        best = chosen_elsewhere(np.asarray(own.any(0)), half)[half]
        text = own[:, best, np.arange(len(entities))].any(0) & (best >= 0)
    has_null = recovery["has_null"].values.astype(bool)

    def above(null: str) -> Measured:
        own_state, null_state = (
            recovery["recovered"].sel(arm=arm).values for arm in ("back_patching", null)
        )
        tried = has_null & ~np.isnan(own_state) & ~np.isnan(null_state)
        return Measured.of(
            own_state[tried], null_state[tried], recovery["tried_entity"].values[tried]
        )

    return {
        "back_patching": above("back_patching_null"),
        "back_patching_change": above("back_patching_null_change"),
        "early": Measured.of(read.state == "early", null.state == "early", entities),
        "late": Measured.of(read.state == "late", null.state == "late", entities),
        "decodable": Measured.of(plain, shuffled, entities),
        "own_text": Measured.of(text, np.zeros(len(text)), entities, least=MOST),
    }


def resampled(
    measured: Mapping[str, Measured], drawn: Mapping[str, int], *, protocol: Protocol
) -> dict[str, State]:
    """The states in a resample of entities, in which each comes so many times."""
    return {
        name: each.judged(
            np.array([drawn.get(entity, 0) for entity in each.entities.tolist()], dtype=int),
            protocol=protocol,
        ).state
        for name, each in measured.items()
    }
