"""Where in its picture each image token of a prompt lies, as a Dataset."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interventions.architectures.picture_views import NO_PLACE
from interventions.errors import RoleError
from interventions.prompt.columns import Columns
from interventions.prompt.picture_grids import PictureGrid
from interventions.prompt.picture_regions import known_patches

if TYPE_CHECKING:
    from interventions.prompt.prompt import Prompt

EDGES = ("x0", "y0", "x1", "y1")
NUMBERS = ("picture", "grid_row", "grid_column", "width", "height")


def grid_table(prompt: "Prompt") -> xr.Dataset:
    """The table of :meth:`interventions.Prompt.image_grid`."""
    if not any("image" in roles for roles in prompt.roles):
        prompt.at("image")  # says why there are none
    parts: list[dict[str, np.ndarray]] = []
    for row, grids in enumerate(prompt.grids):
        for picture, grid in enumerate(grids):
            known_patches(grid, f"picture {picture} of row {row}")
            positions = prompt.roles[row][f"image_{picture}"]
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


def places_of(prompt: "Prompt", columns: Columns, dim: str) -> dict[str, Any]:
    """Where in a picture the token of each column lies, as coordinates (item, ``dim``).

    As in :meth:`interventions.Prompt.image_grid`; NaN, -1 or "" for what is no patch, and for
    columns of several tokens. None, where nothing of them is in a picture.
    """
    shape = len(prompt), len(columns.names)
    filled: dict[str, np.ndarray] = {
        **{name: np.full(shape, NO_PLACE) for name in NUMBERS},
        **{name: np.full(shape, np.nan) for name in EDGES},
        "kind": np.full(shape, "", dtype=object),
    }
    for row, grids in enumerate(prompt.grids):
        own = {
            column[row][0]: k for k, column in enumerate(columns.tokens) if len(column[row]) == 1
        }
        for picture, grid in enumerate(grids):
            if grid.patches is None:
                continue
            known = _columns(grid, picture)
            for token, position in enumerate(prompt.roles[row].get(f"image_{picture}", ())):
                if position in own:
                    for name, values in known.items():
                        filled[name][row, own[position]] = values[token]
    if not np.isfinite(filled["x0"]).any():
        return {}
    return {name: (("item", dim), values) for name, values in filled.items()}
