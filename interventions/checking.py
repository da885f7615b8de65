"""What a run is given beside its patches and reads, checked before anything runs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from interventions.errors import PatchError, PromptError, SiteError
from interventions.given import of_kind, several, whole
from interventions.given_arrays import check_range, tensor_of
from interventions.model import Model
from interventions.prompts import Prompt
from interventions.streams import index_list, layer_list

if TYPE_CHECKING:
    from interventions.patching import Patch


def check_asked(model: Any, prompt: Any) -> None:
    """Refuse anything but a model and a prompt."""
    of_kind(model, Model, "the model", error=PromptError)
    if not len(of_kind(prompt, Prompt, "the prompt", error=PromptError)):
        raise PromptError("the prompt has no rows, so there is nothing to run.")


def start_of(model: Model, prompt: Prompt, start: Any) -> tuple[int, torch.Tensor]:
    """Return the block that a run starts in, and what enters it; refuse what does not fit."""
    given = several(start, "start", error=SiteError, expected="a block and its resid_pre")
    if len(given) != 2:
        raise SiteError(f"start has {len(given)} parts. Expected a block and its resid_pre.")
    block = whole(given[0], "the block of start", least=0, most=model.n_layers, error=SiteError)
    value = tensor_of(given[1], "the value of start")
    shape = (len(prompt), prompt.length, model.d_model)
    if tuple(value.shape) != shape:
        raise PatchError(f"the value of start has shape {tuple(value.shape)}. Expected {shape}.")
    check_range(value, model.dtype, "the value of start")
    return block, value


def check_start(
    model: Model,
    block: int,
    touching: Sequence[Any],
    *,
    keep_cache: bool,
) -> None:
    """Refuse to skip blocks that are patched, read, or whose keys and values are wanted."""
    if block != model.n_layers:
        layer_list(block, model.n_layers)
    touched = [layer for one in touching for layer in layer_list(one.layers, model.n_layers)]
    if keep_cache or min(touched, default=block) < block:
        raise SiteError(
            f"start={block} skips the blocks below, but "
            + ("keep_cache needs them all." if keep_cache else f"block {min(touched)} is used.")
        )


def check_value(model: Model, patch: "Patch") -> None:
    """Refuse a value that does not fit where it is to go, or holds NaN."""
    value, layers = patch.value, layer_list(patch.layers, model.n_layers)
    heads = patch.component == "head_out"
    last = [model.anatomy.head_dim if heads else model.d_model]
    if heads and not isinstance(patch.heads, int):
        chosen = slice(None) if patch.heads is None else patch.heads
        last = [len(index_list(chosen, model.anatomy.n_heads, "head")), *last]
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
