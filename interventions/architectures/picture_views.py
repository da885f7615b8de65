"""A picture on a grid of tokens: where a model's views of it lie, in the picture's own pixels.

A processor resizes, pads and cuts a picture into one or several views, each of which a model makes
into a grid of tokens. An :class:`Axis` follows one side of the picture through that; a
:class:`View` says in which order the tokens of a grid come.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Kind = Literal["picture", "tile", "thumbnail"]
KINDS: tuple[Kind, ...] = ("picture", "tile", "thumbnail")
NO_PLACE = -1


@dataclass(frozen=True)
class Axis:
    """One side of a picture on one side of a canvas: its pixels are at ``scale * pixel + start``.

    Attributes
    ----------
    picture : int
        Length of the picture's side, in its own pixels.
    length : float
        Length of the canvas's side, in its own.
    scale, start : float
        Where a pixel of the picture lies on the canvas.
    """

    picture: int
    length: float
    scale: float = 1.0
    start: float = 0.0

    def resized(self, length: float) -> "Axis":
        """Return it with the canvas stretched to another length."""
        factor = length / self.length
        return replace(self, length=length, scale=self.scale * factor, start=self.start * factor)

    def cut(self, begin: float, length: float) -> "Axis":
        """Return it with another part of the canvas; it begins outside where ``begin`` < 0."""
        return replace(self, length=length, start=self.start - begin)

    def cells(self, n: int, size: float | None = None) -> np.ndarray:
        """Both ends of each of ``n`` cells in pixels of the picture, [cell, 2], cut off where the
        picture ends; ``size`` on the canvas, which they fill by default."""
        ends = np.arange(n + 1) * (self.length / n if size is None else size)
        ends = ((ends - self.start) / self.scale).clip(0, self.picture)
        return np.stack([ends[:-1], ends[1:]], axis=1)


@dataclass(frozen=True)
class View:
    """A grid of tokens that a model makes of a picture, or of tiles that it was cut into.

    Attributes
    ----------
    kind : {"picture", "tile", "thumbnail"}
        The picture at once; tiles; or the picture at once, beside tiles of it.
    y, x : ndarray [cell, 2]
        Both ends of each line and each column of the grid, in pixels of the picture.
    tiles : (int, int)
        Tiles down and across. The tokens of one come behind those of another, line by line.
    newlines : bool
        A token that is no patch stands behind each line.
    before, behind : int
        Tokens that are no patch ahead of the grid, such as a class token, and behind it.
    """

    kind: Kind
    y: np.ndarray
    x: np.ndarray
    tiles: tuple[int, int] = (1, 1)
    newlines: bool = False
    before: int = 0
    behind: int = 0


@dataclass(frozen=True)
class Patches:
    """Tokens in their order, and what each stands for.

    Attributes
    ----------
    kind : ndarray [token] of str
        ``"picture"``, ``"tile"`` or ``"thumbnail"``: a patch of such a view. ``"padding"``: a patch
        of one that shows nothing of the picture. ``"newline"``, ``"class"``: no patch.
    view : ndarray [token] of str
        Kind of the view whose grid it is on; "" where it is no patch.
    row, column : ndarray [token] of int
        On the grid of the view, over all its tiles; -1 where it is no patch.
    box : ndarray [token, 4] of float
        x0, y0, x1, y1 in pixels of the picture; NaN where it shows nothing of it.
    """

    kind: np.ndarray
    view: np.ndarray
    row: np.ndarray
    column: np.ndarray
    box: np.ndarray


def patches_of(views: Sequence[View]) -> Patches:
    """Tokens of the views of one picture, one view behind another."""
    parts = [_of_view(view) for view in views]
    return Patches(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("kind", "view", "row", "column", "box")
        )
    )


def n_tokens(views: Sequence[View]) -> int:
    """Number of tokens of the views of one picture."""
    return sum(
        len(view.y) * (len(view.x) + view.newlines) + view.before + view.behind for view in views
    )


def _of_view(view: View) -> Patches:
    n_rows, n_columns = len(view.y), len(view.x)
    down, across = view.tiles
    cells = np.arange(n_rows * n_columns).reshape(down, n_rows // down, across, n_columns // across)
    order = cells.transpose(0, 2, 1, 3).reshape(-1, n_columns // across)
    kinds = np.full(order.shape, view.kind, dtype=object)
    if view.newlines:
        order = np.pad(order, ((0, 0), (0, 1)), constant_values=NO_PLACE)
        kinds = np.pad(kinds, ((0, 0), (0, 1)), constant_values="newline")
    around = view.before, view.behind
    order = np.pad(order.flatten(), around, constant_values=NO_PLACE)
    kinds = np.concatenate([["class"] * around[0], kinds.flatten(), ["newline"] * around[1]])
    row, column = order // n_columns, order % n_columns
    row, column = (np.where(order < 0, NO_PLACE, index) for index in (row, column))
    (y0, y1), (x0, x1) = view.y[row].T, view.x[column].T
    box = np.stack([x0, y0, x1, y1], axis=1).astype(float)
    box[order < 0] = np.nan
    unseen = (order >= 0) & ((x1 <= x0) | (y1 <= y0))
    box[unseen], kinds[unseen] = np.nan, "padding"
    return Patches(kinds.astype(str), np.where(order < 0, "", view.kind), row, column, box)
