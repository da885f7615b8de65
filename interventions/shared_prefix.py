"""Attention of many rows that go on from one prefix, without a copy of it for each.

Rows of a replayed forward pass are cells of the same prompt: they share keys and values of all
tokens before the first patched one. Attention to them is one product for all rows; the softmax
over the prefix and over a row's own tokens is put together from both parts, which is exact.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interventions.model import Model

NAME = "shared_prefix"
OTHER_SCORES = ("softcap", "position_bias", "s_aux")  # what this attention does not know


class SharedLayer(DynamicLayer):
    """Keys and values [group, head, prefix, width] that ``row // group`` rows each go on from.

    What a forward pass adds is not kept.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, *, apart: bool) -> None:
        DynamicLayer.__init__(self)
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.apart = apart

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
        """Return all keys and values; or, kept apart, the new ones, which carry the prefix."""
        if self.apart:
            key_states.shared = (self.keys, self.values)
            return key_states, value_states
        return joined(self.keys, key_states), joined(self.values, value_states)


def shared_cache(
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]], *, length: int, apart: bool
) -> Cache:
    """Return a cache that holds the first ``length`` positions of each layer's keys and values."""
    return Cache(
        layers=[
            SharedLayer(keys[:, :, :length], values[:, :, :length], apart=apart)
            for keys, values in layers
        ]
    )


def joined(prefix: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Prefixes [group, head, prefix, width] in front of what rows [row, head, n, width] add."""
    return torch.cat([prefix.repeat_interleave(len(new) // len(prefix), 0), new], -2)


@contextmanager
def kept_apart(model: Model, wanted: bool = True) -> Iterator[None]:
    """Let the decoder attend to the prefix and to a row's own tokens separately, if ``wanted``."""
    config: Any = model.module.config.get_text_config(decoder=True)
    before = config._attn_implementation_internal
    try:
        if wanted:
            config._attn_implementation_internal = NAME
        yield
    finally:
        config._attn_implementation_internal = before


def can_be_kept_apart(model: Model) -> bool:
    """Whether the model's attention is the one whose numbers are computed here: sdpa."""
    config: Any = model.module.config.get_text_config(decoder=True)
    return config._attn_implementation == "sdpa"


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; ``key.shared`` holds the prefix's keys and values.

    ``query`` is [row, head, position, width], the mask [row, 1, position, prefix + position].
    """
    prefix = getattr(key, "shared", None)
    if prefix is None or any(kwargs.get(one) is not None for one in OTHER_SCORES):
        if prefix is not None:
            key, value = joined(prefix[0], key), joined(prefix[1], value)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    keys, values = prefix
    rows, heads, n, width = query.shape
    groups, kv_heads, length, _ = keys.shape
    cells, each = rows // groups, heads // kv_heads
    lead = (groups, cells, kv_heads)
    scale = width**-0.5 if scaling is None else scaling
    # [group, kv head, cell, position of each of the kv head's query heads, width]
    queries = (query * scale).reshape(*lead, each * n, width).transpose(1, 2)
    own_keys, own_values = (one.reshape(*lead, n, -1).transpose(1, 2) for one in (key, value))
    before = (queries.flatten(2, 3) @ keys.mT).float().unflatten(2, (cells, each * n))
    own = (queries @ own_keys.mT).float()
    if attention_mask is not None:
        hidden = ~attention_mask.reshape(groups, 1, cells, 1, n, length + n)
        hidden_before, hidden_own = hidden.split([length, n], -1)
        if bool(hidden_before.any()):
            _masked(before, hidden_before, each)
        _masked(own, hidden_own, each)
    top = torch.maximum(before.amax(-1, keepdim=True), own.amax(-1, keepdim=True))
    before = before.sub_(top).exp_()
    own = own.sub_(top).exp_()
    total = before.sum(-1, keepdim=True) + own.sum(-1, keepdim=True)
    result = (before.to(query.dtype).flatten(2, 3) @ values).unflatten(2, (cells, each * n))
    result = (result + own.to(query.dtype) @ own_values) / total.to(query.dtype)
    result = result.unflatten(3, (each, n)).permute(0, 2, 4, 1, 3, 5)
    return result.reshape(rows, n, heads, -1), None


def _masked(scores: torch.Tensor, hidden: torch.Tensor, each: int) -> None:
    """Mask scores [group, kv head, cell, each * n, key] in place."""
    view = scores.unflatten(3, (each, -1))
    view.masked_fill_(hidden, torch.finfo(scores.dtype).min)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
