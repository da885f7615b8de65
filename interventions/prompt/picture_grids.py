"""A picture of a prompt: where its tokens lie in it."""

from dataclasses import dataclass, replace
from functools import cached_property

from interventions.architectures.picture_views import Patches, View, patches_of
from interventions.architectures.tower_views import Arrangement
from interventions.prompt.positions import Space


@dataclass(frozen=True)
class PictureGrid:
    """One picture of a prompt: its size, and where its tokens lie in it.

    Attributes
    ----------
    size : (int, int)
        Width and height in pixels, upright.
    views : tuple of View
        The grids that its tokens are on, in their order.
    reason : str
        Why it is not known where they lie.
    tower, features : Arrangement or None
        Its tokens in the vision tower, and those that the projector makes of them.
    tower_reason : str
        Why these are not known.
    """

    size: tuple[int, int]
    views: tuple[View, ...] = ()
    reason: str = ""
    tower: Arrangement | None = None
    features: Arrangement | None = None
    tower_reason: str = ""

    @cached_property
    def patches(self) -> Patches | None:
        """Its tokens in their order; None where it is not known where they lie."""
        return patches_of(self.views) if self.views else None

    def arranged(self, of: Space) -> Arrangement | None:
        """Its tokens in the tower, or behind the projector; None where they are not known."""
        return self.tower if of == "tower" else self.features

    def seen_by(self, of: Space) -> "PictureGrid":
        """The picture among the tokens of the tower, or behind the projector."""
        if of == "text":
            return self
        return _Seen(self.size, reason=self.tower_reason, tower=self.arranged(of))


class _Seen(PictureGrid):
    """A picture whose tokens are those of an arrangement."""

    @cached_property
    def patches(self) -> Patches | None:
        """Its tokens in their order; None where it is not known where they lie."""
        return None if self.tower is None else self.tower.patches


@dataclass(frozen=True)
class Slots:
    """How many tokens of its pictures each row has in the tower, or behind the projector.

    Attributes
    ----------
    counts : list of int
        Of each row. They follow one another, row by row, in what the tower runs.
    length : int
        Of the longest row, to which the others are filled up where they are read or written.
    """

    counts: list[int]
    length: int

    def select(self, rows: list[int]) -> "Slots":
        """Return those of some rows, of the same length."""
        return replace(self, counts=[self.counts[row] for row in rows])


def slots_of(grids: list[list[PictureGrid]]) -> dict[Space, Slots]:
    """How many tokens each row of a prompt has; empty where there are none, or it is unknown."""
    slots: dict[Space, Slots] = {}
    spaces: tuple[Space, ...] = ("tower", "features")
    for of in spaces:
        rows = [[grid.arranged(of) for grid in own] for own in grids]
        if not any(rows) or any(arranged is None for own in rows for arranged in own):
            return {}
        counts = [sum(arranged.n for arranged in own if arranged) for own in rows]
        slots[of] = Slots(counts, max(counts))
    return slots
