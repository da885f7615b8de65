"""An independent reference: the same reads and writes with plain PyTorch hooks, no nnsight."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

import interventions as iv

Edit = Callable[[torch.Tensor], torch.Tensor]


def part(model: iv.Model, component: str, layer: int) -> torch.nn.Module:
    decoder: Any = model.module.get_decoder()
    block = decoder.layers[layer]
    return {"attn_out": block.self_attn, "mlp_out": block.mlp}.get(component, block)


def _first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def _with_first(value: Any, new: torch.Tensor) -> Any:
    return (new, *value[1:]) if isinstance(value, tuple) else new


def raw_run(
    model: iv.Model,
    inputs: dict[str, torch.Tensor],
    *,
    edits: Sequence[tuple[str, int, Edit]] = (),
    reads: Sequence[tuple[str, int]] = (),
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One forward pass: logits [row, position, vocab], and the values read."""
    found: dict[tuple[str, int], torch.Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for component, layer, edit in edits:
            module = part(model, component, layer)
            if component == "resid_pre":

                def before(_module: Any, args: Any, edit: Edit = edit) -> Any:
                    return (edit(args[0]), *args[1:])

                handle = module.register_forward_pre_hook(before)
            else:

                def after(_module: Any, _args: Any, output: Any, edit: Edit = edit) -> Any:
                    return _with_first(output, edit(_first(output)))

                handle = module.register_forward_hook(after)
            stack.callback(handle.remove)
        for component, layer in reads:
            module = part(model, component, layer)
            key = (component, layer)
            if component == "resid_pre":

                def peek(_module: Any, args: Any, key: Any = key) -> None:
                    found[key] = args[0].clone()

                handle = module.register_forward_pre_hook(peek)
            else:

                def look(_module: Any, _args: Any, output: Any, key: Any = key) -> None:
                    found[key] = _first(output).clone()

                handle = module.register_forward_hook(look)
            stack.callback(handle.remove)
        logits = model.module(**inputs).logits
    return logits, [found[key] for key in reads]


def set_at(index: torch.Tensor, value: torch.Tensor) -> Edit:
    """Edit that writes value [row, d_model] at one position per row, index [row]."""

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[torch.arange(len(index)), index] = value
        return changed

    return edit
