"""Routes of attention: from which tokens to which edges are cut, in which layers and heads."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from interventions.errors import RoleError, SiteError
from interventions.given import named, names, plain, several, shown, whole
from interventions.model.model import Model
from interventions.model.sites import Layers
from interventions.prompt.columns import Column, Columns, role_tokens
from interventions.prompt.positions import Positions
from interventions.prompt.prompt import Prompt
from interventions.running.knockout import Knockout, check_of_text
from interventions.running.patches import Patch
from interventions.sweeping.grid import chosen_layers
from interventions.sweeping.head_sets import ByLayer, HeadSets, head_sets
from interventions.sweeping.schedule import Edit

ARROW = re.compile(r"\s*(?:->|→)\s*")
PREDICTING = "answer"
"""As queries: every token that predicts one of the answer's, appended when it is scored."""
QUESTION, LAST = "question", "last"
"""The first is without the second here: else what goes to the one is cut with what goes to both."""
PICTURE = "image"
"""What blocks of cross-attention attend to, whose tokens have no positions in the text."""
End = str | Positions
Routes = str | Sequence[str] | Mapping[str, str | tuple[End, End]]


@dataclass(frozen=True)
class RouteSpec:
    """One cell.

    Attributes
    ----------
    layers : list of int
        Those of its window in which edges are cut.
    heads : dict of int to list of int or None
        In which heads of each.
    column : int
        Which route.
    """

    layers: list[int]
    heads: ByLayer
    column: int


@dataclass(frozen=True)
class RouteGrid:
    """All cells: windows of layers x sets of heads x routes.

    Attributes
    ----------
    names : list of str
        Of the routes.
    layers : list of int
        First layer of each window.
    window : int
        Layers per window; fewer at the end of the model.
    sets : dict
        Heads, by the label of each set.
    axis : {"head", "head_set", ""}
        The dim that sets have; none, where there is one that was not named.
    attending : list of list of int
        For each route, the layers that have edges of its.
    across : list of bool
        Routes from the picture of a model that attends to it in blocks of their own.
    predicting : list of bool
        Routes to every token that predicts.
    n_layers : int
    labels : dict
        Coordinates: ``last_layer`` of windows; ``key_role``, ``query_role``, ``edges`` of routes.
    """

    names: list[str]
    layers: list[int]
    window: int
    sets: dict[Any, ByLayer]
    axis: str
    attending: list[list[int]]
    across: list[bool]
    predicting: list[bool]
    n_layers: int
    labels: dict[str, Any]

    @property
    def axes(self) -> dict[str, Sequence[Any]]:
        """Dimension to its labels, in the order in which cells are counted."""
        sets = {self.axis: list(self.sets)} if self.axis else {}
        return {"layer": self.layers, **sets, "route": self.names}

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of labels of each dimension."""
        return tuple(len(labels) for labels in self.axes.values())

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    @property
    def per_block(self) -> float:
        """Cells that start in one layer."""
        return len(self) / len(self.layers)

    def specs(self) -> Iterator[RouteSpec]:
        """Every cell, the last dimension fastest."""
        for first, heads, column in product(
            self.layers, self.sets.values(), range(len(self.names))
        ):
            window = range(first, min(first + self.window, self.n_layers))
            layers = [i for i in window if i in heads and i in self.attending[column]]
            yield RouteSpec(layers, heads, column)

    def edits(
        self,
        queries: Sequence[Positions | None],
        keys: Sequence[Positions | None],
        *,
        predicting: Positions,
    ) -> list[list[Edit]]:
        """What every cell cuts, at these tokens; nothing in a window without edges of its route.

        Parameters
        ----------
        queries, keys : list of Positions or None
            Of each route.
        predicting : Positions
            Every token that predicts one of an answer's.
        """
        edits = []
        for spec in self.specs():
            k = spec.column
            ends = (predicting if self.predicting[k] else queries[k], keys[k])
            edits.append(_cut(spec, *ends, across=self.across[k]))
        return edits


def _cut(
    spec: RouteSpec, queries: Positions | None, keys: Positions | None, *, across: bool
) -> list[Edit]:
    """What one cell cuts."""
    if queries is None:
        return []
    if across:  # nothing of the picture is what an attention that sees nothing of it gives
        return [
            Patch("attn_out", layer, queries, torch.zeros(()))
            if (heads := spec.heads[layer]) is None
            else Patch("head_out", layer, queries, torch.zeros(()), heads=heads)
            for layer in spec.layers
        ]
    if keys is None:
        return []
    return [
        Knockout(layer, queries, keys, spec.heads[layer], keep_self=True) for layer in spec.layers
    ]


@dataclass(frozen=True)
class Ends:
    """The tokens of routes.

    Attributes
    ----------
    names : list of str
    queries, keys : Columns
        Named after what was asked for.
    across, predicting : list of bool
        As of :class:`RouteGrid`.
    missing : dict of int to str
        Rows that lack a route, and which.
    edges : ndarray [row, route]
        How many edges are cut in a layer; NaN where that is not known.
    """

    names: list[str]
    queries: Columns
    keys: Columns
    across: list[bool]
    predicting: list[bool]
    missing: dict[int, str]
    edges: np.ndarray


def ends_of(model: Model, prompt: Prompt, routes: Routes) -> Ends:
    """Read routes, and find their tokens in every row.

    Raises
    ------
    RoleError
        If a route has no edge in any row, or is not understood.
    """
    asked = _asked(routes)
    across, predicting = [], []
    queries, keys = Columns([], []), Columns([], [])
    for name, (source, sink) in asked.items():
        pictures = bool(model.anatomy.cross_blocks) and prompt.has_images and source == PICTURE
        across.append(pictures)
        # Where a prompt has tokens of that name, they are meant.
        own = any(PREDICTING in roles for roles in prompt.roles)
        predicting.append(sink == PREDICTING and not own)
        nothing: Column = [[] for _ in range(len(prompt))]
        for end, columns, tokens in (
            (source, keys, nothing if pictures else None),
            (sink, queries, role_tokens(prompt, LAST) if predicting[-1] else None),
        ):
            columns.tokens.append(_tokens(prompt, end, name) if tokens is None else tokens)
            columns.names.append(end.role if isinstance(end, Positions) else end)
    edges = _edges(prompt, queries, keys, across, two_way=bool(model.anatomy.family.two_way))
    missing: dict[int, str] = {}
    for k, name in enumerate(asked):
        for row in np.flatnonzero(edges[:, k] == 0).tolist():
            missing.setdefault(row, f"no edge of route {name!r}")
        if (edges[:, k] == 0).all():
            raise RoleError(
                f"route {name!r} has no edge in any row: a token sees those before it, and itself "
                "always. Name a route from earlier tokens to later ones, "
                'such as "image -> last".'
            )
    if len(missing) == len(prompt):
        raise RoleError(f"no row has all of {', '.join(asked)}. Row 0 has {missing[0]}.")
    return Ends(list(asked), queries, keys, across, predicting, missing, edges)


def _asked(routes: Routes) -> dict[str, tuple[End, End]]:
    """Keys and queries of each route, by its name."""
    given = plain(routes)
    if isinstance(given, Mapping):
        asked = named(given, "routes")
    else:
        texts = names(given, "routes", error=RoleError, once=True)
        asked = {text: text for text in texts}
    if not asked:
        raise RoleError('routes is empty. Name some, such as ["image -> last"].')
    return {" -> ".join(ARROW.split(name)): _pair(name, route) for name, route in asked.items()}


def _pair(name: str, route: Any) -> tuple[End, End]:
    expected = '"keys -> queries", such as "image -> last", or a pair of roles or positions'
    route = plain(route)
    parts = (
        ARROW.split(route.strip())
        if isinstance(route, str)
        else several(route, f"route {name!r}", error=RoleError, expected=expected)
    )
    parts = [part if isinstance(part, Positions) else plain(part) for part in parts]
    if len(parts) != 2 or not all(isinstance(part, str | Positions) and part for part in parts):
        raise RoleError(f"route {name!r} is {shown(route)}. Expected {expected}.")
    return parts[0], parts[1]


def _tokens(prompt: Prompt, end: End, name: str) -> Column:
    """Tokens of one end of a route in each row."""
    if end == QUESTION:
        ends = zip(role_tokens(prompt, QUESTION), role_tokens(prompt, LAST), strict=True)
        return [[token for token in own if token not in last] for own, last in ends]
    if isinstance(end, str):
        return role_tokens(prompt, end)
    check_of_text(end, f"route {name!r}")
    if (end.n_rows, end.length) != (len(prompt), prompt.length):
        raise SiteError(
            f"route {name!r} is at positions of {end.n_rows} rows x {end.length} tokens; the "
            f"prompt has {len(prompt)} x {prompt.length}. Use positions of the prompt that runs."
        )
    return [row[mask].tolist() for row, mask in zip(end.index, end.mask, strict=True)]


def _edges(
    prompt: Prompt, queries: Columns, keys: Columns, across: list[bool], *, two_way: bool
) -> np.ndarray:
    """How many edges a layer has [row, route]; of a picture apart, 0 or NaN."""
    counts = np.zeros((len(prompt), len(across)))
    for k, (sinks, sources) in enumerate(zip(queries.tokens, keys.tokens, strict=True)):
        for row, (later, earlier) in enumerate(zip(sinks, sources, strict=True)):
            if across[k]:
                counts[row, k] = np.nan if later else 0
                continue
            sink, source = np.array(later, dtype=int)[:, None], np.array(earlier, dtype=int)
            counts[row, k] = ((source != sink) if two_way else (source < sink)).sum()
    return counts


def make_route_grid(
    model: Model,
    prompt: Prompt,
    ends: Ends,
    *,
    layers: Layers | None,
    heads: HeadSets,
    window: int,
) -> RouteGrid:
    """Check which layers and heads are asked for.

    Raises
    ------
    SiteError
        If no cell cuts anything, or one names what the model does not have.
    """
    parts = model.anatomy.parts
    chosen = sorted({*chosen_layers(model, layers, images=prompt.has_images)})
    window = whole(
        window, f"window={shown(window)}, which", least=1, most=model.n_layers, error=SiteError
    )
    between = [i for i in model.anatomy.self_blocks if not parts[i].recurrent]
    attending = [list(model.anatomy.cross_blocks) if far else between for far in ends.across]
    axis, sets = head_sets(model, heads)
    last = [min(first + window, model.n_layers) - 1 for first in chosen]
    grid = RouteGrid(
        names=ends.names,
        layers=chosen,
        window=window,
        sets=sets,
        axis=axis,
        attending=attending,
        across=ends.across,
        predicting=ends.predicting,
        n_layers=model.n_layers,
        labels={
            "last_layer": ("layer", last),
            "key_role": ("route", ends.keys.names),
            "query_role": ("route", ends.queries.names),
            "edges": (("item", "route"), ends.edges),
        },
    )
    cut = {spec.column for spec in grid.specs() if spec.layers}
    for k, name in enumerate(ends.names):
        if k not in cut:
            raise SiteError(
                f"no window of layers has edges of route {name!r} in the heads asked for. Blocks "
                f"that have: {attending[k]}."
            )
    return grid


def route_settings(grid: RouteGrid) -> dict[str, Any]:
    """What the numbers of a grid depend on, in JSON types."""
    by_label = {
        str(label): {str(layer): own for layer, own in heads.items()}
        for label, heads in grid.sets.items()
        if grid.axis != "head" and heads != dict.fromkeys(range(grid.n_layers))
    }
    return {
        "axes": {name: list(labels) for name, labels in grid.axes.items()},
        "window": grid.window,
        "heads": by_label or None,
        "queries": grid.labels["query_role"][1],
        "keys": grid.labels["key_role"][1],
    }
