"""Scores of every place of a contrast: a change of value times a slope, by four methods."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr

from interventions.architectures.wrapped import weightless, where_the_model_is
from interventions.attribution.passes import Place, backward, forward
from interventions.attribution.relevance import relevance_rules
from interventions.errors import SiteError
from interventions.model.model import Model
from interventions.model.sites import head_width, of_head
from interventions.sweeping.contrast import Contrast

Method = Literal["patching", "ig", "ig-activations", "relp"]
METHODS: dict[Method, str] = {
    "patching": "attribution patching",
    "ig": "integrated gradients along the input embeddings",
    "ig-activations": "integrated gradients along each component of each layer",
    "relp": "relevance patching (RelP)",
}


Scores = dict[str, tuple[str | tuple[str, ...], np.ndarray]]
"""Variables by name: their dims and values."""


@dataclass(frozen=True)
class _Estimate:
    """Scores of some items.

    ``products`` one per place [item, n, 1 or head]; ``metrics`` of the run and of the source
    [item]; ``error`` of completeness [item], or one per place [place, item].
    """

    products: list[torch.Tensor]
    metrics: tuple[torch.Tensor, torch.Tensor]
    error: torch.Tensor | None = None


def estimates(
    model: Model,
    contrasts: Sequence[Contrast],
    places: list[Place],
    method: Method,
    steps: int,
) -> list[xr.Dataset]:
    """Scores of the rows of each contrast, as Datasets without labels.

    Raises
    ------
    SiteError
        If the model is on a server that lets no gradients through.
    """
    parts = scores_of_each(model, contrasts, places, method, steps)
    if parts is None:
        raise SiteError(
            f"requests for {model.name} run in a process of their own on this server, as it does "
            "with keys that it does not trust; gradients do not get there, and attribution needs "
            "them. Patch exactly, which needs none: iv.sweep(model, prompt, source, "
            "answers=answers, foils=foils, metrics=metric, components=components). Or load the "
            "model here."
        )
    coords = {"component": _components(places), "layer": _layers(places)}
    return [xr.Dataset(data, coords=coords) for data in parts]


@where_the_model_is
def scores_of_each(
    model: Model,
    contrasts: Sequence[Contrast],
    places: list[Place],
    method: Method,
    steps: int,
) -> list[Scores] | None:
    """Scores of each contrast; None if the weights, and so gradients, are in another process."""
    if weightless(model):
        return None
    return [scores(model, contrast, places, method, steps) for contrast in contrasts]


def _components(places: list[Place]) -> list[str]:
    return list(dict.fromkeys(name for name, _ in sorted(places, key=lambda place: place[1])))


def _layers(places: list[Place]) -> list[int]:
    return sorted({layer for _, layer in places})


def scores(
    model: Model, contrast: Contrast, places: list[Place], method: Method, steps: int
) -> Scores:
    """Scores of some rows."""
    if method == "ig":
        estimate = _along_input(model, contrast, places, steps)
    elif method == "ig-activations":
        estimate = _along_activations(model, contrast, places, steps)
    else:
        estimate = _at_the_run(model, contrast, places, relevance=method == "relp")
    column = "position" if contrast.each else "role"
    layers, chosen = _layers(places), _components(places)
    shape = (len(contrast.items), len(chosen), len(layers), len(contrast.columns.tokens))
    score = np.full(shape, np.nan)
    heads: np.ndarray | None = None
    error = np.full(shape[:3], np.nan)
    for i, ((component, layer), product) in enumerate(zip(places, estimate.products, strict=True)):
        where = (slice(None), chosen.index(component), layers.index(layer))
        summed = _columns(contrast, product)
        if of_head(component):
            if heads is None:
                heads = np.full((shape[0], *shape[2:], summed.shape[-1]), np.nan)
            heads[:, layers.index(layer)] = summed
        score[where] = summed.sum(-1)
        if estimate.error is not None and estimate.error.ndim == 2:
            error[where] = estimate.error[i].cpu().numpy()
    dims = ("item", "component", "layer")
    data: Scores = {
        "score": ((*dims, column), score),
        "run_metric": ("item", estimate.metrics[0].cpu().double().numpy()),
        "source_metric": ("item", estimate.metrics[1].cpu().double().numpy()),
    }
    if heads is not None:
        data["head_score"] = (("item", "layer", column, "head"), heads)
    if estimate.error is not None:
        whole = estimate.error.ndim == 1
        value = estimate.error.cpu().double().numpy() if whole else error
        data["completeness_error"] = ("item" if whole else dims, value)
    return data


def _at_the_run(
    model: Model, contrast: Contrast, places: list[Place], *, relevance: bool
) -> _Estimate:
    """Gradient, or relevance coefficient, of the run itself."""
    source = forward(model, contrast, "source", places)
    with relevance_rules(model) if relevance else nullcontext():
        run = backward(model, contrast, places)
    products = [
        _product(model, contrast, place, value - own, slope)
        for place, value, own, slope in zip(
            places, source.values, run.values, run.slopes, strict=True
        )
    ]
    return _Estimate(products, (run.metric, source.metric))


def _along_input(model: Model, contrast: Contrast, places: list[Place], steps: int) -> _Estimate:
    """Mean gradient on the line between the embeddings of both sides."""
    run = forward(model, contrast, "run", places)
    source = forward(model, contrast, "source", places)
    products: list[torch.Tensor] = []
    whole = torch.zeros(())
    for alpha, weight in _points(steps):
        entry = run.entry + alpha * (source.entry - run.entry)
        gradients = backward(model, contrast, places, entry=entry)
        terms = [
            weight * _product(model, contrast, place, there - here, slope)
            for place, there, here, slope in zip(
                places, source.values, run.values, gradients.slopes, strict=True
            )
        ]
        products = [a + b for a, b in zip(products, terms, strict=True)] if products else terms
        assert gradients.entry_slope is not None
        moved = _wide(source.entry - run.entry) * _wide(gradients.entry_slope)
        whole = whole + weight * _of_items(contrast, moved.sum((-1, -2)))
    return _Estimate(products, (run.metric, source.metric), whole - (source.metric - run.metric))


def _along_activations(
    model: Model, contrast: Contrast, places: list[Place], steps: int
) -> _Estimate:
    """Mean gradient on the line between the values of each place, one place at a time."""
    run = forward(model, contrast, "run", places)
    source = forward(model, contrast, "source", places)
    mask = contrast.columns.flat()[2]
    products, errors = [], []
    for place, here, there in zip(places, run.values, source.values, strict=True):
        product = torch.zeros(())
        for alpha, weight in _points(steps):
            value = here + alpha * (there - here)
            [slope] = backward(model, contrast, [place], write=value).slopes
            product = product + weight * _product(model, contrast, place, there - here, slope)
        patched = backward(model, contrast, [place], write=there).metric
        # A block need not be where the embeddings are, nor where the head is.
        total = torch.where(mask.to(product.device), product.sum(-1), 0).sum(-1)
        errors.append(total.to(patched.device) - (patched - run.metric))
        products.append(product)
    return _Estimate(products, (run.metric, source.metric), torch.stack(errors))


def _points(steps: int) -> list[tuple[float, float]]:
    """Points in (0, 1) and weights of the Gauss-Legendre rule."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return [(float(p + 1) / 2, float(w) / 2) for p, w in zip(points, weights, strict=True)]


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _of_items(contrast: Contrast, value: torch.Tensor) -> torch.Tensor:
    """Sum over the rows that stand for an item's answer and its foil."""
    return value.unflatten(0, (contrast.target.repeats, -1)).sum(0)


def _product(
    model: Model, contrast: Contrast, place: Place, change: torch.Tensor, slope: torch.Tensor
) -> torch.Tensor:
    """Change times slope, summed over the width, or that of each head: [item, n, 1 or head]."""
    product = _wide(change) * _wide(slope.to(change.device))
    width = head_width(model, place[0]) if of_head(place[0]) else product.shape[-1]
    return _of_items(contrast, product.unflatten(-1, (-1, width)).sum(-1))


def _columns(contrast: Contrast, product: torch.Tensor) -> np.ndarray:
    """Sum the tokens of each column: [item, column, 1 or head]."""
    _, column, mask = contrast.columns.flat()
    value = torch.where(mask[..., None], product.cpu().double(), 0)
    shape = (len(value), len(contrast.columns.tokens), value.shape[-1])
    sums = torch.zeros(shape, dtype=torch.float64)
    sums.scatter_add_(1, column[..., None].expand_as(value), value)
    tokens = torch.zeros(shape[:2], dtype=torch.long).scatter_add_(1, column, mask.long())
    sums[tokens == 0] = torch.nan
    return sums.numpy()
