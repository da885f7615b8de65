"""Writing some coordinates of a vector, and leaving the rest of it as it is."""

from abc import ABC, abstractmethod

import torch

from interventions.model.sites import Component
from interventions.prompt.positions import Mode, Positions, merged


class Coordinates(ABC):
    """Numbers that are read off a vector, and what the vector becomes when they are changed.

    A :class:`~interventions.Patch` whose ``within`` is one of these has values of them, ``size``
    per position, in the place of whole vectors. What they do not tell of a vector stays: where no
    coordinate changes, the vector is the same bit for bit.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the vector that is written."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many coordinates there are."""

    @property
    def source(self) -> Component | None:
        """The component of the same block they are read off; None: the one that is written."""
        return None

    @property
    def source_width(self) -> int:
        """Width of the vector they are read off."""
        return self.width

    @abstractmethod
    def coordinates(self, hidden: torch.Tensor) -> torch.Tensor:
        """Coordinates [..., size] of vectors [..., source_width], in float32 or wider."""

    @abstractmethod
    def moved(self, hidden: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """What a change [..., size] of the coordinates of ``hidden`` adds, [..., width]."""


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 or wider, in which sums are taken."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def write_within(
    hidden: torch.Tensor,
    positions: Positions,
    within: Coordinates,
    value: torch.Tensor,
    mode: Mode,
    *,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return a copy of ``hidden`` [row, position, width] with other coordinates at some positions.

    Parameters
    ----------
    hidden : Tensor [row, position, width]
    positions : Positions
    within : Coordinates
    value : Tensor
        [row, n, size], or [row, size] to spread one over the positions of a row, or [size], or a
        number.
    mode : {"set", "add", "scale"}
    seen : Tensor [row, position, source_width], optional
        What the coordinates are read off, where that is not ``hidden``.
    """
    value = value[:, None] if value.ndim == 2 else value
    n_rows, n = positions.index.shape
    mask = positions.mask.to(hidden.device)
    rows = torch.arange(n_rows, device=hidden.device)[:, None].expand(n_rows, n)[mask]
    index = positions.index.to(hidden.device)[mask]
    old = hidden[rows, index]
    read = old if seen is None else seen.to(hidden.device)[rows, index]
    coordinates = within.coordinates(read)
    value = value.to(coordinates).expand(n_rows, n, within.size)[mask]
    change = merged(coordinates, value, mode) - coordinates
    result = hidden.clone()
    result[rows, index] = (wide(old) + within.moved(read, change)).to(hidden.dtype)
    return result
