"""Learning a subspace by gradients, where the model is: distributed alignment search."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interventions.architectures.wrapped import weightless, where_the_model_is
from interventions.model.model import Model
from interventions.model.sites import Component
from interventions.prompt.positions import Positions
from interventions.prompt.prompt import Prompt
from interventions.running.budget import Budget
from interventions.running.coordinates import Coordinates, wide
from interventions.running.gradients import frozen_weights
from interventions.running.patches import Patch
from interventions.sweeping.replay import Clean, replay, replayed, run_clean
from interventions.sweeping.schedule import Cell, Group, Path, cell, path_of
from interventions.sweeping.sizes import Sizes

SHARE_KEPT = 0.5
"""Of the memory that may be used: for the runs without a swap, which each pass over rows needs."""


@dataclass(frozen=True)
class Swaps:
    """Vectors to be swapped into rows of a prompt, and the answers that should come of it.

    Attributes
    ----------
    component : str
    layer : int
    at : Positions
        Of the prompt.
    source : Tensor [row, n, width]
        Vectors of the source at these tokens.
    tokens : Tensor [row]
        First tokens of the expected answers.
    """

    component: Component
    layer: int
    at: Positions
    source: torch.Tensor
    tokens: torch.Tensor

    def rows(self, rows: torch.Tensor) -> "Swaps":
        """Return those of some rows."""
        source, tokens = self.source[rows], self.tokens[rows]
        return Swaps(self.component, self.layer, self.at.rows(rows), source, tokens)

    def shifted(self, left: int, length: int) -> "Swaps":
        """Return the same in a prompt that lost ``left`` columns in front."""
        at = self.at.shifted(left, length)
        return Swaps(self.component, self.layer, at, self.source, self.tokens)


@dataclass(frozen=True)
class Fit:
    """How a subspace is learned: numbers of :func:`interventions.das`."""

    size: int
    epochs: int
    batch_rows: int
    learning_rate: float
    seed: int


class Learning(Coordinates):
    """Whole vectors, of whose change only the part inside a basis that is being learned is made."""

    def __init__(self, basis: torch.Tensor) -> None:
        self.basis = basis

    @property
    def width(self) -> int:
        """Width of the stream."""
        return self.basis.shape[0]

    @property
    def size(self) -> int:
        """Its width again: values are whole vectors."""
        return self.basis.shape[0]

    def coordinates(self, hidden: torch.Tensor) -> torch.Tensor:
        """The vectors themselves."""
        return wide(hidden)

    def moved(self, hidden: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """The part of a change that is inside the basis."""
        basis = self.basis.to(change)
        return change @ basis @ basis.T


@dataclass(frozen=True)
class Batch:
    """Rows that are learned from together; ``clean`` where there is memory to keep it."""

    prompt: Prompt
    swaps: Swaps
    path: Path
    clean: Clean | None


@where_the_model_is
def learned(
    model: Model, prompt: Prompt, swaps: Swaps, fit: Fit
) -> tuple[torch.Tensor, list[float]] | None:
    """Basis [width, k] of a subspace, and the mean loss of each epoch, in nats.

    None if the weights, and so gradients, are in another process.

    The basis is the orthonormal factor of a free matrix (Gram-Schmidt), which Adam moves down the
    cross-entropy of the expected answers' first tokens. Steps are in units of the size of the
    basis's entries, and shrink to none. Each batch's run without a swap is made once, if memory
    allows, and what a swap changes is run from its block on.
    """
    if weightless(model):
        return None
    generator = torch.Generator().manual_seed(fit.seed)
    width = swaps.source.shape[-1]
    drawn = torch.randn(width, fit.size, generator=generator, dtype=torch.float64)
    start = torch.linalg.qr(drawn).Q.to(torch.promote_types(model.dtype, torch.float32))
    order = torch.randperm(len(prompt), generator=generator).split(_most_rows(model, fit))
    keeps = _keeps(model, prompt)
    losses = []
    with frozen_weights(model):
        free = start.to(swaps.source.device).requires_grad_()
        steps = fit.epochs * len(order)
        adam = torch.optim.Adam([free], lr=fit.learning_rate / width**0.5)
        slower = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        batches = [batch_of(model, prompt, swaps, rows, keeps=keeps) for rows in order]
        for _ in range(fit.epochs):
            total = 0.0
            for which in torch.randperm(len(batches), generator=generator).tolist():
                batch = batches[which]
                basis = torch.linalg.qr(free).Q
                loss = swap_loss(model, batch, Learning(basis))
                adam.zero_grad()
                loss.backward()
                adam.step()
                slower.step()
                total += float(loss.detach()) * len(batch.prompt)
            losses.append(total / len(prompt))
        basis = torch.linalg.qr(free).Q.detach()
    return basis, losses


def _most_rows(model: Model, fit: Fit) -> int:
    return 1 if model.anatomy.dependent_rows is not None else fit.batch_rows


def _keeps(model: Model, prompt: Prompt) -> bool:
    """Whether all runs without a swap are kept."""
    each = Sizes.of(model).kept(prompt.length, len(prompt.prefix_ids))
    return each * len(prompt) < SHARE_KEPT * Budget.of(model).n_bytes


def batch_of(
    model: Model, prompt: Prompt, swaps: Swaps, rows: torch.Tensor, *, keeps: bool
) -> Batch:
    """Rows without the columns that are padding in all of them."""
    part, left = prompt.select(rows).trimmed()
    own = swaps.rows(rows).shifted(left, part.length)
    path, _ = path_of(model, part)
    batch = Batch(part, own, path, None)
    return Batch(part, own, path, _clean(model, batch)) if keeps else batch


def _cell(model: Model, batch: Batch, within: Coordinates | None) -> Cell:
    swaps = batch.swaps
    patch = Patch(swaps.component, swaps.layer, swaps.at, swaps.source, within=within)
    return cell(model, [patch])


def _clean(model: Model, batch: Batch) -> Clean:
    # Any coordinates will do: they decide from which block on a row is run.
    within = Learning(torch.zeros(batch.swaps.source.shape[-1], 1))
    cells = [_cell(model, batch, within)]
    return run_clean(model, batch.prompt, batch.prompt.at("last"), cells, batch.path)


def swap_loss(model: Model, batch: Batch, within: Coordinates) -> torch.Tensor:
    """Cross-entropy of the expected tokens, nats, mean over rows."""
    clean = _clean(model, batch) if batch.clean is None else batch.clean
    chosen = _cell(model, batch, within)
    block, at = (0, 0) if batch.path == "plain" else (chosen.block, chosen.position)
    group = Group((0,), block, at if batch.path == "suffix" else 0)
    [(_, logits)] = replayed(model, clean, [chosen], batch.path, [group], gradients=True)
    tokens = batch.swaps.tokens.to(logits.device)
    return torch.nn.functional.cross_entropy(logits[0, :, 0], tokens)


@where_the_model_is
def likeliest(
    model: Model, prompt: Prompt, cells: Sequence[Sequence[Patch]], batch_rows: int
) -> torch.Tensor:
    """The likeliest next token of each row without patches, and with each of some sets of them.

    Returns
    -------
    Tensor [1 + cell, row]
    """
    tokens = []
    alone = model.anatomy.dependent_rows is not None
    for rows in torch.arange(len(prompt)).split(1 if alone else batch_rows):
        part, left = prompt.select(rows).trimmed()
        own = [
            [patch.of_rows(rows).shifted(left, part.length) for patch in patches]
            for patches in cells
        ]
        # Added to nothing: the run without patches, in the same passes.
        nothing = Patch("resid_post", model.n_layers - 1, part.at("last"), torch.zeros(()), "add")
        tokens.append(replay(model, part, [[nothing], *own], reduce=_top))
    return torch.cat(tokens, -1)


def _top(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, :, 0].argmax(-1)
