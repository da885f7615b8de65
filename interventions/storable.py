"""What is stored comes back as it went in: files whole, Datasets as netCDF can hold them."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Hashable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

MISSING = "null"
UNNAMED = "unnamed"
SLASH = "\u2215"  # looks like the one that netCDF keeps for groups
ZERO = "\u2400"  # the sign for a zero byte, which ends a text in HDF5
HALF_CHARACTERS = re.compile("[\ud800-\udfff]")
TAKEN = ("_FillValue", "add_offset", "calendar", "coordinates", "missing_value", "scale_factor")
"""Attributes of a variable by which netCDF says how its numbers are stored."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # readable as any file the user makes
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def storable(dataset: xr.Dataset) -> xr.Dataset:
    """Return the Dataset with names, values and attributes that netCDF can hold.

    What it gives comes back equal from ``to_netcdf`` and ``xarray.open_dataset``, and given to it
    again stays as it is. Values that netCDF has no type for become text: labels of mixed kinds as
    they are written, missing ones as "", attributes in JSON. A bool attribute becomes 0 or 1, the
    levels of a MultiIndex become coordinates, and zero bytes and halves of characters in texts
    are replaced.
    """
    many = [
        name
        for name, index in dataset.indexes.items()
        if isinstance(index, pd.MultiIndex) and name in dataset.dims
    ]
    copy = dataset.reset_index(many) if many else dataset.copy()
    copy = copy.rename(_new_names([*copy.variables, *copy.dims], copy))
    for name in list(copy.variables):
        array = copy[name]
        if array.dtype.kind in "OU":
            column = _column(array.values)
            if array.dtype.kind == "O" or not np.array_equal(column, array.values):
                copy[name] = (array.dims, column, array.attrs)
    copy.attrs = _attributes(copy.attrs)
    for variable in copy.variables.values():
        variable.attrs = _attributes(variable.attrs, taken=TAKEN)
    return copy


def _new_names(given: Iterable[Hashable], dataset: xr.Dataset) -> dict[Hashable, str]:
    """Names that must change, and into what: text without slashes, each still its own."""
    listed = set(dataset.coords) - set(dataset.dims)  # in an attribute, divided by spaces
    wanted = {name: _name(name, spaces=name not in listed) for name in given}
    used = {name for name, new in wanted.items() if name == new}
    changed: dict[Hashable, str] = {}
    for name, first in wanted.items():
        if name in used:
            continue
        new, count = first, 2
        while new in used:
            new, count = f"{first}_{count}", count + 1
        used.add(new)
        changed[name] = new
    return changed


def _name(name: Hashable, *, spaces: bool) -> str:
    text = _text(str(name)).replace("/", SLASH).strip()
    return (text if spaces else "_".join(text.split())) or UNNAMED


def _text(value: str) -> str:
    return HALF_CHARACTERS.sub("\ufffd", value).replace("\0", ZERO)


def _written(value: Any) -> str:
    """One value as text."""
    if isinstance(value, bytes):
        return _text(value.decode("utf-8", "backslashreplace"))
    return "" if _missing(value) else _text(str(value))


def _missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _column(values: np.ndarray) -> np.ndarray:
    """Texts and objects as what they all are: bools, whole numbers, numbers, or else text."""
    flat = values.ravel().tolist()
    there = [value for value in flat if not _missing(value)]
    kinds = {bool if isinstance(value, bool | np.bool_) else type(value) for value in there}
    whole = bool(kinds) and all(issubclass(kind, int | np.integer) for kind in kinds)
    if kinds == {bool} and len(there) == len(flat):
        return np.array(flat, dtype=bool).reshape(values.shape)
    if whole and bool not in kinds and len(there) == len(flat):
        lowest, highest = min(there), max(there)
        if lowest >= -(2**63) and highest < 2**63:
            return np.array(flat, dtype=np.int64).reshape(values.shape)
    elif kinds and all(issubclass(kind, int | float | np.number) for kind in kinds - {bool}):
        exact = all(abs(value) <= 2**53 for value in there if isinstance(value, int | np.integer))
        if bool not in kinds and exact and not any(issubclass(kind, complex) for kind in kinds):
            numbers = [float("nan") if _missing(value) else float(value) for value in flat]
            return np.array(numbers).reshape(values.shape)
    written = np.empty(len(flat), dtype=object)
    written[:] = [_written(value) for value in flat]
    return written.reshape(values.shape)


def _attributes(given: Mapping[Any, Any], *, taken: tuple[str, ...] = ()) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for key, value in given.items():
        name = _text(str(key)) or UNNAMED
        name = f"{name} of the values" if name in taken else name
        attributes[name] = _attribute(value)
    return attributes


def _attribute(value: Any) -> Any:
    """An attribute as a number, numbers, a text or texts; anything else in JSON."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy() if value.is_floating_point() else value.cpu()
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "iuf"
    if numbers and value.size != 1 and value.dtype.itemsize <= 8:
        return value
    if isinstance(value, set | frozenset | range):
        value = list(value)
    elif isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes | PathLike):
        return _written(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return value
    if isinstance(value, list | tuple) and value:
        parts = [_attribute(entry) for entry in value]
        kinds = {type(part) for part in parts}
        alike = kinds == {str} or kinds <= {int, float}
        if alike and not any(isinstance(entry, Mapping) or entry is None for entry in value):
            texts = all(isinstance(entry, str | bytes | PathLike) for entry in value)
            if texts or kinds <= {int, float}:
                return parts[0] if len(parts) == 1 else parts
    return _text(json.dumps(_json(value), ensure_ascii=False)) if value is not None else MISSING


def _json(value: Any) -> Any:
    """The nearest thing that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [_json(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return _json(value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _written(value)
