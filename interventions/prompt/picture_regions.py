"""Which tokens of a picture a box, a mask or a place on its grid names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from interventions.architectures.picture_views import KINDS, Patches
from interventions.errors import PictureError, RoleError
from interventions.given import number, one_of, plain, several, shown, whole
from interventions.prompt.picture_grids import PictureGrid
from interventions.prompt.picture_numbers import array_of, is_array

IMAGE_ROLE = re.compile(r"image(?:_(\d+))?")
ROUNDING = 1e-6
FINEST = ("tile", "picture", "thumbnail")


@dataclass(frozen=True)
class Region:
    """A part of a picture, as it was asked for: just one of box, mask and patch.

    Attributes
    ----------
    box, mask, patch : Any
        For all rows, or a list of one for each.
    picture : Any
        Which picture of a row; None where it has one.
    view : str or None
        Kind of the views to look at.
    share : float
        Least share of a token's area that lies in the region.
    """

    box: Any = None
    mask: Any = None
    patch: Any = None
    picture: Any = None
    view: Any = None
    share: Any = None

    @property
    def kind(self) -> str:
        """How it was asked for."""
        kinds = [name for name in ("box", "mask", "patch") if getattr(self, name) is not None]
        if len(kinds) > 1:
            raise RoleError(f"{' and '.join(kinds)} are given. Give one of them.")
        if not kinds:
            raise RoleError("picture=, view= and share= say which tokens of box=, mask= or patch=.")
        return kinds[0]

    @property
    def single(self) -> bool:
        """Whether it names just one token in each row: it is one patch."""
        patch = self.patch
        if patch is None or SINGLE["patch"](patch):
            return patch is not None
        listed = isinstance(patch, list | tuple | np.ndarray | torch.Tensor)
        return listed and all(SINGLE["patch"](pair) for pair in patch)

    def of(self, role: str, grids: Sequence[Sequence[PictureGrid]]) -> list[list[int]]:
        """Which tokens of a role it names in each row, counted from the role's first.

        Parameters
        ----------
        role : str
            ``"image"``, ``"image_0"``, ``"image_1"`` ...
        grids : sequence of sequence of PictureGrid
            For each row, its pictures'.

        Raises
        ------
        RoleError
            If it does not fit, it is not known where tokens lie, or it names none in a row.
        """
        kind = self.kind
        if not (match := IMAGE_ROLE.fullmatch(role)):
            raise RoleError(f"{kind}= names tokens of 'image' or of 'image_0', not of {role!r}.")
        view = None if self.view is None else one_of(self.view, "view", KINDS, error=RoleError)
        share = number(0 if self.share is None else self.share, "share", least=0, error=RoleError)
        if share > 1:
            raise RoleError(f"share is {share:g}. Expected a share of a token's area, 0 to 1.")
        asked = _per_row(getattr(self, kind), len(grids), kind)
        pictures = self._pictures(match[1], grids)
        rows = []
        for row, (value, which, own) in enumerate(zip(asked, pictures, grids, strict=True)):
            where = f"picture {which} of row {row}"
            first = 0 if match[1] else _n_tokens(own[:which], row)
            patches = known_patches(own[which], where)
            if kind == "patch":
                tokens = _on_grid(value, patches, view, where)
            else:
                tokens = _in_region(value, own[which], view, share, f"{kind}=", where)
            rows.append([first + token for token in tokens])
        return rows

    def _pictures(self, named: str | None, grids: Sequence[Sequence[PictureGrid]]) -> list[int]:
        """Which picture of each row is meant."""
        if named is not None and self.picture is not None:
            raise RoleError(f"'image_{named}' is a picture already; leave picture= out.")
        asked = self.picture
        if isinstance(plain(asked), int):
            asked = [asked] * len(grids)
        elif asked is not None:
            asked = several(asked, "picture=", error=RoleError, expected="a number, or one a row")
            if len(asked) != len(grids):
                raise RoleError(f"picture= has {len(asked)} entries for {len(grids)} rows.")
        else:
            asked = [named if named is None else int(named)] * len(grids)
        pictures = []
        for row, (which, own) in enumerate(zip(asked, grids, strict=True)):
            if which is None and len(own) != 1:
                raise RoleError(
                    f"row {row} has {len(own)} pictures. Say which one with picture=, or leave the "
                    "row out with prompt.select(rows)."
                )
            index = 0 if which is None else whole(which, "picture=", error=RoleError)
            if not -len(own) <= index < len(own):
                raise RoleError(f"row {row} has {len(own)} picture(s), and no picture {index}.")
            pictures.append(index % len(own))
        return pictures


def _n_tokens(grids: Sequence[PictureGrid], row: int) -> int:
    return sum(
        len(known_patches(grid, f"picture {which} of row {row}").kind)
        for which, grid in enumerate(grids)
    )


def known_patches(grid: PictureGrid, where: str) -> Patches:
    """Where the tokens of a picture lie, or a RoleError that says why that is not known."""
    if grid.patches is None:
        raise RoleError(
            f"where the tokens of {where} lie in it is not known: {grid.reason}. Name tokens by "
            "their number: at('image', index)."
        )
    return grid.patches


def _per_row(given: Any, n_rows: int, kind: str) -> list[Any]:
    """One region for each row, from one for all or a list of them."""
    if SINGLE[kind](given):
        return [given] * n_rows
    expected = f"{EXPECTED[kind]}, or a list of one for each row"
    if not isinstance(given, np.ndarray | torch.Tensor) or given.ndim < 2:
        given = several(given, f"{kind}=", error=RoleError, expected=expected)
    if len(given) != n_rows:
        raise RoleError(f"{kind}= has {len(given)} entries for {n_rows} rows. Expected {expected}.")
    return list(given)


def _are_numbers(given: Any, n: int) -> bool:
    if isinstance(given, str | bytes | Mapping) or getattr(given, "ndim", 1) != 1:
        return False
    try:
        numbers = [plain(value) for value in given]
    except Exception:  # of a generator or a class of the user's own
        return False
    return len(numbers) == n and all(isinstance(value, int | float) for value in numbers)


def _is_mask(given: Any) -> bool:
    return isinstance(given, Image.Image) or (is_array(given) and getattr(given, "ndim", None) == 2)


SINGLE: dict[str, Callable[[Any], bool]] = {
    "box": lambda given: _are_numbers(given, 4),
    "mask": _is_mask,
    "patch": lambda given: _are_numbers(given, 2),
}
EXPECTED = {
    "box": "(x0, y0, x1, y1) in pixels of the picture",
    "mask": "a bool array [height, width] of the picture's size, or a PIL image",
    "patch": "(row, column) on the grid of tokens",
}


def _of_view(patches: Patches, view: str | None, where: str) -> np.ndarray:
    """Which tokens show something in a kind of view, [token]."""
    chosen = np.isfinite(patches.box[:, 0])
    if view is not None:
        chosen &= patches.view == view
        if not chosen.any():
            kinds = sorted({*patches.view.tolist()} - {""})
            raise RoleError(f"{where} has no view {view!r}. It has {', '.join(kinds)}.")
    return chosen


def _on_grid(value: Any, patches: Patches, view: str | None, where: str) -> list[int]:
    """The tokens at (row, column) of the finest view, or of a kind of them."""
    if view is None:
        view = next(kind for kind in FINEST if (patches.view == kind).any())
    _of_view(patches, view, where)
    grid = np.flatnonzero(patches.view == view)
    shape = int(patches.row[grid].max()) + 1, int(patches.column[grid].max()) + 1
    pairs = [value] if SINGLE["patch"](value) else several(value, "patch=", error=RoleError)
    tokens = []
    for pair in pairs:
        if not SINGLE["patch"](pair):
            raise RoleError(f"patch= is {shown(pair)}. Expected {EXPECTED['patch']}.")
        row, column = (
            whole(end, f"the {name} of patch=", least=-n, most=n - 1, error=RoleError) % n
            for end, n, name in zip(pair, shape, ("row", "column"), strict=True)
        )
        here = (patches.row[grid] == row) & (patches.column[grid] == column)
        [token] = grid[here]
        tokens.append(int(token))
    if len({*tokens}) < len(tokens):
        raise RoleError(f"patch= names a token twice: {shown(value)}.")
    return sorted(tokens)


def _in_region(
    value: Any, grid: PictureGrid, view: str | None, share: float, kind: str, where: str
) -> list[int]:
    patches = known_patches(grid, where)
    chosen = _of_view(patches, view, where)
    if kind == "box=":
        inside = share_in_box(patches.box, _checked_box(value, grid.size, where))
    else:
        inside = share_in_mask(patches.box, _checked_mask(value, grid.size, where))
    tokens = np.flatnonzero(chosen & (inside > 0) & (inside >= share - ROUNDING)).tolist()
    if not tokens:
        x0, y0 = np.nanmin(patches.box[:, :2], axis=0)
        x1, y1 = np.nanmax(patches.box[:, 2:], axis=0)
        raise RoleError(
            f"{kind} names no token of {where}: its tokens show {x0:g} to {x1:g} across and {y0:g} "
            f"to {y1:g} down of its {grid.size[0]} x {grid.size[1]} pixels, and "
            f"{f'at least {share:g}' if share else 'some'} of a token is to lie inside."
        )
    return tokens


def _checked_box(value: Any, size: tuple[int, int], where: str) -> tuple[float, ...]:
    if not SINGLE["box"](value):
        raise RoleError(f"box= is {shown(value)}. Expected {EXPECTED['box']}.")
    x0, y0, x1, y1 = box = tuple(number(end, "an end of box=", error=RoleError) for end in value)
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise RoleError(
            f"box= is {shown(value)}. Expected x0 < x1 within 0 to {size[0]}, and y0 < y1 within 0 "
            f"to {size[1]}: {where} has {size[0]} x {size[1]} pixels, upright."
        )
    return box


def _checked_mask(value: Any, size: tuple[int, int], where: str) -> np.ndarray:
    if not _is_mask(value):
        raise RoleError(f"mask= is {shown(value)}. Expected {EXPECTED['mask']}.")
    if isinstance(value, Image.Image):
        if len(value.getbands()) > 1:
            raise RoleError(f"mask= is an image of mode {value.mode}. Give one of mode '1' or 'L'.")
        value = np.asarray(value)
    try:
        mask = array_of(value)
    except PictureError as error:
        raise RoleError(f"mask= cannot be read: {error}. Expected {EXPECTED['mask']}.") from error
    if mask.shape != size[::-1]:
        raise RoleError(
            f"mask= has shape {list(mask.shape)}. Expected [{size[1]}, {size[0]}], the height and "
            f"width of {where}, upright."
        )
    levels = np.unique(mask)
    if len(levels) > 2 or (len(levels) > 1 and levels[0] != 0):
        raise RoleError(
            f"mask= has {len(levels)} levels of {mask.dtype}. Expected bools, or 0 outside and one "
            "number inside, such as mask > 0.5."
        )
    return mask != 0


def share_in_box(boxes: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Share of each of ``boxes`` [token, 4] that lies in a box, [token]; 0 where it is NaN."""
    x0, y0, x1, y1 = boxes.T
    wide = np.minimum(x1, box[2]) - np.maximum(x0, box[0])
    tall = np.minimum(y1, box[3]) - np.maximum(y0, box[1])
    share = wide.clip(0) * tall.clip(0) / ((x1 - x0) * (y1 - y0))
    return np.nan_to_num(share)


def share_in_mask(boxes: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of each of ``boxes`` [token, 4] that lies in a mask [height, width], [token]."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(0).cumsum(1)

    def before(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """How much of the mask lies above and to the left; between pixels it is linear."""
        left = x.astype(int).clip(0, mask.shape[1] - 1)
        top = y.astype(int).clip(0, mask.shape[0] - 1)
        right, down = x - left, y - top
        above = sums[top, left] * (1 - right) + sums[top, left + 1] * right
        below = sums[top + 1, left] * (1 - right) + sums[top + 1, left + 1] * right
        return above * (1 - down) + below * down

    shares = np.zeros(len(boxes))
    real = np.isfinite(boxes[:, 0])
    x0, y0, x1, y1 = boxes[real].T
    inside = before(x1, y1) - before(x0, y1) - before(x1, y0) + before(x0, y0)
    # What is left of rounding in the sums is no pixel of the mask.
    shares[real] = np.where(inside > ROUNDING, inside, 0) / ((x1 - x0) * (y1 - y0))
    return shares
