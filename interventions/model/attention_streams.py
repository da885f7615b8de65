"""Rotated queries and keys, attention scores and patterns, read and written inside a trace.

They are taken where a block calls its attention function. Scores and patterns are computed from
what that is given, by the eager function of the block's own code, whatever the model runs with:
sdpa runs on as it did, and nothing is changed in the model or its config.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from nnsight.intervention.interleaver import Mediator

from interventions.architectures.wrapped import Wrapped, weightless
from interventions.architectures.wrapping import original
from interventions.errors import PatchError, SiteError
from interventions.model.head_streams import HeadStream
from interventions.model.sites import Component, check_runs, spot_of
from interventions.model.streams import in_order

INTERFACE = "attention_interface_"
EAGER = "eager_attention_forward"
MASKED = ("eager", "sdpa")
"""Implementations that are given a mask of edges, or none where every earlier token is seen."""
OF_ONE = 1e-4
"""How far the sum of a written row of a pattern may be from one; more where formats are coarse."""


@dataclass
class Call:
    """What one call of an attention function is given.

    Attributes
    ----------
    module : torch.nn.Module
    query : Tensor [row, head, query, width]
    key, value : Tensor [row, kv head, key, width]
    mask : Tensor or None
        As the model made it, [row, 1 or head, query, key].
    settings : dict
        ``scaling``, ``softcap`` and the like.
    written : Tensor [row, head, query, key] or None
        The pattern that was written in the place of its own.
    """

    module: Any
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    settings: dict[str, Any]
    written: torch.Tensor | None = None

    @property
    def hidden(self) -> torch.Tensor | None:
        """True where a query cannot see a key, [row, 1 or head, query, key]; None: sees all."""
        n, length = self.query.shape[-2], self.key.shape[-2]
        if self.mask is None:
            if n == 1 or not getattr(self.module, "is_causal", True):
                return None
            seen = torch.ones(n, length, dtype=torch.bool, device=self.query.device)
            return ~seen.tril(length - n)[None, None]
        mask = self.mask[..., :length]
        return ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2

    def scores(self) -> torch.Tensor:
        """Scores before the softmax [row, head, query, key]; -inf where a key is not seen."""
        keys = self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], 1)
        scale = self.settings.get("scaling") or self.query.shape[-1] ** -0.5
        scores = self.query @ keys.mT * scale
        if (cap := self.settings.get("softcap")) is not None:
            scores = torch.tanh(scores / cap) * cap
        if self.mask is not None and self.mask.dtype != torch.bool:
            scores = scores + self.mask[..., : scores.shape[-1]]
        return scores if self.hidden is None else scores.masked_fill(self.hidden, -math.inf)

    def pattern(self) -> torch.Tensor:
        """Weights behind the softmax [row, head, query, key]."""
        if self.written is not None:
            return self.written
        mask = self.mask
        if mask is None or mask.dtype == torch.bool:
            mask = self.hidden
            if mask is not None:
                # Not float64's lowest, which a softmax in float32 takes for -inf.
                narrow = torch.float32 if self.query.dtype == torch.float64 else self.query.dtype
                lowest = torch.finfo(narrow).min
                mask = torch.zeros_like(mask, dtype=self.query.dtype).masked_fill(mask, lowest)
        function = self._eager()
        if function is None:
            raise SiteError(
                f"{type(original(self.module)).__name__} has no eager attention function beside "
                "it, so its pattern cannot be computed. Use attn_scores, or knockouts."
            )
        given = (self.module, self.query, self.key, self.value, mask)
        weights = function(*given, **self.settings)[1]
        return weights[..., : self.key.shape[-2]]

    def _eager(self) -> Callable[..., Any] | None:
        """The eager function that stands beside the module."""
        return getattr(sys.modules[type(original(self.module)).__module__], EAGER, None)

    def check_pattern(self, new: torch.Tensor, changed: torch.Tensor) -> None:
        """Refuse rows that do not sum to one, or look where the query cannot.

        ``changed`` [row, head, query]: rows that were written.
        """
        if getattr(self.module, "sinks", None) is not None:
            raise PatchError(
                "attn_pattern of this model can only be read: part of each row's weight goes to a "
                "sink, so its rows do not sum to one. Use knockouts."
            )
        rows = new[changed].float()
        hidden = self.hidden
        unseen = torch.zeros_like(rows, dtype=torch.bool)
        if hidden is not None:
            unseen = hidden.expand_as(new)[changed]
        if bool((rows[unseen] != 0).any()):
            raise PatchError(
                "the pattern gives weight to a token that the query cannot see: one behind it, "
                "outside its window, knocked out, or padding. Give 0 there."
            )
        check_sums(rows, new.dtype)

    def attended(self, pattern: torch.Tensor) -> torch.Tensor:
        """What heads give under a pattern, [row, query, head, width]."""
        values = self.value.repeat_interleave(pattern.shape[1] // self.value.shape[1], 1)
        return (pattern @ values).transpose(1, 2)


def check_sums(rows: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse rows of a pattern [..., key] that do not sum to one, to the noise of a format.

    Raises
    ------
    PatchError
    """
    off = (rows.sum(-1) - 1).abs()
    allowed = max(OF_ONE, 8 * torch.finfo(dtype).eps)
    if bool((rows < 0).any()) or bool((off > allowed).any()):
        raise PatchError(
            "a row of the pattern is no distribution: its weights must be 0 or more and sum "
            f"to one; {int((off > allowed).sum())} row(s) sum to as far as "
            f"{float(off.max()):.3g} from it. Divide by the sum over keys."
        )


def check_keys(model: Wrapped, layers: Sequence[int], n_prefix: int) -> None:
    """Refuse to write rotated keys where what attention is given is a copy of what is kept.

    So it is behind a shared prefix, and where keys are made of something narrower in the cache.

    Raises
    ------
    PatchError
        Says what to do.
    """
    anew = [layer for layer in layers if not model.anatomy.parts[layer].as_cached]
    if anew:
        raise PatchError(
            f"k_rot of block {anew[0]} of {model.name} can only be read: its keys are made anew of "
            "what is in the cache, so later tokens would not attend to what is written. Write "
            "head_out or attn_out, or use knockouts."
        )
    if n_prefix:
        raise PatchError(
            "k_rot cannot be written behind a shared prefix: attention is given a copy of what is "
            "in the cache. Write k, or make the prompt without share_prefix."
        )


HELD: WeakKeyDictionary[Mediator, tuple[str, int, Call]] = WeakKeyDictionary()
"""The call that a trace is at: what it was given is gone once its result has been asked for."""


class AttentionStream(HeadStream):
    """What is seen where a block calls its attention function.

    ``q_rot``, ``k_rot`` : [layer, row, position, head, head_dim], behind rotary embeddings and,
    in Llama 4, its norm. ``attn_scores``, ``attn_pattern`` : [layer, row, query, head, key], before
    and behind the softmax; ``positions`` are those of the queries, and keys are all that can be
    attended to: a shared prefix, then the tokens of the prompt; in cross-attention blocks the
    vision tokens.

    A written pattern must have rows that sum to one, and 0 where a query cannot see.
    """

    def __init__(self, model: Wrapped, component: Component) -> None:
        super().__init__(model, component)

    @property
    def _width(self) -> int:
        return self._model.anatomy.head_dim if self._component in ("q_rot", "k_rot") else 0

    def _part(self, layer: int) -> Any:
        """The operation that calls the attention function."""
        model = self._model
        check_runs(model, layer, images=model.running_images)
        spot = spot_of(model, self._component, layer)
        if weightless(model) and not model.remote:
            raise SiteError(
                f"requests for {model.name} run in a process of their own on this server, where "
                f"{self._component} cannot be had. Use head_out and knockouts, or load it here."
            )
        implementation = model.module.config.get_text_config(decoder=True)._attn_implementation
        if implementation not in MASKED and self._component.startswith("attn"):
            raise SiteError(
                f"{self._component} needs the mask of edges, which {implementation} attention is "
                "not given. Load the model with attn_implementation='eager' or 'sdpa'."
            )
        operations = model.blocks[layer].get(spot.path).source
        names = [name for name in operations.names if name.startswith(INTERFACE)]
        return operations.node(names[-1])  # the first of them chooses the function

    def _call(self, layer: int) -> Call:
        part = self._part(layer)
        mediator = Mediator.current(part.path)
        which = mediator.wanted(f"{part.path}.output")
        held = HELD.get(mediator)
        if held is not None and held[:2] == (part.path, which):
            return held[2]
        with in_order(f"{self._component} of block {layer}"):
            given, settings = part.inputs
        module, query, key, value, mask = given
        call = Call(module, query, key, value, mask, dict(settings))
        HELD[mediator] = (part.path, which, call)
        return call

    def live(self, layer: int) -> torch.Tensor:
        """Return the running value of one layer, with the heads behind one another."""
        call = self._call(layer)
        if self._component == "q_rot":
            value = call.query
        elif self._component == "k_rot":
            value = call.key[..., -call.query.shape[-2] :, :]
        else:
            value = call.scores() if self._component == "attn_scores" else call.pattern()
        return value.transpose(1, 2).flatten(2)

    def replace(self, layer: int, hidden: torch.Tensor) -> None:
        """Let the heads attend by a pattern; rows that stay as they are keep their result.

        Keys are in the cache by now: they are written in place, where both have them.
        """
        call = self._call(layer)
        if self._component == "k_rot":
            check_keys(self._model, [layer], self._model.running_prefix)
            keys = hidden.unflatten(-1, (self._n_heads, -1)).transpose(1, 2)
            call.key[..., -call.query.shape[-2] :, :].copy_(keys)
            return
        new = hidden.unflatten(-1, (self._n_heads, -1)).transpose(1, 2)
        changed = (new != call.pattern()).any(-1)
        call.check_pattern(new, changed)
        part = self._part(layer)
        with in_order(f"{self._component} of block {layer}"):
            result, *more = part.output
        attended = call.attended(new).to(result.dtype)
        result = torch.where(changed.transpose(1, 2)[..., None], attended, result)
        call.written = new
        part.output = (result, *more)
