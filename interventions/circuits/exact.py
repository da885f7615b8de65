"""Exact effects of single edges, at the cost of the blocks above their receivers.

An edge alone changes what one receiver reads. What that makes of it (queries of a head, what an
MLP writes) is computed for many edges at once and put into the run as a patch, so that only the
blocks above are run, from the first token that changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interventions.architectures.wrapped import where_the_model_is
from interventions.attribution.sides import metric_of, scored
from interventions.circuits.carried import (
    Choice,
    Sides,
    copies_at_once,
    logits_to_metric,
    run_choices,
    sides_of,
)
from interventions.circuits.graph import Graph, Node
from interventions.circuits.layout import Entry, Layout, layout_of, unreachable
from interventions.circuits.nodes import attention_writes, head_inputs, mlp_writes, scale_of
from interventions.model.model import Model
from interventions.prompt.positions import Positions, ragged
from interventions.returnable import returnable
from interventions.running.budget import Budget
from interventions.running.patches import Patch
from interventions.sweeping.contrast import Contrast
from interventions.sweeping.replay import replayed, run_clean
from interventions.sweeping.schedule import cell, groups, path_of

AT_ONCE = 256
"""Edges whose patches are held at once."""


@returnable
@dataclass(frozen=True)
class ExactEdges:
    """What patching each edge alone does.

    Attributes
    ----------
    graph : Graph
    effect : ndarray [item, edge]
        Change of the metric, in its unit.
    token_blocks, alone : int
        Tokens that went through a block; and how many that would be with a whole pass per edge.
    """

    graph: Graph
    effect: np.ndarray
    token_blocks: int
    alone: int


@where_the_model_is
def exact_edges(
    model: Model,
    contrasts: Sequence[Contrast],
    edges: Sequence[int] | None,
    budget: int | None = None,
) -> list[ExactEdges] | str:
    """Change of the metric when each edge alone carries the source; None: of every edge.

    A text says why there is none.
    """
    if why := unreachable(model):
        return why
    layout = layout_of(model, contrasts[0].prompt)
    chosen = [*range(len(layout.graph.edges))] if edges is None else [*edges]
    return [_exact(model, layout, part, chosen, budget) for part in contrasts]


def _exact(
    model: Model, layout: Layout, contrast: Contrast, edges: list[int], budget: int | None
) -> ExactEdges:
    sides = sides_of(model, layout, contrast, streams=True)
    graph, side = layout.graph, scored(contrast, "run")
    changes = _changes(model, layout, sides)
    entries = {entry.layer: i for i, entry in enumerate(layout.entries)}
    values = np.full((len(edges), len(contrast.items)), np.nan)
    spent = sides.token_blocks
    clean = sides.run.cpu().double().numpy()
    whole: list[int] = []
    cells: list[tuple[int, Patch]] = []

    def flush() -> None:
        nonlocal spent
        if cells:
            metric, tokens = _replayed(model, contrast, sides, [p for _, p in cells], budget)
            values[[i for i, _ in cells]] = metric
            spent += tokens
            cells.clear()

    for receiver, node in enumerate(graph.receivers):
        mine = [i for i, edge in enumerate(edges) if graph.edges[edge, 1] == receiver]
        if not mine:
            continue
        if node.kind == "attn" or side.before:
            whole += mine
            continue
        for first in range(0, len(mine), AT_ONCE):
            part = mine[first : first + AT_ONCE]
            change = changes.into(node, [int(graph.edges[edges[i], 0]) for i in part])
            moved = (change != 0).flatten(1).any(1).cpu()
            values[[i for i, any_moves in zip(part, moved, strict=True) if not any_moves]] = clean
            part = [i for i, any_moves in zip(part, moved, strict=True) if any_moves]
            change = change[moved.to(change.device)]
            if not part:
                continue
            if node.kind == "logits":
                values[part] = _at_the_logits(model, contrast, sides, change)
                continue
            entry = layout.entries[entries[node.layer]]
            stream = sides.streams[2 * entries[node.layer] + (node.kind == "mlp")]
            patches = _patches(model, entry, node, stream, change, sides)
            cells += zip(part, patches, strict=True)
            if len(cells) >= AT_ONCE:
                flush()
    flush()
    n_rows, length = len(side.prompt), side.prompt.length
    size = copies_at_once(model, layout, n_rows, length, budget)
    for first in range(0, len(whole), size):
        part = whole[first : first + size]
        choices = [Choice([edges[i]]) for i in part]
        logits = run_choices(model, layout, contrast, sides, choices)
        values[part] = logits_to_metric(contrast, logits, len(part))
    each = n_rows * length * len(layout.entries)
    spent += len(whole) * each
    return ExactEdges(graph, (values - clean).T, spent, len(edges) * each)


class Changes:
    """What every sender writes in the source's run minus what it writes in the run itself."""

    def __init__(self, graph: Graph, values: torch.Tensor, added: list[torch.Tensor]) -> None:
        self.graph, self.values, self.added = graph, values, added
        self.factors: dict[int, list[tuple[int, Any]]] = {}

    def into(self, node: Node, senders: Sequence[int]) -> torch.Tensor:
        """Changes as they are where a receiver reads, [sender, row, position, d_model]."""
        change = self.values[list(senders)].clone()
        inputs = [i for i, sender in enumerate(senders) if sender == 0]
        below = sum(block.layer < node.layer for block in self.graph.blocks)
        change[inputs] = self.added[min(below, len(self.added) - 1)]
        for i, sender in enumerate(senders):
            start = self.graph.senders[sender].layer
            for layer, factor in self.factors.get(node.layer, []) if sender else []:
                if layer >= start:
                    change[i] = change[i] * factor.to(change.device)
        return change


def _changes(model: Model, layout: Layout, sides: Sides) -> Changes:
    parts: list[torch.Tensor] = []
    added: list[torch.Tensor] = []
    where = sides.where[..., None]
    total: torch.Tensor | None = None
    scales: list[tuple[int, Any]] = []
    factors: dict[int, list[tuple[int, Any]]] = {}

    def difference(there: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        return torch.where(where.to(here.device), there.to(here) - here, 0)

    with torch.no_grad():
        for entry in layout.entries:
            layer = entry.layer
            factors[layer] = [*scales]
            if layer in sides.here.added:
                new = difference(sides.there.added[layer], sides.here.added[layer])
                total = new if total is None else total.to(new.device) + new
            assert total is not None
            added.append(total)
            theirs, mine = (
                attention_writes(model, entry, part.heads.get(layer), part.attention[layer])
                for part in (sides.there, sides.here)
            )
            parts += [difference(a, b) for a, b in zip(theirs, mine, strict=True)]
            parts.append(difference(sides.there.mlp[layer], sides.here.mlp[layer]))
            if (factor := scale_of(model, entry)) is not None:
                total = total * factor.to(total.device)
                scales.append((layer, factor))
    assert total is not None
    added.append(total)
    factors[layout.graph.depth] = scales
    device = parts[0].device
    values = torch.stack([torch.zeros_like(parts[0]), *(part.to(device) for part in parts)])
    changes = Changes(layout.graph, values, added)
    changes.factors = factors
    return changes


def _patches(
    model: Model,
    entry: Entry,
    node: Node,
    stream: torch.Tensor,
    change: torch.Tensor,
    sides: Sides,
) -> list[Patch]:
    """What a receiver makes of each change, as patches."""
    hidden = stream + change.to(stream.device)
    with torch.no_grad():
        if node.kind == "head":
            projection = entry.projections[node.part]
            made_of = head_inputs(model, entry, projection, [node.head] * len(hidden), hidden)
            values = made_of.movedim(2, 0)
        else:
            values = mlp_writes(model, entry, hidden.flatten(0, 1)).unflatten(0, (len(hidden), -1))
    patches = []
    for own, moved in zip(values, change, strict=True):
        at = _changed(moved, sides)
        rows = torch.arange(len(at.index))[:, None]
        value = own[rows, at.index]
        if node.kind == "head":
            patches.append(Patch(node.part, node.layer, at, value, heads=node.head))  # pyright: ignore
        else:
            patches.append(Patch("mlp_out", node.layer, at, value))
    return patches


def _changed(change: torch.Tensor, sides: Sides) -> Positions:
    """The tokens at which there is any change [row, position, d_model].

    And the first whose logits are wanted, where all of them are behind it: what is run begins at
    the first token that is patched.
    """
    moved = (change != 0).any(-1).cpu() & sides.where
    tokens = [row.nonzero().flatten().tolist() for row in moved]
    wanted = [
        int(index[mask].min()) for index, mask in zip(sides.at.index, sides.at.mask, strict=True)
    ]
    tokens = [
        own if own and own[0] <= first else [first, *own]
        for own, first in zip(tokens, wanted, strict=True)
    ]
    return Positions(*ragged(tokens), sides.where.shape[1], False, "an edge")


def _at_the_logits(
    model: Model, contrast: Contrast, sides: Sides, change: torch.Tensor
) -> np.ndarray:
    """The metric when the final norm reads a stream with each change, [edge, item]."""
    at = sides.at
    rows = torch.arange(at.n_rows)[:, None]
    index = at.index.clamp(min=0)
    stream = sides.streams[-1][rows, index]
    read = stream + change[:, rows, index].to(stream.device)
    with torch.no_grad():
        logits = model.unembed(read.flatten(0, 1))
        if contrast.target.resid:
            logits = torch.cat([logits, read.flatten(0, 1).to(logits)], -1)
    return logits_to_metric(contrast, logits, len(change))


def _replayed(
    model: Model,
    contrast: Contrast,
    sides: Sides,
    patches: Sequence[Patch],
    budget: int | None,
) -> tuple[np.ndarray, int]:
    """The metric under each patch alone [patch, item], and tokens through blocks."""
    prompt = scored(contrast, "run").prompt
    path, _ = path_of(model, prompt)
    cells = [cell(model, [patch]) for patch in patches]
    apart = model.anatomy.dependent_rows is not None
    clean = run_clean(model, prompt, sides.at, cells, path, apart=apart)
    tokens = model.n_layers * len(prompt) * prompt.length
    values = np.full((len(cells), len(contrast.items)), np.nan)
    todo = groups(model, prompt, cells, path, Budget.of(model, budget))
    for group, logits in replayed(model, clean, cells, path, todo, apart=apart):
        for i, own in zip(group.cells, logits, strict=True):
            values[i] = metric_of(contrast, own).cpu().double().numpy()
        through = (model.n_layers - group.block) * (prompt.length - group.position)
        tokens += through * len(group.cells) * len(prompt)
    return values, tokens
