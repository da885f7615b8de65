"""What senders write, and what receivers make of what they read, inside a trace or out of it."""

from collections.abc import Sequence
from typing import Any

import torch

from interventions.circuits.layout import Entry, Projection, is_plain, projected, scaled
from interventions.model.model import Model


def module_of(model: Model, entry: Entry, path: str) -> Any:
    """A module of a block itself."""
    return model.module.get_submodule(f"{model.anatomy.blocks}.{entry.layer}.{path}".rstrip("."))


def normed(model: Model, entry: Entry, norm: str | None, hidden: torch.Tensor) -> torch.Tensor:
    """What a norm in front of a sublayer makes of the stream; the stream where there is none."""
    return hidden if norm is None else model.blocks[entry.layer].get(norm)(hidden)


def attention_writes(
    model: Model, entry: Entry, heads: torch.Tensor | None, total: torch.Tensor
) -> torch.Tensor:
    """What each head, or attention as a whole, adds to the residual stream.

    A head's share is what the output projection makes of it alone, and an equal part of its bias;
    behind a norm, that times what the norm multiplied the sum by.

    Parameters
    ----------
    heads : Tensor [row, position, head * head_dim] or None
        The input of the output projection.
    total : Tensor [row, position, d_model]
        What all of them add.

    Returns
    -------
    Tensor [sender, row, position, d_model]
    """
    if heads is None or not entry.heads:
        return total[None]
    module = module_of(model, entry, entry.output)
    split = heads.unflatten(-1, (entry.heads, -1))
    if is_plain(module):
        weight = module.weight.unflatten(1, (entry.heads, -1))
        shares = torch.einsum("rphe,dhe->hrpd", split, weight)
        bias = module.bias
    else:
        linear = model.blocks[entry.layer].get(entry.output)
        nothing = torch.zeros_like(split)
        bias = linear(nothing[:1, :1].flatten(-2))[0, 0]
        alone = []
        for head in range(entry.heads):
            only = nothing.clone()
            only[:, :, head] = split[:, :, head]
            alone.append(linear(only.flatten(-2)) - bias)
        shares = torch.stack(alone)
    if bias is not None:
        shares = shares + bias / entry.heads
    if entry.behind is None:
        return shares
    norm = model.blocks[entry.layer].get(entry.behind)
    return scaled(norm, shares.sum(0), total, shares)


def head_inputs(
    model: Model, entry: Entry, projection: Projection, heads: Sequence[int], hidden: torch.Tensor
) -> torch.Tensor:
    """Queries, keys or values of heads that each read a stream of their own.

    Parameters
    ----------
    heads : sequence of int
    hidden : Tensor [head, row, position, d_model]

    Returns
    -------
    Tensor [row, position, head, head_dim]
        As they are behind their norm, if they have one.
    """
    block = model.blocks[entry.layer]
    rows = hidden.shape[1]
    given = normed(model, entry, entry.attention_norm, hidden.flatten(0, 1)).unflatten(
        0, (-1, rows)
    )
    module = module_of(model, entry, projection.linear)
    if is_plain(module) and (projection.norm is None or projection.by_head):
        given = given.to(module.weight.device)
        weight = module.weight.unflatten(0, (projection.heads, -1))[list(heads)]
        value = torch.einsum("hrpd,hed->rphe", given, weight)
        if module.bias is not None:
            value = value + module.bias.unflatten(0, (projection.heads, -1))[list(heads)]
        return value if projection.norm is None else block.get(projection.norm)(value)
    whole = [projected(block, projection, given[i])[:, :, head] for i, head in enumerate(heads)]
    return torch.stack(whole, 2)


def mlp_input(model: Model, entry: Entry, hidden: torch.Tensor) -> torch.Tensor:
    """What the MLP is given when it reads this stream."""
    return normed(model, entry, entry.mlp_norm, hidden)


def mlp_writes(model: Model, entry: Entry, hidden: torch.Tensor) -> torch.Tensor:
    """What the MLP gives when it reads this stream, behind its norm and before any gate."""
    block, parts = model.blocks[entry.layer], model.anatomy.parts[entry.layer]
    value = block.get(entry.mlp)(mlp_input(model, entry, hidden))
    value = value[0] if isinstance(value, tuple) else value
    value = value.reshape(hidden.shape)
    return value if parts.mlp_out == parts.mlp else block.get(parts.mlp_out)(value)


def scale_of(model: Model, entry: Entry) -> torch.Tensor | None:
    """The factor by which a block multiplies what it gives, if it has one."""
    return None if entry.scale is None else module_of(model, entry, "").get_buffer(entry.scale)
