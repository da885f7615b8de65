"""Attention knockout: chosen positions may not see chosen positions.

After Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language Models"
(EMNLP 2023): the attention edges from keys to queries are cut in a window of layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interventions.errors import SiteError
from interventions.given import flag, index_of, of_kind
from interventions.model.cache_names import given_cache
from interventions.model.model import Model
from interventions.model.sites import Heads, Layers, layer_list
from interventions.prompt.positions import Positions, check_rows, index_list, of_copies
from interventions.prompt.prompt import Prompt
from interventions.running.steps import (
    PREFILL,
    Steps,
    acts_at,
    check_acts_in_prefill,
    checked_steps,
)


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
    heads : int, slice or list of int, optional
        Query heads in which the edges are cut. None: in every one.
    keep_self : bool
        A token goes on seeing itself, also where it is named among the keys.
    steps : {"prefill", "all"}, int or slice
        As of :class:`interventions.Patch`: behind the prefill the new token of each row that has a
        query does not see the keys.
    """

    layers: Layers
    queries: Positions
    keys: Positions
    heads: Heads = None
    keep_self: bool = False
    steps: Steps = PREFILL

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", checked_steps(self.steps))
        object.__setattr__(self, "layers", index_of(self.layers, "layer"))
        if self.heads is not None:
            object.__setattr__(self, "heads", index_of(self.heads, "head"))
        object.__setattr__(self, "keep_self", flag(self.keep_self, "keep_self"))
        for at, what in ((self.queries, "queries"), (self.keys, "keys")):
            of_kind(at, Positions, f"{what} of a knockout", error=SiteError)

    def of_rows(self, rows: torch.Tensor | list[int]) -> "Knockout":
        """Return the knockout for some rows of its prompt."""
        return replace(self, queries=self.queries.rows(rows), keys=self.keys.rows(rows))

    def shifted(self, left: int, length: int) -> "Knockout":
        """Return the knockout in a prompt that lost ``left`` columns in front; keys may lie there.

        These have negative positions, and are found in front of what runs.
        """
        queries, keys = (at.shifted(left, length) for at in (self.queries, self.keys))
        return replace(self, queries=queries, keys=keys)

    def split(self, n_layers: int) -> list["Knockout"]:
        """Return a knockout for each layer, of a model that has ``n_layers``."""
        return [replace(self, layers=layer) for layer in layer_list(self.layers, n_layers)]

    @staticmethod
    def merge(knockouts: Mapping[int, "Knockout"], n_copies: int) -> "Knockout":
        """Return one knockout for rows that stand ``n_copies`` times, as :meth:`Patch.merge`."""
        queries = of_copies({copy: cut.queries for copy, cut in knockouts.items()}, n_copies)
        keys = of_copies({copy: cut.keys for copy, cut in knockouts.items()}, n_copies)
        return replace(next(iter(knockouts.values())), queries=queries, keys=keys)


def knockout(
    model: Model,
    layers: Layers,
    *,
    queries: Positions,
    keys: Positions,
    heads: Heads = None,
    keep_self: bool = False,
) -> None:
    """Cut attention edges inside a trace; the attention weights there become exactly 0.

    Parameters
    ----------
    model : Model
    layers : int, slice or list of int
    queries, keys : Positions
        Tokens that may not see, and what they may not see.
    heads : int, slice or list of int, optional
        Query heads in which they are cut. Default: all.
    keep_self : bool
        A token goes on seeing itself, also where it is named among the keys.

    Raises
    ------
    SiteError
        If a token would be left with nothing to see, for a cross-attention block, or for an
        attention implementation that takes no mask.

    Examples
    --------
    >>> with vlm.trace(shown):
    ...     knockout(vlm, slice(3, 8), queries=shown.at("last"), keys=shown.at("image"))
    ...     logits = vlm.logits[shown.at("last")].save()
    >>> logits.shape  # [row, vocab]
    torch.Size([1, 109])
    """
    cut_edges(model, Knockout(layers, queries, keys, heads, keep_self))


def cut_edges(model: Model, asked: Knockout, *, later: int = 0) -> None:
    """Cut edges inside a trace; ``later``: how many tokens the answer has with those that run.

    Its keys are of the prompt; its queries are among the tokens that run.
    """
    queries, keys = asked.queries, asked.keys
    for layer in layer_list(asked.layers, model.n_layers):
        check_not_cross(model, layer)
        parts = model.anatomy.parts[layer]
        attention = model.blocks[layer].get(parts.attention)
        args, kwargs = attention.inputs
        hidden = args[0] if args else kwargs["hidden_states"]
        check_rows(hidden, queries)
        if not later:
            check_rows(hidden, keys)
        name = "attention_mask"
        if name not in kwargs:
            raise SiteError(
                f"the attention of {model.name} is not given a mask by name, so edges cannot be "
                "cut. Load it with attn_implementation='eager'."
            )
        mask = whole_mask(kwargs[name], hidden, given_cache(kwargs), layer)
        mask = cut(mask, asked, model.anatomy.n_heads, later=later)
        attention.inputs = (args, {**kwargs, name: mask})


def check_not_cross(model: Model, layer: int) -> None:
    """Refuse a block that has no edges between tokens."""
    if model.anatomy.parts[layer].recurrent:
        raise SiteError(
            f"block {layer} of {model.name} keeps a recurrent state, so no edge between two tokens "
            f"can be cut there. Blocks with attention: "
            f"{[i for i in model.anatomy.self_blocks if not model.anatomy.parts[i].recurrent]}."
        )
    if model.anatomy.parts[layer].cross:
        raise SiteError(
            f"block {layer} of {model.name} attends to the image only. To cut it off, write "
            "0 into attn_out of that block."
        )


def check_of_text(at: Positions, what: str) -> None:
    """Refuse positions of the vision tower where those of the decoder's tokens are meant."""
    if at.of != "text":
        raise SiteError(
            f"{what} cuts edges between the decoder's tokens, and {at.role!r} are places of "
            f'{at.of!r}. Leave of= out: prompt.at("image") are the picture\'s tokens.'
        )


def blinding(row: int) -> SiteError:
    """Make the error about a token that is left with nothing to see."""
    return SiteError(
        f"the knockout would leave a token of row {row} with nothing to see. Leave at least "
        "the token itself, or the first one, out of the keys."
    )


def check_knockouts(
    model: Model, prompt: Prompt, knockouts: Sequence[Knockout], *, generating: bool = False
) -> None:
    """Refuse, before anything runs, knockouts that do not fit the model or the prompt.

    A token that only a window or chunk of the model's leaves blind is found when it runs.
    ``generating``: steps follow on the prefill.
    """
    at_layer: dict[int, list[Knockout]] = {}
    for knockout in knockouts:
        if not generating:
            check_acts_in_prefill(knockout.steps, "a knockout")
        for layer in layer_list(knockout.layers, model.n_layers):
            check_not_cross(model, layer)
            if acts_at(knockout.steps, 0):  # a new token always sees itself
                at_layer.setdefault(layer, []).append(knockout)
        if knockout.heads is not None:
            index_list(knockout.heads, model.anatomy.n_heads, "head")
        for at in (knockout.queries, knockout.keys):
            check_of_text(at, "a knockout")
            if (at.n_rows, at.length) != (len(prompt), prompt.length):
                raise SiteError(
                    f"a knockout at {at.role!r} was made for {at.n_rows} rows x {at.length} "
                    f"tokens; the prompt has {len(prompt)} x {prompt.length}. Use positions of the "
                    "prompt that runs."
                )
    if model.anatomy.family.two_way or len(prompt.prefix_ids):
        return  # tokens see others than the earlier ones of their row
    together = {tuple(id(knockout) for knockout in cuts): cuts for cuts in at_layer.values()}
    for cuts in together.values():
        named = [_heads(knockout, model.anatomy.n_heads) for knockout in cuts]
        # Of heads that the same knockouts act in, one is looked at; -1 stands for those in none.
        for acting in {tuple(head in heads for heads in named) for head in {-1}.union(*named)}:
            seen = [
                knockout
                for knockout, acts in zip(cuts, acting, strict=True)
                if acts or knockout.heads is None
            ]
            if seen:
                check_sight(prompt, seen)


def _heads(knockout: Knockout, n_heads: int) -> set[int]:
    """The heads that a knockout names; none where it is for all."""
    return set() if knockout.heads is None else {*index_list(knockout.heads, n_heads, "head")}


def check_sight(prompt: Prompt, cuts: Sequence[Knockout]) -> None:
    """Refuse cuts of one head that leave a token with none of its row's tokens up to itself."""
    real = prompt.inputs["attention_mask"].bool()
    place = torch.arange(prompt.length)
    for row in range(len(prompt)):
        parts = [knockout.of_rows([row]) for knockout in cuts]
        queries = torch.cat([part.queries.index[part.queries.mask] for part in parts]).unique()
        sees = (place <= queries[:, None]) & real[row]
        for part in parts:
            mine = torch.isin(queries, part.queries.index[part.queries.mask])
            keys = torch.isin(place, part.keys.index[part.keys.mask])
            itself = (place == queries[:, None]) & part.keep_self
            sees &= ~(mine[:, None] & keys) | itself
        if not bool(sees.any(-1).all()):
            raise blinding(row)


def whole_mask(mask: Any, hidden: torch.Tensor, cache: Any, layer: int) -> torch.Tensor:
    """A mask [row, head, query, key] of one's own, also where the model left it out as causal."""
    rows, n = hidden.shape[:2]
    if getattr(cache, "is_compileable", False):
        raise SiteError(
            f"the keys of {type(cache).__name__} have places for tokens that are not there yet, "
            "so edges are not counted as in the prompt. Leave cache_implementation, or the cache, "
            "out: cut edges with one that grows."
        )
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


def cut(mask: torch.Tensor, knockout: Knockout, n_heads: int, *, later: int = 0) -> torch.Tensor:
    """Forbid edges in a mask [row, head, query, key], bool or additive.

    ``later``: tokens behind those of the prompt, whose keys are.
    """
    n, length = mask.shape[-2:]
    # Of a shared prefix; below 0, so many keys have gone out of a window.
    before = length - knockout.keys.length - later
    queries = _marked(knockout.queries, n, 0)
    forbidden = queries[:, :, None] & _marked(knockout.keys, length, before)[:, None]
    if knockout.keep_self:
        itself = torch.arange(n)
        forbidden[:, itself, itself + length - n] = False
    forbidden = forbidden[:, None]
    if knockout.heads is not None:
        chosen = torch.zeros(n_heads, dtype=torch.bool)
        chosen[index_list(knockout.heads, n_heads, "head")] = True
        forbidden = forbidden & chosen[:, None, None]
        mask = mask.expand(-1, n_heads, -1, -1)
    forbidden = forbidden.to(mask.device)
    if mask.dtype == torch.bool:
        allowed = mask & ~forbidden
    else:
        lowest = torch.finfo(mask.dtype).min
        allowed = (mask > lowest / 2) & ~forbidden
    blind = forbidden.any(-1) & ~allowed.any(-1)
    if bool(blind.any()):
        raise blinding(int(blind.nonzero()[0, 0]))
    if mask.dtype == torch.bool:
        return allowed
    return mask.masked_fill(forbidden.expand_as(mask), torch.finfo(mask.dtype).min)


def _marked(at: Positions, length: int, before: int) -> torch.Tensor:
    """True at positions of each row, [row, before + position]."""
    marked = torch.zeros(at.n_rows, length, dtype=torch.bool)
    rows = torch.arange(at.n_rows)[:, None].expand_as(at.mask)[at.mask]
    place = at.index[at.mask] + before
    there = place >= 0
    marked[rows[there], place[there]] = True
    return marked
