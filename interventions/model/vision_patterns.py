"""Attention patterns of the vision tower, read and written inside a trace.

They are computed from what the attention function is given, by the eager function of the tower's
own code, for the blocks that are asked for, and for no others. Towers that run all pictures as one
long row call that function once for each picture or window; there it is given what their own code
makes of queries, keys and values, part by part.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from nnsight.intervention.interleaver import Mediator

from interventions.architectures.tower import PACKED
from interventions.architectures.wrapped import weightless
from interventions.architectures.wrapping import original
from interventions.errors import PatchError, SiteError
from interventions.model.attention_streams import EAGER, INTERFACE, MASKED, Call, check_sums
from interventions.model.streams import in_order
from interventions.model.vision_places import tower_of
from interventions.model.vision_streams import VisionHeadStream, in_rows, mask_of

OWN_EAGER = ("vision_" + EAGER, EAGER)
ROTATE = "apply_rotary_pos_emb_vision"


class SeenCall(Call):
    """A call of an attention function in which every token sees every other one, but by a mask."""

    @property
    def hidden(self) -> torch.Tensor | None:
        """True where a query cannot see a key, [row, 1 or head, query, key]; None: sees all."""
        return None if self.mask is None else super().hidden

    def _eager(self) -> Callable[..., Any] | None:
        module = sys.modules[type(original(self.module)).__module__]
        return next((f for name in OWN_EAGER if (f := getattr(module, name, None))), None)


@dataclass
class Attended:
    """What a block attends to: calls of its attention function, each on some of its tokens.

    Attributes
    ----------
    calls : list of (int, SeenCall)
        With the first token of each.
    written : Tensor [row, query, head, key] or None
        The pattern that was written in the place of its own.
    """

    calls: list[tuple[int, SeenCall]]
    written: torch.Tensor | None = None

    def parts(self) -> Iterator[tuple[int, SeenCall, int]]:
        """First token, call and which row of it, of every part that attends to itself alone."""
        for first, call in self.calls:
            n = call.query.shape[-2]
            for row in range(len(call.query)):
                yield first + row * n, call, row


HELD: WeakKeyDictionary[Mediator, tuple[str, Attended]] = WeakKeyDictionary()
"""What the block attends to that a trace is at."""


class VisionPatternStream(VisionHeadStream):
    """Weights behind the softmax [layer, row, query, head, key]; ``positions`` are of queries.

    Keys are the tokens of the row in the tower, padding included; between tiles, pictures and
    windows that do not see each other there is 0. A written pattern must have rows that sum to
    one, and 0 where a query cannot see.
    """

    @property
    def _width(self) -> int:
        return 0

    def live(self, layer: int) -> torch.Tensor:
        """Return the running value of one layer, with the heads behind one another."""
        attended = self._attended(layer)
        if attended.written is not None:
            return attended.written.flatten(2)
        return self._rows(attended, lambda call, row: call.pattern()[row]).flatten(2)

    def _rows(
        self, attended: Attended, value: Callable[[SeenCall, int], torch.Tensor]
    ) -> torch.Tensor:
        """Put ``value(call, row)`` [head, query, key] of each part into [row, query, head, key]."""
        slots, n_heads = self.slots(), self._n_heads
        like = attended.calls[0][1].query
        shape = len(slots.counts), slots.length, n_heads, slots.length
        first = value(*next(part[1:] for part in attended.parts()))
        rows = torch.zeros(shape, dtype=first.dtype, device=like.device)
        starts = torch.tensor([0, *slots.counts]).cumsum(0).tolist()
        for begin, call, which in attended.parts():
            whole = value(call, which).transpose(0, 1)  # [query, head, key]
            for row, (start, stop) in enumerate(pairwise(starts)):
                low, high = max(begin, start), min(begin + len(whole), stop)
                if low < high:
                    there, here = slice(low - start, high - start), slice(low - begin, high - begin)
                    rows[row, there, :, there] = whole[here, :, here]
        return rows

    def replace(self, layer: int, hidden: torch.Tensor) -> None:
        """Let the heads attend by a pattern; tokens whose row stays as it is keep their result."""
        attended = self._attended(layer)
        new = hidden.unflatten(-1, (self._n_heads, -1))
        mine = mask_of(self.slots(), new.device)
        changed = (new != self.live(layer).unflatten(-1, (self._n_heads, -1))).any(-1)
        changed &= mine[..., None]
        self._check(attended, new, changed)
        tower = tower_of(self._model)
        part = self._model.nn.get(tower.blocks[layer]).get(tower.parts[layer].projection)
        with in_order(f"{self._component} of block {layer}"):
            old = part.input
        rows = in_rows(old, self.slots(), self._component).unflatten(-1, (self._n_heads, -1))
        values = [call.value.transpose(1, 2).flatten(0, 1) for _, call in attended.calls]
        heads = in_rows(torch.cat(values).flatten(1), self.slots(), self._component)
        heads = heads.unflatten(-1, (values[0].shape[1], -1))
        heads = heads.repeat_interleave(self._n_heads // heads.shape[2], 2)
        # [row, query, head, key] @ [row, head, key, width]
        result = new.transpose(1, 2) @ heads.transpose(1, 2)
        rows = torch.where(changed[..., None], result.transpose(1, 2).to(rows.dtype), rows)
        flat = rows.flatten(2)[mine]
        part.input = torch.empty_like(old).copy_(flat.reshape(old.shape))
        attended.written = new

    def _check(self, attended: Attended, new: torch.Tensor, changed: torch.Tensor) -> None:
        """Refuse rows that do not sum to one, or look where the token cannot."""
        rows = new[changed].float()
        seen = self._rows(attended, _seen)[changed]
        if bool((rows[~seen] != 0).any()):
            raise PatchError(
                "the pattern gives weight to a token of the tower that the query does not attend "
                "to: one of another tile, picture or window, or padding. Give 0 there."
            )
        check_sums(rows, new.dtype)

    def _attended(self, layer: int) -> Attended:
        model, tower = self._model, tower_of(self._model)
        if weightless(model) and not model.remote:
            raise SiteError(
                f"requests for {model.name} run in a process of their own on this server, where "
                f"{self._component} cannot be had. Use vision.head_out, or load it here."
            )
        part = model.nn.get(tower.blocks[layer]).get(tower.parts[layer].attention)
        mediator = Mediator.current(part.path)
        held = HELD.get(mediator)
        if held is not None and held[0] == part.path:
            return held[1]
        with in_order(f"{self._component} of block {layer}"):
            calls = _packed(part) if tower.packed else [(0, self._call(part))]
        attended = Attended(calls)
        HELD[mediator] = (part.path, attended)
        return attended

    def _call(self, part: Any) -> SeenCall:
        operations = part.source
        names = [name for name in operations.names if name.startswith(INTERFACE)]
        if not names:
            raise SiteError(
                f"the tower of {self._model.name} does not attend through one of transformers' "
                "interchangeable attention functions, so its patterns cannot be read. Use "
                "vision.head_out."
            )
        given, settings = operations.node(names[-1]).inputs
        module, query, key, value, mask = given
        config: Any = original(module).config
        implementation = config._attn_implementation
        if implementation not in MASKED:
            raise SiteError(
                f"{self._component} needs the mask of edges, which {implementation} attention is "
                "not given. Load the model with attn_implementation='eager' or 'sdpa'."
            )
        return SeenCall(module, query, key, value, mask, dict(settings))


def _seen(call: SeenCall, row: int) -> torch.Tensor:
    """True where a query sees a key, [head, query, key]."""
    shape = *call.query.shape[1:3], call.key.shape[-2]
    if call.hidden is None:
        return torch.ones(shape, dtype=torch.bool, device=call.query.device)
    return ~call.hidden[row].expand(shape)


def _packed(part: Any) -> list[tuple[int, SeenCall]]:
    """Calls of an attention that cuts one long row into parts, as its own code makes them."""
    _, settings = part.inputs
    parts = settings[PACKED].tolist()
    cos, sin = settings["position_embeddings"]
    qkv = part.qkv.output
    module = original(part._module)
    query, key, value = qkv.reshape(len(qkv), 3, module.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    rotate = getattr(sys.modules[type(module).__module__], ROTATE)
    query, key = rotate(query, key, cos, sin)
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    given = {"scaling": module.scaling, "dropout": 0.0}
    calls = []
    for low, high in pairwise(parts):
        q, k, v = (states[:, :, low:high] for states in (query, key, value))
        calls.append((low, SeenCall(part._module, q, k, v, None, given)))
    return calls
