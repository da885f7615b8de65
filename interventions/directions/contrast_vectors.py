"""Steering vectors: the difference of means of two sets of prompts, checked on prompts held out.

After Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition" (ACL 2024), and Marks
and Tegmark, "The Geometry of Truth" (COLM 2024): difference-in-means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from interventions.architectures.wrapped import where_the_model_is
from interventions.directions.separation import INTERVAL, auc, auc_interval, mean_interval, split
from interventions.errors import PromptError, SiteError
from interventions.given import number, one_or_several, seed_of, shown, whole
from interventions.model.fingerprints import Unchanged
from interventions.model.model import Model
from interventions.model.sites import RESIDUAL, Component, Layers, Site, check_place
from interventions.prompt.positions import Positions
from interventions.prompt.prompt import Prompt
from interventions.results import provenance, with_provenance
from interventions.running.budget import Budget
from interventions.running.checking import check_asked
from interventions.running.patches import Patch
from interventions.running.run import run_checked
from interventions.sweeping.grid import chosen_layers
from interventions.sweeping.metrics import (
    Answers,
    Metric,
    Target,
    measured_by,
    target,
    unit_of,
)
from interventions.sweeping.own_metrics import (
    check_own,
    is_own,
    metric_digest,
    metric_name,
    needs_resid,
)
from interventions.sweeping.replay import replayed, run_clean
from interventions.sweeping.schedule import cell, groups, path_of

BATCH_TOKENS = 4096
STEERED_ROWS = 16
"""Rows of a batch, of which every layer and control is a row of its own."""
LEAST_CONTROLS = 2


def contrast_vectors(
    model: Model,
    positive: Prompt,
    negative: Prompt,
    *,
    role: str = "last",
    index: int | None = None,
    component: Component = "resid_post",
    layers: Layers | None = None,
    metric: Metric | None = None,
    answers: Answers | None = None,
    foils: Answers | None = None,
    scale: float = 1.0,
    held_out: float = 0.3,
    controls: int = 20,
    seed: int = 0,
    budget: int | None = None,
) -> xr.Dataset:
    """Find a steering vector for each layer, and check it on prompts it was not made of.

    The vector is the mean of the positive prompts less that of the negative ones, at one token of
    each. On the prompts held out it is asked whether it separates the two (AUC of the projection
    onto it), and, given a metric, whether adding it to the negative ones moves that, and more than
    random vectors of its length do.

    Parameters
    ----------
    model : Model
        On a server, one request.
    positive, negative : Prompt
        Rows with and without what the vector is to be of. Where they are as many, rows side by
        side are taken for versions of one prompt, and are held out together.
    role : str
    index : int, optional
        The token, as in :meth:`interventions.Prompt.at`: one per row.
    component : {"resid_post", "resid_pre", "attn_out", "mlp_out"}
    layers : int, slice or list of int, optional
        Default: all that run.
    metric : str or callable, optional
        As of :func:`interventions.sweep`. None: only the separation is checked.
    answers, foils : str, or sequence of str or of token ids, optional
        For the metric; one text for all, or one per row of ``negative``.
    scale : float
        By which a vector is multiplied as it is added.
    held_out : float
        Share of the rows of each set; at least 4, with as many to fit on.
    controls : int
        Random vectors for each layer, of its vector's length, in directions drawn evenly.
    seed : int
        For the rows held out, the random vectors and the bootstrap.
    budget : int, optional
        Bytes of memory that may be used. Default: part of what is free.

    Returns
    -------
    Dataset
        By ``layer``: ``vector`` [layer, d_model], which :func:`interventions.steering` takes as it
        is; ``norm``; ``auc``, with ``auc_low`` and ``auc_high``: its 95 % interval, bootstrap over
        prompts. With a metric also ``effect``: mean change of it on the negative prompts held out,
        ``effect_low``, ``effect_high``, bootstrap over them; ``control_effect`` [layer, control],
        ``control_low`` and ``control_high``: the middle 95 % of the controls; and ``p_control``:
        share of them, the vector itself counted among them, with an effect as large. ``baseline``:
        mean of the metric without any vector. ``held_out_positive`` and ``held_out_negative``:
        the rows.

    Raises
    ------
    PromptError
        For too few prompts, or a metric that does not fit.
    SiteError, RoleError
        For a place that is not there, or is several tokens.

    Examples
    --------
    >>> names = ["Marlow", "Brenn", "Tessin", "Belmora"] * 4
    >>> asked, told = (
    ...     llm.prompt([f"{lead} {name} is" for name in names])
    ...     for lead in ("Question : What of", "The capital of")
    ... )
    >>> vectors = iv.contrast_vectors(llm, asked, told, answers="Marlow", metric="logprob")
    >>> vectors["vector"].sizes
    Frozen({'layer': 8, 'd_model': 64})
    >>> towards = iv.steering(5, named.at("last"), vectors, steps="all")
    """
    check_asked(model, positive)
    check_asked(model, negative)
    if not isinstance(component, str) or component not in RESIDUAL:
        raise SiteError(
            f"a steering vector is of what adds up to the residual stream, not {shown(component)}. "
            f"Expected one of {', '.join(RESIDUAL)}."
        )
    seed, scale = seed_of(seed), number(scale, "scale", error=PromptError)
    controls = whole(controls, "controls", least=LEAST_CONTROLS, most=10_000)
    budget = None if budget is None else whole(budget, "budget", least=1)
    share = number(held_out, "held_out", least=0, error=PromptError)
    if not 0 < share < 1:
        raise PromptError(f"held_out={share:g}. Expected a share of the prompts: above 0, below 1.")
    out = split(len(positive), len(negative), share=share, seed=seed)
    images = positive.has_images and negative.has_images
    chosen = chosen_layers(model, layers, images=images)
    sides = [Side(prompt, _token(prompt, role, index)) for prompt in (positive, negative)]
    for side in sides:
        check_place(model, side.prompt, "a site", chosen, side.at)
    measured = None
    if metric is not None:
        measured = _measured(model, negative, metric, answers, foils)
    elif answers is not None or foils is not None:
        raise PromptError('answers are for a metric: give metric= too, such as "logit_diff".')
    asked = Asked(sides, out, component, chosen, measured, scale, controls, seed, budget)
    with Unchanged(model):
        values, numbers = steered(model, asked)
    dataset = _labelled(asked, values.float().cpu().numpy(), numbers)
    dataset.attrs = {"component": component, "role": role, "n_layers": model.n_layers}
    settings = {
        "positive": positive.digest,
        "negative": negative.digest,
        "at": [role, index],
        "component": component,
        "layers": chosen,
        "metric": None if metric is None else metric_name(metric),
        **({"metric_code": metric_digest(metric)} if is_own(metric) else {}),
        "answers": None if measured is None else measured.target.answers,
        "foils": None if measured is None else measured.target.foils,
        "scale": scale,
        "held_out": share,
        "controls": controls,
    }
    return with_provenance(dataset, provenance(model=model), settings=settings, seed=seed)


@dataclass(frozen=True)
class Side:
    """One of the two sets of prompts, and the token of each."""

    prompt: Prompt
    at: Positions


@dataclass(frozen=True)
class Measured:
    """A metric, and the answers that it looks at, of the negative prompts."""

    metric: Metric
    target: Target


@dataclass(frozen=True)
class Asked:
    """What is computed where the model is.

    Attributes
    ----------
    sides : list of Side
        Positive and negative.
    out : list of ndarray of bool [row]
        Rows of each that are held out.
    component, layers, measured, scale, controls, seed, budget
        As of :func:`contrast_vectors`.
    """

    sides: Sequence[Side]
    out: Sequence[np.ndarray]
    component: Component
    layers: list[int]
    measured: Measured | None
    scale: float
    controls: int
    seed: int
    budget: int | None


def _token(prompt: Prompt, role: str, index: int | None) -> Positions:
    at = prompt.at(role, index)
    if not at.single:
        raise SiteError(
            f"role {role!r} is several tokens, and a vector is of one token per row. Say which: "
            "index=-1 is the last."
        )
    return at


def _measured(model: Model, negative: Prompt, metric: Metric, answers: Any, foils: Any) -> Measured:
    [metric] = measured_by(metric, answers=answers is not None, foils=foils is not None)
    if is_own(metric):
        check_own(model, metric, gradient=False)
    read = [
        None if given is None else one_or_several(given, what)
        for given, what in ((answers, "answers"), (foils, "foils"))
    ]
    return Measured(metric, target(model, negative, *read, resid=needs_resid(metric)))


@where_the_model_is
def steered(model: Model, asked: Asked) -> tuple[torch.Tensor, np.ndarray | None]:
    """Values [layer, row, d_model] of all prompts; and the metric of the negative ones held out.

    That is [1 + layer x (1 + control), row]: without any vector, then each layer's vector and
    controls.
    """
    values = torch.cat([_values(model, side, asked) for side in asked.sides], 1)
    if asked.measured is None:
        return values, None
    vectors = mean_difference(values.float().cpu().numpy(), asked.out)
    cells = [
        _scaled(asked, np.concatenate([vector[None], random_vectors(vector, layer, asked)]))
        for layer, vector in zip(asked.layers, vectors, strict=True)
    ]
    rows = np.flatnonzero(asked.out[1]).tolist()
    size = 1 if model.anatomy.dependent_rows is not None else STEERED_ROWS
    parts = [_numbers(model, asked, rows[i : i + size], cells) for i in range(0, len(rows), size)]
    return values, np.concatenate(parts, -1)


def _scaled(asked: Asked, vectors: np.ndarray) -> np.ndarray:
    """What is added, [vector, d_model]; the model's own format is looked at where it is written."""
    added = asked.scale * vectors.astype(float)
    if np.abs(added).max() > float(np.finfo(np.float32).max):
        raise PromptError(
            f"scale={asked.scale:g} makes vectors that reach {np.abs(added).max():.3g}, which no "
            "state can hold. Add them by less."
        )
    return added.astype(np.float32)


def mean_difference(values: np.ndarray, out: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of positive rows less that of negative ones, of those not held out, [layer, d_model]."""
    n = len(out[0])
    return values[:, :n][:, ~out[0]].mean(1) - values[:, n:][:, ~out[1]].mean(1)


def random_vectors(vector: np.ndarray, layer: int, asked: Asked) -> np.ndarray:
    """Vectors as long as one [control, d_model], in directions that are drawn evenly."""
    rng = np.random.default_rng([asked.seed, layer])
    drawn = rng.standard_normal((asked.controls, len(vector)))
    unit = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
    return (unit * np.linalg.norm(vector)).astype(np.float32)


def _values(model: Model, side: Side, asked: Asked) -> torch.Tensor:
    """The component at the token of every row, [layer, row, d_model]."""
    size = max(1, BATCH_TOKENS // side.prompt.length)
    if model.anatomy.dependent_rows is not None:
        size = 1
    values = []
    for rows in torch.arange(len(side.prompt)).split(size):
        part, left = side.prompt.select(rows).trimmed()
        at = side.at.rows(rows).shifted(left, part.length)
        site = Site(asked.component, asked.layers, at)
        values += run_checked(model, part, reads=[site], logits=False).reads
    return torch.cat(values, 1)


def _numbers(
    model: Model, asked: Asked, rows: list[int], vectors: Sequence[np.ndarray]
) -> np.ndarray:
    """The metric of some rows, without and with each vector, [cell, row]."""
    measured, side = asked.measured, asked.sides[1]
    assert measured is not None
    chosen = measured.target.rows(rows)
    prompt, left = side.prompt.select(rows).trimmed()
    scored = chosen.scored(prompt)
    at = side.at.rows(rows).shifted(left, scored.length).rows([*range(len(rows))] * chosen.repeats)
    cells = [
        cell(model, [Patch(asked.component, layer, at, torch.from_numpy(vector), "add")])
        for layer, own in zip(asked.layers, vectors, strict=True)
        for vector in own
    ]
    path, _ = path_of(model, prompt)
    apart = model.anatomy.dependent_rows is not None
    clean = run_clean(model, scored, chosen.positions(scored), cells, path, apart=apart)
    first = clean.logits[: len(rows), 0]
    numbers = np.full((1 + len(cells), len(rows)), np.nan)
    numbers[0] = chosen.values(measured.metric, clean.logits, clean=first).detach().cpu().numpy()
    todo = groups(model, scored, cells, path, Budget.of(model, asked.budget))
    for group, logits in replayed(model, clean, cells, path, todo, apart=apart):
        for which, cell_logits in zip(group.cells, logits, strict=True):
            values = chosen.values(measured.metric, cell_logits, clean=first)
            numbers[1 + which] = values.detach().cpu().numpy()
    return numbers


def _labelled(asked: Asked, values: np.ndarray, numbers: np.ndarray | None) -> xr.Dataset:
    """Vectors and what was found about them, by layer."""
    out, n = asked.out, len(asked.out[0])
    vectors = mean_difference(values, out)
    sides = (values[:, :n][:, out[0]], values[:, n:][:, out[1]])
    scores = [np.einsum("lrd,ld->lr", side, vectors) for side in sides]
    intervals = [
        auc_interval(mine, theirs, seed=asked.seed) for mine, theirs in zip(*scores, strict=True)
    ]
    by_layer: dict[str, Any] = {
        "norm": np.linalg.norm(vectors, axis=-1),
        "auc": auc(*scores),
        "auc_low": [low for low, _ in intervals],
        "auc_high": [high for _, high in intervals],
    }
    dataset = xr.Dataset(
        {"vector": (("layer", "d_model"), vectors)},
        coords={
            "layer": asked.layers,
            "held_out_positive": np.flatnonzero(out[0]),
            "held_out_negative": np.flatnonzero(out[1]),
        },
    )
    if asked.measured is not None and numbers is not None:
        shape = (len(asked.layers), 1 + asked.controls, -1)
        changes = (numbers[1:] - numbers[0]).reshape(shape)
        means = changes.mean(-1)
        effect, drawn = means[:, 0], means[:, 1:]
        intervals = [mean_interval(own[0], seed=asked.seed) for own in changes]
        low, high = np.quantile(drawn, INTERVAL, axis=-1)
        as_large = (np.abs(drawn) >= np.abs(effect)[:, None]).sum(-1)
        by_layer |= {
            "effect": effect,
            "effect_low": [below for below, _ in intervals],
            "effect_high": [above for _, above in intervals],
            "control_low": low,
            "control_high": high,
            "p_control": (1 + as_large) / (1 + asked.controls),
        }
        unit = {
            "units": unit_of(asked.measured.metric),
            "metric": metric_name(asked.measured.metric),
        }
        dataset["control_effect"] = (("layer", "control"), drawn, unit)
        dataset["baseline"] = ((), float(numbers[0].mean()), unit)
    for name, column in by_layer.items():
        dataset[name] = ("layer", np.asarray(column, dtype=float))
        if name.startswith(("effect", "control")):
            dataset[name].attrs = dict(dataset["baseline"].attrs)
    return dataset
