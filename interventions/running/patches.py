"""What is read and written while a prompt runs, and whether it fits: checked once, at the door."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod

import torch

from interventions.architectures.wrapped import Wrapped
from interventions.errors import PatchError, SiteError
from interventions.given import of_kind, one_of
from interventions.given_arrays import check_range, tensor_of
from interventions.model.attention_streams import check_keys
from interventions.model.sites import (
    ATTENDING,
    Component,
    Heads,
    Layers,
    Site,
    check_component,
    check_heads,
    check_place,
    check_written,
    layer_list,
    layers_of,
    length_of,
    make_plain,
    n_heads_of,
    of_head,
    of_vision,
    width_of,
    written_once,
)
from interventions.model.vision_places import check_used
from interventions.prompt.positions import MODES, Mode, Positions, index_list, of_copies
from interventions.prompt.prompt import Prompt
from interventions.returnable import returnable
from interventions.running.coordinates import Coordinates
from interventions.running.steps import (
    PREFILL,
    Steps,
    check_acts_in_prefill,
    checked_steps,
    only_in_prefill,
)


@returnable
@dataclass(frozen=True)
class Patch:
    """A value to be written at a site while a prompt runs.

    Attributes
    ----------
    component, layers, positions
        Where, as in :class:`Site`.
    value : Tensor
        [layer, row, position, d_model]; without the layer axis for an int layer; without the
        position axis for one position per row, or to spread one value over all positions of a row.
        Of what is divided into heads, [..., head, head_dim] in the place of d_model; of
        ``"mlp_post"``, its neurons. A single number or a vector [d_model] holds for all.
    mode : {"set", "add", "scale"}
        Overwrite with the value, add it (steering), or multiply by it (0: ablation).
    heads : int, slice or list of int, optional
        Of a component that is divided into heads. None: every one.
    steps : {"prefill", "all"}, int or slice
        Of a generation (:func:`interventions.complete`), at which steps: in the prefill (0), at
        the pass that is fed the k-th token of the answer (k), or at all. Behind the prefill it
        acts on the new token of each row that has a position; what it wrote before is in the keys
        and values that later tokens see.
    within : Coordinates, optional
        The value is of these coordinates alone, such as those of a subspace or features of a
        sparse autoencoder: as many in the place of d_model. The rest of what is there stays. Of a
        component that is divided into heads, they are of all heads behind one another.
    """

    component: Component
    layers: Layers
    positions: Positions
    value: torch.Tensor
    mode: Mode = "set"
    heads: Heads = None
    steps: Steps = PREFILL
    within: Coordinates | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        of_kind(self.positions, Positions, "the positions of a patch", error=SiteError)
        value = tensor_of(self.value)
        object.__setattr__(self, "value", value.detach() if value.requires_grad else value)
        if self.within is not None:
            of_kind(self.within, Coordinates, "within (of a patch)", error=PatchError)
        object.__setattr__(self, "mode", one_of(self.mode, "mode", MODES, error=PatchError))
        object.__setattr__(self, "steps", checked_steps(self.steps))

    @property
    def _last_axes(self) -> int:
        """Number of axes that one layer, row and position has: d_model, or head and head_dim."""
        divided = of_head(self.component) and not isinstance(self.heads, int)
        return 2 if divided and self.within is None else 1

    @property
    def for_all(self) -> bool:
        """Whether the value is one number or vector for every layer, row and position."""
        return self.value.ndim <= self._last_axes

    @property
    def has_layer_axis(self) -> bool:
        """Whether the value's first axis is the layer."""
        return not isinstance(self.layers, int) and not self.for_all

    @property
    def flat_value(self) -> torch.Tensor:
        """The value with the results of several heads behind one another on its last axis."""
        return (
            self.value.flatten(-2) if self._last_axes == 2 and self.value.ndim > 1 else self.value
        )

    def of_rows(self, rows: torch.Tensor | list[int]) -> "Patch":
        """Return the patch for some rows of its prompt."""
        positions = self.positions.rows(rows)
        if self.for_all:
            return replace(self, positions=positions)
        axis = int(self.has_layer_axis)
        if self.value.ndim == axis + self._last_axes or self.value.shape[axis] == 1:
            return replace(self, positions=positions)  # the same for every row
        value = self.value[:, rows] if axis else self.value[rows]
        return replace(self, positions=positions, value=value)

    def shifted(self, left: int, length: int) -> "Patch":
        """Return the patch of the same tokens in a prompt that lost ``left`` columns in front."""
        return replace(self, positions=self.positions.shifted(left, length))

    def split(self, n_layers: int) -> list["Patch"]:
        """Return a patch for each layer, of a model that has ``n_layers``."""
        layers = layer_list(self.layers, n_layers)
        values = self.value if self.has_layer_axis else [self.value] * len(layers)
        return [
            replace(self, layers=layer, value=value)
            for layer, value in zip(layers, values, strict=True)
        ]

    @staticmethod
    def merge(model: Wrapped, patches: Mapping[int, "Patch"], n_copies: int) -> "Patch":
        """Return one patch for rows that stand ``n_copies`` times, each patched as it is told.

        Parameters
        ----------
        model : Wrapped
        patches : dict of int to Patch
            By copy, counted from 0: copies of a row are next to each other. What differs between
            them is positions and values; those that are not named are left as they are.
        n_copies : int
        """
        like = next(iter(patches.values()))
        last = _last(model, like, int(like.value.shape[-1]) if like.value.ndim else 0)
        at = of_copies({copy: p.positions for copy, p in patches.items()}, n_copies)
        n_rows, width = like.positions.n_rows, at.index.shape[1]
        wide = reduce(torch.promote_types, (patch.value.dtype for patch in patches.values()))
        if wide == torch.float64:  # numbers of Python and numpy
            wide = torch.promote_types(model.dtype, torch.float32)
        value = torch.zeros(n_rows, n_copies, width, *last, dtype=wide, device=like.value.device)
        for copy, patch in patches.items():
            shape = patch.positions.index.shape
            own = patch.value
            if own.ndim == 1 + len(last):  # one per row
                own = own[:, None]
            value[:, copy, : shape[1]] = own.expand(*shape, *last)
        return replace(like, positions=at, value=value.flatten(0, 1))


def check_patches(
    model: Wrapped, prompt: Prompt, patches: Sequence[Patch], *, generating: bool = False
) -> None:
    """Refuse, before anything runs, patches that do not fit the model or the prompt.

    ``generating``: steps follow on the prefill.
    """
    for patch in patches:
        check_written(component := check_component(patch.component))
        if not generating:
            check_acts_in_prefill(patch.steps, "a patch")
        elif of_vision(component) and not only_in_prefill(patch.steps):
            raise PatchError(
                f"a patch of {component} acts at steps {patch.steps!r}: pictures are seen in the "
                "prefill, and in no later step. Leave steps= out."
            )
        check_place(model, prompt, "a patch", patch.layers, patch.positions, component)
        check_heads(model, patch)
        layers = written_once(layers_of(model, patch), "layer")
        if of_vision(component):
            check_used(model, component, layers)
        if component == "k_rot":
            check_keys(model, layers, len(prompt.prefix_ids))
        if patch.heads is not None:
            n_heads = n_heads_of(model, patch.component)
            written_once(index_list(patch.heads, n_heads, "head"), "head")
        if patch.within is not None:
            check_within(model, patch, patch.within)
        check_value(model, patch, n_keys_of(model, prompt, patch))


def _last(model: Wrapped, patch: Patch, n_keys: int) -> list[int]:
    """The axes of a patch's value at one layer, row and position."""
    own = width_of(model, patch, n_keys)
    return own if patch.within is None else [patch.within.size]


def check_within(model: Wrapped, patch: Patch, within: Coordinates) -> None:
    """Refuse coordinates of vectors that are not as wide as those at the patch's place."""
    if patch.heads is not None or patch.component in ATTENDING:
        raise PatchError(
            f"within= and {'heads' if patch.heads is not None else patch.component} do not go "
            "together: coordinates are of a whole vector [width], of all heads behind one another."
        )
    at: list[tuple[Component, int]] = [(patch.component, within.width)]
    if within.source is not None:
        at.append((within.source, within.source_width))
    for component, width in at:
        there = prod(width_of(model, Site(component, patch.layers)))
        if there != width:
            raise PatchError(
                f"within= is of vectors of width {width}, but {component} of {model.name} is "
                f"{there} wide. Use coordinates that were made for this place of this model."
            )


def n_keys_of(model: Wrapped, prompt: Prompt, patch: Patch) -> int:
    """How many tokens there are to attend to; of an image, as many as the patch is for."""
    if of_vision(patch.component):
        return length_of(model, prompt, patch.component)
    if any(model.anatomy.parts[i].cross for i in layer_list(patch.layers, model.n_layers)):
        return int(patch.value.shape[-1]) if patch.value.ndim else 0
    return len(prompt.prefix_ids) + prompt.length


def check_value(model: Wrapped, patch: Patch, n_keys: int = 0) -> None:
    """Refuse a value that does not fit where it is to go, or holds NaN.

    ``n_keys``: how many tokens there are to attend to.
    """
    value, layers = patch.value, layers_of(model, patch)
    last = _last(model, patch, n_keys)
    if patch.within is not None and value.ndim and value.shape[-1] != last[-1]:
        raise PatchError(
            f"a value of width {value.shape[-1]} for {last[-1]} coordinates. Give as many numbers "
            "per position as within= has coordinates: within.coordinates(hidden) are those of "
            "whole vectors."
        )
    if value.ndim and value.shape[-1] != last[-1]:
        raise PatchError(
            f"a value of width {value.shape[-1]} cannot be written into {patch.component} of "
            f"{model.name}, which is {last[-1]} wide."
        )
    check_range(value, model.dtype)
    if patch.has_layer_axis and value.shape[0] != len(layers):
        raise PatchError(
            f"the patch names {len(layers)} layers but its value has {value.shape[0]} along "
            "its first axis."
        )
    shape = list(value.shape[int(patch.has_layer_axis) :])
    rows, n = patch.positions.index.shape
    lead = shape[: len(shape) - len(last)]
    fits = len(lead) <= 2 and all(a in (1, b) for a, b in zip(lead, (rows, n), strict=False))
    if shape and not (fits and shape[len(lead) :] == last):
        layer = [len(layers)] if patch.has_layer_axis else []
        raise PatchError(
            f"a value of shape {tuple(value.shape)} does not fit {patch.component} at role "
            f"{patch.positions.role!r}. Expected {[*layer, rows, n, *last]}, or "
            f"{[*layer, rows, *last]} to spread one value per row over its positions, or {last}, "
            "or a number."
        )
