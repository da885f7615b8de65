"""Keys and values of text that many prompts begin with, computed once."""

from collections import OrderedDict
from typing import Any

import torch
from transformers import DynamicCache

KEPT = 8


def take_rows(cache: Any, rows: torch.Tensor) -> DynamicCache:
    """Return a new cache that holds the given rows of ``cache``, in that order.

    Parameters
    ----------
    cache : transformers Cache
        Left as it is.
    rows : Tensor [row]
        Row indices; a row may be taken more than once.
    """
    taken = DynamicCache()
    for layer, kept in enumerate(cache.layers):
        taken.update(kept.keys.index_select(0, rows), kept.values.index_select(0, rows), layer)
    return taken


class PrefixCache:
    """The last few prefixes a model has seen, as key-value caches of one row."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def expanded(self, module: Any, ids: torch.Tensor, n_rows: int) -> DynamicCache:
        """Return a fresh cache of ``n_rows`` equal rows for the prefix ``ids`` [prefix]."""
        key = tuple(ids.tolist())
        if key not in self._kept:
            with torch.no_grad():
                output = module(input_ids=ids[None], use_cache=True, logits_to_keep=1)
            self._kept[key] = output.past_key_values
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        rows = torch.zeros(n_rows, dtype=torch.long, device=ids.device)
        return take_rows(self._kept[key], rows)
