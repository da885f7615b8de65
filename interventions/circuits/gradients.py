"""The metric's gradient with respect to what every receiver reads: one forward, one backward pass.

Receivers read copies of the residual stream, so that each has a gradient of its own, through the
norm in front of it. Of queries, keys and values the pass gives the gradients behind their
projection, which take little room; they are brought in front of projection and norm head by head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import nnsight
import torch

from interventions.attribution.passes import check_finite, frozen_weights
from interventions.attribution.sides import Scored, metric_of
from interventions.circuits.flow import Written
from interventions.circuits.graph import PARTS
from interventions.circuits.layout import Entry, Layout, Projection, is_plain, projected
from interventions.circuits.nodes import mlp_input, module_of, normed
from interventions.model.model import Model
from interventions.model.sites import rank_of
from interventions.prompt.positions import answered_at, write_at
from interventions.running.patches import Patch
from interventions.sweeping.contrast import Contrast


@dataclass(frozen=True)
class Slopes:
    """Values and gradients of one run.

    Attributes
    ----------
    written : Written
        What the senders wrote.
    entry : Tensor [row, position, d_model]
        What entered the first block.
    streams : list of Tensor [row, position, d_model]
        What enters each block.
    projected : list of dict of str to Tensor [row, position, head * head_dim]
        Of each block: gradients of its queries, keys and values.
    read : list of dict of str to Tensor [row, position, d_model]
        Of each block: gradients of what ``"attn"``, as a whole, and ``"mlp"`` read.
    logits : Tensor [row, position, d_model]
        That of what the final norm reads.
    metric : Tensor [item]
    """

    written: Written
    entry: torch.Tensor
    streams: list[torch.Tensor]
    projected: list[dict[str, torch.Tensor]]
    read: list[dict[str, torch.Tensor]]
    logits: torch.Tensor
    metric: torch.Tensor


class _Climb:
    """A pass on its way up the blocks, with the values that gradients are wanted of."""

    def __init__(self, model: Model, layout: Layout) -> None:
        self.model, self.layout = model, layout
        self.live: list[torch.Tensor] = []
        self.names: list[tuple[int, str]] = []  # of each of them: block, by its place, and part
        self.streams: list[torch.Tensor] = []
        self.written: list[dict[int, torch.Tensor]] = [{}, {}, {}, {}]
        self.entry = self.final = torch.empty(0)

    def go(self, before: Sequence[Patch], entry: torch.Tensor | None) -> None:
        """Follow the forward pass to the final norm; ``entry`` enters the first block."""
        model, above = self.model, None
        for which, parts in enumerate(self.layout.entries):
            block = model.blocks[parts.layer]
            hidden = block.input
            if above is None:
                hidden = (hidden if entry is None else entry.to(hidden)).detach()
                for patch in before if entry is None else ():
                    hidden = write_at(hidden, patch.positions, patch.value)
                self.entry = hidden.clone()
                hidden = self.entry.clone().requires_grad_()
                block.input = hidden
                self._keep(0, parts.layer, hidden)
            elif model.anatomy.added_between and model.running_images:
                self._keep(0, parts.layer, hidden - above.to(hidden.device))
            self.streams.append(hidden.detach())
            above = self._block(which, parts, hidden)
        self.final = self._copy(len(self.layout.entries), "logits", model.final_norm.input)
        model.final_norm.input = self.final

    def _block(self, which: int, parts: Entry, hidden: torch.Tensor) -> torch.Tensor:
        model, layer = self.model, parts.layer
        block = model.blocks[layer]
        if not parts.projections:
            value = normed(model, parts, parts.attention_norm, self._copy(which, "attn", hidden))
            block.get(parts.attention).input = value
        order = sorted(parts.projections, key=lambda part: rank_of(model, part, layer))  # pyright: ignore
        for part in order:
            stream = getattr(model, part)
            value = stream.live(layer)
            stream.replace(layer, value)  # a view of what runs would be beside the graph
            self.live.append(value)
            self.names.append((which, part))
        if parts.heads:
            self._keep(1, layer, model.head_out.live(layer))
        total = model.attn_out.live(layer)
        middle = hidden
        if not parts.parallel:
            reader = block.get(parts.mlp if parts.mlp_norm is None else parts.mlp_norm)
            middle = reader.input.reshape(hidden.shape)
        self._keep(2, layer, middle - hidden.to(middle.device) if parts.measured else total)
        part = block.get(parts.mlp)
        value = mlp_input(model, parts, self._copy(which, "mlp", middle))
        part.input = value.reshape(part.input.shape)
        result = model.mlp_out.live(layer)
        above = hidden
        if parts.measured or (model.anatomy.added_between and model.running_images):
            above = block.output
            above = above[0] if isinstance(above, tuple) else above
        self._keep(3, layer, above - middle.to(above.device) if parts.measured else result)
        return above

    def _copy(self, which: int, name: str, value: torch.Tensor) -> torch.Tensor:
        copy = value.clone()
        self.live.append(copy)
        self.names.append((which, name))
        return copy

    def _keep(self, part: int, layer: int, value: torch.Tensor) -> None:
        self.written[part][layer] = value.detach().clone()


def slopes(
    model: Model,
    layout: Layout,
    contrast: Contrast,
    side: Scored,
    *,
    entry: torch.Tensor | None = None,
) -> Slopes:
    """Run a prompt forward, and its metric backward to all that receivers read.

    Parameters
    ----------
    model : Model
    layout : Layout
    contrast : Contrast
        For the metric.
    side : Scored
        What runs.
    entry : Tensor [row, position, d_model], optional
        Enters the first block.

    Raises
    ------
    PatchError
        If the metric or a gradient is NaN.
    """
    prompt = side.prompt
    answer = contrast.target.positions(prompt)
    keep = prompt.length - int(answer.index[answer.mask].min())
    climb = _Climb(model, layout)
    with frozen_weights(model), model.trace(prompt, logits_to_keep=keep, use_cache=False):
        climb.go(side.before, entry)
        model.head.input = model.head.input.contiguous()  # as in interventions.run
        logits = model.nn.output.logits
        final = climb.final if contrast.target.resid else None
        answered = answered_at(logits, answer, prompt.length - keep, final)
        metric = metric_of(contrast, answered)
        gradients = nnsight.save(
            list(torch.autograd.grad(metric.sum(), climb.live, allow_unused=True))
        )
        metric = nnsight.save(metric.detach())
    gradients = [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(climb.live, gradients, strict=True)
    ]
    real = prompt.inputs["attention_mask"].bool()[:, -prompt.length :]
    check_finite(metric, [gradient[real.to(gradient.device)] for gradient in gradients])
    into: list[dict[str, torch.Tensor]] = [{} for _ in range(len(layout.entries) + 1)]
    for (which, name), gradient in zip(climb.names, gradients, strict=True):
        into[which][name] = gradient
    return Slopes(
        written=Written(*climb.written),
        entry=climb.entry,
        streams=climb.streams,
        projected=[{k: v for k, v in own.items() if k in PARTS} for own in into[:-1]],
        read=[{k: v for k, v in own.items() if k not in PARTS} for own in into[:-1]],
        logits=into[-1]["logits"],
        metric=metric,
    )


def receiver_slopes(model: Model, layout: Layout, run: Slopes, which: int) -> torch.Tensor:
    """Gradients with respect to what attention's receivers of a block read.

    Returns
    -------
    Tensor [receiver, row, position, d_model]
    """
    parts = layout.entries[which]
    if not parts.projections:
        return run.read[which]["attn"][None]
    with frozen_weights(model):
        hidden = run.streams[which].detach().clone().requires_grad_()
        given = normed(model, parts, parts.attention_norm, hidden)
        above = [
            _in_front(model, parts, parts.projections[part], given, run.projected[which][part])
            for part in PARTS
        ]
        cotangents = torch.cat(above)
        if parts.attention_norm is None:
            return cotangents
        # The norm acts on each token alone: its heads are run through it as rows.
        several = hidden.detach().expand(len(cotangents), *hidden.shape).clone().requires_grad_()
        value = normed(model, parts, parts.attention_norm, several.flatten(0, 1))
        [gradient] = torch.autograd.grad(value, several, cotangents.flatten(0, 1).to(value))
    return gradient


def _in_front(
    model: Model,
    parts: Entry,
    projection: Projection,
    given: torch.Tensor,
    slope: torch.Tensor,
) -> torch.Tensor:
    """Gradients of a projection's heads, each alone, with respect to what attention is given.

    ``slope`` [row, position, head * head_dim]; returns [head, row, position, d_model].
    """
    block = model.blocks[parts.layer]
    split = slope.unflatten(-1, (projection.heads, -1))
    module = module_of(model, parts, projection.linear)
    if is_plain(module) and (projection.norm is None or projection.by_head):
        if projection.norm is not None:
            raw = module(given).detach().unflatten(-1, (projection.heads, -1)).requires_grad_()
            [split] = torch.autograd.grad(block.get(projection.norm)(raw), raw, split)
        weight = module.weight.unflatten(0, (projection.heads, -1))
        return torch.einsum("rphe,hed->hrpd", split, weight)
    given = given.detach().requires_grad_()
    value = projected(block, projection, given)
    alone = []
    for head in range(projection.heads):
        only = torch.zeros_like(split)
        only[:, :, head] = split[:, :, head]
        [gradient] = torch.autograd.grad(value, given, only, retain_graph=True)
        alone.append(gradient)
    return torch.stack(alone)
