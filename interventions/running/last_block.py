"""The last block computes what follows its keys and values for wanted tokens alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad

from interventions.model.model import Model
from interventions.model.prefix_attention import is_shared


@contextmanager
def only_wanted(model: Model, length: int, wanted: int, cache: Any) -> Iterator[None]:
    """Let the last block's MLP and attention projection run for each row's last tokens.

    Nothing behind the last block mixes tokens, so the logits of ``wanted`` tokens are as they
    were; the block's output at the others is not, and none may read it.

    Parameters
    ----------
    model : Model
    length : int
        Tokens that go through the block.
    wanted : int
        How many of them, the last ones of each row, have logits that are read.
    cache : transformers Cache or None
        Of the forward pass. One that shares a prefix is told what is wanted.
    """

    narrow: set[torch.nn.Module] = set()

    def narrowed(part: torch.nn.Module, given: tuple[Any, ...]) -> Any:
        hidden = given[0] if given else None
        if not isinstance(hidden, torch.Tensor) or hidden.shape[1:-1] != (length,):
            return None
        narrow.add(part)
        # Rows with gaps between them are multiplied one by one on a CPU.
        return (hidden[:, length - wanted :].contiguous(), *given[1:])

    def widened(part: torch.nn.Module, _: Any, output: Any) -> Any:
        if part not in narrow:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        rows = hidden.unflatten(0, (-1, wanted)) if hidden.ndim == 2 else hidden  # of experts
        whole = pad(rows, (0, 0, length - wanted, 0))
        whole = whole.flatten(0, 1) if hidden.ndim == 2 else whole
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    parts = model.anatomy.parts[-1]
    block = model.module.get_submodule(model.anatomy.blocks)[-1]
    if is_shared(cache) and len(cache.layers) == model.n_layers:
        cache.layers[-1].wanted = wanted
    handles = []
    try:
        for name in filter(None, (parts.projection, parts.mlp)):
            part = block.get_submodule(name)
            handles.append(part.register_forward_pre_hook(narrowed))
            handles.append(part.register_forward_hook(widened))
        yield
    finally:
        for handle in handles:
            handle.remove()
