"""Where in an example's picture each layer reads the entity: drawings for a page of one file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from PIL import Image

from interventions import PictureMap, overlay
from interventions.sweeping.picture_map import COLOURS, WHITE

STEPS = 24
"""Colours from nothing to the largest value."""
PICTURE_WIDTH = 150
PRINTED = 12
"""Layers that are drawn side by side on paper."""
FINEST = 96
"""Cells along the longer side of a drawing whose cells are not all alike."""


@dataclass(frozen=True)
class LensLayer:
    """One layer: its number, colours as a data URI, what they show in words, and if it prints."""

    number: int
    cells: str
    alt: str
    printed: bool


@dataclass(frozen=True)
class PictureLens:
    """The lens of an entity on its picture, layer by layer.

    Attributes
    ----------
    picture : str
        Data URI, light and grey.
    size : (int, int)
        Of the picture, pixels.
    box : (float, float, float, float)
        Where its tokens lie: left, top, width and height, pixels.
    layers : tuple of LensLayer
    first : int
        Which of them has the largest value: it is the one to begin with.
    most : str
        The end of the colours: the largest value, of the entity or of the control.
    says : str
    """

    picture: str
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    layers: tuple[LensLayer, ...]
    first: int
    most: str
    says: str


def with_lens(resolution: xr.Dataset) -> set[str]:
    """Names of the entities whose pictures were read token by token; older results have none."""
    return {*resolution["pictured"].values.tolist()} if "picture_lens" in resolution else set()


def picture_lens(resolution: xr.Dataset, entity: str, picture: Image.Image) -> PictureLens:
    """Draw what the stage ``resolution`` stored of an entity's picture.

    Parameters
    ----------
    resolution : Dataset
        With ``picture_lens``: :func:`twohop.stages.resolution.pictured.picture_lens`.
    entity : str
        One of :func:`with_lens`.
    picture : PIL.Image.Image
        As the model was shown it.
    """
    stored = resolution.sel(pictured=entity)
    own, other = (stored["picture_lens"].sel(whose=whose) for whose in ("own", "other"))
    drawing = _drawing(stored, own, picture)
    layers, values = drawing.layers.tolist(), drawing.values[0]
    by_control = float(other.max())
    most = max(drawing.most, by_control if np.isfinite(by_control) else 0.0)
    highest = [float(np.nanmax(of_layer)) for of_layer in values]
    first = int(np.argmax(highest))
    shown = {round(i) for i in np.linspace(0, len(layers) - 1, min(PRINTED, len(layers)))}
    control = str(stored["pictured_other"].item())
    says = (
        f"Probability of the first token of “{entity}” by the model's own head, at each image "
        f"token, in the prompt that asks for the {stored['pictured_relation'].item()}: at most "
        f"{_short(highest[first])}, at layer {layers[first]}."
    )
    if control:
        says += f" As a control, of “{control}”: at most {_short(by_control)}."
    return PictureLens(
        picture=_light(picture),
        size=picture.size,
        box=(
            *(float(drawing.x[0]), float(drawing.y[0])),
            *(float(np.ptp(drawing.x)), float(np.ptp(drawing.y))),
        ),
        layers=tuple(
            LensLayer(layer, _cells(drawing, k, most), _in_words(drawing, k), k in shown)
            for k, layer in enumerate(layers)
        ),
        first=first,
        most=_short(most),
        says=says,
    )


def _drawing(stored: xr.Dataset, own: xr.DataArray, picture: Image.Image) -> PictureMap:
    """The values on the mesh of their boxes."""
    n = own.sizes["image_token"]
    width, height = stored["picture_size"].values.tolist()
    places: Mapping[str, Sequence[float] | np.ndarray] = {
        **{edge: stored["picture_box"].sel(edge=edge).values for edge in ("x0", "y0", "x1", "y1")},
        **{"kind": stored["picture_view"].values, "picture": np.zeros(n)},
        **{"width": np.full(n, width), "height": np.full(n, height)},
    }
    values = own.rename(image_token="position").drop_vars(["pictured", "whose"], errors="ignore")
    return overlay(
        xr.Dataset(
            {"value": (("layer", "position"), values.values)},
            coords={
                "layer": stored["layer"].values,
                "position": np.arange(n),
                **{name: ("position", column) for name, column in places.items()},
            },
        ),
        picture,
    )


def _cells(drawing: PictureMap, k: int, most: float) -> str:
    """The colours of one layer as a small PNG, clear where there is no value."""
    lines, columns = (_sampled(ends) for ends in (drawing.y, drawing.x))
    values = drawing.values[0, k][np.ix_(lines, columns)]
    real = np.isfinite(values)
    steps = np.rint(np.where(real, values, 0) / most * STEPS)
    image = Image.fromarray(np.where(real, steps, STEPS + 1).astype(np.uint8), "P")
    image.putpalette([part for colour in _colours() for part in colour] + [0, 0, 0])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=STEPS + 1)
    return _as_address(file)


def _sampled(ends: np.ndarray) -> np.ndarray:
    """Which cell is at each of equal steps: of cells that are alike, each once."""
    widths = np.diff(ends)
    if np.allclose(widths, widths[0], rtol=0.01):
        return np.arange(len(widths))
    middles = ends[0] + (np.arange(FINEST) + 1 / 2) * (ends[-1] - ends[0]) / FINEST
    return np.searchsorted(ends, middles, side="right") - 1


def _colours() -> list[tuple[int, int, int]]:
    from matplotlib import colormaps

    scale = colormaps[COLOURS]
    half = [scale((1 + step / STEPS) / 2) for step in range(STEPS + 1)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b, _ in half]


def gradient() -> str:
    """The scale, as CSS."""
    return ", ".join(f"rgb{colour}" for colour in _colours()[:: STEPS // 4])


def _light(picture: Image.Image) -> str:
    small = picture.convert("L")
    if small.width > PICTURE_WIDTH:
        height = max(1, round(small.height * PICTURE_WIDTH / small.width))
        small = small.resize((PICTURE_WIDTH, height))
    light = (np.asarray(small).astype(int) + WHITE) // 2
    file = io.BytesIO()
    Image.fromarray(light.astype(np.uint8)).save(file, "PNG", optimize=True)
    return _as_address(file)


def _as_address(file: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _in_words(drawing: PictureMap, k: int) -> str:
    """Where one layer has its largest value."""
    values = drawing.values[0, k]
    i, j = np.unravel_index(int(np.nanargmax(values)), values.shape)
    x, y = (drawing.x[j] + drawing.x[j + 1]) / 2, (drawing.y[i] + drawing.y[i + 1]) / 2
    return (
        f"Layer {drawing.layers[k]:g}: largest {_short(float(values[i, j]))}, at {x:.0f} pixels "
        f"across and {y:.0f} down"
    )


def _short(value: float) -> str:
    return f"{value:.2g}"
