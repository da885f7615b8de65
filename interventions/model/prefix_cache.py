"""Keys and values of text that many prompts begin with, computed once."""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from interventions.architectures.wrapped import Wrapped, forward, weightless
from interventions.model.cache_names import returned_cache
from interventions.model.fingerprints import fingerprint, hooks_of
from interventions.model.prefix_attention import can_be_kept_apart, shared_cache

KEPT = 8
STATES = ("conv_states", "recurrent_states")


def take_rows(cache: Any, rows: torch.Tensor) -> Any:
    """Return a new cache that holds the given rows of ``cache``, in that order.

    Parameters
    ----------
    cache : transformers Cache
        Left as it is.
    rows : Tensor [row]
        Row indices; a row may be taken more than once. Keys and values lie where their block is,
        which need not be where these are. All rows in order are not copied.
    """
    # Cross-attention has no keys without an image, and blocks with a recurrent state have none.
    of_layers = (getattr(layer, "keys", None) for layer in cache.layers)
    n_rows = next((len(keys) for keys in of_layers if keys is not None), 0)
    if n_rows == len(rows) and torch.equal(rows.cpu(), torch.arange(n_rows)):
        return _map_tensors(cache, lambda tensor: tensor)
    return _map_tensors(cache, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))


def _map_tensors(cache: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    # Keys and values are never written into: they grow by making new ones. So a shallow copy with
    # other tensors is a cache of its own, and views of the old ones will do.
    changed = copy.copy(cache)
    changed.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in changed.layers:
        if getattr(layer, "keys", None) is not None:  # cross-attention has none without an image
            layer.keys, layer.values = change(layer.keys), change(layer.values)
        for name in STATES:  # of blocks with a recurrent state, which they do write into
            if (states := getattr(layer, name, None)) is not None:
                copied = {
                    key: value if value is None else change(value).clone()
                    for key, value in states.items()
                }
                setattr(layer, name, copied)
    return changed


class PrefixCache:
    """The last few prefixes a model has seen, as key-value caches of one row."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def expanded(self, model: Wrapped, ids: torch.Tensor, n_rows: int) -> Any:
        """Return a fresh cache of ``n_rows`` equal rows for the prefix ``ids`` [prefix].

        Whatever changes the numbers of a model is noticed: it is looked at anew for every cache.
        """
        state = json.dumps([fingerprint(model), hooks_of(model)])
        key = (tuple(ids.tolist()), str(ids.device), state)
        if key not in self._kept:
            inputs = {"input_ids": ids[None], "use_cache": True, "logits_to_keep": 1}
            output = forward(model, inputs)
            self._kept[key] = returned_cache(output)
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        cache = self._kept[key]
        layers = [
            (layer.keys, layer.values)
            for layer in cache.layers
            if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None
        ]
        plain = len(layers) == len(cache.layers)
        if plain and can_be_kept_apart(model) and not weightless(model):
            return shared_cache(model, layers, n_rows=n_rows, growing=True)
        return _map_tensors(cache, lambda tensor: tensor.expand(n_rows, *tensor.shape[1:]))
