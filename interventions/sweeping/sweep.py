"""Exact activation patching over grids: component x layer x tokens, for many prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from interventions.digests import digest_of
from interventions.errors import InterventionsError, PromptError, SweepInterrupted
from interventions.given import flag, folder_of, whole
from interventions.model.fingerprints import Unchanged
from interventions.model.model import Model
from interventions.model.sites import Heads, Layers
from interventions.progress import LateBar
from interventions.prompt.prompt import Prompt
from interventions.results import origin
from interventions.running.checking import check_asked
from interventions.sweeping.contrast import Contrast, make_contrast
from interventions.sweeping.grid import make_grid
from interventions.sweeping.labels import as_text, labelled
from interventions.sweeping.measure import Job, Piece, batches, costs, measured, run_rows
from interventions.sweeping.metrics import Answers, Metric
from interventions.sweeping.own_metrics import UNKNOWN
from interventions.sweeping.sources import (
    FromModel,
    Source,
    checked_source,
    mapped_layers,
    read_values,
)
from interventions.sweeping.table import Table


def sweep(
    model: Model,
    prompt: Prompt,
    source: Source,
    *,
    answers: Answers | None = None,
    foils: Answers | None = None,
    metrics: Metric | Sequence[Metric] = ("logprob",),
    components: str | Sequence[str] = ("resid_post",),
    layers: Layers | None = None,
    roles: Sequence[str] | None = None,
    read_roles: Sequence[str] | None = None,
    each: bool = False,
    heads: Heads = None,
    window: int = 1,
    out: Path | str | None = None,
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Patch every cell of a grid, in every row of a prompt, and measure what it changes.

    As in :func:`interventions.attribute`, ``prompt`` runs, and values of ``source`` are put in. The
    numbers are those of one full run per cell, to rounding; the cost is that of what each
    patch changes (see :mod:`interventions.sweeping.replay`).

    Parameters
    ----------
    model : Model
    prompt : Prompt
        The runs that are patched; a row is an item.
    source : Prompt, FromModel, FromLayers, Noise, Tensor or float
        Where values come from: the same model on another prompt or image (row for row), its
        backbone, its own other layers, its own values with noise, or a vector [d_model] or number
        that is written as it is (0 ablates).
    answers, foils : str, or sequence of str or of token ids
        For the metrics that are of an answer; one text for all rows, or one per row, as a text or
        as the ids of its tokens. Answers of several tokens are scored whole.
    metrics : str, callable, or sequence of these
        ``"logprob"`` and ``"logit_diff"`` (answer minus foil), nats; ``"kl"`` from the clean to
        the patched next-token distribution, nats; ``"changed"``: another token is the likeliest;
        ``"rank"`` of the answer's first token. A function of logits [row, vocab] at the token that
        predicts the answer, which gives a number for each row by itself, [row]; it goes by its
        ``__name__``. A :class:`interventions.Direction`, which projects on a vector.
    components : str or sequence of str
        Of ``"resid_pre"``, ``"head_out"``, ``"attn_out"``, ``"mlp_out"``, ``"resid_post"``.
    layers : int, slice or list of int, optional
        Default: all that run and, for FromModel, have a counterpart in the backbone.
    roles : sequence of str, optional
        Columns: all tokens of ``"entity"`` together, or one of them, ``"entity[-1]"``, wherever
        they are in each prompt. Default: each token of the prompt is a column.
    read_roles : sequence of str, optional
        Where the values are read, one for each of ``roles``. Default: the same.
    each : bool
        A column for each token of the roles.
    heads : int, slice or list of int, optional
        A cell for each of these heads of ``"head_out"``. Default: all heads together.
    window : int
        Write that many layers from each layer on.
    out : Path, optional
        Folder to keep the numbers in; killed or interrupted, the same call goes on there.
    budget : int, optional
        Bytes of memory that may be used. Changes no number. Default: part of what is free.
    progress : bool
        Show a bar on stderr when it takes over two seconds.

    Returns
    -------
    Dataset
        One variable per metric, by its name, with dims (item, component, layer, [head],
        [source_layer], role or position); NaN where a row has no such token. ``clean_<metric>``
        and, where the source is a prompt of the model itself, ``source_<metric>`` (item): without
        any patch. Attributes say the path that was taken and why, which rows were left out, and
        the provenance (:func:`interventions.results.read_provenance`); of a sweep on a server,
        ``requests``: how many it took.

    Raises
    ------
    PromptError, RoleError, SiteError, PatchError
        Before anything runs, if the grid has no cells, or something does not fit.
    ResultsError
        If ``out`` holds a sweep with other settings: the differences are shown.
    SweepInterrupted
        On Ctrl-C; its ``dataset`` holds what is done.

    Examples
    --------
    >>> swept = iv.sweep(llm, named, other, answers="Marlow", foils="Brenn",
    ...                  metrics=["logit_diff"], roles=["entity", "last"])
    >>> swept["logit_diff"].sizes
    Frozen({'item': 1, 'component': 1, 'layer': 8, 'role': 2})
    >>> change = swept["logit_diff"] - swept["clean_logit_diff"]
    """
    check_asked(model, prompt)
    progress = flag(progress, "progress")
    budget = None if budget is None else whole(budget, "budget", least=1)
    contrast = make_contrast(
        model,
        prompt,
        checked_source(model, source),
        answers=answers,
        foils=foils,
        metrics=metrics,
        roles=roles,
        read_roles=read_roles,
        each=each,
    )
    grid = make_grid(
        model, contrast, components=components, layers=layers, heads=heads, window=window
    )
    asked = [model, *([source.pair.backbone] if isinstance(source, FromModel) else [])]
    if out is not None:
        check_told_apart(contrast)
    with Unchanged(*asked):
        return _swept(model, Job(contrast, grid, budget), asked, out=out, progress=progress)


def _swept(
    model: Model,
    job: Job,
    asked: Sequence[Model],
    *,
    out: Path | str | None,
    progress: bool,
) -> xr.Dataset:
    """Fill the table of a job whose models do not change meanwhile."""
    contrast, kept = job.contrast, job.contrast.kept
    settings = _settings(model, job)
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
        raise SweepInterrupted(labelled(model, job, table, settings), out) from None
    except InterventionsError:
        table.give_up()
        raise
    except BaseException:
        table.save()
        raise
    dataset = labelled(model, job, table, settings)
    if any(model.remote for model in asked):
        dataset.attrs["requests"] = sum(model.requests for model in asked) - before
    table.finish(dataset)
    return dataset


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


def _pieces(model: Model, job: Job, kept: list[int], table: Table) -> Iterator[Piece]:
    """Run what is not done: here, piece by piece, or on a server, as one request."""
    if not model.remote:
        for rows in batches(model, job, kept):
            yield from run_rows(model, job, rows, table.done[rows])
        return
    rows = [row for row in kept if not table.done[row].all()]
    source = job.contrast.source
    if isinstance(source, FromModel):  # another deployment: only values are moved
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


def _settings(model: Model, job: Job) -> dict[str, Any]:
    """What the numbers depend on, in JSON types."""
    contrast, target = job.contrast, job.contrast.target
    source: Any = contrast.source
    if isinstance(source, Prompt):
        source = {"prompt": source.digest}
    elif isinstance(source, FromModel):
        source = {
            "prompt": source.prompt.digest,
            "layers": list(source.pair.layer_map),
            **origin(backbone=source.pair.backbone),
        }
    elif isinstance(source, torch.Tensor):
        source = {"constant": digest_of(source)}
    else:
        source = repr(source)
    return {
        "prompt": contrast.prompt.digest,
        "source": source,
        "answers": as_text(model, target.answers),
        "foils": as_text(model, target.foils),
        "metrics": contrast.metric_names,
        **({"metric_code": codes} if (codes := contrast.metric_digests) else {}),
        "axes": {name: list(labels) for name, labels in job.grid.axes.items()},
        "window": job.grid.window,
        "read": contrast.read_columns.names,
        "tokens": digest_of(
            *(contrast.columns.tokens, contrast.read_columns.tokens),
            *(target.answers, target.foils),
        ),
        **origin(model=model),
    }
