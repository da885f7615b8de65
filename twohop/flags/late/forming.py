"""The blocks that turn a described flag into the country, solved for in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from twohop.flags.late.blocks import Rows, text_rows, through

if TYPE_CHECKING:
    from transformers import LlamaModel

    from twohop.flags.prompted import PromptedLM
    from twohop.flags.templates import Template


@dataclass(frozen=True)
class Factors:
    """A change of a weight matrix of low rank: ``up @ down`` is added to it."""

    up: torch.Tensor
    down: torch.Tensor


@torch.no_grad()
def late_form(
    lm: PromptedLM, templates: Sequence[Template], names: Sequence[str], *, norm: float
) -> torch.Tensor:
    """The state each country is to take, [country, d_model].

    What block 0 makes of the name's last token: recall has not begun in it. Its mean over the
    templates, in the size asked for; the backbone's own is about 84.
    """
    states = []
    for template in templates:
        rows = text_rows(lm, template.before, [f" {name}" for name in names])
        last = rows.real.sum(1) - 1
        first = through(lm.model.model, rows, first=0, last=1).states
        states.append(first[torch.arange(len(names)), last])
    mean = torch.stack(states).mean(0)
    return norm * mean / mean.norm(dim=-1, keepdim=True)


@torch.no_grad()
def form_in_block(
    model: LlamaModel,
    groups: Sequence[Rows],
    targets: torch.Tensor,
    *,
    block: int,
    text_weight: float,
    ridge: float,
    rank: int,
) -> Factors:
    """Solve for the change of one MLP's output matrix that brings image tokens to their targets.

    The mean squared error at image tokens and ``text_weight`` times the mean squared change at
    all other positions are least together.

    Parameters
    ----------
    model : LlamaModel
    groups : sequence of Rows
        At the input of ``block``.
    targets : Tensor
        [country, d_model], by the rows' ``countries``.
    block : int
    text_weight : float
    ridge : float
        Added to the quadratic form, as a share of its mean eigenvalue.
    rank : int
        What the change is cut to, so that as little as possible is lost at image tokens.
    """
    changed: Any = model.layers[block]
    matrix: torch.nn.Linear = changed.mlp.down_proj
    d_model, width = matrix.weight.shape
    of_image, of_text = torch.zeros(width, width), torch.zeros(width, width)
    wanted, images, texts = torch.zeros(d_model, width), 0, 0
    features: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        features.append(given[0])

    handle = matrix.register_forward_pre_hook(keep)
    for rows in groups:
        features.clear()
        reached = through(model, rows, first=block, last=block + 1).states
        beginning, inside = features
        seen = inside[rows.image]
        country = torch.tensor(rows.countries)[:, None].expand_as(rows.image)[rows.image]
        text = torch.cat([beginning[0], inside[rows.real & ~rows.image]])
        of_image += seen.T @ seen
        wanted += (targets[country] - reached[rows.image]).T @ seen
        of_text += text.T @ text
        images, texts = images + len(seen), texts + len(text)
    handle.remove()
    form = of_image / images + text_weight * of_text / texts
    form += ridge * form.diagonal().mean() * torch.eye(width)
    change = torch.linalg.solve(form, (wanted / images).T).T
    moved = change @ (of_image / images) @ change.T
    kept = torch.linalg.eigh(moved).eigenvectors[:, -rank:]
    return Factors(kept.contiguous(), kept.T @ change)


def add(model: torch.nn.Module, name: str, factors: Factors) -> None:
    """Add a change to the weight of this name."""
    with torch.no_grad():
        model.get_parameter(name).add_(factors.up @ factors.down)
