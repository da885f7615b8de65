"""The two projectors from patch features to the backbone's token space, and what fits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from twohop.flags.data import entities, view
from twohop.flags.prompted import PromptedLM
from twohop.flags.templates import NAMING
from twohop.flags.tower import IMAGE_TOKENS, patch_features, pixels

if TYPE_CHECKING:
    from transformers import CLIPVisionModel, PreTrainedTokenizerBase
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

FILLER = " present-day"
"""Fills the image tokens to the left of a name that has fewer tokens than there are slots."""


@torch.no_grad()
def view_features(tower: CLIPVisionModel, views: Sequence[int]) -> torch.Tensor:
    """Patch features of the same views of every country, [country, view, patch, width]."""
    of_country = [
        patch_features(tower, pixels([view(entity.code, index) for index in views]))
        for entity in entities()
    ]
    return torch.stack(of_country)


def aligned_slots(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids each country's image tokens stand for, ``IMAGE_TOKENS`` of them.

    A name is written into the last slots and :data:`FILLER`'s last tokens into the rest. Of a
    name longer than the slots the first tokens are kept, from which the model completes it.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    filler = ids(FILLER)
    slots = []
    for entity in entities():
        name = ids(f" {entity.name}")[:IMAGE_TOKENS]
        free = IMAGE_TOKENS - len(name)
        slots.append(filler[len(filler) - free :] + name)
    return slots


def aligned_loss(
    projector: LlavaMultiModalProjector, features: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Squared error against the input embeddings, in units of the embeddings' variance.

    ``features`` is [row, patch, width], ``targets`` [row, patch, d_model]; no language model
    is run.
    """
    return functional.mse_loss(projector(features), targets) / targets.var()


class NamingLoss:
    """Cross-entropy of the country's name after the naming prompt with its image in it.

    Rows are grouped by the length of the name, so that little is spent on padding, and the
    vocabulary is scored only where a name's token is due.
    """

    def __init__(self, lm: PromptedLM) -> None:
        self.lm = lm
        end = lm.token_ids("\n")
        self._names = [lm.token_ids(f" {entity.name}") + end for entity in entities()]
        self._after = lm.embed(lm.token_ids(NAMING.after))

    def __call__(
        self, projector: LlavaMultiModalProjector, features: torch.Tensor, countries: np.ndarray
    ) -> torch.Tensor:
        """Mean loss in nats per name token.

        ``features`` is [row, patch, width]; ``countries`` numbers each row's country among
        :func:`~twohop.flags.data.entities`.
        """
        lengths = np.array([min(len(self._names[country]), 4) for country in countries])
        total, count = torch.zeros(()), 0
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            names = [self._names[country] for country in countries[rows]]
            image = projector(features[torch.from_numpy(rows)])
            total = total + self._sum(image, names)
            count += sum(len(name) for name in names)
        return total / count

    def _sum(self, image: torch.Tensor, names: list[list[int]]) -> torch.Tensor:
        longest = max(len(name) for name in names)
        due = torch.tensor([name + [-100] * (longest - len(name)) for name in names])
        said = self.lm.model.model.embed_tokens(due[:, :-1].clamp(min=0))
        after = self._after.expand(len(names), -1, -1)
        state = self.lm.hidden(torch.cat([image, after, said], dim=1))[:, -longest:]
        wanted = due != -100
        logits = self.lm.model.lm_head(state[wanted])
        return functional.cross_entropy(logits, due[wanted], reduction="sum")


@torch.no_grad()
def whiten_inputs(projector: LlavaMultiModalProjector, features: torch.Tensor) -> None:
    """Make the first layer read whitened features, [country, view, patch, width].

    The features' directions differ in variance by a factor of a thousand, and the telling ones
    are not the large ones: without this, fitting takes several times as many steps.
    """
    rows = features.flatten(0, -2)
    mean = rows.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov(rows.T))
    whitener = directions / (variances + 1e-3 * variances.mean()).sqrt()
    first = projector.linear_1
    # The weights as drawn are uniform; what is needed is about unit variance behind the whitener.
    first.weight.copy_(first.weight / first.weight.std() * (2 / first.in_features) ** 0.5)
    first.weight.copy_(first.weight @ whitener.T)
    first.bias.copy_(3 * first.bias - first.weight @ mean)


@torch.no_grad()
def solve_outputs(
    projector: LlavaMultiModalProjector, features: torch.Tensor, targets: torch.Tensor
) -> None:
    """Set the last layer to the ridge solution for its inputs.

    ``features`` is [country, view, patch, width], ``targets`` [country, patch, d_model].
    """
    hidden = projector.act(projector.linear_1(features.flatten(0, 2)))
    inputs = torch.cat([hidden, torch.ones(len(hidden), 1)], dim=1)
    wanted = targets[:, None].expand(-1, features.shape[1], -1, -1).flatten(0, 2)
    gram = inputs.T @ inputs / len(inputs)
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram))
    solved = torch.linalg.solve(gram, inputs.T @ wanted / len(inputs))
    projector.linear_2.weight.copy_(solved[:-1].T)
    projector.linear_2.bias.copy_(solved[-1])
