"""How each block of a model takes what it reads from the residual stream, found by running it.

Which norm is in front of attention and MLP, whether they are beside each other, and whether
queries, keys and values of a head can be computed from another input than those of the next: one
token is run, and it is looked at which tensor goes where. What that does not show to be so is
taken as a whole.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from interventions.architectures.blocks import is_norm
from interventions.architectures.wrapped import forward, weightless
from interventions.architectures.wrapping import original
from interventions.circuits.graph import PARTS, BlockNodes, Graph
from interventions.errors import SiteError
from interventions.model.model import Model
from interventions.prompt.prompt import Prompt


@dataclass(frozen=True)
class Projection:
    """Modules, inside a block, that make queries, keys or values of what attention is given.

    Attributes
    ----------
    linear : str
    norm : str or None
    by_head : bool
        The norm sees each head alone.
    heads : int
    """

    linear: str
    norm: str | None
    by_head: bool
    heads: int


@dataclass(frozen=True)
class Entry:
    """How one block reads and writes the residual stream.

    Attributes
    ----------
    layer : int
    attention, mlp : str
        The two sublayers.
    attention_norm, mlp_norm : str or None
        In front of them; None: they read the stream itself.
    parallel : bool
        The MLP reads what enters the block.
    projections : dict of str to Projection
        ``"q"``, ``"k"``, ``"v"``; empty where attention reads as a whole.
    heads : int
        That write; 0: attention writes as a whole.
    output : str
        Projects the heads' results.
    behind : str or None
        The norm behind attention.
    measured : bool
        What the block adds is read off the stream: gates scale what its sublayers give.
    scale : str or None
        The buffer by which the block multiplies what it gives.
    """

    layer: int
    attention: str
    mlp: str
    attention_norm: str | None
    mlp_norm: str | None
    parallel: bool
    projections: dict[str, Projection]
    heads: int
    output: str
    behind: str | None
    measured: bool
    scale: str | None


@dataclass(frozen=True)
class Layout:
    """The blocks of a model that run, and the graph of their senders and receivers."""

    entries: list[Entry]
    graph: Graph


@dataclass
class Seen:
    """What went into and came out of the modules of a block, by path; "" is the block."""

    given: dict[str, torch.Tensor] = field(default_factory=dict)
    gave: dict[str, torch.Tensor] = field(default_factory=dict)


def unreachable(model: Model) -> str:
    """Why edges of a model cannot be told apart where its requests run; empty if they can."""
    if model.remote or not weightless(model):
        return ""
    return (
        f"requests for {model.name} run in a process of their own on this server, which has no "
        "weights, and edges are told apart by them. Sweep head_out and mlp_out (iv.sweep), or load "
        "the model here."
    )


def layout_of(model: Model, prompt: Prompt) -> Layout:
    """Find how the blocks that a prompt runs read and write.

    Raises
    ------
    SiteError
        If a sublayer reads something else than the residual stream, normed or not.
    """
    anatomy = model.anatomy
    crossing = prompt.has_images and bool(anatomy.cross_blocks)
    running = range(model.n_layers) if crossing or not anatomy.cross_blocks else anatomy.self_blocks
    token = {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=model.device)}
    # Cross-attention blocks run with an image only.
    inputs = model._arguments(prompt.select([0])) if crossing else token
    with _watched(model, list(running)) as seen:
        forward(model, inputs)
    entries = [_entry(model, layer, seen[layer]) for layer in running]
    blocks = [
        BlockNodes(
            entry.layer,
            entry.heads,
            entry.projections["k"].heads if entry.projections else 0,
            entry.parallel,
        )
        for entry in entries
    ]
    return Layout(entries, Graph(blocks, model.n_layers))


@contextmanager
def _watched(model: Model, layers: list[int]) -> Iterator[dict[int, Seen]]:
    """Keep what passes through the modules of blocks, down to those inside attention."""
    seen = {layer: Seen() for layer in layers}
    with ExitStack() as stack:
        for layer in layers:
            block = _block(model, layer)
            attention = model.anatomy.parts[layer].attention
            names = ["", *(name for name, _ in block.named_children())]
            inner = block.get_submodule(attention).named_children()
            for name in (*names, *(f"{attention}.{child}" for child, _ in inner)):
                hook = _hook(seen[layer], name)
                module = block.get_submodule(name)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield seen


def _hook(seen: Seen, name: str) -> Any:
    def keep(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        value = output[0] if isinstance(output, tuple) else output
        if tensors and torch.is_tensor(value):
            seen.given.setdefault(name, tensors[0].detach())
            seen.gave.setdefault(name, value.detach())

    return keep


def _same(one_side: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same numbers in memory, whatever their shape.

    Where blocks lie on several devices, what goes from one to the next is copied there.
    """
    if one_side.numel() != other.numel():
        return False
    if one_side.device != other.device:
        return torch.equal(one_side.cpu().flatten(), other.cpu().flatten())
    return one_side.data_ptr() == other.data_ptr()


def _block(model: Model, layer: int) -> nn.Module:
    return model.module.get_submodule(f"{model.anatomy.blocks}.{layer}")


def _entry(model: Model, layer: int, seen: Seen) -> Entry:
    parts, block = model.anatomy.parts[layer], _block(model, layer)
    norms = [name for name, child in block.named_children() if is_norm(child)]
    stream = seen.given[""]

    def norm_of(reader: str) -> tuple[str | None, torch.Tensor]:
        """The norm in front of a sublayer, and what that, or the sublayer, is given."""
        given = seen.given[reader]
        for name in norms:
            if name in seen.gave and _same(seen.gave[name], given):
                return name, seen.given[name]
        return None, given

    attention_norm, before = norm_of(parts.attention)
    if not _same(before, stream):
        raise SiteError(
            f"what attention of block {layer} of {model.name} reads is no norm of what enters the "
            "block, so edges into it cannot be told apart. Sweep head_out and mlp_out (iv.sweep)."
        )
    mlp_norm, before = norm_of(parts.mlp)
    gated = parts.attn_gate is not None or parts.mlp_gate is not None
    projections = {} if parts.cross else _projections(model, layer, seen)
    output = parts.projection or ""
    behind = parts.attn_out if parts.behind_norm else None
    heads = 0 if parts.cross else _heads(model, layer, seen, output, behind)
    return Entry(
        layer=layer,
        attention=parts.attention,
        mlp=parts.mlp,
        attention_norm=attention_norm,
        mlp_norm=mlp_norm,
        parallel=_same(before, stream),
        projections=projections if heads else {},
        heads=heads,
        output=output,
        behind=behind,
        measured=gated,
        scale=parts.scale,
    )


def _projections(model: Model, layer: int, seen: Seen) -> dict[str, Projection]:
    """Queries, keys and values, if they are all that attention makes of what it is given."""
    parts, block = model.anatomy.parts[layer], _block(model, layer)
    given = seen.given[parts.attention]
    projections: dict[str, Projection] = {}
    for part in PARTS:
        spot = parts.spot(part)
        if spot.path is None:
            return {}
        linear = f"{parts.attention}.{part}_proj"
        norm = None if spot.path == linear else spot.path
        if linear not in seen.gave or spot.path not in seen.gave:
            return {}
        if seen.gave[linear].shape[-1] != spot.axes[0] * spot.axes[1]:
            return {}
        by_head = norm is not None and seen.given[norm].shape[-1] == spot.axes[1]
        projection = Projection(linear, norm, by_head, spot.axes[0])
        made_again = projected(block, projection, given)
        if not torch.equal(made_again.flatten(), _plainly(seen.gave[spot.path], spot.heads_first)):
            return {}
        projections[part] = projection
    readers = {
        name
        for name, value in seen.given.items()
        if name.startswith(f"{parts.attention}.") and _same(value, given)
    }
    readers = {
        name for name in readers if any(True for _ in block.get_submodule(name).parameters())
    }
    return projections if readers == {p.linear for p in projections.values()} else {}


def _plainly(value: torch.Tensor, heads_first: bool) -> torch.Tensor:
    return (value.transpose(1, 2) if heads_first else value).flatten()


def projected(block: Any, projection: Projection, normed: torch.Tensor) -> torch.Tensor:
    """What a projection and its norm make of the input of attention, [..., head, head_dim].

    ``block`` is a module, or its envoy.
    """
    value = _child(block, projection.linear)(normed)
    if projection.norm is None:
        return value.unflatten(-1, (projection.heads, -1))
    if projection.by_head:
        return _child(block, projection.norm)(value.unflatten(-1, (projection.heads, -1)))
    return _child(block, projection.norm)(value).unflatten(-1, (projection.heads, -1))


def _child(block: Any, path: str) -> Any:
    return block.get_submodule(path) if isinstance(block, nn.Module) else block.get(path)


def _heads(model: Model, layer: int, seen: Seen, output: str, behind: str | None) -> int:
    """How many heads' shares add up to what attention writes; 0 if they do not."""
    parts, block = model.anatomy.parts[layer], _block(model, layer)
    if not output or output not in seen.gave:
        return 0
    if not _same(seen.gave[output], seen.gave[parts.attention]):
        return 0
    if behind is not None and not _only_scales(model, block.get_submodule(behind)):
        return 0
    return model.anatomy.n_heads


def _only_scales(model: Model, norm: nn.Module) -> bool:
    """Whether a norm gives its input times numbers, as an RMS norm does, and takes no mean off."""
    with torch.no_grad():
        weight = next(iter(norm.parameters()), torch.empty(0, device=model.device))
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(4, model.d_model, generator=generator).to(weight)
        again = scaled(norm, probe, norm(probe), probe)
        gave = norm(probe)
        return bool((again - gave).abs().max() < 0.05 * gave.abs().max())


def scaled(norm: Any, whole: torch.Tensor, gave: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """The share that a part of its input has in what an RMS norm gave.

    Parameters
    ----------
    norm : module or envoy
    whole, gave : Tensor [..., d_model]
        Its input and its output.
    part : Tensor [..., d_model]
    """
    wide = torch.promote_types(whole.dtype, torch.float32)
    gain = norm(torch.ones_like(whole[..., :1, :].flatten(0, -2)[:1]))[0].to(wide)
    weighted = whole.to(wide) * gain
    square = weighted.square().sum(-1, keepdim=True)
    factor = (weighted * gave.to(wide)).sum(-1, keepdim=True) / square.clamp(min=1e-30)
    return (part.to(wide) * (gain * factor)).to(part.dtype)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is torch's own linear layer, its weights are at hand, and nothing else
    acts where it is called.
    """
    if type(module) is not nn.Linear or module.weight.device.type == "meta":
        return False
    acts = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
    return original(module) is module and not acts
