"""The numbers of a sweep while it runs: one per metric, item and cell; kept on disk if asked."""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import xarray as xr

from interventions.errors import ResultsError
from interventions.results import Store
from interventions.storable import write_atomically
from interventions.sweeping.measure import Piece

PART = "cells.npz"
STAGE = "sweep"
SAVE_EVERY_S = 5.0


def with_text(dataset: xr.Dataset) -> xr.Dataset:
    """Return the Dataset with text as NumPy's strings, which xarray can draw, unlike objects."""
    names = [name for name in dataset.variables if dataset[name].dtype == object]
    return dataset.assign({name: dataset[name].astype(str) for name in names})


class Table:
    """Values [metric, item, cell], and which items and cells are done.

    Parameters
    ----------
    n_metrics, n_items, n_cells : int
    folder : Path, optional
        Where to keep them, and from where to go on.
    settings : mapping
        What they depend on; a folder of other settings is refused.
    """

    def __init__(
        self,
        n_metrics: int,
        n_items: int,
        n_cells: int,
        *,
        folder: Path | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.values = np.full((n_metrics, n_items, n_cells), np.nan, dtype=np.float32)
        self.clean = np.full((n_metrics, n_items), np.nan, dtype=np.float32)
        self.source = np.full((n_metrics, n_items), np.nan, dtype=np.float32)
        self.done = np.zeros((n_items, n_cells), dtype=bool)
        self._store = None if folder is None else Store(folder, settings)
        self._saved_at = time.monotonic()
        if folder is not None and (folder / PART).exists():
            try:
                data = io.BytesIO((folder / PART).read_bytes())
                with np.load(data, allow_pickle=False) as stored:
                    for name in ("values", "clean", "source", "done"):
                        getattr(self, name)[...] = stored[name]
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
                raise ResultsError(
                    f"{folder / PART} cannot be read: {error}. Remove {folder} to start afresh."
                ) from error

    @property
    def finished(self) -> xr.Dataset | None:
        """The Dataset of a run that was completed before."""
        if self._store is not None and STAGE in self._store.stages():
            return with_text(self._store.get(STAGE))
        return None

    def add(self, piece: Piece) -> None:
        """Put numbers in their places; now and then, on disk as well."""
        for mine, theirs in ((self.clean, piece.clean), (self.source, piece.source)):
            if theirs is not None:
                mine[:, piece.rows] = theirs
        if piece.values is not None:
            place = np.ix_(piece.rows, piece.cells)
            for which, values in enumerate(piece.values):
                self.values[which][place] = values
            self.done[place] = True
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write what there is, if it is to be kept."""
        if self._store is not None:
            data = io.BytesIO()
            np.savez(data, values=self.values, clean=self.clean, source=self.source, done=self.done)
            write_atomically(self._store.folder / PART, data.getvalue())
        self._saved_at = time.monotonic()

    def give_up(self) -> None:
        """Keep what is done, after a refusal; where nothing is, leave no folder behind."""
        if self.done.any() or self._store is None:
            self.save()
        else:
            self._store.leave()

    def finish(self, dataset: xr.Dataset) -> None:
        """Keep the Dataset in the place of the numbers."""
        if self._store is not None:
            self._store.put(STAGE, dataset)
            (self._store.folder / PART).unlink(missing_ok=True)
