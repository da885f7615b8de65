"""Curves of attention knockout: windows of layers x routes, for many prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from interventions.digests import digest_of
from interventions.given import flag, whole
from interventions.model.fingerprints import Unchanged
from interventions.model.model import Model
from interventions.model.sites import Layers
from interventions.prompt.prompt import Prompt
from interventions.results import origin
from interventions.running.checking import check_asked
from interventions.sweeping.cell_statistics import cluster_names
from interventions.sweeping.contrast import Contrast, measures
from interventions.sweeping.filling import cluster_settings, filled, metric_settings
from interventions.sweeping.labels import as_text
from interventions.sweeping.measure import Job
from interventions.sweeping.metrics import Answers, Metric, target
from interventions.sweeping.own_metrics import needs_resid
from interventions.sweeping.routes import (
    HeadSets,
    Routes,
    ends_of,
    make_route_grid,
    route_settings,
)


def knockout_curves(
    model: Model,
    prompt: Prompt,
    routes: Routes,
    *,
    answers: Answers | None = None,
    foils: Answers | None = None,
    metrics: Metric | Sequence[Metric] = ("logprob",),
    layers: Layers | None = None,
    window: int = 1,
    heads: HeadSets = None,
    clusters: Sequence[Any] | None = None,
    out: Path | str | None = None,
    budget: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Cut routes of attention in windows of layers, in every row of a prompt, and measure it.

    Attention knockout as of Geva et al. (EMNLP 2023), and as it is used on VLMs: image to question,
    question to last. A cell cuts the edges of one route in one window of layers. The numbers are
    those of one full run per cell, to rounding; but a cell starts in the first block of its
    window, with the first of its queries, from the keys that the run without cuts left, so the
    picture's tokens run once for all cells.

    Parameters
    ----------
    model : Model
    prompt : Prompt
        A row is an item.
    routes : str, sequence of str, or mapping of names
        From keys to queries: ``"image -> last"``, ``"entity[-1] -> last"``. A mapping gives a name
        to such a text, or to a pair of roles or of positions of the prompt, such as
        ``{"cat": (prompt.at("image", box=cat), "last")}``. A token always goes on seeing itself.
        ``"question"`` is without the last token here, which is an end of its own. The queries
        ``"answer"`` are all tokens that predict the answer's, which is more than ``"last"`` where
        it has several. In a model that attends to pictures in blocks of their own, ``"image"`` is
        all that these see.
    answers, foils, metrics
        As of :func:`interventions.sweep`.
    layers : int, slice or list of int, optional
        First layer of each window. Default: all that run.
    window : int
        Cut in that many layers from each of these on; fewer at the end of the model.
    heads : optional
        Default: all. An int, slice or list of int: a cell for each of these heads, a dim ``head``.
        Or one set across layers, in which edges are cut together: ``{3: [0, 5], 4: 2}``, or pairs
        (layer, head); those in a cell's window are cut. Or several such sets by name, a dim
        ``head_set``.
    clusters : sequence, optional
        What each row belongs to, such as its entity or picture, where rows are not independent:
        kept as the coordinate ``cluster``.
    out, budget, progress
        As of :func:`interventions.sweep`.

    Returns
    -------
    Dataset
        One variable per metric, with dims (item, layer, [head or head_set], route); NaN where a
        window has no edge of the route. ``clean_<metric>`` (item): with nothing cut. Coordinates
        ``last_layer`` of each window, ``key_role`` and ``query_role`` of each route, and ``edges``
        (item, route): how many are cut in a layer. With six clusters or more, of each metric,
        ``change_<metric>``, the mean over items of what is cut less what is not, ``low_<metric>``
        and ``high_<metric>``, ``p_<metric>`` and ``p_map_<metric>``, with the dims less item: see
        :func:`interventions.cell_statistics`. Attributes as of :func:`interventions.sweep`.

    Raises
    ------
    PromptError, RoleError, SiteError
        Before anything runs, if a route has no edge, or something does not fit.
    ResultsError
        If ``out`` holds numbers of other settings: the differences are shown.
    SweepInterrupted
        On Ctrl-C; its ``dataset`` holds what is done.

    Examples
    --------
    >>> curves = iv.knockout_curves(llm, named, ["entity -> last", "entity -> question"],
    ...                             answers="Marlow", window=3)
    >>> curves["logprob"].sizes
    Frozen({'item': 1, 'layer': 8, 'route': 2})
    """
    check_asked(model, prompt)
    progress = flag(progress, "progress")
    budget = None if budget is None else whole(budget, "budget", least=1)
    labels = cluster_names(clusters, len(prompt))
    measured, answers, foils = measures(model, metrics, answers, foils)
    ends = ends_of(model, prompt, routes)
    contrast = Contrast(
        run=prompt,
        source=torch.zeros(()),
        columns=ends.queries,
        read_columns=ends.keys,
        each=False,
        target=target(model, prompt, answers, foils, resid=any(map(needs_resid, measured))),
        metrics=measured,
        items=list(range(len(prompt))),
        missing=ends.missing,
    )
    grid = make_route_grid(model, prompt, ends, layers=layers, heads=heads, window=window)
    settings = {
        "prompt": prompt.digest,
        "answers": as_text(model, contrast.target.answers),
        "foils": as_text(model, contrast.target.foils),
        **metric_settings(contrast),
        **route_settings(grid),
        "tokens": digest_of(
            *(ends.queries.tokens, ends.keys.tokens),
            *(contrast.target.answers, contrast.target.foils),
        ),
        **origin(model=model),
        **cluster_settings(labels),
    }
    with Unchanged(model):
        return filled(
            model,
            Job(contrast, grid, budget),
            [model],
            settings=settings,
            clusters=labels,
            out=out,
            progress=progress,
        )
