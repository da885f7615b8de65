"""Attention of many rows that go on from one prefix, without a copy of it for each.

Rows that begin with the same text, and the cells of a replayed forward pass, share keys and values
of what comes first. Attention to them is one product for all rows; the softmax over the prefix and
over a row's own tokens is put together from both parts, which is exact.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from interventions.architectures.wrapped import Wrapped

NAME = "shared_prefix"
FUSED = "_scaled_dot_product_flash_attention_for_cpu"  # gives the sum as well; else by hand
OTHER_SCORES = ("softcap", "position_bias", "s_aux")  # what this attention does not know
SHORT = 64  # own tokens: attention to more of them costs more than copies of a prefix do


class SharedLayer(DynamicLayer):
    """Keys and values of a prefix, kept once, and those of the tokens that each row adds.

    Attributes
    ----------
    before : (Tensor, Tensor)
        Keys and values of the prefix, [group, head, prefix, width]: ``row // group`` rows each go
        on from one of them.
    keys, values : Tensor [row, head, token, width]
        Of what the rows added.
    growing : bool
        Whether what a forward pass adds is kept.
    """

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, *, n_rows: int, config: Any, growing: bool
    ) -> None:
        DynamicLayer.__init__(self)
        self.dtype, self.device = keys.dtype, keys.device
        self.before = (keys, values)
        self.keys, self.values = (
            tensor.new_empty(n_rows, *_empty(tensor)) for tensor in self.before
        )
        self.is_initialized = True
        self.growing = growing
        self._config = config

    def get_seq_length(self) -> int:
        """Tokens of a row, the prefix included."""
        assert self.keys is not None
        return self.before[0].shape[-2] + self.keys.shape[-2]

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
        """Return all keys and values; or, to an attention that takes it apart, a row's own.

        These carry the prefix.
        """
        own: Any = (key_states, value_states)
        if self.keys is not None and self.values is not None and self.keys.shape[-2]:
            own = torch.cat([self.keys, own[0]], -2), torch.cat([self.values, own[1]], -2)
        if self.growing:
            self.keys, self.values = own
        if self.before[0].shape[-2] == 0:
            return own
        if self._config._attn_implementation == NAME:
            own[0].shared = self.before
            return own
        return joined(self.before[0], own[0]), joined(self.before[1], own[1])

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of every row with its prefix, [row, head, prefix + token, width]."""
        assert self.keys is not None
        assert self.values is not None
        return joined(self.before[0], self.keys), joined(self.before[1], self.values)


def _empty(tensor: torch.Tensor) -> tuple[int, int, int]:
    return tensor.shape[1], 0, tensor.shape[3]


def shared_cache(
    model: Wrapped,
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    n_rows: int,
    growing: bool,
) -> Cache:
    """Return a cache from which rows go on, given keys and values [group, head, prefix, width]."""
    config = _config(model)
    return Cache(
        layers=[
            SharedLayer(keys, values, n_rows=n_rows, config=config, growing=growing)
            for keys, values in layers
        ]
    )


def is_shared(cache: Any) -> bool:
    """Whether a cache keeps a prefix once."""
    layers = [] if cache is None else cache.layers
    return bool(layers) and all(isinstance(layer, SharedLayer) for layer in layers)


def joined(prefix: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Prefixes [group, head, prefix, width] in front of what rows [row, head, n, width] add."""
    groups, *rest = prefix.shape
    n_each = len(new) // groups
    spread = prefix[:, None].expand(groups, n_each, *rest).reshape(len(new), *rest)
    return torch.cat([spread, new], -2)


@contextmanager
def attending_apart(model: Wrapped, cache: Any) -> Iterator[None]:
    """Let the decoder attend to the prefix of a cache and to a row's own tokens separately.

    Nothing changes where the cache does not share one, or the attention is another than sdpa.
    """
    if not (is_shared(cache) and can_be_kept_apart(model)):
        yield
        return
    # What is imported here takes seconds, which importing this package should not.
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    config = _config(model)
    before = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def can_be_kept_apart(model: Wrapped) -> bool:
    """Whether the model's attention is the one whose numbers are computed here: sdpa.

    It must be given keys and values as they are in the cache, which say what comes before them.
    """
    as_cached = all(block.as_cached or block.cross for block in model.anatomy.parts)
    return as_cached and _config(model)._attn_implementation == "sdpa"


def _config(model: Wrapped) -> Any:
    return model.module.config.get_text_config(decoder=True)


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

    ``query`` is [row, head, position, width], the mask [row, 1 or head, position, prefix + own
    token].
    """
    prefix = getattr(key, "shared", None)
    if prefix is None or any(kwargs.get(name) is not None for name in OTHER_SCORES):
        if prefix is not None:
            key, value = joined(prefix[0], key), joined(prefix[1], value)
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    keys, values = prefix
    rows, heads, n, width = query.shape
    groups, kv_heads, length, _ = keys.shape
    n_own = key.shape[-2]
    cells, n_each = rows // groups, heads // kv_heads
    lead = (groups, cells, kv_heads)
    scale = width**-0.5 if scaling is None else scaling
    if query.device.type != "cpu":
        # 16 bits are rounded as seldom as sdpa does it there; on a CPU its kernel gives them.
        query = query.to(torch.promote_types(query.dtype, torch.float32))
    # [group, kv head, cell, position of each of the kv head's query heads, width]
    queries = (query * scale).reshape(*lead, n_each * n, width).transpose(1, 2)
    own_keys, own_values = (
        tensor.reshape(*lead, n_own, -1).transpose(1, 2) for tensor in (key, value)
    )
    hidden_before = hidden = None
    if attention_mask is not None:
        own_heads = (1, 1) if attention_mask.shape[1] == 1 else (kv_heads, n_each)
        masked = ~attention_mask.reshape(groups, cells, *own_heads, n, length + n_own)
        masked = masked.transpose(1, 2).expand(-1, -1, -1, n_each, -1, -1).flatten(3, 4)
        hidden_before, hidden = masked.split([length, n_own], -1)
        hidden_before = hidden_before.flatten(2, 3) if bool(hidden_before.any()) else None
    before, likely_before = _attended(queries.flatten(2, 3), keys, values, hidden_before)
    own, likely = _attended(queries, own_keys, own_values, hidden)
    before, own = (part.to(query.dtype) for part in (before, own))
    before = before.unflatten(2, (cells, n_each * n))
    # The share of the softmax that falls to the prefix.
    share = (likely_before.unflatten(2, (cells, n_each * n)) - likely).sigmoid()[..., None]
    result = own + (before - own) * share.to(own.dtype)
    result = result.unflatten(3, (n_each, n)).permute(0, 2, 4, 1, 3, 5)
    return result.reshape(rows, n, heads, -1).to(value.dtype), None


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, and the log of the sum of its exponentiated scores [..., query].

    A query wider than keys and values has scores as wide.
    """
    fused = getattr(torch.ops.aten, FUSED, None)
    if fused is not None and query.device.type == "cpu" and query.ndim == 4:
        mask = None
        if hidden is not None:
            lowest = torch.finfo(query.dtype).min
            mask = torch.zeros(hidden.shape, dtype=query.dtype).masked_fill_(hidden, lowest)
        return fused(query, key, value, 0.0, False, attn_mask=mask, scale=1.0)
    scores = query @ key.to(query.dtype).mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if hidden is not None:
        scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    top = scores.amax(-1, keepdim=True)
    scores = scores.sub_(top).exp_()
    total = scores.sum(-1, keepdim=True)
    if query.dtype == value.dtype:
        result = (scores.to(query.dtype) @ value) / total.to(query.dtype)
    else:
        result = (scores / total).to(value.dtype) @ value
    return result, (top + total.log())[..., 0]
