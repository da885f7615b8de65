"""Values of image tokens over a picture, as small images that a page holds."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from PIL import Image

from interventions import PictureMap, overlay
from interventions.sweeping.picture_map import COLOURS, WHITE

STEPS = 24
"""Colours from nothing to the largest value."""
PICTURE_WIDTH = 150
FINEST = 96
"""Cells along the longer side of a drawing whose cells are not all alike."""
EDGES = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Cells:
    """The colours of one layer as a data URI, and what they show in words."""

    source: str
    alt: str


@dataclass(frozen=True)
class Figure:
    """What one layer shows, or one window of them.

    Attributes
    ----------
    caption : str
    layers : tuple of int
        At which of the layers that can be chosen it is shown.
    cells : tuple of Cells
        Side by side, as many as the panel has sides.
    printed : bool
    """

    caption: str
    layers: tuple[int, ...]
    cells: tuple[Cells, ...]
    printed: bool

    @property
    def classes(self) -> str:
        """For the style sheet, which shows figures by the layer that is chosen."""
        names = [f"f{layer}" for layer in self.layers] + (["printed"] if self.printed else [])
        return " ".join(names)


@dataclass(frozen=True)
class Panel:
    """One measure of a picture, layer by layer.

    Attributes
    ----------
    name : str
        On the button that chooses it.
    figures : tuple of Figure
    sides : tuple of str
        What is side by side; one or more.
    box : (float, float, float, float)
        Where tokens lie: left, top, width and height, pixels.
    most : str
        The end of the colours: the largest value of all that is drawn or told beside it.
    signed : bool
        Whether the other end is its negative, and not 0.
    says : str
    """

    name: str
    figures: tuple[Figure, ...]
    sides: tuple[str, ...]
    box: tuple[float, float, float, float]
    most: str
    signed: bool
    says: str

    def without(self, layers: Sequence[int]) -> list[int]:
        """Those of the layers that it has nothing of."""
        there = {layer for figure in self.figures for layer in figure.layers}
        return [layer for layer in layers if layer not in there]


@dataclass(frozen=True)
class Column:
    """What is drawn at some layers: its caption, and where it is shown."""

    caption: str
    layers: tuple[int, ...]


def panel(
    name: str,
    places: xr.Dataset,
    picture: Image.Image,
    columns: Sequence[Column],
    values: np.ndarray,
    *,
    says: str,
    printed: int,
    sides: tuple[str, ...] = ("",),
    beside: float = 0.0,
) -> Panel:
    """Draw a measure.

    Parameters
    ----------
    name : str
    places : Dataset
        Of one picture: ``picture_box``, ``picture_view`` and ``picture_size``.
    picture : PIL.Image.Image
    columns : sequence of Column
    values : ndarray [side, column, token]
        Columns without any value are left out.
    says : str
    printed : int
        How many are drawn side by side on paper.
    sides : tuple of str
    beside : float
        A value that is told and not drawn, which the colours reach as well.
    """
    there = np.flatnonzero(np.isfinite(values).any((0, 2)))
    columns, values = [columns[k] for k in there.tolist()], values[:, there]
    drawings = [_drawing(places, of_side, picture) for of_side in values]
    most = max(float(np.nanmax(np.abs(values))), abs(beside)) or 1.0
    signed = bool(np.nanmin(values) < 0)
    shown = {round(k) for k in np.linspace(0, len(columns) - 1, min(printed, len(columns)))}
    first = drawings[0]
    return Panel(
        name=name,
        figures=tuple(
            Figure(
                column.caption,
                column.layers,
                tuple(
                    Cells(
                        _cells(drawing, k, most, signed=signed),
                        _in_words(drawing, k, f"{column.caption}{side and f', {side}'}"),
                    )
                    for drawing, side in zip(drawings, sides, strict=True)
                ),
                k in shown,
            )
            for k, column in enumerate(columns)
        ),
        sides=sides,
        box=(
            *(float(first.x[0]), float(first.y[0])),
            *(float(np.ptp(first.x)), float(np.ptp(first.y))),
        ),
        most=short(most),
        signed=signed,
        says=says,
    )


def _drawing(places: xr.Dataset, values: np.ndarray, picture: Image.Image) -> PictureMap:
    """Values [column, token] on the mesh of their boxes."""
    n = values.shape[-1]
    width, height = places["picture_size"].values.tolist()
    columns = {
        **{edge: places["picture_box"].sel(edge=edge).values for edge in EDGES},
        **{"kind": places["picture_view"].values, "picture": np.zeros(n)},
        **{"width": np.full(n, width), "height": np.full(n, height)},
    }
    return overlay(
        xr.Dataset(
            {"value": (("layer", "position"), values)},
            coords={
                "layer": np.arange(len(values)),
                "position": np.arange(n),
                **{name: ("position", column) for name, column in columns.items()},
            },
        ),
        picture,
    )


def _cells(drawing: PictureMap, k: int, most: float, *, signed: bool) -> str:
    """The colours of one layer as a small PNG, clear where there is no value."""
    lines, columns = (_sampled(ends) for ends in (drawing.y, drawing.x))
    values = drawing.values[0, k][np.ix_(lines, columns)]
    real = np.isfinite(values)
    palette = colours(signed=signed)
    nothing = STEPS if signed else 0
    steps = np.rint(np.where(real, values, 0) / most * STEPS) + nothing
    image = Image.fromarray(np.where(real, steps, len(palette)).astype(np.uint8), "P")
    image.putpalette([part for colour in palette for part in colour] + [0, 0, 0])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=len(palette))
    return _as_address(file)


def _sampled(ends: np.ndarray) -> np.ndarray:
    """Which cell is at each of equal steps: of cells that are alike, each once."""
    widths = np.diff(ends)
    if np.allclose(widths, widths[0], rtol=0.01):
        return np.arange(len(widths))
    middles = ends[0] + (np.arange(FINEST) + 1 / 2) * (ends[-1] - ends[0]) / FINEST
    return np.searchsorted(ends, middles, side="right") - 1


def colours(*, signed: bool = False) -> list[tuple[int, int, int]]:
    """The scale from nothing to the largest value; ``signed``: from its negative."""
    from matplotlib import colormaps

    scale = colormaps[COLOURS]
    first = -STEPS if signed else 0
    all_of_it = [scale((1 + step / STEPS) / 2) for step in range(first, STEPS + 1)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b, _ in all_of_it]


def gradient(*, signed: bool = False) -> str:
    """The scale, as CSS."""
    return ", ".join(f"rgb{colour}" for colour in colours(signed=signed)[:: STEPS // 4])


def light(picture: Image.Image) -> str:
    """A picture as a data URI, light and grey."""
    small = picture.convert("L")
    if small.width > PICTURE_WIDTH:
        height = max(1, round(small.height * PICTURE_WIDTH / small.width))
        small = small.resize((PICTURE_WIDTH, height))
    lighter = (np.asarray(small).astype(int) + WHITE) // 2
    file = io.BytesIO()
    Image.fromarray(lighter.astype(np.uint8)).save(file, "PNG", optimize=True)
    return _as_address(file)


def _as_address(file: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _in_words(drawing: PictureMap, k: int, what: str) -> str:
    """Where one layer has its largest value."""
    values = drawing.values[0, k]
    what = what[:1].upper() + what[1:]
    if not np.isfinite(values).any():
        return f"{what}: nothing"
    i, j = np.unravel_index(int(np.nanargmax(values)), values.shape)
    x, y = (drawing.x[j] + drawing.x[j + 1]) / 2, (drawing.y[i] + drawing.y[i + 1]) / 2
    return (
        f"{what}: largest {short(float(values[i, j]))}, at {x:.0f} pixels across and {y:.0f} down"
    )


def short(value: float) -> str:
    """A number with two digits."""
    return f"{value:.2g}"
