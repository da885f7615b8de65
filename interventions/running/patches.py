"""What is read and written while a prompt runs, and whether it fits: checked once, at the door."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch

from interventions.architectures.wrapped import Wrapped
from interventions.errors import PatchError, SiteError
from interventions.given import of_kind, one_of
from interventions.given_arrays import check_range, tensor_of
from interventions.model.attention_streams import check_unshared
from interventions.model.sites import (
    Component,
    Heads,
    Layers,
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
from interventions.prompt.positions import MODES, Mode, Positions, index_list
from interventions.prompt.prompt import Prompt
from interventions.returnable import returnable


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
    """

    component: Component
    layers: Layers
    positions: Positions
    value: torch.Tensor
    mode: Mode = "set"
    heads: Heads = None

    def __post_init__(self) -> None:
        make_plain(self)
        of_kind(self.positions, Positions, "the positions of a patch", error=SiteError)
        value = tensor_of(self.value)
        object.__setattr__(self, "value", value.detach() if value.requires_grad else value)
        object.__setattr__(self, "mode", one_of(self.mode, "mode", MODES, error=PatchError))

    @property
    def _last_axes(self) -> int:
        """Number of axes that one layer, row and position has: d_model, or head and head_dim."""
        return 2 if of_head(self.component) and not isinstance(self.heads, int) else 1

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
        last = width_of(model, like, int(like.value.shape[-1]) if like.value.ndim else 0)
        n_rows, width = (
            like.positions.n_rows,
            max(p.positions.index.shape[1] for p in patches.values()),
        )
        index = torch.zeros(n_rows, n_copies, width, dtype=torch.long)
        mask = torch.zeros(n_rows, n_copies, width, dtype=torch.bool)
        wide = reduce(torch.promote_types, (patch.value.dtype for patch in patches.values()))
        if wide == torch.float64:  # numbers of Python and numpy
            wide = torch.promote_types(model.dtype, torch.float32)
        value = torch.zeros(n_rows, n_copies, width, *last, dtype=wide, device=like.value.device)
        for copy, patch in patches.items():
            shape = patch.positions.index.shape
            own = patch.value
            if own.ndim == 1 + len(last):  # one per row
                own = own[:, None]
            index[:, copy, : shape[1]] = patch.positions.index
            mask[:, copy, : shape[1]] = patch.positions.mask
            value[:, copy, : shape[1]] = own.expand(*shape, *last)
        length = like.positions.length
        at = Positions(index.flatten(0, 1), mask.flatten(0, 1), length, False, "cells")
        return replace(like, positions=at, value=value.flatten(0, 1))


def check_patches(model: Wrapped, prompt: Prompt, patches: Sequence[Patch]) -> None:
    """Refuse, before anything runs, patches that do not fit the model or the prompt."""
    for patch in patches:
        check_written(component := check_component(patch.component))
        check_place(model, prompt, "a patch", patch.layers, patch.positions, component)
        check_heads(model, patch)
        layers = written_once(layers_of(model, patch), "layer")
        if of_vision(component):
            check_used(model, component, layers)
        if component == "k_rot":
            check_unshared(len(prompt.prefix_ids))
        if patch.heads is not None:
            n_heads = n_heads_of(model, patch.component)
            written_once(index_list(patch.heads, n_heads, "head"), "head")
        check_value(model, patch, n_keys_of(model, prompt, patch))


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
    last = width_of(model, patch, n_keys)
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
