"""One write at each of many spots of a prompt, each in a run of its own, answered freely.

A spot is a few tokens of a row, beside each other. Spots of a row that are the same tokens are run
once, so that a control that draws among them can be given as the exact mean over all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interventions import Model, Prompt, transplant
from interventions.model.sites import Component
from interventions.prompt.positions import from_lists
from twohop.ask.answers import Decoding
from twohop.ask.on_server import Task, Tick
from twohop.ask.places import Place
from twohop.ask.questions import Questions, Rows
from twohop.ask.study import first_tokens
from twohop.stages.patched import Cells, weighed_answers
from twohop.stages.recovery.shared import shared_text

Spot = tuple[int, ...]
SpotsOf = Callable[[Prompt, Rows], list[list[Spot]]]
"""``spots_of(prompt, rows)``: the spots of each row, all different; of some rows, none."""


@dataclass(frozen=True)
class SpotAnswers:
    """Answers to items, one for each spot.

    Attributes
    ----------
    spots : list of list of Spot
        [item][spot].
    texts : list of list of str
        Free answers, [item][spot].
    right : list of list of bool
        [item][spot].
    logprob : list of list of float
        Log-probability of the canonical answer's first token, nats, [item][spot].
    """

    spots: list[list[Spot]]
    texts: list[list[str]]
    right: list[list[bool]]
    logprob: list[list[float]]

    def at(self, which: list[int]) -> tuple[np.ndarray, list[str]]:
        """Whether each item is right at the spot named, and what was said there.

        NaN and nothing where the spot is -1.
        """
        right = [
            float(of_item[spot]) if spot >= 0 else np.nan
            for of_item, spot in zip(self.right, which, strict=True)
        ]
        texts = [
            of_item[spot] if spot >= 0 else ""
            for of_item, spot in zip(self.texts, which, strict=True)
        ]
        return np.array(right, dtype=float), texts


def answers_at_spots(
    questions: Questions,
    values: torch.Tensor,
    spots_of: SpotsOf,
    *,
    candidates: Sequence[Place],
    component: Component,
    most: int,
) -> SpotAnswers:
    """Free answers with the backbone's values written at each spot.

    Parameters
    ----------
    questions : Questions
    values : Tensor [layer, item, d_model]
        From block 0 on; an item's go into every token of a spot.
    spots_of : callable
    candidates : sequence of Place
        No spot begins ahead of all of them.
    component : str
        Where they are written.
    most : int
        Spots that a row may have.
    """
    study = questions.study
    spots: list[list[Spot]] = [[] for _ in questions.items]

    def arguments(rows: Rows) -> Task:
        ahead = shared_text(questions, rows, candidates)
        shown = questions.shown(rows, marked=True, share_prefix=ahead)
        here = spots_of(shown, rows)
        for row, of_row in zip(rows, here, strict=True):
            spots[row] = of_row
        cells, runs = [], []
        for which in range(max(map(len, here))):
            there = [which < len(of_row) for of_row in here]
            lists = [[*of_row[which]] if which < len(of_row) else [0] for of_row in here]
            at = from_lists(lists, length=shown.length, single=False, role="a spot")
            cells.append(
                transplant(
                    study.pair,
                    values[:, rows],
                    component=component,
                    layers=slice(len(values)),
                    write_at=at,
                )
            )
            runs.append(there)
        answers = [questions.items[i].answers[0] for i in rows]
        tokens = torch.tensor(first_tokens(study.vlm, shown, answers))
        run_here = torch.tensor(runs, dtype=torch.bool).reshape(len(cells), len(rows))
        return shown, cells, study.decoding, tokens, run_here, most

    of_items = questions.map(said_at_spots, arguments, model=study.vlm, passes=most)
    texts = [[text for text, _ in answered] for answered in of_items]
    widest = max(map(len, texts), default=0)
    padded = [of_item + [""] * (widest - len(of_item)) for of_item in texts]
    scored = [
        questions.score([of_item[spot] for of_item in padded]).right for spot in range(widest)
    ]
    return SpotAnswers(
        spots,
        texts,
        [[bool(scored[k][i]) for k in range(len(of_item))] for i, of_item in enumerate(spots)],
        [[logprob for _, logprob in answered] for answered in of_items],
    )


def said_at_spots(
    model: Model,
    prompt: Prompt,
    cells: Cells,
    decoding: Decoding,
    tokens: torch.Tensor,
    runs: torch.Tensor,
    most: int,
    *,
    tick: Tick,
) -> list[list[tuple[str, float]]]:
    """Answer the spots that each row has, [row][spot]; see :func:`weighed_answers`.

    Parameters
    ----------
    model, prompt, cells, decoding, tokens, runs
        As there.
    most : int
        Rows that the progress was told of, for each row.
    tick : callable
    """
    answered = weighed_answers(model, prompt, cells, decoding, tokens, runs, tick=tick)
    tick(most * len(prompt) - int(runs.sum()))
    counts = runs.sum(0).tolist()
    return [of_row[:count] for of_row, count in zip(answered, counts, strict=True)]
