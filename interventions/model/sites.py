"""The places of a model: which component of which blocks, at which positions and heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from interventions.architectures.spots import Spot
from interventions.architectures.wrapped import Wrapped
from interventions.errors import PatchError, SiteError
from interventions.given import index_of, of_kind, one_of
from interventions.model.vision_places import NAMED, check_vision, space_of, tower_of, vision_axes
from interventions.prompt.positions import Positions, index_list, read_at
from interventions.prompt.prompt import Prompt

Layers = int | slice | Sequence[int]
Heads = int | slice | Sequence[int] | None
Component = Literal[
    "resid_pre",
    "q",
    "k",
    "v",
    "q_rot",
    "k_rot",
    "attn_scores",
    "attn_pattern",
    "head_out",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "router",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "resid_post",
    "vision.resid_pre",
    "vision.attn_pattern",
    "vision.head_out",
    "vision.attn_out",
    "vision.mlp_out",
    "vision.resid_post",
    "vision.projector_in",
    "vision.projector_out",
]


@dataclass(frozen=True)
class Declared:
    """What holds for a component in every model that has it.

    Attributes
    ----------
    of_head : bool
        It is divided into heads.
    added : bool
        It is one of those that the identity of a block is about, or the heads that make one of
        them: these are what sweeps, attributions and collections take.
    instead : str
        It is only read: why, and what to write. Empty where it can be written.
    """

    of_head: bool = False
    added: bool = False
    instead: str = ""


STREAMS: dict[Component, Declared] = {
    "resid_pre": Declared(added=True),
    "q": Declared(of_head=True),
    "k": Declared(of_head=True),
    "v": Declared(of_head=True),
    "q_rot": Declared(of_head=True, instead="it is made of q. Write q"),
    "k_rot": Declared(of_head=True),
    "attn_scores": Declared(of_head=True, instead="they are made of q and k. Write attn_pattern"),
    "attn_pattern": Declared(of_head=True),
    "head_out": Declared(of_head=True, added=True),
    "attn_out": Declared(added=True),
    "resid_mid": Declared(),
    "mlp_in": Declared(),
    "router": Declared(instead="what is chosen by it was chosen beside it. Write mlp_out"),
    "mlp_pre": Declared(instead="it is one of two factors of a neuron. Write mlp_post"),
    "mlp_post": Declared(),
    "mlp_out": Declared(added=True),
    "resid_post": Declared(added=True),
}
"""Every component of a block, in the order in which it is computed; for q, k and v: of a Llama."""
ANY: tuple[Component, ...] = tuple(STREAMS)
COMPONENTS: tuple[Component, ...] = tuple(name for name in ANY if STREAMS[name].added)
"""Those that sweeps, attributions and collections take."""
INSIDE: tuple[Component, ...] = tuple(name for name in ANY if not STREAMS[name].added)
"""The others, which are inside a sublayer or between two: not every block has all of them."""
RESIDUAL: tuple[Component, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""The components of width d_model that add up."""
VISION: tuple[Component, ...] = (
    "vision.resid_pre",
    "vision.attn_pattern",
    "vision.head_out",
    "vision.attn_out",
    "vision.mlp_out",
    "vision.resid_post",
    "vision.projector_in",
    "vision.projector_out",
)
"""Those of the vision tower's blocks, and of its projector, of which there is one: layer 0."""
TOWER: tuple[Component, ...] = tuple(f"vision.{name}" for name in COMPONENTS)  # pyright: ignore
"""Those of the tower's blocks that sweeps and attributions take."""
PROJECTOR: tuple[Component, ...] = VISION[-2:]
PROJECTED: tuple[Component, ...] = ("q", "k", "v")
ATTENDING: tuple[Component, ...] = ("q_rot", "k_rot", "attn_scores", "attn_pattern")
"""What is seen where the attention function is called."""


def check_component(component: str, among: tuple[Component, ...] = (*ANY, *VISION)) -> Component:
    """Return ``component`` if it names one of these streams, else raise SiteError."""
    known = isinstance(component, str) and component in (*ANY, *VISION)
    if known and component not in among:
        where = "iv.run, iv.complete" if component in VISION else "iv.run, iv.replay"
        raise SiteError(
            f"{component} is not taken here: it is read and written by iv.read, {where} and in a "
            f"trace. Expected one of {', '.join(among)}."
        )
    inside = component.removeprefix("vision.") if isinstance(component, str) else ""
    if inside in INSIDE and inside != component and component not in VISION:
        raise SiteError(not_in_the_tower(inside))
    names = [*COMPONENTS, *(name for name in (*INSIDE, *VISION) if name in among)]
    return one_of(component, "component", names, error=SiteError)


def not_in_the_tower(component: str) -> str:
    """Why what is inside sublayers has no stream in the vision tower, and what to do."""
    return (
        f"the vision tower has no stream {component!r}: of what is inside its sublayers only heads "
        f"and their patterns can be had. Its streams are {', '.join(VISION)}. Read and write the "
        "rest with nnsight at its modules: model.nn.get(path), where model.anatomy.tower.blocks "
        "are the paths of its blocks."
    )


def of_head(component: str) -> bool:
    """Whether a component is divided into heads."""
    if component in VISION:
        return component in ("vision.attn_pattern", "vision.head_out")
    return isinstance(component, str) and component in ANY and STREAMS[component].of_head


def of_vision(component: str) -> bool:
    """Whether a component is of the vision tower or its projector."""
    return component in VISION


def spot_of(model: Wrapped, component: Component, layer: int) -> Spot:
    """Where a component that is inside a block is.

    Raises
    ------
    SiteError
        If the block has none: says why.
    """
    spot = model.anatomy.parts[layer].spot(component)
    if spot.path is None:
        raise SiteError(f"block {layer} of {model.name} {spot.why}.")
    return spot


def n_heads_of(model: Wrapped, component: Component) -> int:
    """How many heads a component is divided into."""
    if of_vision(component):
        return tower_of(model).n_heads
    shared = component in ("k", "v", "k_rot")
    return model.anatomy.n_kv_heads if shared else model.anatomy.n_heads


def head_width(model: Wrapped, component: Component) -> int:
    """Width of one head's result, in the language model or in the tower."""
    return tower_of(model).head_dim if of_vision(component) else model.anatomy.head_dim


def rank_of(model: Wrapped, component: Component, layer: int) -> float:
    """Place of a component in its block, in the order in which the model computes it."""
    if of_vision(component):
        return VISION.index(component)
    if component not in PROJECTED:
        return ANY.index(component)
    projected = [s.component for s in model.anatomy.parts[layer].inside if s.component in PROJECTED]
    return ANY.index(PROJECTED[0]) + projected.index(component)


def stage_of(component: Component) -> int:
    """Place of what a component is of: the tower, the projector, or the language model."""
    if not of_vision(component):
        return 2
    return int(component in PROJECTOR)


def depth_of(model: Wrapped, component: Component) -> int:
    """How many layers a component has."""
    if not of_vision(component):
        return model.n_layers
    return 1 if component in PROJECTOR else len(tower_of(model).blocks)


def layers_of(model: Wrapped, place: "Place") -> list[int]:
    """Indices of the layers that a site or a patch names."""
    return layer_list(place.layers, depth_of(model, place.component))


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
        """Which heads of a component that has them; None: all."""
        ...


@dataclass(frozen=True)
class Site:
    """A place to read: component x layers x positions.

    Attributes
    ----------
    component : str
        A stream with layers: ``"resid_pre"``, ``"head_out"``, ``"attn_out"``, ``"mlp_out"``,
        ``"resid_post"``, or what is inside a block: ``"q"``, ``"k"``, ``"v"``, ``"q_rot"``,
        ``"k_rot"``, ``"attn_scores"``, ``"attn_pattern"``, ``"resid_mid"``, ``"mlp_in"``,
        ``"router"``, ``"mlp_pre"``, ``"mlp_post"``. See :mod:`interventions.model.streams`. Or one
        of the vision tower, such as ``"vision.resid_post"``: see
        :mod:`interventions.model.vision_streams`.
    layers : int, slice or list of int
    positions : Positions, optional
        From :meth:`interventions.Prompt.at`; of attention, those of the queries. None: every
        position.
    heads : int, slice or list of int, optional
        Of a component that is divided into heads. None: every one. Keys and values have fewer
        heads than queries where these share them.
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


def width_of(model: Wrapped, site: Place, n_keys: int = 0) -> list[int]:
    """The axes of a value at one layer, row and position: (width,), or (heads, width).

    ``n_keys``: how many tokens there are to attend to.
    """
    axes = _axes_of(model, site, n_keys)
    if not of_head(site.component):
        return axes
    if isinstance(site.heads, int):
        return axes[1:]
    heads = slice(None) if site.heads is None else site.heads
    return [len(index_list(heads, axes[0], "head")), axes[1]]


def _axes_of(model: Wrapped, site: Place, n_keys: int) -> list[int]:
    if of_vision(site.component):
        return vision_axes(tower_of(model), site.component, n_keys)
    if site.component == "head_out":
        return [model.anatomy.n_heads, model.anatomy.head_dim]
    if site.component not in INSIDE:
        return [model.d_model]
    layers = layer_list(site.layers, model.n_layers)
    axes = {layer: spot_of(model, site.component, layer).axes for layer in layers}
    if len({*axes.values()}) > 1:
        other = next(layer for layer in layers if axes[layer] != axes[layers[0]])
        raise SiteError(
            f"{site.component} of block {other} is {axes[other]} in size, and of block "
            f"{layers[0]} {axes[layers[0]]}. Name blocks of one size."
        )
    return [width or n_keys for width in axes[layers[0]]]


def check_heads(model: Wrapped, site: Place) -> None:
    """Refuse heads of a component that has none, or that do not exist."""
    if site.heads is None:
        return
    if not of_head(site.component):
        raise SiteError(
            f"{site.component} is not divided into heads. Use "
            f"{', '.join(name for name in (*ANY, *VISION) if of_head(name))}."
            if site.component in (*INSIDE, *PROJECTOR)
            else f"{site.component} is summed over heads and cannot be split into them. Use "
            + ("vision.head_out." if of_vision(site.component) else "head_out.")
        )
    index_list(site.heads, n_heads_of(model, site.component), "head")


def check_written(component: Component) -> None:
    """Refuse to write into what can only be read."""
    if of_vision(component):
        return
    if instead := STREAMS[component].instead:
        raise PatchError(f"{component} can only be read: {instead}.")


def check_place(
    model: Wrapped,
    prompt: Prompt,
    what: str,
    layers: Layers,
    at: Positions | None,
    component: Component = "resid_post",
) -> None:
    """Refuse blocks that do not run, and positions of another prompt or of another part."""
    if of_vision(component):
        check_vision(model, prompt, component)
        layer_list(layers, depth_of(model, component))
    else:
        for layer in layer_list(layers, model.n_layers):
            check_runs(model, layer, images=prompt.has_images)
    if not isinstance(at, Positions):
        return
    named = layer_list(layers, depth_of(model, component))
    space = space_of(model, component, named)
    if at.of != space:
        raise SiteError(
            f"{what} of {component} of block {named[0]} of {model.name} is at positions of "
            f"{NAMED[space]}, but {at.role!r} is at positions of {NAMED[at.of]}. Use "
            f"prompt.at(role, of={space!r})."
        )
    length = length_of(model, prompt, component, named)
    if (at.n_rows, at.length) != (len(prompt), length):
        raise SiteError(
            f"{what} at {at.role!r} was made for {at.n_rows} rows x {at.length} tokens; the prompt "
            f"has {len(prompt)} x {length}. Use positions of the prompt that runs."
        )


def length_of(
    model: Wrapped, prompt: Prompt, component: Component, layers: Sequence[int] = ()
) -> int:
    """How many positions a component has in each row, padding included."""
    space = space_of(model, component, layers)
    return prompt.length if space == "text" else prompt.vision[space].length


def check_sites(model: Wrapped, prompt: Prompt, sites: Sequence[Site]) -> None:
    """Refuse, before anything runs, sites that the model or the prompt does not have."""
    for site in sites:
        component = check_component(site.component)
        check_place(model, prompt, "a site", site.layers, site.positions, component)
        check_heads(model, site)
        width_of(model, site)  # refuses blocks that have none
        if site.positions is not None and site.positions.ragged:
            length = length_of(model, prompt, component, layers_of(model, site))
            read_at(torch.empty(len(prompt), length, 0), site.positions)  # says what to do
