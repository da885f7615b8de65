"""Attention of many rows that go on from one prefix, without a copy of it for each.

Rows of a replayed forward pass are cells of the same prompt: they share keys and values of all
tokens before the first patched one. Attention to them is one product for all rows; the softmax
over the prefix and over a row's own tokens is put together from both parts, which is exact.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from interventions.model import Model

NAME = "shared_prefix"
FUSED = "_scaled_dot_product_flash_attention_for_cpu"  # gives the sum as well; else by hand
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
        if self.get_seq_length() == 0:
            return key_states, value_states
        if self.apart:
            key_states.shared = (self.keys, self.values)
            return key_states, value_states
        keys: Any = self.keys
        values: Any = self.values
        return joined(keys, key_states), joined(values, value_states)


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


def attend_apart(model: Model) -> str:
    """Let the decoder attend to the prefix and to a row's own tokens separately.

    Returns what its attention was before, for :func:`attend_as`.
    """
    # What is imported here takes seconds, which importing this package should not.
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    config: Any = model.module.config.get_text_config(decoder=True)
    before = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    return before


def attend_as(model: Model, implementation: str) -> None:
    """Give the decoder an attention by its name."""
    config: Any = model.module.config.get_text_config(decoder=True)
    config._attn_implementation_internal = implementation


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
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

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
    hidden_before = hidden = None
    if attention_mask is not None:
        masked = ~attention_mask.reshape(groups, 1, cells, 1, n, length + n)
        masked = masked.expand(-1, -1, -1, each, -1, -1).flatten(3, 4)
        hidden_before, hidden = masked.split([length, n], -1)
        hidden_before = hidden_before.flatten(2, 3) if bool(hidden_before.any()) else None
    before, likely_before = _attended(queries.flatten(2, 3), keys, values, hidden_before)
    own, likely = _attended(queries, own_keys, own_values, hidden)
    before = before.unflatten(2, (cells, each * n))
    # The share of the softmax that falls to the prefix.
    share = (likely_before.unflatten(2, (cells, each * n)) - likely).sigmoid()[..., None]
    result = own + (before - own) * share.to(own.dtype)
    result = result.unflatten(3, (each, n)).permute(0, 2, 4, 1, 3, 5)
    return result.reshape(rows, n, heads, -1), None


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, and the log of the sum of its exponentiated scores [..., query]."""
    fused = getattr(torch.ops.aten, FUSED, None)
    if fused is not None and query.device.type == "cpu" and query.ndim == 4:
        mask = None
        if hidden is not None:
            lowest = torch.finfo(query.dtype).min
            mask = torch.zeros(hidden.shape, dtype=query.dtype).masked_fill_(hidden, lowest)
        return fused(query, key, value, 0.0, False, attn_mask=mask, scale=1.0)
    scores = query @ key.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if hidden is not None:
        scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    top = scores.amax(-1, keepdim=True)
    scores = scores.sub_(top).exp_()
    total = scores.sum(-1, keepdim=True)
    result = (scores.to(query.dtype) @ value) / total.to(query.dtype)
    return result, (top + total.log())[..., 0]
