"""What the attention of the suite's models is given and makes, by an attention function of ours.

No nnsight: transformers calls it in the place of its own, and it calls the model's eager one.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from families import PATHS, Case
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "watched_by_tests"
Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Seen:
    """By block: rotated queries and keys, values and weights, [row, head, token, ...]."""

    query: dict[int, torch.Tensor] = field(default_factory=dict)
    key: dict[int, torch.Tensor] = field(default_factory=dict)
    value: dict[int, torch.Tensor] = field(default_factory=dict)
    weights: dict[int, torch.Tensor] = field(default_factory=dict)


def raw_attention(
    case: Case, *, change: tuple[int, Change] | None = None
) -> tuple[torch.Tensor, Seen]:
    """One forward pass: logits, and what each block attended with; ``change`` weights of one."""
    paths, seen = PATHS[case.name], Seen()
    layers = {}
    for layer, block in enumerate(case.model.module.get_submodule(paths.blocks)):
        attention = "cross_attn" if layer in paths.cross_blocks else "self_attn"
        if hasattr(block, attention):
            layers[id(getattr(block, attention))] = layer

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        output, weights = eager(module, query, key, value, mask, **given)
        if (layer := layers.get(id(module))) is None:
            return output, weights
        seen.query[layer], seen.key[layer], seen.value[layer] = query, key, value
        seen.weights[layer] = weights
        if change is not None and change[0] == layer:
            weights = change[1](weights.clone())
            values = value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
            output = torch.einsum("rhqk,rhkd->rqhd", weights, values)
        return output, weights

    with attending_with(case, attend), torch.no_grad():
        logits = case.model.module(**case.arguments).logits
    return logits, seen


@contextmanager
def attending_with(case: Case, function: Any, *, tower: bool = False) -> Iterator[None]:
    """Let the decoder (or the tower) attend with a function of ours, and its masks be eager's."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
    config = case.model.module.config
    config = config.vision_config if tower else config.get_text_config(decoder=True)
    before = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def without_edges(
    case: Case, hidden: dict[int, torch.Tensor], arguments: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Logits of one forward pass in which scores are -inf where ``hidden`` [row, head, query, key].

    By block; written down apart from the engine's own masks.
    """
    paths = PATHS[case.name]
    blocks = case.model.module.get_submodule(paths.blocks)
    layers = {id(blocks.get_submodule(f"{layer}.self_attn")): layer for layer in hidden}

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        if (layer := layers.get(id(module))) is not None:
            lowest = torch.finfo(query.dtype).min
            if mask is None:
                n = query.shape[-2]
                later = torch.ones(n, n, dtype=torch.bool).triu(1)
                mask = torch.zeros(n, n, dtype=query.dtype).masked_fill(later, lowest)
            gone = hidden[layer].expand(-1, query.shape[1], -1, -1)
            mask = torch.where(gone, lowest, mask)
        if query.dtype != torch.float64:
            return eager(module, query, key, value, mask, **given)
        # The library's takes the softmax in float32: here all of it, in float64.
        each = query.shape[1] // key.shape[1]
        keys, values = (part.repeat_interleave(each, 1) for part in (key, value))
        scores = torch.einsum("rhqd,rhkd->rhqk", query, keys) * given["scaling"]
        if (cap := given.get("softcap")) is not None:
            scores = (scores / cap).tanh() * cap
        weights = (scores if mask is None else scores + mask).softmax(-1)
        return torch.einsum("rhqk,rhkd->rqhd", weights, values), weights

    with attending_with(case, attend), torch.no_grad():
        return case.model.module(**arguments).logits
