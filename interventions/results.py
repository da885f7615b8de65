"""Results on disk: one netCDF store per run, written atomically, bound to its settings."""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5netcdf
import torch
import xarray as xr

from interventions.errors import ResultsError
from interventions.given import of_kind
from interventions.model.fingerprints import hooks_of
from interventions.model.model import Model
from interventions.storable import storable, write_atomically

STORE = "results.nc"
SETTINGS = "settings.json"
PROVENANCE = "provenance"
PACKAGES = ("torch", "transformers", "nnsight", "numpy", "xarray")


def provenance(**models: Model) -> dict[str, Any]:
    """What a result must carry to be made again: models, number formats, package versions."""
    record: dict[str, Any] = {}
    for role, model in models.items():
        config: Any = model.module.config
        record[role] = {
            "id": model.name,
            "revision": model.revision,
            "model_type": config.model_type,
            "dtype": str(model.dtype),
            "device": str(model.device),
            "attention": getattr(config, "_attn_implementation", None),
            "fingerprint": model.fingerprint(),
        }
        if hooks := hooks_of(model):
            record[role]["hooks"] = hooks
        if model.remote:  # `interventions remote` asks for these
            record[role] |= {"dtype": "as the server has it", "device": "the server's"}
            record[role] |= {"remote": model.remote, "requests": model.requests}
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    record["versions"] = versions
    record["threads"] = torch.get_num_threads()
    return record


def origin(**models: Model) -> dict[str, Any]:
    """What of :func:`provenance` is the same whenever the same is asked: for settings."""
    record = provenance(**models)
    for role in models:
        record[role].pop("requests", None)
        record[role].pop("hooks", None)  # one that counts passes is none the less another each time
    return record


def with_provenance(
    dataset: xr.Dataset,
    record: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    seed: int | None = None,
) -> xr.Dataset:
    """Return the Dataset as netCDF can hold it, with how it was made in one attribute.

    The attribute ``provenance`` is JSON text, the same for every result: what ``record`` says of
    each model under its role, ``versions`` and ``threads``; ``settings``: what was asked; and
    ``seed``: what was drawn by chance hangs on it, null where nothing was.
    :func:`read_provenance` reads it.

    Parameters
    ----------
    dataset : Dataset
    record : mapping
        As :func:`provenance` or :func:`origin` gives it.
    settings : mapping
        JSON types.
    seed : int, optional
    """
    whole = {**record, "settings": dict(settings), "seed": seed}
    return storable(dataset.assign_attrs({PROVENANCE: whole}))


def read_provenance(result: xr.Dataset | xr.DataArray | xr.DataTree) -> dict[str, Any]:
    """How a result was made, as :func:`with_provenance` laid it down; empty if it does not say.

    Parameters
    ----------
    result : Dataset, DataArray or DataTree
        In memory, or back from disk.

    Raises
    ------
    ResultsError
        If it is no result, or what it says cannot be read.

    Examples
    --------
    >>> swept = iv.sweep(llm, named, other, answers="Marlow", roles=["entity", "last"])
    >>> read_provenance(swept)["model"]["id"]  # doctest: +ELLIPSIS
    'micro-backbone-...'
    """
    kinds = (xr.Dataset, xr.DataArray, xr.DataTree)
    stored = of_kind(result, kinds, "the result", error=ResultsError).attrs.get(PROVENANCE, {})
    try:
        record = json.loads(stored) if isinstance(stored, str) else stored
        return dict(record)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"the provenance of this result cannot be read: {error}.") from None


def differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], *, verb: str = "asked"
) -> list[str]:
    """Lines that name every setting in which two runs differ, in mappings within them too.

    Parameters
    ----------
    stored, asked : mapping
        JSON types.
    verb : str
        What is said of the values that are not the stored ones.

    Examples
    --------
    >>> differences({"seed": 0, "n": {"lost": 24}}, {"seed": 0, "n": {"lost": 48}})
    ['n.lost: stored 24, asked 48']
    """
    lines = []
    for key in sorted({*stored} | {*asked}):
        old, new = stored.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += [f"{key}.{line}" for line in differences(old, new, verb=verb)]
        elif old is None and isinstance(new, Mapping):
            lines.append(f"{key}: not recorded with what is stored")
        elif old != new:
            lines.append(f"{key}: stored {old!r}, {verb} {new!r}")
    return lines


class Store:
    """A run's folder: ``results.nc`` with one group per stage, and ``settings.json``.

    Parameters
    ----------
    folder : Path
        Made if need be.
    settings : mapping
        What the results depend on; JSON types only.

    Raises
    ------
    ResultsError
        If the folder holds results of other settings: the differences are shown. Or if it is not
        empty and is not a run's folder.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self.made_folders = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        self.begun = not (folder / SETTINGS).exists()
        path = folder / SETTINGS
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ResultsError(
                    f"{path} cannot be read: {error}. Remove {folder} to start afresh."
                ) from error
            if changed := differences(stored, self.settings):
                raise ResultsError(
                    f"{folder} holds a run with other settings:\n  "
                    + "\n  ".join(changed)
                    + "\nGive another folder as out (--out), or remove this one to start afresh."
                )
            return
        # A kill may have left a part of these very settings.
        begun = f".{SETTINGS}."
        if folder.exists() and any(not entry.name.startswith(begun) for entry in folder.iterdir()):
            raise ResultsError(
                f"{folder} is not empty and is not the folder of a run (no {SETTINGS}). "
                "Give another folder as out (--out)."
            )
        try:
            write_atomically(path, json.dumps(self.settings, indent=2).encode())
        except OSError as error:
            self.leave()
            raise ResultsError(f"{folder} cannot be written: {error.strerror}.") from error

    def leave(self) -> None:
        """Take away the folder, if this made it and nothing but its settings is there."""
        if self.begun:
            (self.folder / SETTINGS).unlink(missing_ok=True)
        for folder in self.made_folders:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def stages(self) -> list[str]:
        """Names of the stages that are done."""
        path = self.folder / STORE
        if not path.exists():
            return []
        with _readable(path), h5netcdf.File(path, "r") as file:
            return sorted(file.groups)

    def tree(self) -> xr.DataTree:
        """Everything stored, in memory."""
        path = self.folder / STORE
        if not path.exists():
            return xr.DataTree()
        return read_tree(self.folder)

    def get(self, stage: str) -> xr.Dataset:
        """One stage's Dataset, in memory."""
        path = self.folder / STORE
        with _readable(path), xr.open_dataset(path, group=stage, engine="h5netcdf") as dataset:
            return dataset.load()

    def provenances(self) -> dict[str, dict[str, Any]]:
        """How every stage that is done was made, read without its data."""
        path = self.folder / STORE
        if not path.exists():
            return {}
        with _readable(path), h5netcdf.File(path, "r") as file:
            attrs = {stage: dict(group.attrs) for stage, group in file.groups.items()}
        return {stage: read_provenance(xr.Dataset(attrs=own)) for stage, own in attrs.items()}

    def put(self, stage: str, dataset: xr.Dataset, *, drop: Iterable[str] = ()) -> None:
        """Add or replace a stage, and take others out; a kill leaves the store old or complete."""
        stored, path = self.stages(), self.folder / STORE
        gone = {stage, *drop} & {*stored}
        # Made in memory: HDF5 crashes where the disk is full.
        buffer = io.BytesIO()
        if gone or not stored:
            tree = self.tree()
            for name in gone:
                del tree[name]
            tree[stage] = xr.DataTree(storable(dataset))
            tree.to_netcdf(buffer, engine="h5netcdf")
        else:  # what is there stays as it is
            buffer.write(path.read_bytes())
            storable(dataset).to_netcdf(buffer, mode="a", group=stage, engine="h5netcdf")
        write_atomically(path, buffer.getvalue())


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say of a store that cannot be read what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read: {error}. Remove it and run again.") from error


def read_tree(folder: Path) -> xr.DataTree:
    """Open a run's store as a DataTree held in memory.

    Raises
    ------
    ResultsError
        If there is none, or it cannot be read.
    """
    path = folder / STORE
    if not path.exists():
        raise ResultsError(f"{folder} holds no {STORE}. Expected the folder of a finished run.")
    with _readable(path), xr.open_datatree(path, engine="h5netcdf") as tree:
        return tree.load()
