"""Patches behind a block, as what they make of the next one's input: the block needn't run."""

from collections.abc import Sequence

import torch

from interventions.given_arrays import check_range
from interventions.model.model import Model
from interventions.prompt.positions import write_at
from interventions.running.coordinates import write_within
from interventions.running.patches import Patch


def layer_of(patch: Patch) -> int:
    """The one layer of a patch that was split."""
    assert isinstance(patch.layers, int)
    return patch.layers


def scale_of(model: Model, layer: int) -> torch.Tensor | None:
    """The factor by which a block multiplies what it gives, if it has one."""
    name = model.anatomy.parts[layer].scale
    if name is None:
        return None
    return model.module.get_submodule(f"{model.anatomy.blocks}.{layer}").get_buffer(name)


def folded(
    resid: torch.Tensor,
    patches: Sequence[Patch],
    mlp_out: torch.Tensor | None,
    at: int,
    scale: torch.Tensor | None,
) -> torch.Tensor:
    """What patches behind a block make of the next one's input [row, position, d_model].

    Parameters
    ----------
    resid : Tensor [row, position, d_model]
        Without them, from position ``at`` on.
    patches : sequence of Patch
        Of one block.
    mlp_out : Tensor [row, position, d_model] or None
        What the block's MLP gave there, where patches set or multiply it, or it is scaled.
    at : int
    scale : Tensor or None
        Of the block: :func:`scale_of`.
    """
    mlp = [patch for patch in patches if patch.component == "mlp_out"]
    post = [patch for patch in patches if patch.component == "resid_post"]
    if not mlp or (scale is None and all(patch.mode == "add" for patch in mlp)):
        post = mlp + post
    else:
        assert mlp_out is not None
        here = changed = mlp_out.to(resid)
        for patch in mlp:
            changed = _put(changed, patch, at)
        difference = changed - here
        resid = resid + (difference if scale is None else difference * scale.to(resid.device))
    for patch in post:
        resid = _put(resid, patch, at)
    # Each value was looked at, but what comes of adding and multiplying was not.
    if mlp or any(patch.mode != "set" or patch.within is not None for patch in post):
        check_range(resid, resid.dtype, "what patches behind a block make of its result")
    return resid


def _put(hidden: torch.Tensor, patch: Patch, at: int) -> torch.Tensor:
    places = patch.positions.shifted(at, hidden.shape[1])
    if patch.within is not None:
        return write_within(hidden, places, patch.within, patch.value, patch.mode)
    return write_at(hidden, places, patch.value, patch.mode, checked=hidden.dtype)
