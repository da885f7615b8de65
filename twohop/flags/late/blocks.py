"""Rows that share a beginning, carried through some of the language model's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from interventions.model.cache_names import cache_argument
from twohop.flags.tower import IMAGE_TOKENS

if TYPE_CHECKING:
    from transformers import LlamaModel

    from twohop.flags.prompted import PromptedLM


@dataclass(frozen=True)
class Rows:
    """States of rows that go on from one beginning, at the depth reached so far.

    Attributes
    ----------
    beginning : Tensor
        States of what all rows begin with, [1, position, d_model].
    states : Tensor
        States of what follows, [row, position, d_model]; shorter rows are padded on the right.
    real : Tensor
        Which of these positions are no padding, [row, position].
    image : Tensor
        Which of them are image tokens, [row, position].
    countries : tuple of int
        Each row's country, as its place in what the rows were made from.
    """

    beginning: torch.Tensor
    states: torch.Tensor
    real: torch.Tensor
    image: torch.Tensor
    countries: tuple[int, ...]

    def only(self, rows: Sequence[int]) -> Rows:
        """Only these rows, without the padding that they do not need."""
        kept = torch.as_tensor(rows)
        longest = int(self.real[kept].sum(1).max())
        return Rows(
            self.beginning,
            self.states[kept, :longest],
            self.real[kept, :longest],
            self.image[kept, :longest],
            tuple(self.countries[row] for row in rows),
        )


def image_rows(
    lm: PromptedLM,
    before: str,
    tokens: torch.Tensor,
    after: Sequence[str],
    countries: Sequence[int],
) -> Rows:
    """Rows with image tokens, at the first block's input.

    Parameters
    ----------
    lm : PromptedLM
    before : str
        All text before the image.
    tokens : Tensor
        [row, slot, d_model].
    after : sequence of str
        Each row's text behind the image.
    countries : sequence of int
    """
    tails = [lm.embed(lm.token_ids(text)) for text in after]
    rows = [torch.cat([image, tail]) for image, tail in zip(tokens, tails, strict=True)]
    return _rows(lm, before, rows, countries, images=IMAGE_TOKENS)


def text_rows(
    lm: PromptedLM, before: str, after: Sequence[str], countries: Sequence[int] | None = None
) -> Rows:
    """Rows of text alone, at the first block's input."""
    rows = [lm.embed(lm.token_ids(text)) for text in after]
    return _rows(lm, before, rows, countries or range(len(rows)), images=0)


def _rows(
    lm: PromptedLM,
    before: str,
    rows: Sequence[torch.Tensor],
    countries: Sequence[int],
    *,
    images: int,
) -> Rows:
    states = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    places = torch.arange(states.shape[1])
    real = places < torch.tensor([len(row) for row in rows])[:, None]
    image = (places < images).expand(len(rows), -1)
    beginning = lm.embed(lm.token_ids(before))[None]
    return Rows(beginning.detach(), states.detach(), real, image, tuple(countries))


def through(model: LlamaModel, rows: Rows, *, first: int, last: int) -> Rows:
    """Carry rows from the input of block ``first`` to the input of block ``last``.

    The beginning is computed once; of the other blocks' states only those of ``rows`` are needed.
    """
    from transformers import DynamicCache

    length, longest = rows.beginning.shape[1], rows.states.shape[1]
    turns = model.rotary_emb(rows.states, torch.arange(length + longest)[None])
    earlier = tuple(turn[:, :length] for turn in turns)
    later = tuple(turn[:, length:] for turn in turns)
    visible = torch.ones(longest, length + longest, dtype=torch.bool).tril(length)[None, None]
    beginning, states = rows.beginning, rows.states
    for number, block in enumerate(model.layers[first:last], start=first):
        named = cache_argument(block)
        cache = DynamicCache()
        beginning = block(beginning, position_embeddings=earlier, **{named: cache})
        read: Any = cache.layers[number]
        keys, values = read.keys, read.values
        grown = DynamicCache()
        count = len(states)
        grown.update(
            keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1), layer_idx=number
        )
        states = block(states, position_embeddings=later, attention_mask=visible, **{named: grown})
    return replace(rows, beginning=beginning, states=states)
