"""The metric when chosen edges carry another run: many choices at once, as rows of one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interventions.architectures.wrapped import where_the_model_is
from interventions.attribution.sides import metric_of, scored
from interventions.circuits.flow import Carry, Written, flow
from interventions.circuits.graph import Graph
from interventions.circuits.layout import Layout, layout_of, unreachable
from interventions.circuits.places import places_of
from interventions.errors import SiteError
from interventions.model.model import Model
from interventions.prompt.positions import Positions
from interventions.returnable import returnable
from interventions.running.budget import Budget
from interventions.sweeping.contrast import Contrast
from interventions.sweeping.sizes import Sizes


@returnable
@dataclass(frozen=True)
class Choice:
    """Which edges carry what; the others carry what is written in the run itself.

    Attributes
    ----------
    source : list of int
        Edges that carry the source's run.
    but : bool
        All edges but these do.
    clean : list of int
        Edges that carry the run as it is without any of this.
    """

    source: list[int]
    but: bool = False
    clean: tuple[int, ...] = ()

    def masks(self, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        """Both kinds of edges, [receiver, sender]."""
        source = graph.matrix(self.source)
        if self.but:
            source = graph.whole() & ~source
        return source, graph.matrix(self.clean)


@returnable
@dataclass(frozen=True)
class Carried:
    """What choices of edges make of the metric.

    Attributes
    ----------
    graph : Graph
    values : ndarray [choice, item]
    run, source : ndarray [item]
        The metric of each run without anything carried.
    token_blocks : int
        Tokens that went through a block, all passes together.
    refused : str
        Why nothing was run; empty if it was.
    """

    graph: Graph
    values: np.ndarray
    run: np.ndarray
    source: np.ndarray
    token_blocks: int
    refused: str = ""


@dataclass(frozen=True)
class Sides:
    """Both runs of a contrast, as choices of edges start from them.

    Attributes
    ----------
    at : Positions
        Where the metric looks.
    there, here : Written
        What senders write in the source's run, laid at the tokens of the other, and in that.
    streams : list of Tensor
        What receivers of the run read; see :class:`interventions.circuits.flow.Flow`.
    where : Tensor [row, position], bool
        At which tokens edges carry anything.
    run, source : Tensor [item]
    token_blocks : int
    """

    at: Positions
    there: Written
    here: Written
    streams: list[torch.Tensor]
    where: torch.Tensor
    run: torch.Tensor
    source: torch.Tensor
    token_blocks: int


def sides_of(model: Model, layout: Layout, contrast: Contrast, *, streams: bool = False) -> Sides:
    """Run both sides of a contrast, and keep what their senders write."""
    run, source = scored(contrast, "run"), scored(contrast, "source")
    there = flow(
        model,
        layout,
        source.prompt,
        contrast.target.positions(source.prompt),
        before=source.before,
        keep=True,
    )
    at = contrast.target.positions(run.prompt)
    here = flow(model, layout, run.prompt, at, before=run.before, keep=True, streams=streams)
    assert there.written is not None
    assert here.written is not None
    where = torch.zeros(len(run.prompt), run.prompt.length, dtype=torch.bool)
    places = places_of(contrast, columns=False)
    mask = places.run.mask
    rows = torch.arange(len(where))[:, None].expand_as(mask)[mask]
    where[rows, places.run.index[mask]] = True
    tokens = len(run.prompt) * run.prompt.length + len(source.prompt) * source.prompt.length
    return Sides(
        at=at,
        there=there.written.moved(places.source, places.run),
        here=here.written,
        streams=here.streams,
        where=where,
        run=metric_of(contrast, here.logits),
        source=metric_of(contrast, there.logits),
        token_blocks=tokens * len(layout.entries),
    )


@where_the_model_is
def carried(
    model: Model, contrasts: Sequence[Contrast], choices: Sequence[Choice], budget: int | None
) -> list[Carried]:
    """Run every choice of edges for the rows of each contrast."""
    if why := unreachable(model):
        return [refused(why)]
    layout = layout_of(model, contrasts[0].prompt)
    return [_carried(model, layout, part, choices, budget) for part in contrasts]


@where_the_model_is
def carried_by_name(
    model: Model,
    contrasts: Sequence[Contrast],
    paths: Sequence[Sequence[str]],
    budget: int | None,
    *,
    isolated: bool,
) -> list[Carried]:
    """Run paths whose edges are given by name; see :func:`interventions.path_patch`."""
    if why := unreachable(model):
        return [refused(why)]
    layout = layout_of(model, contrasts[0].prompt)
    graph = layout.graph
    try:
        choices = [
            path_choice(graph, [graph.number(edge) for edge in path], isolated=isolated)
            for path in paths
        ]
    except SiteError as error:
        return [refused(str(error))]
    return [_carried(model, layout, part, choices, budget) for part in contrasts]


def refused(why: str) -> Carried:
    """Nothing that was run."""
    nothing = np.zeros(0)
    return Carried(Graph([], 0), nothing, nothing, nothing, 0, why)


def path_choice(graph: Graph, edges: Sequence[int], *, isolated: bool) -> Choice:
    """Which edges carry what when a change flows along some edges only.

    Edges that begin a path carry the source; those that go on from a node that the path enters
    carry what it writes then. Every other edge into a named receiver, or out of such a node,
    carries the run without any change.
    """
    if not isolated:
        return Choice([*edges])
    named = graph.edges[list(edges)]
    senders = {int(sender) for sender in named[:, 0]}
    entered = [graph.feeds[receiver] for receiver in named[:, 1]]
    begin = [e for e in edges if not any(graph.edges[e, 0] in fed for fed in entered)]
    # Heads that share keys or values are all entered, and go on along named edges only if one does.
    passed = {head for fed in entered if senders & {*fed} for head in fed}
    frozen = np.isin(graph.edges[:, 1], named[:, 1]) | np.isin(graph.edges[:, 0], [*passed])
    frozen[list(edges)] = False
    return Choice(begin, clean=tuple(np.flatnonzero(frozen).tolist()))


def _carried(
    model: Model,
    layout: Layout,
    contrast: Contrast,
    choices: Sequence[Choice],
    budget: int | None,
) -> Carried:
    sides = sides_of(model, layout, contrast)
    side, n_items = scored(contrast, "run"), len(contrast.items)
    n_rows, length = len(side.prompt), side.prompt.length
    size = copies_at_once(model, layout, n_rows, length, budget)
    values = np.full((len(choices), n_items), np.nan)
    for first in range(0, len(choices), size):
        part = choices[first : first + size]
        logits = run_choices(model, layout, contrast, sides, part)
        values[first : first + size] = logits_to_metric(contrast, logits, len(part))
    spent = len(choices) * n_rows * length * len(layout.entries)
    return Carried(
        layout.graph,
        values,
        sides.run.cpu().double().numpy(),
        sides.source.cpu().double().numpy(),
        sides.token_blocks + spent,
    )


def run_choices(
    model: Model, layout: Layout, contrast: Contrast, sides: Sides, choices: Sequence[Choice]
) -> torch.Tensor:
    """Logits [choice * row, token, vocab] of choices as rows of one pass."""
    side = scored(contrast, "run")
    masks = [choice.masks(layout.graph) for choice in choices]
    carries = []
    for which, written in enumerate((sides.there, sides.here)):
        edges = torch.from_numpy(np.stack([mask[which] for mask in masks]))
        if bool(edges.any()):
            carries.append(Carry(edges, written, sides.where))
    rows = [*range(len(side.prompt))] * len(choices)
    patches = [patch.of_rows(rows) for patch in side.before]
    return flow(
        model,
        layout,
        side.prompt.select(rows),
        sides.at.rows(rows),
        before=patches,
        carries=carries,
    ).logits


def logits_to_metric(contrast: Contrast, logits: torch.Tensor, n_copies: int) -> np.ndarray:
    """The metric of every copy of the rows, [copy, item]."""
    parts = logits.unflatten(0, (n_copies, -1))
    return np.stack([metric_of(contrast, part).cpu().double().numpy() for part in parts])


def copies_at_once(
    model: Model, layout: Layout, n_rows: int, length: int, budget: int | None
) -> int:
    """How many copies of the rows go through in one pass."""
    if model.anatomy.dependent_rows is not None:
        return 1
    sizes = Sizes.of(model)
    heads = max((entry.heads for entry in layout.entries), default=1)
    kept = 2 * len(layout.graph.senders) + 6 * heads
    each = sizes.row(length, 0, apart=False) + sizes.n_bytes * length * model.d_model * kept
    return Budget.of(model, budget).fit(n_rows * each, n_rows * length, "one choice of edges")
