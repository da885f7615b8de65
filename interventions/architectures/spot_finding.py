"""Where, inside a block's sublayers, queries, keys, neurons and the like are; or why they are not.

What is added to the residual stream is in :mod:`interventions.architectures.blocks`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from interventions.architectures.forward_source import (
    Code,
    attends_as_cached,
    between,
    code_of,
    heads_first,
    interface_calls,
    n_given,
)
from interventions.architectures.spots import Spot
from interventions.architectures.wrapping import original

DOWN = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2")
GATES = ("gate_proj", "gate_up_proj", "w1")
UP = ("up_proj", "c_fc", "fc1", "fc_in", "dense_h_to_4h")
BESIDE_UP = ("up_proj", "w3")
FUSED_GATES = ("gate_up_proj",)
EXPERTS = ("experts", "router")
PROJECTED: dict[str, tuple[str, str]] = {
    "q": ("q_norm", "q_proj"),
    "k": ("k_norm", "k_proj"),
    "v": ("v_norm", "v_proj"),
}
AT_THE_ATTENTION = ("q_rot", "k_rot", "attn_scores", "attn_pattern")
OTHER_CODE = "its forward has no source that could be read"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder that its blocks share."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int


def with_code_of(block: nn.Module, parts: Any) -> Any:
    """Add what the code of a block and of its attention says of what they give and are given."""
    own, attention = code_of(block), code_of(block.get_submodule(parts.attention))
    return replace(
        parts,
        n_given=None if own is None else n_given(own),
        as_cached=attention is not None and attends_as_cached(attention),
    )


def spots_of(
    block: nn.Module, parts: Any, sizes: Sizes, routers: dict[type, int]
) -> tuple[Spot, ...]:
    """Find what is inside one block, in the order in which it is computed.

    Parameters
    ----------
    block : torch.nn.Module
    parts : interventions.architectures.blocks.Block
    sizes : Sizes
    routers : dict
        Classes of modules that choose among experts, each with which of its outputs are the logits.
    """
    attention = block.get_submodule(parts.attention)
    return (
        *_projected(attention, parts, sizes),
        *_attending(attention, parts, sizes),
        _mid(block, parts, sizes),
        Spot("mlp_in", parts.mlp, "input", axes=(sizes.d_model,)),
        *_neurons(block.get_submodule(parts.mlp), parts.mlp, routers),
    )


def routers_of(module: nn.Module) -> dict[type, int]:
    """Classes whose outputs transformers records as router logits, and which output that is."""
    classes: dict[type, int] = {}
    for part in module.modules():
        recorders = getattr(part, "_can_record_outputs", None) or {}
        recorder: Any = recorders.get("router_logits") if isinstance(recorders, dict) else None
        if isinstance(recorder, type):
            classes[recorder] = 0
        elif (kind := getattr(recorder, "target_class", None)) is not None:
            classes[kind] = recorder.index
    return classes


def _mid(block: nn.Module, parts: Any, sizes: Sizes) -> Spot:
    code = code_of(block)
    if code is None:
        return Spot("resid_mid", why=f"cannot be looked into: {OTHER_CODE}. Use resid_pre")
    child = between(code, parts.mlp)
    if child is None or child not in dict(block.named_children()):
        why = (
            "does not keep the residual stream between attention and MLP where it could be read "
            "and written (its sublayers are parallel, or it adds up elsewhere). Use resid_pre, "
            "attn_out and mlp_out"
        )
        return Spot("resid_mid", why=why)
    return Spot("resid_mid", child, "input", axes=(sizes.d_model,))


def _projected(attention: nn.Module, parts: Any, sizes: Sizes) -> list[Spot]:
    """Queries, keys and values before rotary embeddings, in the order in which they come."""
    code = code_of(attention)
    spots = []
    for component, names in PROJECTED.items():
        children = dict(attention.named_children())
        name = next((name for name in names if name in children), None)
        heads = sizes.n_heads if component == "q" else sizes.n_kv_heads
        why = _unprojected(component, name, children, parts, code, heads * sizes.head_dim)
        if why:
            spots.append((len(spots), Spot(component, why=why)))
            continue
        assert name is not None
        assert code is not None
        call = code.called(name)
        assert call is not None
        spot = Spot(
            component,
            f"{parts.attention}.{name}",
            heads_first=name.endswith("_norm") and heads_first(code, name),
            axes=(heads, sizes.head_dim),
        )
        spots.append((call.lineno, spot))
    return [spot for _, spot in sorted(spots, key=lambda pair: pair[0])]


def _unprojected(
    component: str,
    name: str | None,
    children: dict[str, nn.Module],
    parts: Any,
    code: Code | None,
    width: int,
) -> str:
    """Why a block has no queries, keys or values of its own to be touched; empty if it has."""
    if parts.projection is None:
        return f"{parts.no_heads}, so it has no {component} by head"
    if name is None:
        return (
            f"has no projection of {component} alone ({', '.join(children)}). Use head_out, or "
            "nnsight at one of these"
        )
    if code is None:
        return f"cannot be looked into: {OTHER_CODE}. Use head_out"
    if code.called(name) is None:
        return f"does not call its {name} itself. Use head_out"
    given = getattr(original(children[name]), "out_features", None)
    if name.endswith("_proj") and given is not None and given != width:
        return f"projects more than {component} ({given} wide, not {width}). Use head_out"
    return ""


def _attending(attention: nn.Module, parts: Any, sizes: Sizes) -> Iterator[Spot]:
    """What its attention function is given, and the weights that it makes."""
    code = code_of(attention)
    why = ""
    if parts.recurrent:
        why = f"{parts.no_heads}, so nothing is attended to"
    elif code is None or not (calls := interface_calls(code)):
        why = (
            "does not attend through one of transformers' interchangeable attention functions, so "
            "what it attends to cannot be read. Use head_out and knockouts"
        )
    elif len(calls) > 1:
        why = (
            f"calls its attention function {len(calls)} times, so what is written at one of them "
            "would not be all that it attends to. Use head_out and knockouts"
        )
    for component in AT_THE_ATTENTION:
        rotated = component.endswith("_rot")
        own = why
        if not own and rotated and parts.projection is None:
            own = f"{parts.no_heads}, so it has no {component} by head"
        if not own and parts.cross and component == "k_rot":
            own = "attends to the image: its keys are not rotated. Use k"
        heads = sizes.n_kv_heads if component == "k_rot" else sizes.n_heads
        path = None if own else parts.attention
        axes = () if own else (heads, sizes.head_dim if rotated else 0)
        yield Spot(component, path, "input", axes=axes, why=own)


def _neurons(mlp: nn.Module, name: str, routers: dict[type, int]) -> Iterator[Spot]:
    children = dict(mlp.named_children())
    mixture = any(mark in key for key in children for mark in EXPERTS)
    yield _router(mlp, name, routers, mixture)
    if mixture:
        why = "is a mixture of experts, whose neurons are not those of every token. Use mlp_out"
        yield from (Spot(component, why=why) for component in ("mlp_pre", "mlp_post"))
        return
    down = next((key for key in DOWN if key in children), None)
    if down is None:
        why = f"has no MLP with a down projection that was recognised ({', '.join(children)}). "
        why += "Use mlp_out"
        yield from (Spot(component, why=why) for component in ("mlp_pre", "mlp_post"))
        return
    width = _inner(children, down)
    if width is None:
        why = f"has a {down} that does not tell how many neurons it reads. Use mlp_out"
        yield from (Spot(component, why=why) for component in ("mlp_pre", "mlp_post"))
        return
    gate = next((key for key in GATES if key in children), None)
    if gate not in FUSED_GATES and not any(key in children for key in BESIDE_UP):
        gate = None
    before = gate or next((key for key in UP if key in children), None)
    if before is None:
        yield Spot("mlp_pre", why="has no up projection that was recognised. Use mlp_post")
    else:
        yield Spot("mlp_pre", f"{name}.{before}", axes=(width,))
    yield Spot("mlp_post", f"{name}.{down}", "input", axes=(width,))


def _inner(children: dict[str, nn.Module], down: str) -> int | None:
    """Number of neurons, by the layer's own account, as packing changes a weight's shape.

    None if it cannot be told.
    """
    linear = original(children[down])
    for key in ("in_features", "nx", "infeatures"):
        if isinstance(width := getattr(linear, key, None), int):
            return width
    weight = getattr(linear, "weight", None)
    return int(weight.shape[-1]) if isinstance(weight, torch.Tensor) else None


def _router(mlp: nn.Module, name: str, routers: dict[type, int], mixture: bool) -> Spot:
    if not mixture:
        return Spot("router", why="is no mixture of experts, so nothing is routed. Use mlp_post")
    for key, child in mlp.named_children():
        kind = type(original(child))
        if kind in routers:
            return Spot("router", f"{name}.{key}", element=routers[kind], axes=(_n_experts(child),))
    return Spot("router", why="has experts, but what chooses among them was not recognised")


def _n_experts(router: nn.Module) -> int:
    linear = original(router)
    for key in ("num_experts", "out_features", "n_routed_experts"):
        if isinstance(number := getattr(linear, key, None), int):
            return number
    return int(linear.weight.shape[0])  # type: ignore[union-attr]
