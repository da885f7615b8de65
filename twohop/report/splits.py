"""What back-patching would have shown, had the entities been halved otherwise.

Which cell is chosen depends on which half of the entities it is chosen on, and where two are about
as good, so does what is shown. From the stored grid other halves cost nothing to try.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import xarray as xr

from twohop.ask.halves import halves
from twohop.protocol import DEFAULT, Protocol
from twohop.stages.evidence import Measured, State, of_all
from twohop.stages.recovery.back_patching import SOURCES, best_cells


@dataclass(frozen=True)
class Splits:
    """How often back-patching is shown to give back more than both nulls, by canonical answers.

    Attributes
    ----------
    n : int
        Ways to halve the entities.
    shown, absent : float
        Share of them in which it is shown, and shown to give no more than either.
    """

    n: int
    shown: float
    absent: float

    def share(self, state: str) -> float:
        """Share of the splits with a state."""
        return {"shown": self.shown, "absent": self.absent}.get(state, 1 - self.shown - self.absent)


def other_splits(recovery: xr.Dataset, *, seed: int, protocol: Protocol = DEFAULT) -> Splits | None:
    """Choose the cells on other halves of the entities, and test again what they give.

    None where the grid was searched on no item that has a null.

    Parameters
    ----------
    recovery : Dataset
        From the stage of this name.
    seed : int
        Of the splits.
    protocol : Protocol
    """
    there = recovery["has_null"].sel(tried=recovery["searched"].values).values.astype(bool)
    if not there.any():
        return None
    tables = {name: recovery[name].values[:, there].astype(float) for name in SOURCES}
    entities = recovery["searched_entity"].values[there].astype(str)
    every, counts = np.ones(len(entities), dtype=bool), Counter[State]()
    n = protocol.other_splits
    for split in range(n):
        half = halves(entities.tolist(), seed=seed + split)
        cells = best_cells(tables, half, every)[half]
        tried = cells >= 0
        own, *nulls = (tables[name][cells, np.arange(len(cells))][tried] for name in SOURCES)
        counts[
            of_all(
                Measured.of(own, null, entities[tried]).judged(protocol=protocol).state
                for null in nulls
            )
        ] += 1
    return Splits(n, counts["shown"] / n, counts["absent"] / n)
