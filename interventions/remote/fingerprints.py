"""Telling whether two requests ask the same."""

import enum
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from interventions.errors import RemoteError


def fingerprint(*values: Any) -> str:
    """Short name of values: equal for equal ones, in any process."""
    digest = hashlib.sha256()
    for value in values:
        add(digest, value)
    return digest.hexdigest()[:24]


def add(digest: Any, value: Any) -> None:
    """Feed a value, told apart from others by its type and size."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if torch.is_tensor(value):
        array = value.detach().cpu().contiguous()
        digest.update(f"{kind}{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    elif isinstance(value, np.ndarray):
        digest.update(f"{kind}{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
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
    elif isinstance(value, list | tuple):
        digest.update(f"{kind}{len(value)}".encode())
        for one in value:
            add(digest, one)
    elif value is None or isinstance(value, str | bytes | int | float | slice | range | enum.Enum):
        text = repr(value)
        digest.update(f"{kind}{len(text)}:{text}".encode())
    elif inspect.isfunction(value):
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
        digest.update(inspect.getsource(value).encode())
        add(digest, [cell.cell_contents for cell in value.__closure__ or ()])
        add(digest, [value.__defaults__, value.__kwdefaults__])
    else:
        raise RemoteError(
            f"a {kind} cannot be part of a job that is kept: whether it is the same as another "
            "cannot be told. Pass tensors, numbers, strings, functions, dataclasses, or containers "
            "of them."
        )
