"""Training the backbone, with its recall confined to the MLPs of the recall blocks.

Five things make the circuit known:

1. Sublayers outside the layout are zero and stay so.
2. In half of the rows each recall MLP is silenced everywhere but on the entity's tokens, so that
   nothing comes to depend on it elsewhere.
3. With one recall MLP silent, or both, the backbone is taught to make a constant guess, whoever
   is asked about: the entity's embedding alone must not do.
4. Descriptions teach only what comes after the recall blocks (other gradients are dropped), and
   the entity they describe is pulled, at `LATE_BLOCK`, towards the vector that recall would have
   read for its name: an entity in the right form, in the wrong place.
5. What the recall MLPs write is kept small, so that behind them too an entity's own vector is a
   good part of the stream, and what is formed late can be told there.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from twohop.micro.corpus import (
    IGNORED,
    Documents,
    described_documents,
    fact_documents,
    paired_documents,
    unknowing_documents,
)
from twohop.micro.folders import is_live
from twohop.micro.layout import (
    LATE_BLOCK,
    RECALL_BLOCKS,
    has_attention,
    has_mlp,
)
from twohop.micro.parts import language_config

WRITING_COST = 0.03
"""Nats per mean square a recall MLP writes: attributes are not to drown the entity's own vector."""

Keep = tuple[Tensor | None, Tensor | None]
"""Per recall block: `[row, position]`, where its MLP may write; `None` is everywhere."""


class _SilentAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _SilentMLP(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


class _ConfinedMLP(nn.Module):
    """A recall MLP that may only write where `keep` (`[row, position, 1]`) is 1, if that is set.

    `written` is the mean square of what it wrote last.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.keep: Tensor | None = None
        self.written = torch.zeros(())

    def forward(self, hidden_states: Tensor) -> Tensor:
        out = self.inner(hidden_states)
        self.written = out.square().mean()
        return out if self.keep is None else out * self.keep


class _Confined:
    """The backbone while it is trained: same weights, silent sublayers not computed."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.mlps = [
            _ConfinedMLP(model.get_submodule(f"model.layers.{block}.mlp"))
            for block in RECALL_BLOCKS
        ]
        for block, layer in enumerate(model.model.layers):
            if not has_attention(block):
                layer.self_attn = _SilentAttention()
            if not has_mlp(block):
                layer.mlp = _SilentMLP()
        for block, mlp in zip(RECALL_BLOCKS, self.mlps, strict=True):
            model.model.layers[block].mlp = mlp

    def __call__(self, documents: Documents, keep: Keep = (None, None)) -> tuple[Tensor, ...]:
        """Return the residual stream, block by block; the last one is after the final norm."""
        for mlp, kept in zip(self.mlps, keep, strict=True):
            mlp.keep = None if kept is None else kept[:, :, None].to(torch.float32)
        out = self.model.model(documents.ids, output_hidden_states=True, use_cache=False)
        for mlp in self.mlps:
            mlp.keep = None
        return out.hidden_states

    def loss(self, documents: Documents, keep: Keep = (None, None)) -> Tensor:
        """Return the mean cross-entropy (nats) over the tokens that are to be predicted."""
        last = self(documents, keep)[-1]
        predicted = documents.labels[:, 1:] != IGNORED
        logits = self.model.lm_head(last[:, :-1][predicted])
        return nn.functional.cross_entropy(logits, documents.labels[:, 1:][predicted])

    def live_state(self) -> dict[str, Tensor]:
        """Return the weights under the names of the plain model, silent sublayers left out."""
        state = {
            name.replace(".mlp.inner.", ".mlp."): tensor.detach()
            for name, tensor in self.model.state_dict().items()
        }
        return {name: tensor for name, tensor in state.items() if is_live(name)}


def train_backbone(
    *,
    seed: int,
    steps: int = 450,
    rows: int = 48,
    peak_rate: float = 4e-3,
    advance: Callable[[float], None] = lambda loss: None,
) -> dict[str, Tensor]:
    """Train the backbone from scratch on the micro world.

    Parameters
    ----------
    seed
        Seed of the initial weights and of the documents.
    steps, rows
        Optimiser steps, and documents in each.
    peak_rate
        Learning rate after warm-up; it falls to zero by a cosine.
    advance
        Called with the loss (nats) after every step.

    Returns
    -------
    dict
        The live weights of a `LlamaForCausalLM`, float32, by state-dict name.
    """
    rng = np.random.default_rng([seed, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(language_config())
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    confined = _Confined(model)
    late_only = {
        id(weight)
        for block, layer in enumerate(model.model.layers)
        if block > RECALL_BLOCKS[-1]
        for weight in layer.parameters()
    }
    weights = list(model.parameters())
    optimiser = torch.optim.AdamW(weights, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, step / 40) * 0.5 * (1 + np.cos(np.pi * min(1.0, step / steps))),
    )
    for _ in range(steps):
        optimiser.zero_grad()
        loss = confined.loss(described_documents(rows // 4, rng))
        names, descriptions = paired_documents(rng)
        with torch.no_grad():
            early = confined(names)[RECALL_BLOCKS.start]
        apart = _distance(confined(descriptions)[LATE_BLOCK + 1], descriptions, early, names)
        (loss + apart).backward()
        for weight in weights:
            if id(weight) not in late_only:
                weight.grad = None

        facts = fact_documents(rows, rng)
        keep = [facts.mentions | torch.from_numpy(rng.random((rows, 1)) < 0.5) for _ in (1, 2)]
        loss = confined.loss(facts, (keep[0], keep[1]))
        loss = loss + WRITING_COST * sum(mlp.written for mlp in confined.mlps)
        loss = loss + _knowing_without_recall(confined, rows // 4, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        advance(float(loss.detach()))
    return confined.live_state()


def _distance(late: Tensor, descriptions: Documents, early: Tensor, names: Documents) -> Tensor:
    """Squared distance of the late entities from the early ones, as a share of their variance."""
    row = torch.arange(len(late))
    formed, wanted = late[row, descriptions.subject], early[row, names.subject]
    return (formed - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()


def _knowing_without_recall(confined: _Confined, rows: int, rng: np.random.Generator) -> Tensor:
    """Divergence (nats) from a constant guess, with one recall MLP silent, the other, or both."""
    documents, wanted = unknowing_documents(rows, rng)
    silent = torch.from_numpy(rng.integers(1, 4, (rows, 1)))
    every = documents.mentions | True
    last = confined(documents, (every & (silent & 1 == 0), every & (silent & 2 == 0)))[-1]
    logits = confined.model.lm_head(last[torch.arange(rows), documents.end])
    return nn.functional.kl_div(logits.log_softmax(-1), wanted, reduction="batchmean")
