"""Where in its picture each image token of a prompt lies, as a Dataset."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interventions.errors import RoleError
from interventions.prompt.picture_regions import known_patches

if TYPE_CHECKING:
    from interventions.prompt.prompt import Prompt

EDGES = ("x0", "y0", "x1", "y1")


def grid_table(prompt: "Prompt") -> xr.Dataset:
    """The table of :meth:`interventions.Prompt.image_grid`."""
    if not any("image" in roles for roles in prompt.roles):
        prompt.at("image")  # says why there are none
    parts: dict[str, list[Any]] = {}
    for row, grids in enumerate(prompt.grids):
        for picture, grid in enumerate(grids):
            patches = known_patches(grid, f"picture {picture} of row {row}")
            n = len(patches.kind)
            columns = {
                "row": np.full(n, row),
                "position": np.array(prompt.roles[row][f"image_{picture}"]),
                "picture": np.full(n, picture),
                "kind": patches.kind,
                "grid_row": patches.row,
                "grid_column": patches.column,
                **dict(zip(EDGES, patches.box.T, strict=True)),
                "width": np.full(n, grid.size[0]),
                "height": np.full(n, grid.size[1]),
            }
            for name, values in columns.items():
                parts.setdefault(name, []).append(values)
    if not parts:
        raise RoleError("this prompt does not tell where its image tokens lie; see Model.prompt.")
    table = xr.Dataset({name: ("token", np.concatenate(each)) for name, each in parts.items()})
    for name in (*EDGES, "width", "height"):
        table[name].attrs["units"] = "pixels"
    return table
