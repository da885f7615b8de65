"""Whether an attribution says what intervening would: some of its places, patched exactly."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import xarray as xr

from interventions.architectures.wrapped import where_the_model_is
from interventions.attribution.passes import Pass, forward
from interventions.attribution.sides import (
    Given,
    Scored,
    contrast_digest,
    contrast_of,
    metric_of,
    same_metric,
    scored,
    side_digest,
)
from interventions.errors import ResultsError
from interventions.given import of_kind, seed_of, whole
from interventions.model.model import Model
from interventions.model.sites import head_width, of_head, of_vision
from interventions.results import differences, read_provenance, with_provenance
from interventions.running.patches import Patch
from interventions.running.run import run
from interventions.sweeping.contrast import Contrast
from interventions.sweeping.metrics import Answers, Metric
from interventions.sweeping.replay import replay

RESAMPLES = 1000
Sample = Literal["top", "random"]
ASKED = ("metric", "prompt", "source", "roles", "read_roles", "each", "by_role")
"""Attributes that say what was asked."""
NO_ATTRIBUTION = "this Dataset is no attribution of this version. Give what iv.attribute returned."
SAMPLES: tuple[Sample, ...] = ("top", "random")


@dataclass(frozen=True)
class Cell:
    """One place of a map: item and column by number; ``head`` is None but for heads."""

    item: int
    component: str
    layer: int
    column: int
    head: int | None


def verify(
    model: Model,
    scores: xr.Dataset,
    prompt: Given,
    source: Given,
    *,
    answers: Answers | None = None,
    foils: Answers | None = None,
    metric: Metric | None = None,
    k: int = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Patch some places of an attribution exactly, and say how far it agrees.

    For each component, the ``k`` places of the largest scores (of either sign, over all items) and
    ``k`` drawn from all whose score is not 0 are patched, each alone. The random ones say how far
    the map as a whole can be trusted, the top ones whether what stands out is real and in the right
    order.

    Parameters
    ----------
    model, prompt, source, answers, foils
        What :func:`interventions.attribute` was given.
    metric : callable, optional
        The same again, where it was a function: results hold its name and no code.
    scores : Dataset
        What it returned.
    k : int
    seed : int
        For the draw and the bootstrap.

    Returns
    -------
    Dataset
        ``scores`` with ``spearman`` (component, sample): rank correlation of score and exact
        effect, ``spearman_low`` and ``spearman_high``: its 95 % interval, bootstrap over places;
        ``pearson``, for which large effects count most; ``sign_agreement``: share of places where
        both have the same sign; ``n_checked``. And every
        place that was patched (checked): ``checked_score`` and ``checked_effect`` in nats,
        ``checked_component``, ``checked_item``, ``checked_layer``, ``checked_column``,
        ``checked_head`` (-1: none), and whether it is ``checked_top`` or ``checked_random``.

    Raises
    ------
    ResultsError
        If the Dataset is no attribution, or one of other prompts, of the same the other way
        round, of another model, or of what the model was before it changed.
    """
    k, seed = whole(k, "k", least=1), seed_of(seed)
    of_kind(scores, xr.Dataset, "scores", error=ResultsError)
    if not {"score", "item", "component", "layer"} <= {*scores.variables} or any(
        name not in scores.attrs for name in ASKED
    ):
        raise ResultsError(NO_ATTRIBUTION)
    scores = _whole_map(scores)
    try:
        roles, read_roles = (json.loads(scores.attrs[name]) for name in ("roles", "read_roles"))
    except ValueError:  # not JSON: written over by hand
        raise ResultsError(NO_ATTRIBUTION) from None
    each, by_role = (bool(scores.attrs[name]) for name in ("each", "by_role"))
    contrast = contrast_of(
        model,
        prompt,
        source,
        answers=answers,
        foils=foils,
        metric=same_metric(
            scores.attrs["metric"],
            metric,
            made_by="iv.attribute",
            otherwise=", or check at once: iv.attribute(..., verify=k)",
        ),
        roles=roles,
        read_roles=read_roles,
        each=each,
        by_role=by_role,
        of="tower" if any(map(of_vision, scores["component"].values.tolist())) else "text",
    )
    columns = scores[scores["score"].dims[-1]].values.tolist()
    if contrast.items != scores["item"].values.tolist() or len(contrast.columns.tokens) != len(
        columns
    ):
        raise ResultsError(
            f"the scores have {scores.sizes['item']} items and {len(columns)} columns; these "
            f"prompts give {len(contrast.items)} and {len(contrast.columns.tokens)}. Give the same "
            "prompts."
        )
    if columns != (list(range(len(columns))) if contrast.each else list(contrast.columns.names)):
        raise ResultsError(
            f"the scores' columns {columns[:8]} are not in the order of the prompts, so they would "
            "be compared with the effects of other tokens. Give what iv.attribute returned."
        )
    _check_origin(model, contrast, scores)
    return add_agreement(model, contrast, scores, k=k, seed=seed)


def _whole_map(scores: xr.Dataset) -> xr.Dataset:
    """The scores with the axes in their order; refuse those that lack one, or the heads.

    Some of the layers or components are a map too, and are checked as they are.
    """
    column = "role" if "role" in scores["score"].dims else "position"
    axes = ("item", "component", "layer", column)
    if lacking := [axis for axis in axes if axis not in scores["score"].dims]:
        raise ResultsError(
            f"the scores have no axis {', '.join(lacking)}. Select with a list, such as "
            f"scores.isel({lacking[0]}=[0]), which keeps it, or give what iv.attribute returned."
        )
    divided = [name for name in scores["component"].values.tolist() if of_head(name)]
    if divided and "head_score" not in scores:
        raise ResultsError(
            f"the scores of {divided[0]} are checked head by head, and head_score is not there. "
            "Give what iv.attribute returned, or leave it out: "
            f'scores.drop_sel(component="{divided[0]}").'
        )
    return scores.transpose(*axes, "head", ..., missing_dims="ignore")


def _check_origin(model: Model, contrast: Contrast, scores: xr.Dataset) -> None:
    """Refuse scores of another model, of what the model was before, or of other prompts."""
    provenance = read_provenance(scores)
    settings = provenance.get("settings", {})
    lines = differences(provenance.get("model", {}).get("fingerprint", {}), model.fingerprint())
    sides = [side_digest(contrast.run), side_digest(contrast.source)]
    if sides[0] != sides[1] and sides[::-1] == [settings.get("prompt"), settings.get("source")]:
        lines.append("prompt and source, which are the other way round")
    elif settings.get("contrast") != contrast_digest(contrast):
        lines.append("the prompts, answers, foils or metric")
    if lines:
        raise ResultsError(
            "these scores were made with something else than what is given now:\n  "
            + "\n  ".join(lines)
            + "\nGive what iv.attribute was given, or attribute again."
        )


def add_agreement(
    model: Model, contrast: Contrast, scores: xr.Dataset, *, k: int, seed: int
) -> xr.Dataset:
    """Patch places of a contrast exactly; see :func:`verify`."""
    rng = np.random.default_rng(seed)
    picked: dict[Cell, tuple[float, set[Sample]]] = {}
    for name in scores["component"].values.tolist():
        for sample, cells in zip(SAMPLES, _picked(scores, name, k, rng), strict=True):
            for cell, score in cells:
                picked.setdefault(cell, (score, set()))[1].add(sample)
    cells = list(picked)
    effects = dict(zip(cells, exact_effects(model, contrast, cells), strict=True))
    checked = xr.Dataset(
        {
            "checked_score": ("checked", np.array([picked[cell][0] for cell in cells])),
            "checked_effect": ("checked", np.array([effects[cell] for cell in cells])),
            "checked_component": (
                "checked",
                np.array([cell.component for cell in cells], dtype=object),
            ),
            "checked_item": ("checked", np.array([contrast.items[cell.item] for cell in cells])),
            "checked_layer": ("checked", np.array([cell.layer for cell in cells])),
            "checked_column": ("checked", np.array([cell.column for cell in cells])),
            "checked_head": (
                "checked",
                np.array([-1 if cell.head is None else cell.head for cell in cells]),
            ),
            **{
                f"checked_{sample}": (
                    "checked",
                    np.array([sample in picked[cell][1] for cell in cells]),
                )
                for sample in SAMPLES
            },
        }
    )
    numbers = _agreement(scores["component"].values.tolist(), checked, rng)
    # What an earlier check found makes room.
    agreement = xr.merge([checked, numbers])
    plain = scores.drop_vars([name for name in scores.variables if name in agreement.data_vars])
    verified = xr.merge([plain, agreement], combine_attrs="override")
    verified.attrs = {
        **scores.attrs,
        "verified": f"up to {k} top and {k} random places per component, patched exactly",
    }
    about = read_provenance(scores)
    settings = {**about.pop("settings", {}), "verify": k}
    return with_provenance(verified, about, settings=settings, seed=seed)


def _picked(
    scores: xr.Dataset, component: str, k: int, rng: np.random.Generator
) -> tuple[list[tuple[Cell, float]], list[tuple[Cell, float]]]:
    """The places of largest score, and some at random, of those that have one."""
    heads = of_head(component)
    data = scores["head_score"] if heads else scores["score"].sel(component=component)
    values = data.values
    # Where both runs are the same, score and effect are 0 by construction, which proves nothing.
    flat = np.flatnonzero(np.isfinite(values) & (values != 0))
    if not len(flat):
        flat = np.flatnonzero(np.isfinite(values))
    layers = scores["layer"].values

    def cell(i: int) -> tuple[Cell, float]:
        item, layer, column, *head = np.unravel_index(i, values.shape)
        which = int(head[0]) if heads else None
        place = Cell(int(item), component, int(layers[layer]), int(column), which)
        return place, float(values.flat[i])

    top = flat[np.argsort(-np.abs(values.flat[flat]), kind="stable")[:k]]
    drawn = rng.choice(flat, size=min(k, len(flat)), replace=False)
    return [cell(i) for i in top], [cell(i) for i in drawn]


@where_the_model_is
def exact_effects(model: Model, contrast: Contrast, cells: Sequence[Cell]) -> np.ndarray:
    """Change of the metric when each place alone gets the source's value, nats, [cell]."""
    effects = np.full(len(cells), np.nan)
    for item in sorted({cell.item for cell in cells}):
        mine = [i for i, cell in enumerate(cells) if cell.item == item]
        part = contrast.rows([item])
        places = list(dict.fromkeys((cells[i].component, cells[i].layer) for i in mine))
        source = forward(model, part, "source", places)  # pyright: ignore[reportArgumentType]
        side = scored(part, "run")
        patches = [
            [*side.before, _patch(model, part, side, cells[i], source, places)] for i in mine
        ]
        at = part.target.positions(side.prompt)
        unpatched = run(model, side.prompt, patches=side.before, logits=at).logits
        values = [
            float(metric_of(part, logits)[0])
            for logits in (unpatched, *replay(model, side.prompt, patches, logits=at))
            if logits is not None
        ]
        effects[mine] = np.array(values[1:]) - values[0]
    return effects


def _patch(
    model: Model,
    contrast: Contrast,
    side: Scored,
    cell: Cell,
    source: Pass,
    places: Sequence[tuple[str, int]],
) -> Patch:
    """The source's value at one place of the only item, as a patch."""
    value = source.values[places.index((cell.component, cell.layer))]
    _, column, mask = contrast.read_columns.flat()
    value = value[:, (mask[0] & (column[0] == cell.column)).to(value.device)]
    if cell.head is not None:
        value = value.unflatten(-1, (-1, head_width(model, cell.component)))[:, :, cell.head]  # pyright: ignore
    tokens = torch.tensor([contrast.columns.tokens[cell.column][0]]).repeat(len(value), 1)
    there = torch.ones_like(tokens, dtype=torch.bool)
    at = replace(side.at, index=tokens, mask=there, role="a place")
    return Patch(cell.component, cell.layer, at, value, heads=cell.head)  # pyright: ignore


def _agreement(names: list[str], checked: xr.Dataset, rng: np.random.Generator) -> xr.Dataset:
    shape = (len(names), len(SAMPLES))
    statistics = {
        name: np.full(shape, np.nan)
        for name in ("spearman", "spearman_low", "spearman_high", "pearson", "sign_agreement")
    }
    n = np.zeros(shape, dtype=int)
    for i, name in enumerate(names):
        for j, sample in enumerate(SAMPLES):
            mine = (checked["checked_component"].values == name) & checked[
                f"checked_{sample}"
            ].values
            score, effect = (
                checked[key].values[mine] for key in ("checked_score", "checked_effect")
            )
            n[i, j] = len(score)
            if not n[i, j]:
                continue
            statistics["sign_agreement"][i, j] = np.mean(np.sign(score) == np.sign(effect))
            statistics["spearman"][i, j] = spearman(score, effect)
            statistics["pearson"][i, j] = correlation(score, effect)
            draws = rng.integers(len(score), size=(RESAMPLES, len(score)))
            again = _resampled_spearman(score, effect, draws)
            if (again := again[np.isfinite(again)]).size:
                low, high = np.quantile(again, (0.025, 0.975))
                statistics["spearman_low"][i, j], statistics["spearman_high"][i, j] = low, high
    dims = ("component", "sample")
    return xr.Dataset(
        {**{name: (dims, value) for name, value in statistics.items()}, "n_checked": (dims, n)},
        coords={"component": names, "sample": list(SAMPLES)},
    )


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank. NaN where one of the two is constant.

    Examples
    --------
    >>> spearman(np.array([1.0, 2.0, 30.0]), np.array([-5.0, 0.0, 1.0]))
    1.0
    """
    return float(_resampled_spearman(left, right, np.arange(len(left))[None])[0])


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's correlation. NaN where one of the two is constant."""
    return float(_correlations(left[None], right[None])[0])


def _correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each row [row, place]."""
    a = left - left.mean(-1, keepdims=True)
    b = right - right.mean(-1, keepdims=True)
    size = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    nowhere = np.full(len(left), np.nan)
    return np.divide((a * b).sum(-1), size, out=nowhere, where=size > 0)


def _resampled_spearman(left: np.ndarray, right: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Rank correlation of each resample, of the places in a row of ``draws`` [resample, place]."""
    return _correlations(_ranks(left, draws), _ranks(right, draws))


def _ranks(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Ranks of values among those of their resample, by how often each distinct one is drawn."""
    distinct, which = np.unique(values, return_inverse=True)
    drawn = which[draws]
    rows = np.arange(len(draws))[:, None]
    places = (rows * len(distinct) + drawn).ravel()
    counts = np.bincount(places, minlength=len(draws) * len(distinct)).reshape(len(draws), -1)
    ranks = counts.cumsum(-1) - (counts - 1) / 2
    return ranks[rows, drawn]
