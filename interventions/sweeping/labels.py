"""What the numbers of a sweep are called: a Dataset."""

from typing import Any

import numpy as np
import xarray as xr

from interventions.model.model import Model
from interventions.prompt.columns import role_labels
from interventions.prompt.prompt import Prompt
from interventions.results import origin, with_provenance
from interventions.sweeping.measure import FROM_SOURCE, Job
from interventions.sweeping.metrics import UNITS
from interventions.sweeping.schedule import path_of
from interventions.sweeping.sources import FromModel, Noise
from interventions.sweeping.table import Table, with_text


def token_roles(job: Job) -> np.ndarray:
    """The role of the token of each column in each row; "" where it has none."""
    labels = role_labels(job.prompt) if "" in job.columns.names else None
    names = np.full((len(job.prompt), len(job.columns.names)), "", dtype=object)
    for k, (name, column) in enumerate(zip(job.columns.names, job.columns.tokens, strict=True)):
        for row, tokens in enumerate(column):
            if tokens:
                names[row, k] = name or (labels[row][tokens[0]] if labels else "")
    return names


def token_words(model: Model, job: Job) -> np.ndarray:
    """The token of each column in each row, as text."""
    ids = job.prompt.inputs["input_ids"].tolist()
    words = np.full((len(ids), len(job.columns.names)), "", dtype=object)
    for k, column in enumerate(job.columns.tokens):
        for row, tokens in enumerate(column):
            if tokens:
                words[row, k] = model.tokenizer.decode([ids[row][tokens[0]]])
    return words


def labelled(
    model: Model, job: Job, table: Table, settings: dict[str, Any], missing: dict[int, str]
) -> xr.Dataset:
    """The numbers of a sweep with what they are called, and how they were made."""
    grid = job.grid
    dims = ("item", *grid.axes)
    made = xr.Dataset(coords={name: list(labels) for name, labels in grid.axes.items()})
    made = made.assign_coords(item=np.arange(len(job.prompt)))
    if grid.each:
        made = made.assign_coords(role=(("item", "position"), token_roles(job)))
        words = token_words(model, job)
        made = made.assign_coords(token=(("item", "position"), words))
    for which, metric in enumerate(job.metrics):
        units = {"units": UNITS[metric]}
        values = table.values[which].reshape(len(job.prompt), *grid.shape)
        made[metric] = (dims, values, units)
        made[f"clean_{metric}"] = ("item", table.clean[which], units)
        if isinstance(job.source, Prompt) and metric in FROM_SOURCE:
            made[f"source_{metric}"] = ("item", table.source[which], units)
    path, reason = path_of(model, job.prompt)
    made.attrs = {
        "path": path,
        "path_reason": reason,
        "left_out": {str(row): why for row, why in sorted(missing.items())},
        "cells": len(grid),
    }
    models = {"model": model}
    if isinstance(job.source, FromModel):
        models["backbone"] = job.source.pair.backbone
    about = origin(**models)
    return with_text(
        with_provenance(
            made,
            about,
            settings={key: value for key, value in settings.items() if key not in about},
            seed=job.source.seed if isinstance(job.source, Noise) else None,
        )
    )
