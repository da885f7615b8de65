"""Filling the table of a grid: here piece by piece, or on a server as one request."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from interventions.errors import InterventionsError, PromptError, SweepInterrupted
from interventions.given import folder_of
from interventions.model.model import Model
from interventions.progress import LateBar
from interventions.sweeping.contrast import Contrast
from interventions.sweeping.grid import Grid
from interventions.sweeping.labels import labelled
from interventions.sweeping.measure import Job, Piece, batches, costs, measured, run_rows
from interventions.sweeping.own_metrics import UNKNOWN
from interventions.sweeping.sources import FromModel, mapped_layers, read_values
from interventions.sweeping.table import Table


def cluster_settings(labels: list[str] | None) -> dict[str, Any]:
    """What settings say of clusters: nothing where there are none."""
    return {} if labels is None else {"clusters": labels}


def metric_settings(contrast: Contrast) -> dict[str, Any]:
    """What settings say of metrics: their names, and of functions what they compute."""
    codes = contrast.metric_digests
    return {"metrics": contrast.metric_names, **({"metric_code": codes} if codes else {})}


def check_told_apart(contrast: Contrast) -> None:
    """Refuse to keep numbers, to go on from, of a metric that may be another next time.

    Raises
    ------
    PromptError
    """
    if unknown := [name for name, code in contrast.metric_digests.items() if code == UNKNOWN]:
        raise PromptError(
            f"the metric {unknown[0]!r} uses a value of which it cannot be told whether it is the "
            "same another time, so what is kept in out= could be mixed with another metric's. Let "
            "it use tensors, arrays, numbers, text and functions only, or leave out= out."
        )


def filled(
    model: Model,
    job: Job,
    asked: Sequence[Model],
    *,
    settings: dict[str, Any],
    clusters: list[str] | None,
    out: Path | str | None,
    progress: bool,
) -> xr.Dataset:
    """Fill the table of a job whose models do not change meanwhile.

    Parameters
    ----------
    model : Model
    job : Job
    asked : sequence of Model
        All that run.
    settings : dict
        What the numbers depend on, in JSON types.
    clusters : list of str or None
        What each item belongs to.
    out, progress
        As of :func:`interventions.sweep`.
    """
    contrast, kept = job.contrast, job.contrast.kept
    if out is not None:
        check_told_apart(contrast)
    table = Table(
        len(contrast.metrics),
        len(contrast.items),
        len(job.grid),
        folder=None if out is None else folder_of(out),
        settings=settings,
    )
    if (finished := table.finished) is not None:
        return finished
    cost = costs(model, job)
    before = sum(model.requests for model in asked)
    try:
        spent, total = 0.0, float(cost.sum()) * len(kept)
        what = f"sweep of {len(job.grid)} cells"
        with LateBar(what, total, shown=progress, transient=False) as bar:
            for piece in _pieces(model, job, kept, table):
                table.add(piece)
                spent += float(cost[piece.cells].sum()) * len(piece.rows)
                bar.update(spent)
    except KeyboardInterrupt:
        table.save()
        raise SweepInterrupted(labelled(model, job, table, settings, clusters), out) from None
    except InterventionsError:
        table.give_up()
        raise
    except BaseException:
        table.save()
        raise
    dataset = labelled(model, job, table, settings, clusters)
    if any(model.remote for model in asked):
        dataset.attrs["requests"] = sum(model.requests for model in asked) - before
    table.finish(dataset)
    return dataset


def _pieces(model: Model, job: Job, kept: list[int], table: Table) -> Iterator[Piece]:
    """Run what is not done: here, piece by piece, or on a server, as one request."""
    if not model.remote:
        for rows in batches(model, job, kept):
            yield from run_rows(model, job, rows, table.done[rows])
        return
    rows = [row for row in kept if not table.done[row].all()]
    source = job.contrast.source
    if isinstance(source, FromModel) and isinstance(
        job.grid, Grid
    ):  # another deployment: only values are moved
        needed = job.grid.read_layers()
        values = read_values(
            source.pair.backbone,
            source.prompt,
            job.contrast.read_columns,
            components=job.grid.components,
            layers=mapped_layers(source.pair, needed),
            names=needed,
        )
        job = replace(job, contrast=replace(job.contrast, source=values))
    if rows:
        yield from measured(model, job, rows, table.done)
