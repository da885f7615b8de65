"""Where a picture is: what paths, addresses, base64, files and dicts lead to."""

import base64
import binascii
import io
import os
import re
from collections.abc import Iterable, Mapping
from numbers import Number
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import torch
from PIL import Image

from interventions.errors import PictureError
from interventions.prompt.picture_numbers import images_of_batch, is_array

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
QUOTED = 80  # characters of a text that are repeated in a message
TEXT_FILE = "a file of text; open it in binary mode, 'rb'"


def located(value: Any, folder: Path) -> Path | bytes | Image.Image | Any:
    """Return the path, the bytes, the image or the array that a value stands for.

    Parameters
    ----------
    value : path, text, bytes, file, dict, PIL.Image.Image, array or tensor
        As :func:`interventions.as_picture` takes it.
    folder : Path
        What paths are relative to.

    Raises
    ------
    PictureError
        If it stands for none, or for something on the web.
    """
    if isinstance(value, Image.Image | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return _written(value.strip(), folder)
    if isinstance(value, os.PathLike):
        return _path(os.fsdecode(value), folder)
    if isinstance(value, Mapping):
        return _stored(value, folder)
    if callable(getattr(value, "read", None)):
        return _read(value)
    if value is None:
        raise PictureError("no_image", "None where a picture is expected")
    return value


def _written(text: str, folder: Path) -> Path | bytes:
    quoted = text if len(text) <= QUOTED else f"{text[:QUOTED]}..."
    if not text:
        raise PictureError("no_image", "an empty text where a picture is expected")
    scheme = ADDRESS.match(text)
    if scheme and scheme[0].lower() == "file://":
        host, _, path = text[len("file://") :].partition("/")
        if host.lower() in ("", "localhost"):
            return Path(unquote(f"/{path}"))
    if scheme:
        raise PictureError("image_on_the_web", f"{quoted} is on the web; fetch it first")
    if text.lower().startswith("data:"):
        return _in_address(text)
    try:
        path = _path(text, folder)
        if path.exists():
            return path
    except (OSError, ValueError):  # too long, or with zero bytes in it: no path at all
        path = None
    data = _decoded(text)
    if data is not None and (path is None or _is_image(data)):
        return data
    if path is None:
        raise PictureError("image_unreadable", f"neither a path nor base64: {quoted!r}")
    if len(text) > QUOTED:
        raise PictureError("image_missing", f"there is no {quoted}, nor is it base64 of an image")
    return path


def _path(text: str, folder: Path) -> Path:
    path = folder / text
    if text.startswith("~") and not path.exists():
        try:
            return Path(text).expanduser()
        except RuntimeError as error:
            raise PictureError("image_missing", f"there is no {text}: {error}") from error
    return path


def _in_address(text: str) -> bytes:
    """The bytes in a ``data:`` address."""
    head, comma, body = text.partition(",")
    data = _decoded(unquote(body))
    if data is None and comma and not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    if data is None or not comma:
        raise PictureError("image_unreadable", "no base64 in a data: address")
    return data


def _decoded(text: str) -> bytes | None:
    """Bytes of base64, with or without padding and line ends, in either alphabet."""
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _is_image(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:
        return False


def _stored(value: Mapping[Any, Any], folder: Path) -> Path | bytes | Image.Image | Any:
    data, path = value.get("bytes"), value.get("path")
    if isinstance(data, str):
        decoded = _decoded(data.strip().rpartition(",")[2])
        if decoded is None:
            raise PictureError("image_unreadable", "the text of its bytes is no base64")
        return decoded
    if data is not None:
        return located(data, folder)
    if isinstance(path, os.PathLike) or (isinstance(path, str) and path.strip()):
        return located(path, folder)
    if "pixel_values" in value:
        said = "pixel values that a processor has made; give the picture they were made of"
        raise PictureError("wrong_type", said)
    raise PictureError("no_image", "neither bytes nor a path in it")


def _read(file: Any) -> bytes:
    """Bytes of an open file from its beginning; it is left where it was."""
    if isinstance(file, io.TextIOBase):
        raise PictureError("wrong_type", TEXT_FILE)
    can_seek = getattr(file, "seekable", lambda: hasattr(file, "seek"))  # mmap does not say
    try:
        here = file.tell() if can_seek() else None
        if here is not None:
            file.seek(0)
        data = file.read()
        if here is not None:
            file.seek(here)
    except Exception as error:  # a closed file, and whatever else can be read from raises
        raise PictureError("image_unreadable", f"the file cannot be read: {error}") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise PictureError("wrong_type", TEXT_FILE)
    return bytes(data)


def pictures_in(value: Any) -> list[Any] | None:
    """Return the pictures, or rows of pictures, in a value; None if it is one picture itself.

    The last three or fewer axes of an array are a picture's; all of it is in one range.

    Parameters
    ----------
    value : picture, list, tuple, array or other iterable of pictures, or None

    Raises
    ------
    PictureError
        If they are in no order, or are bare numbers.
    """
    whole = str | bytes | bytearray | memoryview | os.PathLike | Mapping | Image.Image
    if value is None or isinstance(value, whole) or callable(getattr(value, "read", None)):
        return None
    if isinstance(value, torch.Tensor):
        return images_of_batch(value) if value.ndim > 3 else None
    if is_array(value):
        array = np.asarray(value)
        if array.dtype.kind in "OUST" and array.ndim:
            return array.tolist()
        return images_of_batch(value) if array.ndim > 3 else None
    if isinstance(value, set | frozenset):
        raise PictureError("wrong_type", "pictures in a set are in no order; give a list")
    if not isinstance(value, Iterable):
        return None
    leaf = pictures = list(value)
    while isinstance(leaf, list | tuple) and leaf:
        leaf = leaf[0]
    if isinstance(leaf, Number):
        raise PictureError("wrong_type", "numbers in a list; give them as a numpy array")
    return pictures
