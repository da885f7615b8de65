"""The paper's arm: MLP outputs of early blocks, into a span of tokens found by attribution.

Each candidate place is given what attribution patching estimates that writing the backbone's MLP
outputs there does to the log-probability of the answer's first token: the gradient at the place
times the change of value, summed over the blocks. The span is the run of neighbouring places with
the largest sum, of at most so many (the protocol's ``span_places``), found on one half of the
entities and written into on the other; what lies between its ends is written too. Neighbours are
image parts beside each other, or tokens of the question with nothing of the image between them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from interventions import Model, Prompt, transplant
from interventions.architectures.quantisation import without_gradients
from interventions.architectures.wrapped import weightless
from interventions.attribution.passes import backward
from interventions.errors import InterventionsError
from interventions.prompt.columns import Columns
from interventions.sweeping.contrast import Contrast
from interventions.sweeping.metrics import target
from twohop.ask.memory import Batches, limit_of, ran_out, rows_for
from twohop.ask.on_server import Task, Tick, no_tick
from twohop.ask.places import Place
from twohop.ask.questions import Questions, Rows
from twohop.ask.study import first_tokens
from twohop.stages.patched import Cells, run_cells
from twohop.stages.recovery.shared import shared_text
from twohop.stages.recovery.spots import Spot

LOG = logging.getLogger(__name__)
ROWS = 16  # of a backward pass, which holds their activations


@dataclass(frozen=True)
class Span:
    """A run of tokens from one place to another.

    Attributes
    ----------
    first, last : Place
    """

    first: Place
    last: Place

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first} to {self.last}"

    def tokens(self, prompt: Prompt) -> list[Spot]:
        """The tokens of each row, all that lies between the ends included."""
        ends = [place.positions(prompt).index[:, 0].tolist() for place in (self.first, self.last)]
        return [tuple(range(min(pair), max(pair) + 1)) for pair in zip(*ends, strict=True)]


@dataclass(frozen=True)
class PlaceScores:
    """What writing at each place alone is worth.

    Attributes
    ----------
    score : ndarray [place, item]
        Change of the log-probability of the answer's first token, nats.
    tokens : ndarray of int [place, item]
        Where the place is.
    by : str
        ``"attribution"``, an estimate from gradients; ``"patching"``, where a model lets none
        through: then the change itself.
    """

    score: np.ndarray
    tokens: np.ndarray
    by: str


def place_scores(
    questions: Questions, values: torch.Tensor, candidates: Sequence[Place]
) -> PlaceScores:
    """Score every place by the MLP outputs written there, on every item.

    Parameters
    ----------
    questions : Questions
    values : Tensor [layer, item, d_model]
        MLP outputs of the backbone, from block 0 on.
    candidates : sequence of Place
    """
    study = questions.study

    def arguments(rows: Rows) -> Task:
        ahead = shared_text(questions, rows, candidates)
        shown = questions.shown(rows, marked=True, share_prefix=ahead)
        answers = [questions.items[i].answers[0] for i in rows]
        cells = [
            transplant(
                study.pair,
                values[:, rows],
                component="mlp_out",
                layers=slice(len(values)),
                write_at=place.positions(shown),
            )
            for place in candidates
        ]
        return shown, cells, torch.tensor(first_tokens(study.vlm, shown, answers))

    of_items = questions.map(scores_of_cells, arguments, model=study.vlm)
    score, tokens = (np.stack(part, axis=1) for part in list(zip(*of_items, strict=True))[:2])
    exact = any(by == "patching" for *_, by in of_items)
    return PlaceScores(score, tokens, "patching" if exact else "attribution")


def scores_of_cells(
    model: Model, prompt: Prompt, cells: Cells, tokens: torch.Tensor, *, tick: Tick
) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """What each cell does to the log-probability of each row's token at its end.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    cells : sequence of sequences of Patch
        Each of one patch, of MLP outputs of the same blocks, at one token of each row.
    tokens : Tensor of int [row]
    tick : callable

    Returns
    -------
    list of (ndarray [cell], ndarray of int [cell], str)
        Of each row, the change in nats, the tokens, and how it was had, as in
        :class:`PlaceScores`.
    """
    where = torch.stack([patch.positions.index[:, 0] for [patch] in cells])
    score = None
    if not weightless(model) and not without_gradients(model.module):
        try:
            score = estimated(model, prompt, cells, tokens, where)
        except InterventionsError as error:  # such as a gradient that is not a number
            if ran_out(error):  # another method might fit, and give other numbers
                raise
            LOG.warning("no attribution: %s", error)
    by = "patching" if score is None else "attribution"
    score = patched(model, prompt, cells, tokens) if score is None else score
    tick(len(prompt))
    return [(of_row, at, by) for of_row, at in zip(score, where.T.numpy(), strict=True)]


def estimated(
    model: Model, prompt: Prompt, cells: Cells, tokens: torch.Tensor, where: torch.Tensor
) -> np.ndarray:
    """Change by cells as the gradient says it, [row, cell], nats; ``where`` [cell, row]."""
    names = [f"place {cell}" for cell in range(len(cells))]
    columns = Columns(names, [[[token] for token in of_cell] for of_cell in where.tolist()])
    own = target(model, prompt, [[token] for token in tokens.tolist()])
    rows_of_it = [*range(len(prompt))]
    whole = Contrast(prompt, prompt, columns, columns, False, own, ["logprob"], rows_of_it, {})
    [first] = cells[0]
    assert isinstance(first.layers, list)
    score = np.zeros((len(prompt), len(cells)))
    limit = limit_of(model, "gradients of spans")
    most = rows_for(model, limit, "backward", ROWS, prompt)
    batches = Batches(torch.arange(len(prompt)), most, limit=limit, width=prompt.length)
    for rows in batches:
        with batches.attempt(rows):
            passed = backward(
                model, whole.rows(rows.tolist()), [("mlp_out", block) for block in first.layers]
            )
            value, slope = (
                torch.stack([of_block.cpu() for of_block in part]).double()
                for part in (passed.values, passed.slopes)
            )
            written = torch.stack([patch.of_rows(rows).value for [patch] in cells], dim=2)
            change = (written.to(value) - value) * slope
            score[rows.numpy()] = change.sum((0, 3)).numpy()
    return score


def patched(model: Model, prompt: Prompt, cells: Cells, tokens: torch.Tensor) -> np.ndarray:
    """Change by cells as it is, [row, cell], nats."""

    def logprob(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return logits[:, 0].cpu().log_softmax(-1).gather(1, tokens[rows, None])[:, 0]

    at = prompt.at("last")
    table = run_cells(model, prompt, [[], *cells], positions=at, measure=logprob, tick=no_tick)
    return (table[1:] - table[0]).T


def neighbours(candidates: Sequence[Place], tokens: np.ndarray) -> list[list[int]]:
    """Places that are beside each other in every prompt, in the order of their tokens.

    Those of one role with no place of another between them in any prompt; of several at the same
    tokens, the first.

    Parameters
    ----------
    candidates : sequence of Place
    tokens : ndarray of int [place, item]
    """
    different: dict[tuple[int, ...], int] = {}
    for which, of_place in enumerate(tokens.tolist()):
        different.setdefault(tuple(of_place), which)
    by_role: dict[str, list[int]] = {}
    for which in sorted(different.values(), key=lambda which: tokens[which].mean()):
        by_role.setdefault(candidates[which].role, []).append(which)
    lines: list[list[int]] = []
    for places in by_role.values():
        lines.append(places[:1])
        for before, after in pairwise(places):
            between = (tokens > tokens[before]) & (tokens < tokens[after])
            behind = (tokens[before] < tokens[after]).all()
            if behind and not between.any():
                lines[-1].append(after)
            else:
                lines.append([after])
    return lines


def runs_of(lines: Sequence[Sequence[int]], *, most: int) -> list[list[int]]:
    """Every run of at most ``most`` neighbours, the short ones first."""
    return [
        [*line[start : start + length]]
        for length in range(1, most + 1)
        for line in lines
        for start in range(len(line) - length + 1)
    ]


def starts_of(candidates: Sequence[Place], prompt: Prompt, lengths: Sequence[int]) -> list[range]:
    """Where runs of as many tokens can begin, from a row's first candidate token to its last.

    ``lengths`` has the number of tokens of each row; 0: nowhere.
    """
    index = torch.stack([place.positions(prompt).index[:, 0] for place in candidates])
    ends = zip(index.amin(0).tolist(), index.amax(0).tolist(), lengths, strict=True)
    return [range(low, high - n + 2) if n else range(0) for low, high, n in ends]
