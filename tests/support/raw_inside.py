"""What is inside the blocks of the suite's models, with plain PyTorch hooks at paths by hand."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from families import PATHS, Case

PROJECTED = ("q", "k", "v")
MLP = ("mlp_pre", "mlp_post")


@dataclass(frozen=True)
class Value:
    """A value to be written at one position per row, or at several.

    Attributes
    ----------
    component : str
    layer : int
    at : Tensor [row] or [row, position]
    value : Tensor [row, ...] or [row, position, ...]
    """

    component: str
    layer: int
    at: torch.Tensor
    value: torch.Tensor


def has(name: str, component: str, layer: int) -> bool:
    """Whether a block of a family has a component."""
    paths = PATHS[name]
    if component in PROJECTED:
        cross = layer in paths.cross_blocks and component != "q"
        return layer not in paths.headless and not cross
    if component in MLP:
        return not paths.experts
    return paths.experts if component == "router" else True


def _module(case: Case, component: str, layer: int) -> Any:
    paths = PATHS[case.name]
    block = case.model.module.get_submodule(f"{paths.blocks}.{layer}")
    if component in PROJECTED:
        attention = block.cross_attn if layer in paths.cross_blocks else block.self_attn
        crossing = layer in paths.cross_blocks and component != "v"
        normed = component in paths.normed or crossing
        return getattr(attention, f"{component}_{'norm' if normed else 'proj'}")
    mlp = block.get_submodule(paths.mlp)
    return {
        "resid_mid": getattr(block, paths.mid),
        "mlp_in": mlp,
        "router": getattr(mlp, "router", None),
        "mlp_pre": getattr(mlp, paths.gate, None),
        "mlp_post": getattr(mlp, "down_proj", None),
    }[component]


def _shown(case: Case, component: str, layer: int, given: Any, output: Any) -> torch.Tensor:
    """The value [row, position, ...] from what a module was given and gave."""
    model, paths = case.model, PATHS[case.name]
    if component in ("resid_mid", "mlp_in", "mlp_post"):
        return given[0]
    if component == "router":
        return output[1].reshape(len(case.prompt), -1, output[1].shape[-1])
    if component == "mlp_pre":
        width = model.module.config.get_text_config().intermediate_size
        return output[..., :width]
    heads = model.anatomy.n_heads if component == "q" else model.anatomy.n_kv_heads
    if output.ndim == 3:
        n_rows = len(case.prompt) if layer in paths.cross_blocks else len(output)
        return output.reshape(n_rows, -1, heads, model.anatomy.head_dim)
    first = paths.heads_first or layer in paths.cross_blocks
    return output.transpose(1, 2) if first else output


def raw_inside(
    case: Case,
    *,
    reads: Sequence[tuple[str, int]] = (),
    edit: Value | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One forward pass: logits, and what was read [row, position, ...], copied."""
    kept: dict[tuple[str, int], torch.Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for component, layer in reads:
            key = (component, layer)

            def keep(_m: Any, given: Any, output: Any, key: tuple[str, int] = key) -> None:
                kept[key] = _shown(case, key[0], key[1], given, output).clone()

            module = _module(case, component, layer)
            stack.callback(module.register_forward_hook(keep).remove)
        if edit is not None:
            _write(case, edit, stack)
        logits = case.model.module(**case.arguments).logits
    return logits, [kept[key] for key in reads]


@contextmanager
def writing(case: Case, edits: Sequence[Value], *, prefill_only: bool) -> Iterator[None]:
    """Write while this is open; ``prefill_only``: where more than one token goes through."""
    with ExitStack() as stack, torch.no_grad():
        for edit in edits:
            _write(case, edit, stack, prefill_only=prefill_only)
        yield


def _write(case: Case, edit: Value, stack: ExitStack, *, prefill_only: bool = False) -> None:
    rows = torch.arange(len(edit.at)).view(-1, *[1] * (edit.at.ndim - 1))
    module = _module(case, edit.component, edit.layer)

    def after(_m: Any, given: Any, output: Any) -> Any:
        new = output.clone()
        shown = _shown(case, edit.component, edit.layer, given, new)
        if prefill_only and shown.shape[1] == 1:
            return output
        shown[rows, edit.at] = edit.value
        return new

    def before(_m: Any, given: Any) -> Any:
        new = given[0].clone()
        new[rows, edit.at] = edit.value
        return (new, *given[1:])

    if edit.component in PROJECTED:
        stack.callback(module.register_forward_hook(after).remove)
    else:
        stack.callback(module.register_forward_pre_hook(before).remove)
    if edit.component == "resid_mid":
        _go_around(case, edit, stack)


def _go_around(case: Case, edit: Value, stack: ExitStack) -> None:
    """Make a block's output the sum that it is of another residual stream behind its attention."""
    paths = PATHS[case.name]
    block = case.model.module.get_submodule(f"{paths.blocks}.{edit.layer}")
    rows = torch.arange(len(edit.at))
    added: list[torch.Tensor] = []
    last = block.get_submodule(paths.norms[1] if paths.behind_norm else paths.mlp)

    def keep(_m: Any, _given: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        added.append(value.reshape(len(edit.at), -1, value.shape[-1])[rows, edit.at])

    def total(_m: Any, _given: Any, output: Any) -> Any:
        new = (output[0] if isinstance(output, tuple) else output).clone()
        gate = block.cross_attn_mlp_gate.tanh() if edit.layer in paths.cross_blocks else 1
        factor = block.get_buffer(paths.scale) if paths.scale else 1
        new[rows, edit.at] = (edit.value + gate * added[0]) * factor
        return (new, *output[1:]) if isinstance(output, tuple) else new

    stack.callback(last.register_forward_hook(keep).remove)
    stack.callback(block.register_forward_hook(total).remove)
