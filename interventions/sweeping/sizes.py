"""What decides how much memory a model's rows take, and how long: its sizes alone, no weights."""

from dataclasses import dataclass
from typing import Any

import torch

from interventions.model.model import Model
from interventions.model.vision_places import tower_of
from interventions.prompt.prompt import Prompt

PASS_SECONDS = 1.5e-3  # that a block of a forward pass costs beside its arithmetic
TOWER_STATES = 20  # in widths of a token: residuals, an MLP four times as wide, projections
FLOPS = {"cpu": 1e11, "cuda": 1.5e14}  # per second: what decides is the order of magnitude


@dataclass(frozen=True)
class Sizes:
    """Sizes of a language model, or of that of a VLM.

    Attributes
    ----------
    n_layers, d_model, n_heads, n_kv_heads, head_dim, vocab : int
    inner : int
        Width inside the MLPs.
    n_bytes : int
        Of a number.
    block : int
        Parameters of a block.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    inner: int
    n_bytes: int
    block: int

    @classmethod
    def of(cls, model: Model) -> "Sizes":
        """Return those of a model, wherever its weights are."""
        anatomy = model.anatomy
        config: Any = model.module.config.get_text_config(decoder=True)
        first = model.module.get_submodule(anatomy.blocks)[0]
        return cls(
            n_layers=anatomy.n_layers,
            d_model=anatomy.d_model,
            n_heads=anatomy.n_heads,
            n_kv_heads=anatomy.n_kv_heads,
            head_dim=anatomy.head_dim,
            vocab=anatomy.vocab,
            inner=getattr(config, "intermediate_size", None) or 4 * anatomy.d_model,
            n_bytes=torch.empty(0, dtype=model.dtype).element_size(),
            block=sum(parameter.numel() for parameter in first.parameters()),
        )

    def keys(self, n_tokens: int) -> int:
        """Bytes of the keys and values of so many tokens, in all blocks."""
        return 2 * self.n_bytes * self.n_layers * self.n_kv_heads * self.head_dim * n_tokens

    def kept(self, length: int, before: int) -> int:
        """Bytes that the clean run of a row leaves: keys, values, residuals.

        ``length`` tokens go through the blocks, behind a shared prefix of ``before``.
        """
        states = 2 * self.d_model * length
        return self.keys(length + before) + self.n_bytes * self.n_layers * states

    def row(self, n_tokens: int, before: int, *, apart: bool) -> int:
        """Bytes that one row of a forward pass needs at its height.

        Parameters
        ----------
        n_tokens : int
            That go through the blocks.
        before : int
            That they go on from.
        apart : bool
            The prefix is attended to without a copy for each row.
        """
        states = self.n_bytes * n_tokens * (8 * self.d_model + 3 * self.inner)
        scores = 2 * 4 * self.n_heads * n_tokens * (n_tokens + before)
        width = self.n_kv_heads * self.head_dim
        copied = 0 if apart else 4 * self.n_bytes * width * (n_tokens + before)
        return states + scores + copied + 3 * 4 * self.vocab

    def clean(self, length: int, before: int) -> int:
        """Bytes that one row of the clean run needs at its height, what it leaves included."""
        return self.kept(length, before) + self.row(length, before, apart=False)

    def pass_tokens(self, device: str) -> int:
        """How many tokens through a block cost as much as one more forward pass does beside them.

        ``device`` is its kind, such as ``"cuda"``.
        """
        return int(PASS_SECONDS * FLOPS.get(device, FLOPS["cpu"]) / (2 * self.block))


def tower_row(model: Model, prompt: Prompt) -> int:
    """Bytes that the vision tower needs at its height for the pictures of one row."""
    tower, n_tokens = tower_of(model), prompt.vision["tower"].length
    n_bytes = torch.empty(0, dtype=model.dtype).element_size()
    states = n_bytes * n_tokens * TOWER_STATES * tower.width
    return states + 2 * 4 * tower.n_heads * n_tokens * n_tokens
