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
LONG = 16  # own tokens, from which on the kernel is faster than a few products of all rows
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
    wanted : int or None
        How many tokens, the last of each row, attend; nothing is read of the others. None: all.
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
        self.wanted: int | None = None
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
            own[0].shared, own[0].wanted = self.before, self.wanted
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
    """Attention as transformers calls it; ``key.shared`` holds the prefix's keys and values, and
    ``key.wanted`` is as in :class:`SharedLayer`.

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
    length_given = query.shape[2]
    if (wanted := getattr(key, "wanted", None)) is not None:
        query = query[:, :, length_given - wanted :]
        attention_mask = None if attention_mask is None else attention_mask[..., -wanted:, :]
    rows, heads, n, width = query.shape
    groups, kv_heads, length, _ = keys.shape
    n_own = key.shape[-2]
    cells, n_each = rows // groups, heads // kv_heads
    lead = (groups, cells, kv_heads)
    scale = width**-0.5 if scaling is None else scaling
    if query.device.type != "cpu":
        # 16 bits are rounded as seldom as sdpa does it there; on a CPU its kernel gives them.
        query = query.to(torch.promote_types(query.dtype, torch.float32))
    query = query * scale
    # [group, kv head, cell, position of each of the kv head's query heads, width]
    queries = query.reshape(*lead, n_each * n, width).transpose(1, 2)
    hidden_before = hidden = None
    if attention_mask is not None:
        hidden_before, hidden = (~attention_mask).split([length, n_own], -1)

    def of_groups(mask: torch.Tensor) -> torch.Tensor:
        """[row, 1 or head, position, key] as [group, kv head, cell, position of each head, key]."""
        of_heads = (1, 1) if mask.shape[1] == 1 else (kv_heads, n_each)
        mask = mask.reshape(groups, cells, *of_heads, n, mask.shape[-1]).transpose(1, 2)
        return mask.expand(-1, -1, -1, n_each, -1, -1).flatten(3, 4)

    def of_rows(part: torch.Tensor) -> torch.Tensor:
        """[group, kv head, cell, position of each head, ...] as [row, head, position, ...]."""
        part = part.unflatten(3, (n_each, n)).transpose(1, 2)
        return part.reshape(rows, heads, n, *part.shape[5:])

    if hidden_before is not None:
        anything = bool(hidden_before.any())
        hidden_before = of_groups(hidden_before).flatten(2, 3) if anything else None
    before, likely_before = (
        of_rows(part.unflatten(2, (cells, n_each * n)))
        for part in _attended(queries.flatten(2, 3), keys, values, hidden_before)
    )
    if n >= LONG and _is_fused(query, value):
        own, likely = _attended(query, key, value, hidden)
    else:
        own_keys, own_values = (
            tensor.reshape(*lead, n_own, -1).transpose(1, 2) for tensor in (key, value)
        )
        hidden = None if hidden is None else of_groups(hidden)
        own, likely = (of_rows(part) for part in _attended(queries, own_keys, own_values, hidden))
    before, own = (part.to(query.dtype) for part in (before, own))
    # The share of the softmax that falls to the prefix.
    share = (likely_before - likely).sigmoid()[..., None]
    result = own + (before - own) * share.to(own.dtype)
    result = result.transpose(1, 2).to(value.dtype)
    return torch.nn.functional.pad(result, (0, 0, 0, 0, length_given - n, 0)).contiguous(), None


def _is_fused(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether there is a kernel that gives the sum as well."""
    widths = query.shape[-1] == value.shape[-1]
    return widths and query.device.type == "cpu" and hasattr(torch.ops.aten, FUSED)


def _is_causal(hidden: torch.Tensor) -> bool:
    """Whether each token sees itself and all before it, in all rows."""
    n, n_keys = hidden.shape[-2:]
    later = torch.ones(n, n_keys, dtype=torch.bool, device=hidden.device).triu(1)
    return n == n_keys and bool((hidden == later).all())


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, and the log of the sum of its exponentiated scores [..., query].

    A query wider than keys and values has scores as wide.
    """
    if query.ndim == 4 and _is_fused(query, value):
        fused = getattr(torch.ops.aten, FUSED)
        mask = None
        if hidden is not None:
            if _is_causal(hidden):
                return fused(query, key, value, 0.0, True, scale=1.0)
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
