"""The frozen language model behind a constant prompt beginning, which is computed only once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from interventions.model.cache_names import cache_argument, returned_cache

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

ASKED_ROWS = 64  # at a time


class PromptedLM:
    """A language model that has already read ``prefix``; rows continue from there.

    Parameters
    ----------
    model, tokenizer
        The backbone. Its parameters are frozen here.
    prefix
        Text every row begins with.
    """

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, *, prefix: str
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        ids = torch.tensor([self.token_ids(prefix)])
        with torch.no_grad():
            read = returned_cache(model.model(input_ids=ids, use_cache=True))
        self._past = [(layer.keys, layer.values) for layer in read.layers]
        self._length = ids.shape[1]

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text, without any special token."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Input embeddings of token ids, [position, d_model]."""
        return self.model.model.embed_tokens(torch.tensor(ids))

    def hidden(self, embeds: torch.Tensor) -> torch.Tensor:
        """Final normed states of rows that continue the prefix, [row, position, d_model].

        ``embeds`` is [row, position, d_model]; rows shorter than the longest are padded on the
        right, which a causal model never sees.
        """
        return self._read(embeds)[0]

    def _read(self, embeds: torch.Tensor):
        from transformers import DynamicCache

        rows = embeds.shape[0]
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._past):
            cache.update(
                keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer_idx=layer
            )
        return self._continue(cache, inputs_embeds=embeds), cache

    def _continue(self, cache: Any, **tokens: torch.Tensor) -> torch.Tensor:
        """Final normed states of tokens that go on from ``cache``, which grows by them."""
        model = self.model.model
        given = {cache_argument(model): cache, **tokens}
        return model(**given, use_cache=True).last_hidden_state

    @torch.no_grad()
    def greedy(self, embeds: torch.Tensor, *, tokens: int) -> list[list[int]]:
        """Greedy continuations of rows of equal length; token ids, ``tokens`` per row."""
        state, cache = self._read(embeds)
        said = []
        for step in range(tokens):
            said.append(self.model.lm_head(state[:, -1]).argmax(-1))
            if step + 1 < tokens:
                state = self._continue(cache, input_ids=said[-1][:, None])
        return torch.stack(said, dim=1).tolist()

    def first_lines(self, rows: Sequence[torch.Tensor], *, tokens: int) -> list[str]:
        """First line of each row's greedy continuation, stripped.

        Rows are [position, d_model] and may differ in length; rows of one length run together.
        """
        by_length = defaultdict(list)
        for number, row in enumerate(rows):
            by_length[len(row)].append(number)
        lines = [""] * len(rows)
        for numbers in by_length.values():
            for start in range(0, len(numbers), ASKED_ROWS):
                chunk = numbers[start : start + ASKED_ROWS]
                said = self.greedy(torch.stack([rows[n] for n in chunk]), tokens=tokens)
                texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
                for number, text in zip(chunk, texts, strict=True):
                    lines[number] = text.strip().split("\n")[0].strip()
        return lines
