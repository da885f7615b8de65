"""Scores of every edge: what its sender writes in another run times the slope where it is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from interventions.architectures.wrapped import where_the_model_is
from interventions.attribution.estimates import _points
from interventions.attribution.sides import metric_of, scored
from interventions.circuits.flow import Written, flow
from interventions.circuits.gradients import Slopes, receiver_slopes, slopes
from interventions.circuits.graph import Graph
from interventions.circuits.layout import Layout, layout_of, unreachable
from interventions.circuits.nodes import attention_writes, scale_of
from interventions.circuits.places import Places, places_of
from interventions.model.model import Model
from interventions.returnable import returnable
from interventions.sweeping.contrast import Contrast

Method = Literal["eap", "ig", "clean-corrupted"]
METHODS: dict[Method, str] = {
    "eap": "edge attribution patching (EAP)",
    "ig": "EAP with integrated gradients along the input embeddings (EAP-IG)",
    "clean-corrupted": "EAP with the mean of the gradients of both runs",
}


@returnable
@dataclass(frozen=True)
class EdgeEstimate:
    """Scores of some items.

    Attributes
    ----------
    graph : Graph
    score : ndarray [item, edge, column], float32
        One column where they were not asked for.
    columns : list of str
    run, source : ndarray [item]
        The metric of each without anything carried.
    """

    graph: Graph
    score: np.ndarray
    columns: list[str]
    run: np.ndarray
    source: np.ndarray


@where_the_model_is
def edge_estimates(
    model: Model, contrasts: Sequence[Contrast], method: Method, steps: int, *, columns: bool
) -> list[EdgeEstimate] | str:
    """Scores of each contrast; a text says why there are none."""
    if why := unreachable(model):
        return why
    layout = layout_of(model, contrasts[0].prompt)
    return [_estimate(model, layout, part, method, steps, columns) for part in contrasts]


def _estimate(
    model: Model, layout: Layout, contrast: Contrast, method: Method, steps: int, columns: bool
) -> EdgeEstimate:
    run, source = scored(contrast, "run"), scored(contrast, "source")
    at = contrast.target.positions(source.prompt)
    there = flow(model, layout, source.prompt, at, before=source.before, keep=True)
    assert there.written is not None
    places = places_of(contrast, columns=columns)
    moved = there.written.moved(places.source, places.run)
    first = slopes(model, layout, contrast, run)
    product = EdgeProduct(model, layout, contrast, places, moved, first.written)
    if method == "eap":
        score = product.of(first)
    else:
        beginning = there.written.added[layout.entries[0].layer]
        # The line goes from one input to the other, whatever their tokens are called.
        points = [(0.0, 0.5), (1.0, 0.5)] if method == "clean-corrupted" else _points(steps)
        score = torch.zeros(())
        for alpha, weight in points:
            entry = first.entry + alpha * (beginning.to(first.entry) - first.entry)
            passed = slopes(model, layout, contrast, run, entry=entry) if alpha else first
            score = score + weight * product.of(passed)
    return EdgeEstimate(
        layout.graph,
        score.cpu().numpy(),
        places.names,
        first.metric.cpu().double().numpy(),
        metric_of(contrast, there.logits).cpu().double().numpy(),
    )


class EdgeProduct:
    """What senders write in another run minus what they write here, to be multiplied by slopes."""

    def __init__(
        self,
        model: Model,
        layout: Layout,
        contrast: Contrast,
        places: Places,
        there: Written,
        here: Written,
    ) -> None:
        self.model, self.layout, self.contrast = model, layout, contrast
        self.there, self.here = there, here
        self.at = places.run.index
        # [column, row, token]: which tokens count for a column
        self.counted = torch.stack(
            [places.run.mask & (places.column == which) for which in range(len(places.names))]
        )

    def of(self, run: Slopes) -> torch.Tensor:
        """Scores of every edge under the slopes of a run, [item, edge, column]."""
        model, layout = self.model, self.layout
        n_rows, depth = len(self.at), len(layout.graph.senders)
        like = run.streams[0]
        change = like.new_zeros(depth, n_rows, self.at.shape[1], like.shape[-1])
        known = 1
        scores: list[torch.Tensor] = []
        for which, entry in enumerate(layout.entries):
            layer = entry.layer
            change = change.to(run.streams[which].device)
            if layer in self.here.added:
                new = self._change(self.there.added[layer], self.here.added[layer])
                change[0] += new.to(change.device)
            slope = receiver_slopes(model, layout, run, which)
            scores.append(self._product(slope, change[:known]))
            with torch.no_grad():
                mine, theirs = (
                    attention_writes(model, entry, part.heads.get(layer), part.attention[layer])
                    for part in (self.here, self.there)
                )
            attention = torch.stack([self._change(a, b) for a, b in zip(theirs, mine, strict=True)])
            change[known : known + len(attention)] = attention
            below = known
            known += len(attention)
            reach = below if entry.parallel else known
            scores.append(self._product(run.read[which]["mlp"][None], change[:reach]))
            change[known] = self._change(self.there.mlp[layer], self.here.mlp[layer])
            known += 1
            if (factor := scale_of(model, entry)) is not None:
                change[:known] *= factor.to(change.device)
        scores.append(self._product(run.logits[None], change.to(run.logits.device)[:known]))
        return torch.cat([score.cpu() for score in scores], 1)

    def _change(self, there: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """The difference at the tokens that count, [row, token, d_model]."""
        rows = torch.arange(len(self.at))[:, None]
        mask = self.counted.any(0).to(here.device)[..., None]
        return torch.where(mask, (there.to(here) - here)[rows, self.at], 0)

    def _product(self, slope: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """Scores of the edges from senders to receivers, [item, receiver * sender, column]."""
        rows = torch.arange(len(self.at))[:, None]
        wide = torch.promote_types(slope.dtype, torch.float32)
        slope = slope[:, rows, self.at].to(wide)
        change = change.to(slope.device, wide)
        columns = []
        for counted in self.counted.to(slope.device):
            tokens = counted.any(0)
            weight = counted[:, tokens, None]
            # Not a product with the mask: slopes of padding may be NaN.
            own = torch.where(weight, slope[:, :, tokens], 0)
            columns.append(torch.einsum("knpd,snpd->nks", own, change[:, :, tokens]))
        score = torch.stack(columns, -1).flatten(1, 2)
        return score.unflatten(0, (self.contrast.target.repeats, -1)).sum(0)
