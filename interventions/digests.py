"""Short names of values: equal for equal content, in any process."""

import enum
import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from interventions.errors import InterventionsError

HEX = 24  # characters of a digest, 4 bits each


class UnknownContent(InterventionsError):
    """A value of which it cannot be told whether it is the same as another."""


def digest_of(*values: Any) -> str:
    """Digest of values, told apart by type, size and content.

    Tensors, arrays and pictures count by their shape, number format and every element; functions
    by their code and what they close over; a :class:`pathlib.Path` by what is written in the
    file, if there is one.

    Raises
    ------
    UnknownContent
        For an object that none of this can be said of.

    Examples
    --------
    >>> digest_of([1, 2]) == digest_of([1, 2]), digest_of([1, 2]) == digest_of([1, 2.0])
    (True, False)
    """
    digest = hashlib.sha256()
    for value in values:
        add(digest, value)
    return digest.hexdigest()[:HEX]


def add(digest: Any, value: Any) -> None:
    """Feed a value to a digest of hashlib's; see :func:`digest_of`."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if torch.is_tensor(value):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{kind}{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
        digest.update(f"{kind}{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Image.Image):
        digest.update(f"PIL{value.mode}{value.size}".encode())
        digest.update(value.tobytes())
        # What decides how it is shown, beside its pixels.
        known = {key: value.info[key] for key in ("transparency", "exif") if key in value.info}
        orientation = value.getexif().get(ExifTags.Base.Orientation)
        if orientation is not None:  # which may be set on the object, or come from elsewhere
            known["orientation"] = repr(orientation)
        if value.mode.startswith("I"):
            known["format"] = value.format
        add(digest, [value.getpalette(None), known])
    elif isinstance(value, Path):
        digest.update(f"path{os.fspath(value)}".encode())
        if value.is_file():
            with value.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    elif is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{kind}(".encode())
        for one in fields(value):
            digest.update(f"{one.name}=".encode())
            add(digest, getattr(value, one.name))
    elif isinstance(value, Mapping):
        digest.update(f"{kind}{len(value)}".encode())
        for key in sorted(value, key=repr):
            add(digest, key)
            add(digest, value[key])
    elif isinstance(value, Set):
        add(digest, sorted(value, key=repr))
    elif value is None or isinstance(
        value, str | bytes | int | float | complex | slice | range | enum.Enum | torch.dtype
    ):
        text = repr(value)
        digest.update(f"{kind}{len(text)}:{text}".encode())
    elif isinstance(value, Sequence | np.ndarray):
        digest.update(f"{kind}{len(value)}".encode())
        for one in value:
            add(digest, one)
    elif isinstance(value, partial):
        add(digest, [value.func, value.args, value.keywords])
    elif inspect.ismethod(value):
        add(digest, value.__func__)
        add(digest, value.__self__)
    elif inspect.isfunction(value):
        _add_function(digest, value)
    elif isinstance(value, type | ModuleType) or inspect.isbuiltin(value):
        digest.update(f"{kind}{getattr(value, '__qualname__', value.__name__)}".encode())
    else:
        raise UnknownContent(
            f"whether a {kind} is the same as another cannot be told. Pass tensors, arrays, "
            "numbers, strings, functions, dataclasses, or containers of them."
        )


def _add_function(digest: Any, function: Any) -> None:
    digest.update(f"{function.__module__}.{function.__qualname__}".encode())
    _add_code(digest, function.__code__)
    add(digest, [cell.cell_contents for cell in function.__closure__ or ()])
    add(digest, [function.__defaults__, function.__kwdefaults__])


def _add_code(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code + repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(digest, constant)
        else:
            add(digest, "..." if constant is ... else constant)
