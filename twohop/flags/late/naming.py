"""Low-rank changes behind the formed country, trained so that it is named and little else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from twohop.flags.late.blocks import Rows, through
from twohop.flags.late.forming import Factors

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class LowRank(nn.Module):
    """Adds ``up @ down`` to a weight; nothing, until it is trained."""

    def __init__(self, weight: torch.Tensor, *, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The changed weight."""
        return weight + self.up @ self.down


def adapt(model: LlamaForCausalLM, blocks: Sequence[int], *, rank: int) -> nn.ModuleDict:
    """Make every linear map of some blocks trainable at low rank.

    Returns
    -------
    ModuleDict
        :class:`LowRank` of each weight, by the weight's name with ``/`` for the dots.
    """
    adapters = nn.ModuleDict()
    for number in blocks:
        for part in LINEAR:
            name = f"model.layers.{number}.{part}"
            linear: Any = model.get_submodule(name)
            adapter = LowRank(linear.weight, rank=rank)
            parametrize.register_parametrization(linear, "weight", adapter, unsafe=True)
            adapters[f"{name}.weight".replace(".", "/")] = adapter
    return adapters


def trained_factors(adapters: nn.Module) -> dict[str, Factors]:
    """What was trained, by the weights' names."""
    return {
        name.replace("/", "."): Factors(adapter.up.detach(), adapter.down.detach())
        for name, adapter in adapters.named_children()
        if isinstance(adapter, LowRank)
    }


@dataclass(frozen=True)
class Kept:
    """Rows whose final states are to stay as they were.

    Attributes
    ----------
    rows : Rows
        At the input of the first block that is trained.
    wanted : Tensor
        Final normed states, [row, position, d_model].
    """

    rows: Rows
    wanted: torch.Tensor

    def change(self, model: LlamaForCausalLM, chosen: Sequence[int], *, first: int) -> torch.Tensor:
        """Squared change, relative to the states' size, at some rows' text."""
        rows = self.rows.only(chosen)
        reached = final_states(model, rows, first=first)
        due = rows.real & ~rows.image
        wanted = self.wanted[torch.as_tensor(chosen), : due.shape[1]][due]
        return (reached[due] - wanted).square().sum() / wanted.square().sum()


def final_states(model: LlamaForCausalLM, rows: Rows, *, first: int) -> torch.Tensor:
    """Final normed states of rows that are at the input of block ``first``."""
    inner = model.model
    return inner.norm(through(inner, rows, first=first, last=len(inner.layers)).states)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What naming is trained on, and what it has to leave alone.

    Attributes
    ----------
    named : Rows
        Naming prompts with images and names.
    names : Tensor
        What each row's last positions are to say, [row, token].
    kept : sequence of (Kept, float)
        What is to stay as it is, and how much it weighs; one of them in each step, in turn.
    rows : int
        Rows of ``named`` in a step.
    kept_tokens : int
        About how many positions of ``kept`` in a step.
    """

    named: Rows
    names: torch.Tensor
    kept: Sequence[tuple[Kept, float]]
    rows: int
    kept_tokens: int

    def loss(self, model: LlamaForCausalLM, step: int, *, first: int, seed: int) -> torch.Tensor:
        """Cross-entropy of names, in nats per token, and the weighted change of one kept group."""
        rng = np.random.default_rng([seed, step])
        kept, weight = self.kept[step % len(self.kept)]
        count, longest = kept.rows.real.shape
        rows = min(count, max(2, self.kept_tokens // longest))
        with parametrize.cached():
            named = rng.choice(len(self.names), self.rows, replace=False).tolist()
            stays = rng.choice(count, rows, replace=False).tolist()
            total = self.spelt(model, named, first=first)
            return total + weight * kept.change(model, stays, first=first)

    def spelt(self, model: LlamaForCausalLM, chosen: Sequence[int], *, first: int) -> torch.Tensor:
        """Cross-entropy of some rows' names."""
        tokens = self.names[torch.as_tensor(chosen)]
        reached = final_states(model, self.named.only(chosen), first=first)
        # The last token of a row is told by the state before it.
        states = reached[:, -tokens.shape[1] - 1 : -1]
        return functional.cross_entropy(model.lm_head(states).flatten(0, 1), tokens.flatten())
