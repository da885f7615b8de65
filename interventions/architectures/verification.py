"""Checking by numbers that the parts found in a model are what they are taken for.

For architectures that the conformance suite does not cover; needs real weights.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from interventions.architectures.anatomy import Anatomy
from interventions.architectures.blocks import Block


def check_components(module: Any, anatomy: Anatomy) -> str | None:
    """Run a few tokens and check that the components found add up; say what does not.

    For architectures that the conformance suite does not cover. Needs real weights.

    Returns
    -------
    str or None
        What is wrong, for a message.
    """
    layers: Any = module.get_submodule(anatomy.blocks)
    seen: dict[tuple[int, str], torch.Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for layer in anatomy.self_blocks:
            _watch(layers[layer], anatomy.parts[layer], layer, seen, stack)
        device = next(module.get_submodule(anatomy.embeddings).parameters()).device
        where = "cpu" if device.type == "meta" else device  # weights that are brought when needed
        ids = torch.arange(1, 5, device=where)[None] % anatomy.vocab
        logits = module(input_ids=ids, use_cache=False).logits
        if (after := seen.get((anatomy.n_layers - 1, "post"))) is not None:
            norm, head = (module.get_submodule(p) for p in (anatomy.final_norm, anatomy.head))
            ours = head(norm(after)) * anatomy.logit_scale
            if (cap := anatomy.softcap) is not None:
                ours = torch.tanh(ours / cap) * cap
            error = (ours.to(logits.device) - logits).float().abs().max()
            if error > 4 * _noise(logits) * logits.float().abs().max():
                return "the final norm and the head do not make the logits of the last resid_post"
    for layer in anatomy.self_blocks:
        streams = [seen.get((layer, key)) for key in ("pre", "attn_out", "mlp_out", "post")]
        if any(stream is None for stream in streams):
            return f"a part of block {layer} did not run in a plain forward pass"
        *summands, after = (
            stream.reshape(-1, anatomy.d_model).cpu().double()
            for stream in streams
            if stream is not None
        )
        if (name := anatomy.parts[layer].scale) is not None:
            factor = layers[layer].get_buffer(name).cpu().double()
            summands = [summand * factor for summand in summands]
        error = (sum(summands) - after).abs()
        if bool((error > _noise(streams[-1]) * sum(summand.abs() for summand in summands)).any()):
            return f"in block {layer} resid_pre + attn_out + mlp_out is not resid_post"
    return None


def _noise(value: Any) -> float:
    """What rounding may do to a sum of a few numbers, as a share of them."""
    return max(4 * torch.finfo(value.dtype).eps, 1e-5)


def _watch(
    block: nn.Module,
    parts: Block,
    layer: int,
    seen: dict[tuple[int, str], torch.Tensor],
    stack: ExitStack,
) -> None:
    """Keep what goes through a block while ``stack`` is open."""

    def keep(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            # A copy: some blocks (Falcon's) add up in place.
            seen[layer, name] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    def enter(_module: Any, args: Any, kwargs: Any) -> None:
        seen[layer, "pre"] = (args[0] if args else kwargs["hidden_states"]).clone()

    for name in ("attn_out", "mlp_out"):
        part = block.get_submodule(getattr(parts, name))
        stack.callback(part.register_forward_hook(keep(name)).remove)
    stack.callback(block.register_forward_hook(keep("post")).remove)
    stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
