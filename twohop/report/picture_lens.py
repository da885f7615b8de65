"""Where in an example's picture each layer reads the entity, and what its tokens are for.

Drawings for a page of one file, of what the stage ``resolution`` stored of a picture:
:func:`twohop.stages.resolution.pictured.read_pictures`.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from PIL import Image

from twohop.report.picture_drawing import Column, Panel, light, panel, short
from twohop.report.picture_panels import map_panels

PRINTED = 12
"""Layers of the lens that are drawn side by side on paper."""


@dataclass(frozen=True)
class PictureLens:
    """An entity's picture with the lens on it, and its maps, layer by layer.

    Attributes
    ----------
    picture : str
        Data URI, light and grey.
    size : (int, int)
        Of the picture, pixels.
    layers : tuple of int
        Those that can be chosen.
    first : int
        The one to begin with, at which the lens has its largest value.
    panels : tuple of Panel
        The lens, and the maps that there are.
    missing : tuple of str
        Of the others, why there are none.
    """

    picture: str
    size: tuple[int, int]
    layers: tuple[int, ...]
    first: int
    panels: tuple[Panel, ...]
    missing: tuple[str, ...] = ()


def with_lens(resolution: xr.Dataset) -> set[str]:
    """Names of the entities whose pictures were read token by token; older results have none."""
    return {*resolution["pictured"].values.tolist()} if "picture_lens" in resolution else set()


def with_maps(resolution: xr.Dataset) -> set[str]:
    """Names of those with maps beside the lens; older results have none."""
    return {*resolution["mapped"].values.tolist()} if "picture_patched" in resolution else set()


def picture_lens(resolution: xr.Dataset, entity: str, picture: Image.Image) -> PictureLens:
    """Draw what the stage ``resolution`` stored of an entity's picture.

    Parameters
    ----------
    resolution : Dataset
        With ``picture_lens``, and maps of some entities, of :func:`with_maps`.
    entity : str
        One of :func:`with_lens`.
    picture : PIL.Image.Image
        As the model was shown it.
    """
    stored = resolution.sel(pictured=entity)
    own, other = (stored["picture_lens"].sel(whose=whose).values for whose in ("own", "other"))
    layers = stored["layer"].values.tolist()
    by_control = float(np.nanmax(other)) if np.isfinite(other).any() else 0.0
    highest = np.nanmax(own, -1)
    first = layers[int(np.argmax(highest))]
    control = str(stored["pictured_other"].item())
    says = (
        f"Probability of the first token of “{entity}” by the model's own head, at each image "
        f"token, in the prompt that asks for the {stored['pictured_relation'].item()}: at most "
        f"{short(float(highest.max()))}, at layer {first}."
    )
    if control:
        says += f" As a control, of “{control}”: at most {short(by_control)}."
    lens = panel(
        "lens",
        stored,
        picture,
        [Column(f"layer {layer}", (layer,)) for layer in layers],
        own[None],
        says=says,
        printed=PRINTED,
        beside=by_control,
    )
    panels, missing = [], []
    if entity in with_maps(resolution):
        panels, missing = map_panels(stored.sel(mapped=entity), entity, picture)
    return PictureLens(
        picture=light(picture),
        size=picture.size,
        layers=tuple(layers),
        first=first,
        panels=(lens, *panels),
        missing=tuple(missing),
    )
