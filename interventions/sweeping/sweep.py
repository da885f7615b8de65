"""Exact activation patching over grids: component x layer x tokens, for many prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from interventions.digests import digest_of
from interventions.given import flag, whole
from interventions.model.fingerprints import Unchanged
from interventions.model.model import Model
from interventions.model.sites import Heads, Layers
from interventions.prompt.prompt import Prompt
from interventions.results import origin
from interventions.running.checking import check_asked
from interventions.sweeping.cell_statistics import cluster_names
from interventions.sweeping.contrast import make_contrast
from interventions.sweeping.filling import cluster_settings, filled, metric_settings
from interventions.sweeping.grid import Grid, chosen_components, make_grid, space_among
from interventions.sweeping.labels import as_text
from interventions.sweeping.measure import Job
from interventions.sweeping.metrics import Answers, Metric
from interventions.sweeping.sources import FromModel, Source, checked_source


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
    clusters: Sequence[Any] | None = None,
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
        Of ``"resid_pre"``, ``"head_out"``, ``"attn_out"``, ``"mlp_out"``, ``"resid_post"``; or the
        same of the vision tower's blocks, ``"vision.resid_post"``: columns are then its tokens,
        and each cell is a whole run.
    layers : int, slice or list of int, optional
        Default: all that run and, for FromModel, have a counterpart in the backbone; of the tower,
        all that give something.
    roles : sequence of str, optional
        Columns: all tokens of ``"entity"`` together, or one of them, ``"entity[-1]"``, wherever
        they are in each prompt. Default: each token of the prompt is a column. Of the tower:
        ``"image"``, ``"image_0"``, ``"class"`` or ``"every"``; default each patch and class token.
    read_roles : sequence of str, optional
        Where the values are read, one for each of ``roles``. Default: the same.
    each : bool
        A column for each token of the roles.
    heads : int, slice or list of int, optional
        A cell for each of these heads of ``"head_out"``. Default: all heads together.
    window : int
        Write that many layers from each layer on.
    clusters : sequence, optional
        What each row belongs to, such as its entity or picture, where rows are not independent:
        kept as the coordinate ``cluster``.
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
    components = chosen_components(components)
    of = space_among(components)
    progress = flag(progress, "progress")
    budget = None if budget is None else whole(budget, "budget", least=1)
    labels = cluster_names(clusters, len(prompt))
    contrast = make_contrast(
        model,
        prompt,
        checked_source(model, source, of=of),
        answers=answers,
        foils=foils,
        metrics=metrics,
        roles=roles,
        read_roles=read_roles,
        each=each,
        of=of,
    )
    grid = make_grid(
        model, contrast, components=components, layers=layers, heads=heads, window=window
    )
    asked = [model, *([source.pair.backbone] if isinstance(source, FromModel) else [])]
    with Unchanged(*asked):
        job = Job(contrast, grid, budget)
        return filled(
            model,
            job,
            asked,
            settings=_settings(model, job) | cluster_settings(labels),
            clusters=labels,
            out=out,
            progress=progress,
        )


def _settings(model: Model, job: Job) -> dict[str, Any]:
    """What the numbers depend on, in JSON types."""
    contrast, target = job.contrast, job.contrast.target
    assert isinstance(job.grid, Grid)
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
        **metric_settings(contrast),
        "axes": {name: list(labels) for name, labels in job.grid.axes.items()},
        "window": job.grid.window,
        "read": contrast.read_columns.names,
        "tokens": digest_of(
            *(contrast.columns.tokens, contrast.read_columns.tokens),
            *(target.answers, target.foils),
        ),
        **origin(model=model),
    }
