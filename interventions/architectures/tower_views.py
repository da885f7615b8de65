"""A picture among the tokens of a vision tower, or among what the projector makes of them.

A tower sees more than the language model does: class tokens, lines that are cut off later, padding;
and some put the patches of a picture in an order of their own.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from interventions.architectures.picture_views import NO_PLACE, Patches, View, n_tokens, patches_of


@dataclass(frozen=True)
class Arrangement:
    """Where in a picture the tokens of the tower lie, in the order in which it has them.

    Attributes
    ----------
    views : tuple of View
        The grids of its patches, tile behind tile.
    n_canvases : int
        How many equal parts these are run in.
    before, behind : int
        Class tokens ahead of the patches of each part, and behind them.
    filler : int
        Tokens behind those of each part that stand for nothing.
    blank : int
        Parts behind all others that are nothing but filler.
    order : ndarray [token] of int or None
        Which token of these each one is, where their order is another; -1: filler.
    """

    views: tuple[View, ...]
    n_canvases: int = 1
    before: int = 0
    behind: int = 0
    filler: int = 0
    blank: int = 0
    order: np.ndarray | None = None

    @cached_property
    def n(self) -> int:
        """Number of tokens."""
        if self.order is not None:
            return len(self.order)
        patches, more = n_tokens(self.views), self.before + self.behind + self.filler
        each = patches // self.n_canvases + more
        return each * (self.n_canvases + self.blank)

    @cached_property
    def patches(self) -> Patches:
        """The tokens; kinds are those of a picture's, and ``"filler"``."""
        patches = patches_of(self.views)
        if self.order is not None:
            return _taken(patches, self.order)
        each = len(patches.kind) // self.n_canvases
        part = np.full((self.n_canvases + self.blank, each + self.filler), NO_PLACE)
        part[: self.n_canvases, :each] = np.arange(len(patches.kind)).reshape(-1, each)
        if not self.before + self.behind:
            return _taken(patches, part.flatten())
        part = np.pad(part, ((0, 0), (self.before, 0)), constant_values=CLASS)
        part = np.insert(part, [self.before + each] * self.behind, CLASS, axis=1)
        part[self.n_canvases :] = NO_PLACE
        return _taken(patches, part.flatten())


CLASS = -2
"""What an order has for a class token."""


def _taken(patches: Patches, order: np.ndarray) -> Patches:
    """Patches in another order, with what is none of them between."""
    columns = {field.name: getattr(patches, field.name)[order] for field in fields(patches)}
    none = order < 0
    columns["kind"] = np.where(none, np.where(order == CLASS, "class", "filler"), columns["kind"])
    columns["view"] = np.where(none, "", columns["view"])
    for name in ("row", "column"):
        columns[name] = np.where(none, NO_PLACE, columns[name])
    columns["box"] = np.where(none[:, None], np.nan, columns["box"])
    return Patches(**columns)
