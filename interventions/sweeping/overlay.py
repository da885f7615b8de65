"""Values of image tokens, on the picture they are of, layer by layer."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from PIL import Image

from interventions.architectures.picture_views import KINDS
from interventions.errors import ResultsError
from interventions.given import number, of_kind, one_of, several, shown, text_of, whole
from interventions.prompt.grid_table import EDGES
from interventions.prompt.picture_regions import FINEST
from interventions.prompt.pictures import as_picture
from interventions.prompt.prompt import Prompt
from interventions.sweeping.heatmap_data import (
    chosen_map,
    component_names,
    drawable,
    footnote,
    of_item,
    title_of,
)
from interventions.sweeping.overlay_page import page_of
from interventions.sweeping.picture_map import COLOURS, OPAQUE, WHITE, Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IN_A_LINE = 6
IMAGE_TOKEN = re.compile(r"image(?:_(\d+))?\[(-?\d+)\](?: *->.*)?")
ROUTES = (
    'Cut single image tokens, routes=["image[0] -> last", "image[1] -> last", ...], with '
    'grid=prompt.image_grid(); or regions, with grid={"cat": box} where the route "cat" is of '
    'prompt.at("image", box=box), (x0, y0, x1, y1) in pixels.'
)
CORNERS = "(x0, y0, x1, y1) in pixels"
SAVED = (".html", ".htm")


@dataclass(frozen=True)
class PictureMap(Drawing):
    """Values of a picture's tokens by component and layer; made by :func:`interventions.overlay`.

    Attributes
    ----------
    picture : PIL.Image.Image
        As the model was shown it.
    layers : ndarray [layer]
    components : list of str
    x, y : ndarray [column + 1], [line + 1]
        Ends of cells, in pixels of the picture. Where a view has no token, cells hold NaN.
    values : ndarray [component, layer, line, column]
    label : str
        What they are, with their unit.
    title, note : str
    warned : bool
        The note is a warning.
    """

    def figure(self) -> "Figure":
        """Draw all layers as small multiples, one block of them per component.

        Returns
        -------
        matplotlib Figure
        """
        from matplotlib.figure import Figure

        across = min(len(self.layers), IN_A_LINE)
        lines = -(-len(self.layers) // across)
        ratio = self.picture.height / self.picture.width
        side = 1.7
        height = lines * len(self.components) * (side * min(max(ratio, 0.4), 2.5) + 0.3) + 0.8
        figure = Figure(figsize=(across * side + 1.4, height), layout="constrained")
        panels: Any = figure.subplots(lines * len(self.components), across, squeeze=False)
        grey = np.asarray(self.picture.convert("L"))
        drawn: Any = None
        for axes in panels.flat:
            axes.set_axis_off()
        for c, name in enumerate(self.components):
            for k, layer in enumerate(self.layers.tolist()):
                axes = panels[c * lines + k // across, k % across]
                axes.imshow(grey, cmap="gray", vmin=-WHITE, vmax=WHITE, extent=self._extent())
                drawn = axes.pcolormesh(
                    self.x,
                    self.y,
                    np.ma.masked_invalid(self.values[c, k]),
                    cmap=COLOURS,
                    vmin=-self.most,
                    vmax=self.most,
                    alpha=OPAQUE,
                    linewidth=0,
                )
                axes.set_xlim(0, self.picture.width)
                axes.set_ylim(self.picture.height, 0)
                many = f"{name}, " if len(self.components) > 1 else ""
                axes.set_title(f"{many}layer {layer:g}", fontsize=8)
        bar = figure.colorbar(drawn, ax=list(panels.flat), label=self.label, shrink=0.8)
        bar.ax.set_ylim(self.least, self.most)
        figure.suptitle(self.title, fontsize=11)
        if self.note:
            colour = "firebrick" if self.warned else "0.3"
            figure.supxlabel(self.note, fontsize=7.5, color=colour, wrap=True)
        return figure

    def _extent(self) -> tuple[float, float, float, float]:
        return 0, self.picture.width, self.picture.height, 0

    def html(self) -> str:
        """Return a page with a slider over layers, which needs no server and no other file.

        Arrow keys change the layer; on paper, all layers stand side by side.
        """
        return page_of(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a file.

        Parameters
        ----------
        path : path
            Ending in ``.html``, the page with a slider; in another ending that matplotlib knows,
            such as ``.png`` or ``.pdf``, the figure.

        Returns
        -------
        Path

        Raises
        ------
        ResultsError
            If matplotlib knows no such format, or the file cannot be written.
        """
        place = Path(path)
        try:
            if place.suffix.lower() in SAVED:
                place.write_text(self.html(), encoding="utf-8")
            else:
                self.figure().savefig(place)
        except (OSError, ValueError) as error:
            raise ResultsError(f"{place} cannot be written: {error}") from error
        return place


def overlay(
    dataset: xr.Dataset,
    over: Any,
    variable: str | None = None,
    *,
    grid: xr.Dataset | Prompt | Mapping[str, Any] | None = None,
    item: int | None = None,
    picture: int | None = None,
    view: str | None = None,
    title: str | None = None,
) -> PictureMap:
    """Lay the values of image tokens over the picture they are of.

    Red is up, blue is down; all panels share one scale, and each head has panels of its own. Tokens
    that have no value, such as those that were not among the columns, and parts of the picture that
    no token shows, stay grey.

    Parameters
    ----------
    dataset : Dataset
        With dims ``layer`` and ``position`` or ``role``, as :func:`interventions.heatmap` takes it:
        of :func:`interventions.lens_map` or :func:`interventions.attention_map`; a sweep or an
        attribution whose columns are single image tokens, such as ``roles=["image"], each=True``;
        or your own, such as of probes, with ``grid=``.
    over : picture
        What the model was shown, in any form that :func:`interventions.as_picture` takes.
    variable : str, optional
        As of :func:`interventions.heatmap`.
    grid : Dataset, Prompt or mapping, optional
        Where columns lie, for a Dataset that does not say: what
        :meth:`interventions.Prompt.image_grid` gives, or the prompt. The coordinate ``position`` of
        the Dataset then has positions in the padded rows of that prompt; or ``role`` or ``route``
        has tokens by name, ``"image[0]"`` or ``"image_1[-1] -> last"``; others are not drawn. Or
        the box of each column by its name, (x0, y0, x1, y1) in pixels: of regions of any size, such
        as those that a knockout cuts off; where they overlap, the last is seen.
    item : int, optional
        Needed where there are several.
    picture : int, optional
        Which picture of the row; needed where values are of several.
    view : {"picture", "tile", "thumbnail"}, optional
        Of which views tokens are drawn. Default: the finest with values.
    title : str, optional
        Default: as of :func:`interventions.heatmap`.

    Returns
    -------
    PictureMap
        With ``figure()``, ``html()`` and ``save(path)``.

    Raises
    ------
    ResultsError
        If the Dataset has no such map, does not say where its tokens lie, or the picture is of
        another size than the one that was shown.

    Examples
    --------
    >>> site = {"answers": "Marlow", "foils": "Brenn", "roles": ["image"], "each": True}
    >>> scores = iv.attribute(vlm, shown, 0.0, components="resid_post", verify=False, **site)
    >>> iv.overlay(scores, flag).save("map.html").name
    'map.html'
    """
    of_kind(dataset, xr.Dataset, "the dataset", error=ResultsError)
    view = None if view is None else one_of(view, "view", KINDS, error=ResultsError)
    title = None if title is None else text_of(title, "title", error=ResultsError)
    over = as_picture(over)
    data, column = chosen_map(dataset, variable)
    data, item = _one_item(data, item)
    if grid is None:
        places = _placed(dataset, column, item)
    elif isinstance(grid, Mapping) and not isinstance(grid, xr.Dataset):
        places = _in_boxes(data[column].values.tolist(), grid, over)
    else:
        places = _looked_up(data, column, item, grid)
    components = component_names(data)
    data = drawable(data, column)
    names = [str(name) for name in data["component"].values]
    there = np.isfinite(data.values).any(axis=(0, 1)) & np.isfinite(places["x0"])
    there &= _of_picture(places, there, picture)
    view = view or next((kind for kind in FINEST if (places["kind"][there] == kind).any()), None)
    there &= places["kind"] == view
    if not there.any():
        raise ResultsError(f"{data.name} has no value at a token of a {view or 'picture'}.")
    _check_size(over, places, there)
    x, y, values = _on_mesh({name: places[name][there] for name in EDGES}, data.values[..., there])
    units = data.attrs.get("units")
    note = footnote(dataset, components)
    several_items = "item" in dataset.dims and dataset.sizes["item"] > 1
    said = [title or title_of(dataset), f"item {item}" if several_items else ""]
    return PictureMap(
        picture=over,
        layers=data["layer"].values,
        components=names,
        x=x,
        y=y,
        values=values,
        label=f"{data.name} ({units})" if units else str(data.name),
        title=" · ".join(part for part in said if part),
        note=note,
        warned=bool(note) and "spearman" not in dataset,
    )


def _one_item(data: xr.DataArray, item: Any) -> tuple[xr.DataArray, Any]:
    """Values of one item, and its number where there are several."""
    if "item" not in data.dims:
        return of_item(data, item), None
    items = data["item"].values.tolist()
    if item is None and len(items) > 1:
        raise ResultsError(f"there are {len(items)} items, of as many pictures. Say which: item=.")
    item = items[0] if item is None else item
    return of_item(data, item), item


def _placed(dataset: xr.Dataset, column: str, item: Any) -> dict[str, np.ndarray]:
    """Where the token of each column lies, by the Dataset's own coordinates."""
    if not {*EDGES} <= set(dataset.coords) or column not in dataset["x0"].dims:
        what = "this Dataset does not say where in a picture its columns lie"
        if column == "route":
            raise ResultsError(f"{what}: they are routes. {ROUTES}")
        raise ResultsError(
            f"{what}: none is a single image "
            'token. Name them, roles=["image"], each=True, or give grid=prompt.image_grid().'
        )
    names = (*EDGES, "picture", "kind", "width", "height")
    places = dataset[list(names)]
    if "item" in places.dims and item is not None:
        places = places.isel(item=[*places["item"].values.tolist()].index(item))
    return {name: np.asarray(places[name].squeeze().values).reshape(-1) for name in names}


def _looked_up(
    data: xr.DataArray, column: str, item: Any, grid: xr.Dataset | Prompt
) -> dict[str, np.ndarray]:
    """Where the token at each position of one row lies, by a grid."""
    table = grid.image_grid() if isinstance(grid, Prompt) else grid
    of_kind(table, xr.Dataset, "grid=", error=ResultsError)
    names = (*EDGES, "picture", "kind", "width", "height")
    if missing := {"row", "position", *names} - set(table.variables):
        raise ResultsError(f"grid= has no {', '.join(sorted(missing))}. Give prompt.image_grid().")
    rows = sorted({*table["row"].values.tolist()})
    row = item if item in rows else rows[0] if len(rows) == 1 else None
    if row is None:
        raise ResultsError(f"grid= has rows {rows}, and none is item {item}. Select one of them.")
    mine = table.isel(token=np.flatnonzero(table["row"].values == row))
    columns, where = data[column].values.tolist(), {}
    if column == "position" and data[column].dtype.kind in "iu":
        where = {position: token for token, position in enumerate(mine["position"].values.tolist())}
    elif column != "position":
        where = {name: token for name in columns if (token := _token_of(str(name), mine)) >= 0}
    if not where and column == "route":
        raise ResultsError(
            f"the routes are {shown(columns[:3])}, none from one image token. {ROUTES}"
        )
    if not where:
        raise ResultsError(
            f"the columns are {shown(columns[:3])}, no positions of a prompt. With grid=, give the "
            "Dataset a coordinate 'position' with those of its tokens, or 'role' with their names, "
            'such as "image[0]".'
        )
    tokens = np.array([where.get(name, -1) for name in columns])
    places = {name: mine[name].values[tokens] for name in names}
    places["x0"] = np.where(tokens < 0, np.nan, places["x0"])
    return places


def _in_boxes(
    columns: list[Any], boxes: Mapping[str, Any], over: Image.Image
) -> dict[str, np.ndarray]:
    """Where the region of each column lies, by boxes that are given."""
    edges = np.full((len(columns), 4), math.nan)
    for k, name in enumerate(columns):
        if name in boxes:
            what = f"the box of {shown(name)} in grid="
            ends = several(boxes[name], what, error=ResultsError, expected=CORNERS)
            box = [number(end, what, error=ResultsError) for end in ends]
            edges[k] = np.minimum(box, [*over.size] * 2) if len(box) == 4 else -1
            left, top, right, bottom = edges[k]
            if not (0 <= left < right and 0 <= top < bottom):
                raise ResultsError(
                    f"{what} is {shown(boxes[name])}, of a picture of {over.size[0]} x "
                    f"{over.size[1]} pixels. Expected {CORNERS}, some of it in the picture."
                )
    if not np.isfinite(edges).any():
        raise ResultsError(
            f"grid= has boxes of {shown([*boxes][:3])}, and the columns are {shown(columns[:3])}. "
            "Name the columns."
        )
    n, (width, height) = len(columns), over.size
    about = {"picture": np.zeros(n, int), "kind": np.array(["picture"] * n, dtype=object)}
    sizes = {"width": np.full(n, width), "height": np.full(n, height)}
    return {**dict(zip(EDGES, edges.T, strict=True)), **about, **sizes}


def _token_of(name: str, table: xr.Dataset) -> int:
    """Which token of a grid is called so: of all pictures, or of one; -1 if none is."""
    match = IMAGE_TOKEN.fullmatch(name)
    if match is None:
        return -1
    pictures = table["picture"].values
    tokens = np.flatnonzero(pictures == int(match[1])) if match[1] else np.arange(len(pictures))
    i = int(match[2])
    return int(tokens[i]) if -len(tokens) <= i < len(tokens) else -1


def _of_picture(places: dict[str, np.ndarray], there: np.ndarray, picture: Any) -> np.ndarray:
    numbers = sorted({*places["picture"][there].tolist()})
    if picture is not None:
        picture = whole(picture, "picture=", error=ResultsError)
        if picture not in numbers:
            raise ResultsError(f"no value is at a token of picture {picture}, but of {numbers}.")
    elif len(numbers) > 1:
        raise ResultsError(f"values are of pictures {numbers}. Say which one: picture=.")
    return there if picture is None else places["picture"] == picture


def _check_size(over: Image.Image, places: dict[str, np.ndarray], there: np.ndarray) -> None:
    [(width, height)] = {*zip(places["width"][there], places["height"][there], strict=True)}
    if over.size != (width, height):
        raise ResultsError(
            f"over= has {over.size[0]} x {over.size[1]} pixels, upright, and the picture that was "
            f"shown {width:g} x {height:g}. Give that one."
        )


def _on_mesh(
    box: dict[str, np.ndarray], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [component, layer, token] on the mesh of all ends of their boxes."""
    x, y = (np.unique(np.concatenate([box[f"{axis}0"], box[f"{axis}1"]])) for axis in "xy")
    mesh = np.full((*values.shape[:2], len(y) - 1, len(x) - 1), math.nan)
    for token in range(values.shape[-1]):
        left, right = np.searchsorted(x, [box["x0"][token], box["x1"][token]])
        top, bottom = np.searchsorted(y, [box["y0"][token], box["y1"][token]])
        mesh[..., top:bottom, left:right] = values[..., token, None, None]
    return x, y, mesh
