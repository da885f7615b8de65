"""How many rows memory has room for, from their keys and values, before anything has run out."""

from typing import Literal

from interventions import Model
from interventions.architectures.wrapped import weightless
from interventions.running.budget import SHARE as ENGINES
from interventions.running.budget import free_on
from interventions.sweeping.sizes import Sizes

Kind = Literal["read", "answers", "cells", "backward"]
"""Whether states are read, answers go on from rows, cells do, or gradients come back."""
SHARE = 0.6
"""Of the memory that is free, for the rows of a batch: what is not foreseen has the rest."""
COPIES = 3
"""Of keys and values: the prefill's, those that answers go on from, those of forced choices."""
READ = 3
"""Components of all blocks that a map reads at once."""
HELD, HELD_INNER = 27, 3
"""Numbers that a gradient's pass holds of a token in a block, per width and per width of an MLP."""


def row_needs(sizes: Sizes, kind: Kind, *, width: int, before: int) -> int:
    """Bytes that a row takes while it is run.

    Parameters
    ----------
    sizes : Sizes
    kind : {"read", "answers", "cells", "backward"}
    width : int
        Tokens of the row.
    before : int
        Tokens that are shared ahead of it.
    """
    running = sizes.row(width, before, apart=False)
    states = sizes.n_bytes * sizes.n_layers * width
    if kind == "backward":
        return running + states * (HELD * sizes.d_model + HELD_INNER * sizes.inner)
    if kind == "cells":
        # The engine gives cells less of what is free: its own budget.
        return int((running + sizes.clean(width, before)) * SHARE / ENGINES)
    if kind == "answers":
        return running + COPIES * sizes.keys(width + before)
    return running + READ * states * sizes.d_model


def rows_at_once(model: Model, kind: Kind, most: int, *, width: int, before: int = 0) -> int:
    """At most ``most`` rows, as many as what is free has room for; one at least.

    Parameters
    ----------
    model : Model
    kind, width, before
        As in :func:`row_needs`.
    most : int
    """
    if weightless(model):
        return most
    needed = row_needs(Sizes.of(model), kind, width=width, before=before)
    return rows_in(free_on(model), needed, most)


def rows_in(free: int, needed: int, most: int) -> int:
    """At most ``most`` rows that need so many bytes each, where so many are free.

    Examples
    --------
    >>> rows_in(1000, 100, 64), rows_in(1000, 100, 4), rows_in(1000, 5000, 64)
    (6, 4, 1)
    """
    return max(1, min(most, int(free * SHARE) // needed))
