"""The cells of a sweep: which component, layer, head and tokens each of them patches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from interventions.errors import SiteError
from interventions.given import names, shown, whole
from interventions.model.model import Model
from interventions.model.sites import (
    RESIDUAL,
    Component,
    Heads,
    Layers,
    check_component,
    check_runs,
    layer_list,
)
from interventions.prompt.columns import Columns
from interventions.prompt.positions import index_list


@dataclass(frozen=True)
class Spec:
    """One cell.

    Attributes
    ----------
    component : str
    layers : list of int
        The window that is written.
    read : list of int
        The layers whose values go there.
    head : int or None
    column : int
        Which column of the grid.
    """

    component: Component
    layers: list[int]
    read: list[int]
    head: int | None
    column: int


@dataclass(frozen=True)
class Grid:
    """All cells.

    Attributes
    ----------
    components : list of str
    layers : list of int
        First layer of each window.
    window : int
        Layers per window; fewer at the end of the model.
    heads, source_layers : list of int or None
        Further axes.
    columns : Columns
    each : bool
        Columns are single tokens, not roles.
    n_layers : int
    """

    components: list[Component]
    layers: list[int]
    window: int
    heads: list[int] | None
    source_layers: list[int] | None
    columns: Columns
    each: bool
    n_layers: int

    @property
    def axes(self) -> dict[str, Sequence[Any]]:
        """Dimension to its labels, in the order in which cells are counted."""
        found: dict[str, Sequence[Any]] = {"component": self.components, "layer": self.layers}
        if self.heads is not None:
            found["head"] = self.heads
        if self.source_layers is not None:
            found["source_layer"] = self.source_layers
        n = len(self.columns.names)
        return found | ({"position": range(n)} if self.each else {"role": self.columns.names})

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of labels of each dimension."""
        return tuple(len(labels) for labels in self.axes.values())

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def specs(self) -> Iterator[Spec]:
        """Every cell, the last dimension fastest."""
        axes = (self.components, self.layers, self.heads or [None], self.source_layers or [None])
        for component, first, head, source in product(*axes):
            layers = list(range(first, min(first + self.window, self.n_layers)))
            read = layers if source is None else [source + i for i in range(len(layers))]
            inside = [i for i, one in enumerate(read) if one < self.n_layers]
            for column in range(len(self.columns.names)):
                yield Spec(
                    component,
                    [layers[i] for i in inside],
                    [read[i] for i in inside],
                    head,
                    column,
                )

    def read_layers(self) -> list[int]:
        """Every layer that some cell reads."""
        return sorted({layer for spec in self.specs() for layer in spec.read})


def make_grid(
    model: Model,
    columns: Columns,
    *,
    components: str | Sequence[str],
    layers: Layers | None,
    heads: Heads,
    source_layers: Layers | None,
    window: int,
    each: bool,
    images: bool,
) -> Grid:
    """Check what a sweep asks for.

    Raises
    ------
    SiteError
        If the grid would have no cells, or names what the model does not have.
    """
    components = names(components, "components=", error=SiteError)
    if not components:
        raise SiteError(f"components= is empty, so there are no cells. Known: {RESIDUAL}.")
    chosen: list[Component] = [check_component(one) for one in components]
    if len(set(chosen)) < len(chosen):
        raise SiteError(f"components= names one twice: {', '.join(chosen)}.")
    running = range(model.n_layers) if images else model.anatomy.self_blocks
    asked = list(running) if layers is None else layer_list(layers, model.n_layers)
    window = whole(
        window, f"window={shown(window)}, which", least=1, most=model.n_layers, error=SiteError
    )
    read = None
    if source_layers is not None:
        every = isinstance(source_layers, slice) and source_layers == slice(None)
        read = list(running) if every else layer_list(source_layers, model.n_layers)
    if heads is not None and chosen != ["head_out"]:
        raise SiteError('heads= divides "head_out" alone. Give components=["head_out"].')
    n_heads = model.anatomy.n_heads
    chosen_heads = None if heads is None else index_list(heads, n_heads, "head")
    for labels, what in ((chosen_heads, "heads"), (read, "layers of FromLayers")):
        if labels is not None and len(set(labels)) < len(labels):
            raise SiteError(f"{what} name one twice: {labels}.")
    grid = Grid(
        components=chosen,
        layers=sorted(set(asked)),
        window=window,
        heads=chosen_heads,
        source_layers=read,
        columns=columns,
        each=each,
        n_layers=model.n_layers,
    )
    for layer in sorted({one for spec in grid.specs() for one in (*spec.layers, *spec.read)}):
        check_runs(model, layer, images=images)
    return grid
