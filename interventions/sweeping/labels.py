"""What items, columns and numbers are called, in a Dataset."""

from typing import Any

import numpy as np
import xarray as xr

from interventions.model.model import Model
from interventions.prompt.columns import Columns, role_labels
from interventions.prompt.grid_table import places_of
from interventions.prompt.prompt import Prompt
from interventions.prompt.tower_positions import tower_grids
from interventions.results import origin, with_provenance
from interventions.sweeping.cell_statistics import with_statistics
from interventions.sweeping.measure import Job
from interventions.sweeping.metrics import OF_TWO_RUNS, unit_of
from interventions.sweeping.routes import RouteGrid
from interventions.sweeping.schedule import path_of
from interventions.sweeping.sources import FromModel, Noise
from interventions.sweeping.table import Table, with_text


def token_labels(model: Model, prompt: Prompt, columns: Columns) -> dict[str, Any]:
    """What the tokens of columns are called, as coordinates (item, position)."""
    dims = ("item", "position")
    roles = {"role": (dims, _token_roles(prompt, columns))}
    if columns.of != "text":  # a patch is no word
        return roles
    return {**roles, "token": (dims, token_words(model, prompt, columns))}


def picture_places(prompt: Prompt, columns: Columns, dim: str) -> dict[str, Any]:
    """Where in a picture the token of each column lies, as coordinates (item, ``dim``)."""
    roles, grids = prompt.roles, prompt.grids
    if columns.of != "text":
        roles, grids = tower_grids(columns.of, grids)
    return places_of(roles, grids, columns.tokens, dim)


def token_coords(model: Model, prompt: Prompt, columns: Columns) -> dict[str, Any]:
    """All that is known of columns of one token each: names, and where in a picture they lie."""
    return {
        "item": range(len(prompt)),
        "position": range(len(columns.names)),
        **token_labels(model, prompt, columns),
        **picture_places(prompt, columns, "position"),
    }


def _token_roles(prompt: Prompt, columns: Columns) -> np.ndarray:
    """The role of the token of each column in each row; "" where it has none."""
    labels = role_labels(prompt, columns.of) if "" in columns.names else None
    names = np.full((len(prompt), len(columns.names)), "", dtype=object)
    for k, (name, column) in enumerate(zip(columns.names, columns.tokens, strict=True)):
        for row, tokens in enumerate(column):
            if tokens:
                names[row, k] = name or (labels[row][tokens[0]] if labels else "")
    return names


def token_words(model: Model, prompt: Prompt, columns: Columns) -> np.ndarray:
    """The token of each column in each row, as text; "" where it has none."""
    ids = prompt.inputs["input_ids"].tolist()
    words = np.full((len(ids), len(columns.names)), "", dtype=object)
    for k, column in enumerate(columns.tokens):
        for row, tokens in enumerate(column):
            if tokens:
                words[row, k] = model.tokenizer.decode([ids[row][tokens[0]]])
    return words


def answer_words(model: Model, answers: list[list[int]]) -> list[str]:
    """The answer of each row as text."""
    return [model.tokenizer.decode(tokens) for tokens in answers]


def as_text(model: Model, answers: list[list[int]] | None) -> str | list[str] | None:
    """The answer of each row as text, for the settings; one, where it is the same for all."""
    words = answer_words(model, answers) if answers and any(answers) else None
    return words[0] if words and len(set(words)) == 1 else words


def labelled(
    model: Model,
    job: Job,
    table: Table,
    settings: dict[str, Any],
    clusters: list[str] | None = None,
) -> xr.Dataset:
    """The numbers of a sweep with what they are called, what they show, and how they were made."""
    contrast, grid = job.contrast, job.grid
    dims = ("item", *grid.axes)
    dataset = xr.Dataset(coords={name: list(labels) for name, labels in grid.axes.items()})
    dataset = dataset.assign_coords(item=contrast.items)
    if clusters is not None:
        dataset = dataset.assign_coords(cluster=("item", clusters))
    if isinstance(grid, RouteGrid):
        dataset = dataset.assign_coords(grid.labels)
    else:
        prompt, columns = contrast.prompt, contrast.columns
        if grid.each:
            dataset = dataset.assign_coords(token_labels(model, prompt, columns))
        dim = "position" if grid.each else "role"
        dataset = dataset.assign_coords(picture_places(prompt, columns, dim))
    for which, (metric, name) in enumerate(
        zip(contrast.metrics, contrast.metric_names, strict=True)
    ):
        units = {"units": unit_of(metric)}
        values = table.values[which].reshape(len(contrast.items), *grid.shape)
        dataset[name] = (dims, values, units)
        dataset[f"clean_{name}"] = ("item", table.clean[which], units)
        if isinstance(contrast.source, Prompt) and metric not in OF_TWO_RUNS:
            dataset[f"source_{name}"] = ("item", table.source[which], units)
    path, reason = path_of(model, contrast.prompt, tower=contrast.of_tower)
    dataset.attrs = {
        "path": path,
        "path_reason": reason,
        "left_out": contrast.left_out,
        "cells": len(grid),
    }
    dataset = with_statistics(dataset, contrast.metric_names)
    source = contrast.source
    models = {"backbone": source.pair.backbone} if isinstance(source, FromModel) else {}
    about = origin(model=model, **models)
    return with_text(
        with_provenance(
            dataset,
            about,
            settings={key: value for key, value in settings.items() if key not in about},
            seed=source.seed if isinstance(source, Noise) else None,
        )
    )
