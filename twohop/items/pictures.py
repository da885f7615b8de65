"""A picture of an item: a path, bytes or an image, opened when it is looked at."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from interventions.errors import PictureError
from interventions.prompt.picture_sources import located
from interventions.prompt.pictures import opened
from twohop.items.cells import Unread

LEAST_SIDE = 4  # pixels


@dataclass(frozen=True)
class Picture:
    """Where a picture is.

    Attributes
    ----------
    source : Path, bytes or PIL.Image.Image
    digest : str
        Of the pixels that a model is shown: the same picture given twice counts once, in whatever
        forms it is given.
    mode : str, optional
        PIL's name of the colours it is to be seen in, such as ``"L"`` for grey.
    """

    source: Path | bytes | Image.Image = field(repr=False)
    digest: str
    mode: str | None = None

    def open(self) -> Image.Image:
        """Return it in RGB, upright, transparent parts on white.

        Raises
        ------
        PictureError
            If it cannot be opened.
        """
        return _seen_in(opened(self.source), self.mode)


def _seen_in(picture: Image.Image, mode: str | None) -> Image.Image:
    """A picture in the colours that a data set declares for it.

    Raises
    ------
    PictureError
        If PIL knows no such colours, or cannot turn a picture into them.
    """
    if mode is None:
        return picture
    try:
        return picture.convert(mode).convert("RGB")
    except (ValueError, KeyError, TypeError) as error:
        said = f"it is to be seen in the mode {mode!r}: {error}"
        raise PictureError("image_unreadable", said) from error


def picture_of(cell: Any, folder: Path) -> Picture:
    """Find the picture of a cell, open it once and check it.

    Parameters
    ----------
    cell : str, bytes, dict, PIL.Image.Image or array
        Anything that :func:`interventions.as_picture` takes, paths being relative to ``folder``;
        with ``bytes`` or ``path``, perhaps the ``mode`` to see it in.
    folder : Path

    Raises
    ------
    PictureError
        If it cannot be used.
    """
    if isinstance(cell, Unread):
        raise PictureError("wrong_type", f"an image cannot be {cell.said}")
    mode = cell.get("mode") if isinstance(cell, Mapping) else None
    source = located(cell, folder)
    picture = _seen_in(opened(source), mode)
    if min(picture.size) < LEAST_SIDE:
        said = f"it has {picture.width} x {picture.height} pixels"
        raise PictureError("image_too_small", said)
    content = hashlib.sha256(f"{picture.width} x {picture.height} ".encode())
    content.update(picture.tobytes())
    if not isinstance(source, Path | bytes):
        source = picture  # what an image object or an array holds may change
    return Picture(source, content.hexdigest()[:16], mode)


def altered(image: Image.Image, *, seed: int) -> Image.Image:
    """Return the picture cropped, turned and lit a little differently, the same for a seed.

    Not another picture of the same thing: what is learnt on it may be the picture's own.
    """
    generator = np.random.default_rng(seed)
    width, height = image.size
    left, top, right, bottom = generator.uniform(0, 0.08, size=4)
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    fill = tuple(int(channel) for channel in np.asarray(image).reshape(-1, 3).mean(0))
    turned = image.rotate(
        float(generator.uniform(-6, 6)), resample=Image.Resampling.BICUBIC, fillcolor=fill
    )
    cut = turned.resize(image.size, resample=Image.Resampling.BICUBIC, box=box)
    lit = ImageEnhance.Brightness(cut).enhance(float(generator.uniform(0.85, 1.15)))
    return ImageEnhance.Contrast(lit).enhance(float(generator.uniform(0.85, 1.15)))
