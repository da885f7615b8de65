"""One picture in every form that people give pictures in, and what it should look like."""

import base64
import io
import struct
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from PIL import Image

import interventions as iv
from interventions.errors import PictureError

Pixels = np.ndarray
HEIGHT, WIDTH = 7, 9


class Marked(torch.Tensor):
    """As libraries mark their images."""


def noise(height: int = HEIGHT, width: int = WIDTH, channels: int = 3, seed: int = 0) -> Pixels:
    found = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return found if channels > 1 else found[..., 0]


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def saved(folder: Path, data: bytes, name: str = "a.png") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def reopened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels(value: Any) -> Pixels:
    picture = iv.as_picture(value)
    assert picture.mode == "RGB"
    assert not picture.info
    assert not picture.getexif()
    return np.asarray(picture)


def on_white(colours: Pixels, alpha: Pixels) -> Pixels:
    """Whole numbers nearest to the mixture."""
    mixed = colours.astype(int) * alpha[..., None] + 255 * (255 - alpha.astype(int)[..., None])
    return ((mixed + 127) // 255).astype(np.uint8)


def grey(values: Pixels) -> Pixels:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, -1)


def refusal(value: Any) -> PictureError | None:
    """Why a value is refused; None where it is not."""
    try:
        iv.as_picture(value)
    except PictureError as error:
        return error
    return None


def prompted(model: iv.Model, *values: Any) -> dict[str, torch.Tensor]:
    """What the model is given of pictures, one row each."""
    texts = [f"Which {model.image_token} is it"] * len(values)
    return model.prompt(texts, images=list(values)).inputs


def chunk(kind: bytes, data: bytes) -> bytes:
    checked = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checked


def png(samples: Pixels, depth: int, colour: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of samples [height, width, channel] of 1 to 16 bits, written by hand."""
    height, width = samples.shape[:2]
    rows = []
    for row in samples.reshape(height, -1):
        if depth == 16:
            rows.append(row.astype(">u2").tobytes())
        else:
            bits = (row.astype(np.uint8)[:, None] >> np.arange(depth)[::-1]) & 1
            rows.append(np.packbits(bits.reshape(-1)).tobytes())
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *more, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


TEXTS: dict[str, Callable[[Pixels, Path], Any]] = {
    "path": lambda a, to: str(saved(to, encoded(Image.fromarray(a)))),
    "Path": lambda a, to: saved(to, encoded(Image.fromarray(a))),
    "file address": lambda a, to: saved(to, encoded(Image.fromarray(a)), "ä b.png").as_uri(),
    "base64": lambda a, to: base64.b64encode(encoded(Image.fromarray(a))).decode(),
    "base64, in lines": lambda a, to: base64.encodebytes(encoded(Image.fromarray(a))).decode(),
    "base64, for the web": lambda a, to: (
        base64.urlsafe_b64encode(encoded(Image.fromarray(a))).decode().rstrip("=")
    ),
    "data address": lambda a, to: (
        "data:image/png;base64," + base64.b64encode(encoded(Image.fromarray(a))).decode()
    ),
}
BYTES: dict[str, Callable[[Pixels, Path], Any]] = {
    "bytes": lambda a, to: encoded(Image.fromarray(a)),
    "bytearray": lambda a, to: bytearray(encoded(Image.fromarray(a), "BMP")),
    "memoryview": lambda a, to: memoryview(encoded(Image.fromarray(a), "TIFF")),
    "BytesIO": lambda a, to: io.BytesIO(encoded(Image.fromarray(a), "PPM")),
    "WebP": lambda a, to: encoded(Image.fromarray(a), "WEBP", lossless=True),
    "dict": lambda a, to: {"bytes": encoded(Image.fromarray(a)), "path": "elsewhere.png"},
    "dict with a path": lambda a, to: {
        "bytes": None,
        "path": str(saved(to, encoded(Image.fromarray(a)))),
    },
}
IMAGES: dict[str, Callable[[Pixels, Path], Any]] = {
    "PIL": lambda a, to: Image.fromarray(a),
    "PIL, unloaded": lambda a, to: reopened(encoded(Image.fromarray(a))),
    "PIL, RGBA": lambda a, to: Image.fromarray(a).convert("RGBA"),
}
ARRAYS: dict[str, Callable[[Pixels, Path], Any]] = {
    "numpy": lambda a, to: a,
    "numpy, channels first": lambda a, to: a.transpose(2, 0, 1),
    "numpy, backwards": lambda a, to: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "numpy, Fortran": lambda a, to: np.asfortranarray(a),
    "numpy, RGBA": lambda a, to: np.dstack([a, np.full(a.shape[:2], 255, np.uint8)]),
    "masked": lambda a, to: np.ma.MaskedArray(a),
    "int16": lambda a, to: a.astype(np.int16),
    "int32": lambda a, to: a.astype(np.int32),
    "int64": lambda a, to: a.astype(np.int64),
    "uint16": lambda a, to: a.astype(np.uint16) * 257,
    "big-endian uint16": lambda a, to: (a.astype(np.uint16) * 257).astype(">u2"),
    "float16": lambda a, to: a.astype(np.float16) / 255,
    "float32": lambda a, to: a.astype(np.float32) / 255,
    "float64": lambda a, to: a / 255,
    "longdouble": lambda a, to: a.astype(np.longdouble) / 255,
    "float32 to 255": lambda a, to: a.astype(np.float32),
    "float64 to 255": lambda a, to: a.astype(float),
    "torch": lambda a, to: torch.from_numpy(a.transpose(2, 0, 1).copy()),
    "torch, channels last": lambda a, to: torch.from_numpy(a.copy()),
    "torch int64": lambda a, to: torch.from_numpy(a.copy()).long(),
    "torch uint16": lambda a, to: torch.from_numpy(a.astype(np.uint16) * 257),
    "torch float32": lambda a, to: torch.from_numpy(a / 255).float().permute(2, 0, 1),
    "torch float16": lambda a, to: torch.from_numpy(a / 255).half().permute(2, 0, 1),
    "torch bfloat16": lambda a, to: torch.from_numpy(a / 255).bfloat16().permute(2, 0, 1),
    "torch, with a gradient": lambda a, to: torch.nn.Parameter(torch.from_numpy(a / 255)),
    "a subclass of tensors": lambda a, to: torch.from_numpy(a.copy()).as_subclass(Marked),
    "a view of a tensor": lambda a, to: torch.from_numpy(np.dstack([a, a]))[:, :, 3:],
    "xarray": lambda a, to: xr.DataArray(a, dims=("down", "across", "colour")),
    "what becomes an array": lambda a, to: types.SimpleNamespace(__array__=a.__array__),
    "an array of another kind": lambda a, to: types.SimpleNamespace(
        __array_interface__=np.ascontiguousarray(a).__array_interface__, keep=a
    ),
}
DOORS = TEXTS | BYTES | IMAGES | ARRAYS
