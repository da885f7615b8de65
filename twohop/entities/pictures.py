"""A picture of an item: a path, bytes or a PIL image, opened when it is looked at."""

import base64
import binascii
import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from twohop.entities.cells import Unread

LEAST_SIDE = 4  # pixels
LONGEST_TO_SHORTEST = 200  # more is refused by processors that keep the shape
WEB = ("http://", "https://", "s3://", "gs://")


class PictureError(Exception):
    """Why an image cannot be used: a reason of :mod:`twohop.entities.reasons`, and a sentence."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """Where a picture is.

    Attributes
    ----------
    source : Path, bytes or PIL.Image.Image
    digest : str
        Of its content: the same picture given twice counts once.
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
        if isinstance(self.source, Image.Image):
            return _upright(self.source, self.mode)
        data = self.source if isinstance(self.source, bytes) else _read(self.source)
        try:
            # A file may be larger than it says; what PIL only warns of is refused.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data)) as opened:
                    opened.load()
                    return _upright(opened, self.mode)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise PictureError("image_too_large", str(error)) from error
        except UnidentifiedImageError as error:
            raise PictureError("image_unreadable", "not an image format known here") from error
        except Exception as error:  # damaged files raise whatever their bytes lead to
            reason = "image_truncated" if "truncated" in str(error) else "image_unreadable"
            raise PictureError(reason, str(error) or type(error).__name__) from error


def _upright(image: Image.Image, mode: str | None) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    if mode is not None and mode != turned.mode:
        turned = turned.convert(mode)
    if turned.mode.startswith("I;16"):  # PIL would clip, not scale
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    if turned.has_transparency_data:
        seen = turned.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        turned = Image.alpha_composite(white, seen)
    return turned.convert("RGB")


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise PictureError("image_missing", f"there is no {path}") from error
    except (OSError, ValueError) as error:
        raise PictureError("image_unreadable", str(error)) from error
    return data


def picture_of(cell: Any, folder: Path) -> Picture:
    """Find the picture of a cell, open it once and check it.

    Parameters
    ----------
    cell : str, bytes, dict, ndarray or PIL.Image.Image
        A path, relative to ``folder``; bytes of an image file, in base64 if as text, with or
        without ``data:image/png;base64,`` in front; ``{"bytes": ..., "path": ...}``, and perhaps
        the ``mode`` to see it in; an image; or its pixels, [row, column] or [row, column, colour],
        as whole numbers of 8 bits.
    folder : Path

    Raises
    ------
    PictureError
        If it cannot be used.
    """
    source = _source(cell, folder)
    if isinstance(source, Image.Image):
        digest = hashlib.sha256(source.tobytes()).hexdigest()
    else:
        data = source if isinstance(source, bytes) else _read(source)
        if not data:
            raise PictureError("image_empty", "there are no bytes in it")
        digest = hashlib.sha256(data).hexdigest()
    mode = cell.get("mode") if isinstance(cell, Mapping) else None
    if mode is not None:
        digest = hashlib.sha256(f"{digest} {mode}".encode()).hexdigest()
    found = Picture(source, digest[:16], mode)
    width, height = found.open().size
    if min(width, height) < LEAST_SIDE or max(width, height) > LONGEST_TO_SHORTEST * min(
        width, height
    ):
        raise PictureError("image_too_small", f"it has {width} x {height} pixels")
    return found


def _source(cell: Any, folder: Path) -> Path | bytes | Image.Image:
    if isinstance(cell, Image.Image | bytes):
        return cell
    if isinstance(cell, bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, np.ndarray):
        return _painted(cell)
    if isinstance(cell, Unread):
        raise PictureError("wrong_type", f"an image cannot be {cell.said}")
    if isinstance(cell, Path):
        return folder / cell
    if isinstance(cell, str):
        return _written(cell.strip(), folder)
    if isinstance(cell, Mapping):
        data, path = cell.get("bytes"), cell.get("path")
        if isinstance(data, str):
            return _decoded(data)
        if data is not None:
            return _source(data, folder)
        if isinstance(path, str) and path.strip():
            return _written(path.strip(), folder)
        raise PictureError("no_image", "neither bytes nor a path")
    raise PictureError("wrong_type", f"an image cannot be of type {type(cell).__name__}")


def _painted(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    colours = pixels.shape[2:]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or colours not in ((), (3,), (4,)):
        shape = " x ".join(map(str, pixels.shape))
        raise PictureError(
            "wrong_type",
            f"an array of {shape} {pixels.dtype} is no image; expected rows x columns, or rows x "
            "columns x 1, 3 or 4 colours, of uint8",
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _written(text: str, folder: Path) -> Path | bytes:
    if text.startswith(WEB):
        raise PictureError("image_on_the_web", f"{text[:80]} is on the web; fetch it first")
    if text.startswith("data:"):
        return _decoded(text.partition(",")[2])
    path = folder / text
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # too long, or with zero bytes in it: no path at all
        return _decoded(text)
    if len(text) > 64 and len(text) % 4 == 0 and "." not in text:
        return _decoded(text)
    return path


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError("image_unreadable", f"neither a path nor base64: {error}") from error


def altered(image: Image.Image, *, seed: int) -> Image.Image:
    """Return the picture cropped, turned and lit a little differently, the same for a seed.

    Not another picture of the same thing: what is learnt on it may be the picture's own.
    """
    generator = np.random.default_rng(seed)
    width, height = image.size
    left, top, right, bottom = generator.uniform(0, 0.08, size=4)
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    fill = tuple(int(v) for v in np.asarray(image).reshape(-1, 3).mean(0))
    turned = image.rotate(
        float(generator.uniform(-6, 6)), resample=Image.Resampling.BICUBIC, fillcolor=fill
    )
    cut = turned.resize(image.size, resample=Image.Resampling.BICUBIC, box=box)
    lit = ImageEnhance.Brightness(cut).enhance(float(generator.uniform(0.85, 1.15)))
    return ImageEnhance.Contrast(lit).enhance(float(generator.uniform(0.85, 1.15)))
