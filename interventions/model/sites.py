"""The places of a model: which component of which blocks, at which positions and heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from interventions.architectures.wrapped import Wrapped
from interventions.errors import PatchError, SiteError
from interventions.given import index_of, of_kind, one_of
from interventions.prompt.positions import Positions, index_list, read_at
from interventions.prompt.prompt import Prompt

Layers = int | slice | Sequence[int]
Heads = int | slice | Sequence[int] | None
Component = Literal["resid_pre", "head_out", "attn_out", "mlp_out", "resid_post"]
COMPONENTS: tuple[Component, ...] = ("resid_pre", "head_out", "attn_out", "mlp_out", "resid_post")
RESIDUAL: tuple[Component, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""The components of width d_model."""


def check_component(component: str) -> Component:
    """Return ``component`` if it names a stream with layers, else raise SiteError."""
    return one_of(component, "component", COMPONENTS, error=SiteError)


def layer_list(layers: Layers, n_layers: int) -> list[int]:
    """Block indices named by an int, slice or list; see :func:`index_list`."""
    return index_list(layers, n_layers, "layer")


def written_once(chosen: list[int], what: str) -> list[int]:
    """Refuse to write into the same layer or head twice: only one of the values could stay."""
    if len(set(chosen)) < len(chosen):
        raise PatchError(f"{what}s {chosen} name one twice, so a value would be written over.")
    return chosen


class Place(Protocol):
    """What names a place: a site, or a patch."""

    @property
    def component(self) -> Component:
        """Which stream."""
        ...

    @property
    def layers(self) -> Layers:
        """Which blocks."""
        ...

    @property
    def heads(self) -> Heads:
        """Which heads of ``"head_out"``; None: all."""
        ...


@dataclass(frozen=True)
class Site:
    """A place to read: component x layers x positions.

    Attributes
    ----------
    component : str
        ``"resid_pre"``, ``"head_out"``, ``"attn_out"``, ``"mlp_out"`` or ``"resid_post"``.
    layers : int, slice or list of int
    positions : Positions, optional
        From :meth:`interventions.Prompt.at`. None: every position.
    heads : int, slice or list of int, optional
        For ``"head_out"``. None: every query head.
    """

    component: Component
    layers: Layers
    positions: Positions | None = None
    heads: Heads = None

    def __post_init__(self) -> None:
        make_plain(self)
        if self.positions is not None:
            of_kind(self.positions, Positions, "the positions of a site", error=SiteError)


def make_plain(place: Place) -> None:
    """Hold layers and heads as Python's own numbers: an int of numpy is one layer too."""
    object.__setattr__(place, "layers", index_of(place.layers, "layer"))
    if place.heads is not None:
        object.__setattr__(place, "heads", index_of(place.heads, "head"))


def check_runs(model: Wrapped, layer: int, *, images: bool) -> None:
    """Refuse a block that does not run."""
    if model.anatomy.parts[layer].cross and not images:
        raise SiteError(
            f"block {layer} of {model.name} is a cross-attention block, which does not run "
            "without an image. Leave it out: model.anatomy.self_blocks are the others."
        )


def width_of(model: Wrapped, site: Place) -> list[int]:
    """The axes of a value at one layer, row and position: d_model, or head and head_dim."""
    if site.component != "head_out":
        return [model.d_model]
    if isinstance(site.heads, int):
        return [model.anatomy.head_dim]
    heads = slice(None) if site.heads is None else site.heads
    return [len(index_list(heads, model.anatomy.n_heads, "head")), model.anatomy.head_dim]


def check_heads(model: Wrapped, site: Place) -> None:
    """Refuse heads of a component that has none, or that do not exist."""
    if site.heads is None:
        return
    if site.component != "head_out":
        raise SiteError(
            f"{site.component} is summed over heads and cannot be split into them. Use head_out."
        )
    index_list(site.heads, model.anatomy.n_heads, "head")


def check_place(
    model: Wrapped, prompt: Prompt, what: str, layers: Layers, at: Positions | None
) -> None:
    """Refuse blocks that do not run, and positions of another prompt."""
    for layer in layer_list(layers, model.n_layers):
        check_runs(model, layer, images=prompt.has_images)
    if isinstance(at, Positions) and (at.n_rows, at.length) != (len(prompt), prompt.length):
        raise SiteError(
            f"{what} at {at.role!r} was made for {at.n_rows} rows x {at.length} tokens; the prompt "
            f"has {len(prompt)} x {prompt.length}. Use positions of the prompt that runs."
        )


def check_sites(model: Wrapped, prompt: Prompt, sites: Sequence[Site]) -> None:
    """Refuse, before anything runs, sites that the model or the prompt does not have."""
    for site in sites:
        check_component(site.component)
        check_place(model, prompt, "a site", site.layers, site.positions)
        check_heads(model, site)
        if site.positions is not None and site.positions.ragged:
            read_at(torch.empty(len(prompt), prompt.length, 0), site.positions)  # says what to do
