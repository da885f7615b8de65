"""A folder of activations: one array file per site, written in pieces, read when used."""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from interventions.errors import ResultsError
from interventions.given import folder_of
from interventions.results import SETTINGS, Store, with_provenance
from interventions.storable import write_atomically

PROGRESS = "progress.json"
COORDS = "coords.json"
SAVE_EVERY_S = 5.0
ABOUT = ("model", "versions", "threads")
"""What of the settings says what was run with."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Collection:
    """Where :func:`interventions.collect` writes.

    A batch counts once ``progress.json`` says so, and that is written after the arrays have
    reached the disk; what lies behind is written again. Arrays are written with ordinary writes,
    as a full disk kills a process that writes through a memory map.

    Parameters
    ----------
    folder : Path
    settings : dict
        JSON types; ``sites`` maps each name to its ``shape`` and ``dims``, among others.
    coords : dict
        Labels of the rows.

    Attributes
    ----------
    done : int
        Rows that are dealt with.
    digests : list of str
        Of the rows of each batch among them.
    set_aside : list of (int, str)
        Rows that could not be read, and why.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], coords: Mapping[str, list[Any]]
    ) -> None:
        store = Store(folder, settings)
        self.settings = store.settings
        self.folder = folder
        self.done = 0
        self.digests: list[str] = []
        self.set_aside: list[tuple[int, str]] = []
        if (folder / PROGRESS).exists():
            progress = _json(folder / PROGRESS)
            self.done, self.digests = progress["rows"], progress["digests"]
            self.set_aside = [(row, reason) for row, reason in progress["set_aside"]]
        self._saved_at = time.monotonic()
        sites = self.settings["sites"]
        try:
            self._check_space(sites)
        except ResultsError:
            store.leave()
            raise
        for name, site in sites.items():
            path, dtype = folder / f"{name}.npy", _number_type(self.settings["dtype"])
            if self.done and not _whole(path, site["shape"]):
                raise ResultsError(f"{path} is damaged. Remove {folder} to start afresh.")
            if not self.done:
                np.lib.format.open_memmap(path, "w+", dtype, tuple(site["shape"])).flush()
        if not (folder / COORDS).exists():
            write_atomically(folder / COORDS, json.dumps(coords).encode())

    def _check_space(self, sites: Mapping[str, Any]) -> None:
        share = 1 - self.done / self.settings["rows"]
        values = sum(int(np.prod(site["shape"], dtype=np.int64)) for site in sites.values())
        needed = int(share * values) * _number_type(self.settings["dtype"]).itemsize
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ResultsError(
                f"{needed / 1e9:.3f} GB of activations are to come, but {self.folder} has "
                f"{free / 1e9:.3f} GB left. Read fewer sites, layers or rows, a narrower dtype, or "
                "give another folder."
            )

    def add(
        self,
        start: int,
        stop: int,
        values: Mapping[str, tuple[list[int], np.ndarray]],
        failed: list[tuple[int, str]],
        digest: str,
    ) -> None:
        """Write one batch: for each site the rows that were read, and [layer, row, ...] of them.

        Raises
        ------
        ResultsError
            If the disk is full.
        """
        try:
            for name, (rows, value) in values.items():
                self._write(name, start, stop, rows, value)
            self.done = stop
            self.digests.append(digest)
            self.set_aside += failed
            if time.monotonic() - self._saved_at >= SAVE_EVERY_S:
                self.save()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise ResultsError(
                f"the disk of {self.folder} is full ({error.strerror}). Rows before {start} are "
                "kept: make room and run the same again, and it goes on from there."
            ) from error

    def _write(self, name: str, start: int, stop: int, rows: list[int], value: np.ndarray) -> None:
        path = self.folder / f"{name}.npy"
        stored = np.load(path, mmap_mode="r")
        offset, shape, size = stored.offset, stored.shape, stored.dtype.itemsize
        del stored
        row = int(np.prod(shape[2:], dtype=np.int64)) * size
        block = np.zeros((len(value), stop - start, *shape[2:]), dtype=value.dtype)
        block[:, [number - start for number in rows]] = value
        with path.open("r+b") as file:
            for layer, part in enumerate(block):
                file.seek(offset + (layer * shape[1] + start) * row)
                file.write(part.tobytes())

    def save(self) -> None:
        """Bring the arrays to the disk, then note how far they go."""
        for name in self.settings["sites"]:
            with (self.folder / f"{name}.npy").open("r+b") as file:
                os.fsync(file.fileno())
        state = {"rows": self.done, "digests": self.digests, "set_aside": self.set_aside}
        write_atomically(self.folder / PROGRESS, json.dumps(state, indent=1).encode())
        self._saved_at = time.monotonic()

    def __enter__(self) -> "Collection":
        return self

    def __exit__(self, kind: Any, *_rest: Any) -> None:
        """Note how far it went; on a full disk, what was noted before stands."""
        with contextlib.suppress(*(() if kind is None else (OSError,))):
            self.save()


def open_collection(folder: Path | str) -> xr.Dataset:
    """Open the folder that :func:`interventions.collect` wrote, finished or not.

    Returns
    -------
    Dataset
        As :func:`interventions.collect` gives it; of an unfinished one, the rows there are.

    Raises
    ------
    ResultsError
        If there is none.

    Examples
    --------
    >>> site = iv.RoleSite("resid_post", slice(0, 4), "last")
    >>> made = iv.collect(llm, ["Avaria is in"], {"end": site}, out="runs/ends")
    >>> open_collection("runs/ends")["end"].sel(layer=3).shape  # [row, d_model]
    (1, 64)
    """
    folder = folder_of(folder, "the folder")
    if not all((folder / name).exists() for name in (SETTINGS, PROGRESS, COORDS)):
        raise ResultsError(f"{folder} holds no activations. Expected a folder made by collect().")
    settings, state = _json(folder / SETTINGS), _json(folder / PROGRESS)
    try:
        return _opened(folder, settings, state)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
        raise ResultsError(
            f"{folder} cannot be read as activations: {type(error).__name__}: {error}. Remove the "
            "folder to start afresh."
        ) from error


def _opened(folder: Path, settings: dict[str, Any], state: dict[str, Any]) -> xr.Dataset:
    failed = dict(state["set_aside"])
    rows = np.array([row for row in range(state["rows"]) if row not in failed], dtype=np.int64)
    dataset = xr.Dataset(coords={"row": rows})
    for name, values in _json(folder / COORDS).items():
        kept = np.array([values[row] for row in rows], dtype=object)
        dataset = dataset.assign_coords({name: ("row", kept)})
    for name, site in settings["sites"].items():
        stored = _Stored(folder / f"{name}.npy", rows, bfloat16=settings["dtype"] == "bfloat16")
        dataset[name] = xr.Variable(site["dims"], indexing.LazilyIndexedArray(stored))
        for axis in ("layer", "head"):
            dim = next((dim for dim in site["dims"] if dim.split(":")[0] == axis), None)
            if dim is not None:
                dataset = dataset.assign_coords({dim: site[f"{axis}s"]})
        dataset[name].attrs = {
            key: str(site[key]) for key in ("component", "role", "index", "mean")
        }
    dataset = dataset.assign_coords(
        set_aside=np.array(list(failed), dtype=np.int64),
        reason=("set_aside", np.array(list(failed.values()), dtype=object)),
    )
    dataset.attrs = {"complete": state["rows"] == settings["rows"]}
    about = {key: settings[key] for key in ABOUT if key in settings}
    asked = {key: value for key, value in settings.items() if key not in ABOUT}
    return with_provenance(dataset, about, settings=asked)


class _Stored(BackendArray):
    """Some rows of an array on disk, as xarray indexes it; bfloat16 comes as float32."""

    def __init__(self, path: Path, rows: np.ndarray, *, bfloat16: bool) -> None:
        stored = np.load(path, mmap_mode="r")
        self.path, self.rows, self.bfloat16 = path, rows, bfloat16
        self.shape = (stored.shape[0], len(rows), *stored.shape[2:])
        self.dtype = np.dtype(np.float32) if bfloat16 else stored.dtype
        # Rows in one piece are sliced, not gathered, so that only what is used is read.
        self._whole = len(rows) == 0 or int(rows[-1]) + 1 == len(rows)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        stored = np.load(self.path, mmap_mode="r")
        stored = stored[:, : len(self.rows)] if self._whole else stored
        dropped = []
        for axis, index in enumerate(key):
            if isinstance(index, int | np.integer):
                dropped.append(axis)
                index = slice(int(index), int(index) + 1 or None)
            if axis == 1 and not self._whole:
                index = self.rows[index]
            stored = stored[(slice(None),) * axis + (index,)]
        stored = np.array(stored.squeeze(tuple(dropped)))
        if self.bfloat16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored


def as_stored(value: torch.Tensor, dtype: str) -> np.ndarray:
    """A tensor as the numpy array that is stored; bfloat16 as its bits."""
    stored = value.to(getattr(torch, dtype)).cpu().contiguous()
    return (
        stored.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else stored.numpy()
    )


def _number_type(dtype: str) -> np.dtype:
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def _whole(path: Path, shape: list[int]) -> bool:
    try:
        return list(np.load(path, mmap_mode="r").shape) == shape
    except (OSError, ValueError):
        return False


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"{path} cannot be read: {error}. Remove the folder to start afresh."
        ) from error
