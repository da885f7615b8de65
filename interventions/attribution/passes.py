"""Forward and backward passes of a contrast: values at its places, and the metric's gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import nnsight
import torch

from interventions.attribution.sides import Which, metric_of, scored
from interventions.errors import PatchError
from interventions.model.model import Model
from interventions.model.sites import Component, Site
from interventions.model.vision import stream_of
from interventions.prompt.positions import Positions, answered_at, read_padded, write_at
from interventions.running.gradients import frozen_weights
from interventions.running.run import run
from interventions.sweeping.contrast import Contrast

Place = tuple[Component, int]
"""A component and a layer."""


@dataclass(frozen=True)
class Pass:
    """What a pass gave, rows repeated for foils.

    Attributes
    ----------
    values : list of Tensor [row, n, width]
        One per place, at the tokens of all columns; meaningless where there is none.
    entry : Tensor [row, position, d_model]
        What enters the first block.
    metric : Tensor [item]
    """

    values: list[torch.Tensor]
    entry: torch.Tensor
    metric: torch.Tensor


@dataclass(frozen=True)
class Gradients(Pass):
    """The same with the gradient of the summed metric with respect to each value.

    Attributes
    ----------
    slopes : list of Tensor [row, n, width]
    entry_slope : Tensor [row, position, d_model] or None
        None if a value was written, for then nothing below it has a gradient, and where places are
        of the vision tower, which is below it.
    """

    slopes: list[torch.Tensor]
    entry_slope: torch.Tensor | None


def forward(model: Model, contrast: Contrast, which: Which, places: Sequence[Place]) -> Pass:
    """Read every place of one side."""
    side = scored(contrast, which)
    at = replace(side.at, mask=torch.ones_like(side.at.mask))  # so that it is no ragged read
    sites = [Site(component, layer, at) for component, layer in places]
    result = run(
        model,
        side.prompt,
        patches=side.before,
        reads=[Site("resid_pre", 0), *sites],
        logits=contrast.target.positions(side.prompt),
    )
    assert result.logits is not None
    metric = metric_of(contrast, result.logits)
    entry, *values = result.reads
    check_finite(metric, [])
    flat = [value.flatten(2) for value in values]  # heads side by side
    return Pass(flat, entry, metric)


def backward(
    model: Model,
    contrast: Contrast,
    places: Sequence[Place],
    *,
    entry: torch.Tensor | None = None,
    write: torch.Tensor | None = None,
) -> Gradients:
    """Run the side that is patched forward, and the metric backward.

    Only what is computed from the first block on, or from the first place in the vision tower, or
    from the place written to, is kept for the backward pass: weights and embeddings get no
    gradients.

    Parameters
    ----------
    model : Model
    contrast : Contrast
    places : sequence of (component, layer)
        In the order of computation.
    entry : Tensor [row, position, d_model], optional
        Enters the first block.
    write : Tensor [row, n, width], optional
        Written at the one place, at the tokens of all columns.

    Raises
    ------
    PatchError
        If the metric or a gradient is NaN.
    """
    side = scored(contrast, "run")
    prompt, at = side.prompt, side.at
    answer = contrast.target.positions(prompt)
    keep = prompt.length - int(answer.index[answer.mask].min())
    live: list[torch.Tensor] = []
    tower = contrast.of_tower  # whose gradients come back through what enters the first block
    hidden: torch.Tensor = torch.empty(0)
    with frozen_weights(model), model.trace(prompt, logits_to_keep=keep, use_cache=False):
        if not tower:
            hidden = model.blocks[0].input.detach() if entry is None else entry.detach()
            for patch in side.before if entry is None else ():
                hidden = write_at(hidden, patch.positions, patch.value)
            hidden = hidden.clone().requires_grad_(write is None)
            model.blocks[0].input = hidden
        for component, layer in places:
            stream = stream_of(model, component)
            value = stream.live(layer)
            if write is not None:
                value = _put(value, at, write).requires_grad_()
            elif not value.requires_grad:
                value = value.clone().requires_grad_()  # of the image alone: cross-attention
            stream.replace(layer, value)  # a view of what runs would be beside the graph
            live.append(value)
        final = model.final_norm.input if contrast.target.resid else None
        model.head.input = model.head.input.contiguous()  # as in interventions.run
        logits = model.nn.output.logits
        answered = answered_at(logits, answer, prompt.length - keep, final)
        metric = metric_of(contrast, answered)
        gradients = torch.autograd.grad(
            metric.sum(), live if tower or write is not None else [*live, hidden]
        )
        values = nnsight.save([read_padded(value.detach(), at) for value in live])
        slopes = nnsight.save(
            [read_padded(gradient, at, copy=False) for gradient in gradients[: len(live)]]
        )
        entries = nnsight.save([hidden.detach(), *gradients[len(live) :]])
        result = nnsight.save(metric.detach())
    # Summed first, in which a NaN stays one: of all numbers alone, comparing takes as long again.
    check_finite(result, [slope.sum(-1)[at.mask.to(slope.device)] for slope in slopes])
    return Gradients(values, entries[0], result, slopes, entries[1] if len(entries) > 1 else None)


def _put(hidden: torch.Tensor, at: Positions, value: torch.Tensor) -> torch.Tensor:
    mask = at.mask.to(hidden.device)
    rows = torch.arange(at.n_rows, device=hidden.device)[:, None].expand_as(mask)[mask]
    changed = hidden.detach().clone()
    changed[rows, at.index.to(hidden.device)[mask]] = value.to(changed)[mask]
    return changed


def check_finite(metric: torch.Tensor, slopes: Sequence[torch.Tensor]) -> None:
    """Refuse to go on from NaN.

    Raises
    ------
    PatchError
    """
    if rows := torch.isnan(metric).nonzero().flatten().tolist():
        raise PatchError(
            f"the metric of row(s) {rows[:8]} is NaN. Check those prompts or the baseline; in half "
            "precision try bfloat16 or float32."
        )
    if any(bool(torch.isnan(slope).any()) for slope in slopes):
        raise PatchError(
            "a gradient is NaN, though the metric is not. Eager attention does this to padded rows "
            'in half precision: load with attn_implementation="sdpa", or give rows of equal length.'
        )
