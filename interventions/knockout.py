"""Attention knockout: chosen positions may not see chosen positions.

After Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language Models"
(EMNLP 2023): the attention edges from keys to queries are cut in a window of layers.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from interventions.errors import SiteError
from interventions.model import Model
from interventions.placing import check_rows
from interventions.positions import Positions
from interventions.streams import Layers, layer_list


@dataclass(frozen=True)
class Knockout:
    """Attention edges to be cut while a prompt runs.

    Attributes
    ----------
    layers : int, slice or list of int
    queries : Positions
        Tokens that may not see ...
    keys : Positions
        ... these, in the same row. A token goes on seeing itself unless it is named here too.
    """

    layers: Layers
    queries: Positions
    keys: Positions

    def of_rows(self, rows: torch.Tensor) -> "Knockout":
        """Return the knockout for some rows of its prompt."""
        return replace(self, queries=self.queries.rows(rows), keys=self.keys.rows(rows))


def knockout(model: Model, layers: Layers, *, queries: Positions, keys: Positions) -> None:
    """Cut attention edges inside a trace; the attention weights there become exactly 0.

    Parameters
    ----------
    model : Model
    layers : int, slice or list of int
    queries, keys : Positions
        Tokens that may not see, and what they may not see.

    Raises
    ------
    SiteError
        If a token would be left with nothing to see, for a cross-attention block, or for an
        attention implementation that takes no mask.

    Examples
    --------
    >>> with vlm.trace(shown):                                     # doctest: +SKIP
    ...     knockout(vlm, slice(4, 12), queries=shown.at("last"), keys=shown.at("image"))
    ...     logits = vlm.logits[shown.at("last")].save()
    """
    for layer in layer_list(layers, model.n_layers):
        parts = model.anatomy.parts[layer]
        if parts.cross:
            raise SiteError(
                f"block {layer} of {model.name} attends to the image only. To cut it off, write "
                "0 into attn_out of that block."
            )
        attention = model.blocks[layer].get(parts.attention)
        args, kwargs = attention.inputs
        hidden = args[0] if args else kwargs["hidden_states"]
        check_rows(hidden, queries)
        check_rows(hidden, keys)
        name = "attention_mask"
        if name not in kwargs:
            raise SiteError(
                f"the attention of {model.name} is not given a mask by name, so edges cannot be "
                "cut. Load it with attn_implementation='eager'."
            )
        mask = whole_mask(kwargs[name], hidden, kwargs.get("past_key_values"), layer)
        attention.inputs = (args, {**kwargs, name: cut(mask, queries, keys)})


def whole_mask(mask: Any, hidden: torch.Tensor, cache: Any, layer: int) -> torch.Tensor:
    """A mask [row, head, query, key] of one's own, also where the model left it out as causal."""
    rows, n = hidden.shape[:2]
    if mask is None:
        before = cache.get_seq_length(layer) if cache is not None else 0
        seen = torch.ones(n, before + n, dtype=torch.bool, device=hidden.device)
        return seen.tril(before)[None, None].repeat(rows, 1, 1, 1)
    if not torch.is_tensor(mask) or mask.ndim != 4:
        raise SiteError(
            "this attention implementation takes no mask of edges. Load the model with "
            "attn_implementation='eager' or 'sdpa'."
        )
    return mask.expand(rows, -1, -1, -1).clone()


def cut(mask: torch.Tensor, queries: Positions, keys: Positions) -> torch.Tensor:
    """Forbid edges in a mask [row, head, query, key], bool or additive, in place."""
    before = mask.shape[-1] - keys.length  # a shared prefix comes first
    forbidden = torch.zeros(mask.shape[0], *mask.shape[2:], dtype=torch.bool)
    for row in range(queries.n_rows):
        q = queries.index[row][queries.mask[row]]
        k = keys.index[row][keys.mask[row]] + before
        forbidden[row, q[:, None], k[None]] = True
    forbidden = forbidden.to(mask.device)[:, None]
    if mask.dtype == torch.bool:
        allowed = mask & ~forbidden
    else:
        lowest = torch.finfo(mask.dtype).min
        allowed = (mask > lowest / 2) & ~forbidden
    blind = forbidden.any(-1) & ~allowed.any(-1)
    if bool(blind.any()):
        row = int(blind.nonzero()[0, 0])
        raise SiteError(
            f"the knockout would leave a token of row {row} with nothing to see. Leave at least "
            "the token itself, or the first one, out of the keys."
        )
    if mask.dtype == torch.bool:
        return allowed
    return mask.masked_fill(forbidden.expand_as(mask), torch.finfo(mask.dtype).min)
