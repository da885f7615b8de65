"""Running the cells of a sweep, and reducing each to its metrics where the model is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from interventions.architectures.wrapped import where_the_model_is
from interventions.model.model import Model
from interventions.model.sites import of_vision
from interventions.model.vision_places import tower_of, vision_axes
from interventions.prompt.columns import Columns
from interventions.prompt.positions import Positions
from interventions.prompt.prompt import Prompt
from interventions.returnable import returnable
from interventions.running.budget import Budget
from interventions.running.patches import Patch
from interventions.sweeping.contrast import Contrast
from interventions.sweeping.grid import Grid, Spec
from interventions.sweeping.metrics import OF_TWO_RUNS, Target
from interventions.sweeping.replay import replayed, run_clean
from interventions.sweeping.routes import RouteGrid
from interventions.sweeping.schedule import cell, groups, path_of
from interventions.sweeping.sizes import Sizes, tower_row
from interventions.sweeping.sources import (
    FromModel,
    Noise,
    Values,
    mapped_layers,
    noisy,
    read_values,
)

MOST_ROWS = 64


@dataclass(frozen=True)
class Job:
    """What a sweep computes, checked.

    Attributes
    ----------
    contrast : Contrast
        Its source holds values of all rows, where they were read on another server.
    grid : Grid or RouteGrid
    budget : int or None
        Bytes; see :class:`interventions.running.budget.Budget`.
    """

    contrast: Contrast
    grid: Grid | RouteGrid
    budget: int | None


@returnable
@dataclass(frozen=True)
class Piece:
    """Numbers of some rows and cells.

    Attributes
    ----------
    rows, cells : list of int
    values : ndarray [metric, row, cell] or None
        None: they were there already.
    clean, source : ndarray [metric, row] or None
        Of the runs without patches, where this piece has them.
    """

    rows: list[int]
    cells: list[int]
    values: np.ndarray | None = None
    clean: np.ndarray | None = None
    source: np.ndarray | None = None


def batches(model: Model, job: Job, kept: list[int]) -> list[list[int]]:
    """Rows that run together: of like length, as many as memory has room for and are of use.

    One by one, where what runs together would change the numbers.
    """
    contrast, source = job.contrast, job.contrast.source
    models = [model, source.pair.backbone] if isinstance(source, FromModel) else [model]
    if any(model.anatomy.dependent_rows is not None for model in models):
        return [[row] for row in kept]
    prompt, target = contrast.prompt, contrast.target
    longest = int(prompt.lengths.max())
    width = max((len(tokens) for tokens in (*target.answers, *(target.foils or ()))), default=1)
    each = Sizes.of(model).clean(longest + width, len(prompt.prefix_ids)) + _value_bytes(model, job)
    if contrast.of_tower:
        each += tower_row(model, prompt)
    # Twice: half is for the cells.
    budget = Budget.of(model, job.budget)
    most = budget.fit(2 * target.repeats * each, 1, "the run of one row")
    wanted = int(budget.n_tokens / 4 / max(1.0, job.grid.per_block * longest / 2))
    size = max(1, min(most, wanted, MOST_ROWS))
    order = sorted(kept, key=lambda row: int(prompt.lengths[row]))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _value_bytes(model: Model, job: Job) -> int:
    """Bytes of the values that are read for the cells of one row, and once more to stack them."""
    anatomy, grid = model.anatomy, job.grid
    if isinstance(job.contrast.source, torch.Tensor) or isinstance(grid, RouteGrid):
        return 0
    n_tokens = sum(max(len(row) for row in column) for column in job.contrast.read_columns.tokens)
    widths = [
        prod(vision_axes(tower_of(model), component, 0))
        if of_vision(component)
        else anatomy.n_heads * anatomy.head_dim
        if component == "head_out"
        else model.d_model
        for component in grid.components
    ]
    size = torch.empty(0, dtype=model.dtype).element_size()
    return 2 * size * n_tokens * len(grid.read_layers()) * sum(widths)


def run_rows(model: Model, job: Job, rows: list[int], done: np.ndarray) -> Iterator[Piece]:
    """Run the cells of some rows; ``done`` [row, cell] are left out."""
    if done.all():
        yield Piece(rows, list(range(len(job.grid))))
        return
    part = job.contrast.rows(rows)
    prompt, left = part.prompt.trimmed()
    scored = part.target.scored(prompt)
    columns = part.columns.shifted(left)
    places = _places(columns, scored, part.target)
    source = None
    if isinstance(job.grid, RouteGrid):
        keys = _places(part.read_columns.shifted(left), scored, part.target)
        edits = job.grid.edits(places, keys, predicting=part.target.positions(scored))
    else:
        values = values_of(model, part, job.grid)
        if isinstance(values, Values):
            values.check(model.dtype)
            source = _numbers(part, values.logits, two_runs=False)
            values = values.repeated(part.target.repeats)
        edits = _patches(job.grid, places, values)
    specs = list(job.grid.specs())
    numbers = [i for i, own in enumerate(edits) if own]
    cells = [cell(model, own) for own in edits if own]
    path, _ = path_of(model, prompt, tower=part.of_tower)
    apart = model.anatomy.dependent_rows is not None
    clean = run_clean(model, scored, part.target.positions(scored), cells, path, apart=apart)
    first = clean.logits[: len(rows), 0]
    without = sorted(set(range(len(specs))) - set(numbers))
    nothing = np.full((len(part.metrics), len(rows), len(without)), np.nan)
    yield Piece(rows, without, nothing, _numbers(part, clean.logits, clean=first), source)
    # All cells are grouped, and groups that are done left out: a run that goes on where it was
    # stopped has the same groups, and so the same numbers to the last bit.
    todo = []
    for group in groups(model, scored, cells, path, Budget.of(model, job.budget)):
        which = [numbers[i] for i in group.cells]
        if done[:, which].all():
            yield Piece(rows, which)
        else:
            todo.append(group)
    for group, logits in replayed(model, clean, cells, path, todo, apart=apart):
        which = [numbers[i] for i in group.cells]
        measured = np.stack(
            [_numbers(part, cell_logits, clean=first) for cell_logits in logits], -1
        )
        for j, i in enumerate(which):
            column = columns.tokens[specs[i].column]
            measured[:, [not row for row in column], j] = np.nan
        yield Piece(rows, which, measured)


def _numbers(
    contrast: Contrast,
    logits: torch.Tensor | None,
    *,
    clean: torch.Tensor | None = None,
    two_runs: bool = True,
) -> Any:
    """Metrics [metric, row]; without ``two_runs`` NaN for those that compare with another run."""
    if logits is None:
        return None
    numbers = np.full((len(contrast.metrics), len(contrast.items)), np.nan, dtype=np.float32)
    for which, metric in enumerate(contrast.metrics):
        if two_runs or metric not in OF_TWO_RUNS:
            values = contrast.target.values(metric, logits, clean=clean)
            numbers[which] = values.detach().cpu().numpy()
    return numbers


@where_the_model_is
def measured(model: Model, job: Job, kept: list[int], done: np.ndarray) -> list[Piece]:
    """Run all rows; what goes to a server as one request."""
    pieces: list[Piece] = []
    for rows in batches(model, job, kept):
        pieces += run_rows(model, job, rows, done[rows])
    return pieces


def values_of(model: Model, contrast: Contrast, grid: Grid) -> Values | torch.Tensor:
    """Read what the cells of some rows write."""
    source, needed = contrast.source, grid.read_layers()
    if isinstance(source, torch.Tensor | Values):
        return source
    if isinstance(source, FromModel):
        other, left = source.prompt.trimmed()
        return read_values(
            source.pair.backbone,
            other,
            contrast.read_columns.shifted(left),
            components=grid.components,
            layers=mapped_layers(source.pair, needed),
            names=needed,
        )
    another = isinstance(source, Prompt)
    other, left = (source if another else contrast.prompt).trimmed()
    values = read_values(
        model,
        other,
        contrast.read_columns.shifted(left),
        components=grid.components,
        layers=needed,
        target=contrast.target if another else None,
    )
    return noisy(values, source, contrast.items) if isinstance(source, Noise) else values


def _places(columns: Columns, scored: Prompt, target: Target) -> list[Positions | None]:
    """Where each column is in what is scored; None for one that no row has."""
    everyone = [*range(len(scored) // target.repeats)] * target.repeats
    return [
        columns.positions(k, scored).rows(everyone) if any(column) else None
        for k, column in enumerate(columns.tokens)
    ]


def _patches(
    grid: Grid, places: Sequence[Positions | None], values: Values | torch.Tensor
) -> list[list[Patch]]:
    """The patches of every cell; none of one that writes nothing."""
    return [
        _patches_of(spec, place, values) if (place := places[spec.column]) is not None else []
        for spec in grid.specs()
    ]


def _patches_of(spec: Spec, place: Positions, values: Values | torch.Tensor) -> list[Patch]:
    """The patches of one cell."""
    patches = []
    for layer, read in zip(spec.layers, spec.read, strict=True):
        if isinstance(values, torch.Tensor):
            value = values
        else:
            value = values.at(spec.component, read, spec.column, place.index.shape[1])
            if spec.head is not None:
                value = value[..., spec.head, :]
        patches.append(Patch(spec.component, layer, place, value, heads=spec.head))
    return patches


def costs(model: Model, job: Job) -> np.ndarray:
    """What each cell costs, in tokens through blocks, for a row: to tell how long it takes."""
    length, n = job.contrast.prompt.length, model.n_layers
    if job.contrast.of_tower:
        return np.full(len(job.grid), float(n * length))
    first = [
        min((min(row) for row in column if row), default=length - 1)
        for column in job.contrast.columns.tokens
    ]
    return np.array(
        [
            (n + 1 - min(spec.layers, default=n)) * (length - first[spec.column])
            for spec in job.grid.specs()
        ],
        dtype=float,
    )
