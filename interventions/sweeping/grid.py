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
    COMPONENTS,
    TOWER,
    Component,
    Heads,
    Layers,
    check_component,
    check_runs,
    depth_of,
    layer_list,
    n_heads_of,
    of_vision,
)
from interventions.model.vision_places import check_used, tower_of
from interventions.prompt.columns import Columns
from interventions.prompt.positions import Space, index_list
from interventions.sweeping.contrast import Contrast
from interventions.sweeping.sources import FromLayers, FromModel, mapped_layers


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
        labels: dict[str, Sequence[Any]] = {"component": self.components, "layer": self.layers}
        if self.heads is not None:
            labels["head"] = self.heads
        if self.source_layers is not None:
            labels["source_layer"] = self.source_layers
        n = len(self.columns.names)
        return labels | ({"position": range(n)} if self.each else {"role": self.columns.names})

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
            inside = [i for i, layer in enumerate(read) if layer < self.n_layers]
            for column in range(len(self.columns.names)):
                yield Spec(
                    component,
                    [layers[i] for i in inside],
                    [read[i] for i in inside],
                    head,
                    column,
                )

    @property
    def per_block(self) -> float:
        """Cells of one component that start in one layer."""
        return len(self) / max(1, len(self.layers) * len(self.components))

    def read_layers(self) -> list[int]:
        """Every layer that some cell reads."""
        return sorted({layer for spec in self.specs() for layer in spec.read})


def make_grid(
    model: Model,
    contrast: Contrast,
    *,
    components: str | Sequence[str],
    layers: Layers | None,
    heads: Heads,
    window: int,
) -> Grid:
    """Check what a sweep asks for.

    Raises
    ------
    SiteError
        If the grid would have no cells, or names what the model does not have.
    """
    source, images = contrast.source, contrast.has_images
    chosen = chosen_components(components)
    of, depth = contrast.columns.of, depth_among(model, contrast.columns.of)
    if layers is None and isinstance(source, FromModel):
        layers = list(source.pair.layer_map)
    asked = chosen_layers(model, layers, images=images, of=of)
    window = whole(window, f"window={shown(window)}, which", least=1, most=depth, error=SiteError)
    read = None
    if isinstance(source, FromLayers):
        every = source.layers is None or source.layers == slice(None)
        read = chosen_layers(model, None if every else source.layers, images=images, of=of)
    divided = "head_out" if of == "text" else "vision.head_out"
    if heads is not None and chosen != [divided]:
        raise SiteError(f'heads= divides "{divided}" alone. Give components=["{divided}"].')
    n_heads = n_heads_of(model, divided)
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
        columns=contrast.columns,
        each=contrast.each,
        n_layers=depth,
    )
    for layer in sorted({layer for spec in grid.specs() for layer in (*spec.layers, *spec.read)}):
        if of == "text":
            check_runs(model, layer, images=images)
    if isinstance(source, FromModel):
        mapped_layers(source.pair, grid.read_layers())
    return grid


def chosen_components(asked: str | Sequence[str]) -> list[Component]:
    """Components by name, each once.

    Raises
    ------
    SiteError
        If there is none, or one is not known or named twice.
    """
    given = names(asked, "components=", error=SiteError)
    chosen: list[Component] = [check_component(name, (*COMPONENTS, *TOWER)) for name in given]
    if not chosen:
        raise SiteError(
            f"components= is empty, so there are no cells. Known: {', '.join(COMPONENTS)}."
        )
    if len(set(chosen)) < len(chosen):
        raise SiteError(f"components= names one twice: {', '.join(chosen)}.")
    return chosen


def space_among(components: Sequence[Component]) -> Space:
    """Whose tokens components have, which must be the same for all.

    Raises
    ------
    SiteError
        If some are of the vision tower, and some of the language model.
    """
    kinds = {of_vision(component) for component in components}
    if len(kinds) > 1:
        raise SiteError(
            f"components= names streams of the vision tower and of the language model "
            f"({', '.join(components)}), whose tokens are not the same. Ask for them apart."
        )
    return "tower" if kinds == {True} else "text"


def depth_among(model: Model, of: Space) -> int:
    """How many blocks can be written into: those of the tower that give something, or all."""
    return model.n_layers if of == "text" else tower_of(model).n_used


def chosen_layers(
    model: Model, asked: Layers | None, *, images: bool, of: Space = "text"
) -> list[int]:
    """Layers by number; None for all that run, which those of cross-attention do with images."""
    if of == "tower":
        chosen = layer_list(
            slice(depth_among(model, of)) if asked is None else asked, depth_of(model, TOWER[0])
        )
        if chosen:
            check_used(model, TOWER[0], chosen)
        return chosen
    if asked is None:
        return list(range(model.n_layers) if images else model.anatomy.self_blocks)
    return layer_list(asked, model.n_layers)
