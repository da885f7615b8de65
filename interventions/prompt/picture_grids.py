"""A picture of a prompt: where its tokens lie in it."""

from dataclasses import dataclass
from functools import cached_property

from interventions.architectures.picture_views import Patches, View, patches_of


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
    """

    size: tuple[int, int]
    views: tuple[View, ...] = ()
    reason: str = ""

    @cached_property
    def patches(self) -> Patches | None:
        """Its tokens in their order; None where it is not known where they lie."""
        return patches_of(self.views) if self.views else None
