"""What a run is given beside its patches and reads, checked before anything runs."""

from collections.abc import Sequence
from typing import Any

import torch

from interventions.errors import PatchError, PromptError, SiteError
from interventions.given import of_kind, several, whole
from interventions.given_arrays import check_range, tensor_of
from interventions.model.model import Model
from interventions.model.sites import layer_list, of_vision
from interventions.prompt.prompt import Prompt


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
    if any(of_vision(getattr(touch, "component", "")) for touch in touching):
        raise SiteError(
            f"start={block} skips what comes before that block, and with it the vision tower, of "
            "which something is patched or read. Run without start."
        )
    touched = [layer for touch in touching for layer in layer_list(touch.layers, model.n_layers)]
    if keep_cache or min(touched, default=block) < block:
        raise SiteError(
            f"start={block} skips the blocks below, but "
            + ("keep_cache needs them all." if keep_cache else f"block {min(touched)} is used.")
        )


def check_numbers(logits: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse logits of an edited run that are no numbers: what was written went out of range.

    Each value that is written is looked at before; what it is added to, or multiplies, is not, nor
    what blocks behind it make of it.

    Raises
    ------
    PatchError
    """
    if not bool(torch.isnan(logits).any()):
        return
    name = str(dtype).removeprefix("torch.")
    raise PatchError(
        f"with what is written, the model gives no numbers (NaN): somewhere it makes more than "
        f"{name} can hold (up to {torch.finfo(dtype).max:.3g}). Write, add or scale by less, or "
        "load the model in a wider format."
    )
