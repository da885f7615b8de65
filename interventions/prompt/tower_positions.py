"""Which tokens of the vision tower, or behind its projector, a role or a region names."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from interventions.errors import RoleError, did_you_mean
from interventions.prompt.grid_table import grid_table
from interventions.prompt.picture_grids import PictureGrid, Slots
from interventions.prompt.picture_regions import IMAGE_ROLE, Region, known_patches
from interventions.prompt.positions import Positions, Space, from_lists, picked

if TYPE_CHECKING:
    import xarray as xr

Grids = Sequence[Sequence[PictureGrid]]
ROLES = ("image", "image_0", "class", "every")


def at_tower(
    role: str,
    of: Space,
    grids: Grids,
    vision: Mapping[Space, Slots],
    *,
    index: Any,
    region: Region | None,
) -> Positions:
    """Positions as :meth:`interventions.Prompt.at` gives them, of what is not text.

    Raises
    ------
    RoleError
        If there is no picture, no such role or region, or it is not known where tokens lie.
    """
    match = IMAGE_ROLE.fullmatch(role)
    if match is None and role not in ROLES:
        known = f"{did_you_mean(role, ROLES)} With of={of!r} tokens are of pictures."
        raise RoleError(f"no role {role!r} there. {known}")
    seen = _seen(of, grids)
    if region is not None:
        lists = region.of(role, seen)
        if match is not None and match[1]:
            before = [_starts(own)[int(match[1])] for own in seen]
            lists = [
                [start + token for token in own] for start, own in zip(before, lists, strict=True)
            ]
    else:
        lists = [_of_row(role, match and match[1], own, row) for row, own in enumerate(seen)]
    lists = [picked(tokens, index, role, row) for row, tokens in enumerate(lists)]
    single = isinstance(index, int) or (index is None and region is not None and region.single)
    return from_lists(lists, length=vision[of].length, single=single, role=role, of=of)


def tower_roles(of: Space, grids: Grids) -> list[dict[str, list[int]]]:
    """Tokens of every role of each row, as :func:`at_tower` names them; no role is empty."""
    roles = []
    for row, own in enumerate(_seen(of, grids)):
        pictures = [f"image_{i}" for i in range(len(own))]
        tokens = {name: _of_row(name, None, own, row) for name in ("image", "class", "every")}
        tokens |= {name: _of_row(name, name[6:], own, row) for name in pictures}
        roles.append({name: places for name, places in tokens.items() if places})
    return roles


def tower_grids(
    of: Space, grids: Grids
) -> tuple[list[dict[str, list[int]]], list[list[PictureGrid]]]:
    """All tokens of each picture, and the pictures as they are seen there, row by row."""
    seen = _seen(of, grids)
    roles = []
    for own in seen:
        pairs = pairwise(_starts(own))
        roles.append({f"image_{i}": list(range(*ends)) for i, ends in enumerate(pairs)})
    return roles, seen


def tower_table(of: Space, grids: Grids) -> "xr.Dataset":
    """The table of :meth:`interventions.Prompt.image_grid`, of what is not text."""
    return grid_table(*tower_grids(of, grids))


def _seen(of: Space, grids: Grids) -> list[list[PictureGrid]]:
    if not any(grids):
        raise RoleError("this prompt has no pictures: pass images= to prompt().")
    seen = [[grid.seen_by(of) for grid in own] for own in grids]
    for row, own in enumerate(seen):
        for picture, grid in enumerate(own):
            known_patches(grid, f"picture {picture} of row {row}")
    return seen


def _starts(pictures: Sequence[PictureGrid]) -> list[int]:
    """First token of each picture of a row, and behind them the number of all."""
    counts = [grid.tower.n for grid in pictures if grid.tower is not None]
    return [0, *np.cumsum(counts).tolist()]


def _of_row(role: str, picture: str | None, pictures: Sequence[PictureGrid], row: int) -> list[int]:
    """Tokens of a role in one row, counted from the row's first."""
    starts = _starts(pictures)
    if picture is not None and int(picture) >= len(pictures):
        raise RoleError(f"row {row} has {len(pictures)} picture(s), and no {role!r}.")
    tokens = []
    for i, grid in enumerate(pictures):
        if picture not in (None, str(i)):
            continue
        patches = known_patches(grid, f"picture {i} of row {row}")
        chosen = patches.kind == "class" if role == "class" else patches.row >= 0
        if role == "every":
            chosen = np.ones_like(chosen)
        tokens += (starts[i] + np.flatnonzero(chosen)).tolist()
    return tokens
