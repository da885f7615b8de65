"""Where in its picture each image token of a prompt lies, as a Dataset."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interventions.architectures.picture_views import NO_PLACE
from interventions.errors import RoleError
from interventions.prompt.picture_grids import PictureGrid
from interventions.prompt.picture_regions import known_patches

if TYPE_CHECKING:
    import xarray as xr

Roles = Sequence[Mapping[str, Sequence[int]]]
Grids = Sequence[Sequence[PictureGrid]]

EDGES = ("x0", "y0", "x1", "y1")
NUMBERS = ("picture", "grid_row", "grid_column", "width", "height")


def grid_table(roles: Roles, grids: Grids) -> "xr.Dataset":
    """The table of :meth:`interventions.Prompt.image_grid`, from a prompt's roles and grids."""
    import xarray as xr  # which a server may not have, to which prompts are sent

    parts: list[dict[str, np.ndarray]] = []
    for row, own in enumerate(grids):
        for picture, grid in enumerate(own):
            known_patches(grid, f"picture {picture} of row {row}")
            positions = roles[row].get(f"image_{picture}", ())
            named = {"row": np.full(len(positions), row), "position": np.array(positions)}
            parts.append({**named, **_columns(grid, picture)})
    if not parts:
        raise RoleError("this prompt does not tell where its image tokens lie; see Model.prompt.")
    table = xr.Dataset(
        {name: ("token", np.concatenate([p[name] for p in parts])) for name in parts[0]}
    )
    for name in (*EDGES, "width", "height"):
        table[name].attrs["units"] = "pixels"
    return table


def _columns(grid: PictureGrid, picture: int) -> dict[str, np.ndarray]:
    """What is known of each token of a picture, by name, [token]."""
    assert grid.patches is not None
    patches, n = grid.patches, len(grid.patches.kind)
    return {
        "picture": np.full(n, picture),
        "kind": patches.kind,
        "grid_row": patches.row,
        "grid_column": patches.column,
        **dict(zip(EDGES, patches.box.T, strict=True)),
        "width": np.full(n, grid.size[0]),
        "height": np.full(n, grid.size[1]),
    }


def places_of(
    roles: Roles, grids: Grids, columns: Sequence[Sequence[Sequence[int]]], dim: str
) -> dict[str, Any]:
    """Where in a picture the token of each column lies, as coordinates (item, ``dim``).

    As in :meth:`interventions.Prompt.image_grid`; NaN, -1 or "" for what is no patch, and for
    columns of several tokens. None, where nothing of them is in a picture.

    Parameters
    ----------
    roles, grids
        Of a prompt.
    columns : list of list of list of int
        Tokens of each column, [column][row][token].
    """
    shape = len(roles), len(columns)
    filled: dict[str, np.ndarray] = {
        **{name: np.full(shape, NO_PLACE) for name in NUMBERS},
        **{name: np.full(shape, np.nan) for name in EDGES},
        "kind": np.full(shape, "", dtype=object),
    }
    for row, own in enumerate(grids):
        first = {column[row][0]: k for k, column in enumerate(columns) if len(column[row]) == 1}
        for picture, grid in enumerate(own):
            if grid.patches is None:
                continue
            known = _columns(grid, picture)
            for token, position in enumerate(roles[row].get(f"image_{picture}", ())):
                if position in first:
                    for name, values in known.items():
                        filled[name][row, first[position]] = values[token]
    if not np.isfinite(filled["x0"]).any():
        return {}
    return {name: (("item", dim), values) for name, values in filled.items()}
