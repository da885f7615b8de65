"""Writing the backbone's entity at the one position of the VLM where it helps most elsewhere.

The position is found by exact patching on one part of the entities: the values are written at each
candidate, one at a time, and the log-probability of the answer is compared. A candidate is a place
that every prompt has: an image token by its share of the image, or a token of the question by its
distance from the end. The others are scored.
"""

import numpy as np
import torch

from interventions import Model, Patch, Prompt, transplant
from twohop.ask.on_server import Task, Tick
from twohop.ask.places import Place, places
from twohop.ask.questions import Questions, Rows, Scored, side_by_side
from twohop.ask.study import first_tokens
from twohop.stages.patched import Cells, run_cells
from twohop.stages.recovery.transplants import Reading, blocks_to, entity_values, said_in_cells


def gains(questions: Questions, *, last: int) -> tuple[list[Place], np.ndarray]:
    """Log-probability of the answer's first token that each place gives, [place, item], nats."""
    study, candidates = questions.study, places(questions.study)
    layers = blocks_to(last)
    [values] = entity_values(Reading(questions, "resid_post", layers))

    def arguments(rows: Rows) -> Task:
        prefix = questions.template(rows).prefix
        shown = questions.shown(rows, marked=True, share_prefix=prefix)
        answers = [questions.items[i].answers[0] for i in rows]
        tokens = torch.tensor(first_tokens(study.vlm, shown, answers))
        cells = [
            transplant(study.pair, values[:, rows], layers=layers, write_at=place.positions(shown))
            for place in candidates
        ]
        return shown, cells, tokens

    n = len(candidates)
    of_items = questions.map(logprobs_in_cells, arguments, model=study.vlm, passes=n)
    return candidates, side_by_side(of_items, (n,))


def logprobs_in_cells(
    model: Model, prompt: Prompt, cells: Cells, tokens: torch.Tensor, *, tick: Tick
) -> np.ndarray:
    """Log-probability of each row's token at its end, in each cell, [row, cell], nats.

    Cells have one patch, at one token of each row.
    """

    def logprob(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return logits[:, 0].cpu().log_softmax(-1).gather(1, tokens[rows, None])[:, 0]

    # Of a short question, or an image of few tokens, several places are the same token.
    different: dict[tuple[int, ...], int] = {}
    column_of = [
        different.setdefault(tuple(patch.positions.index.flatten().tolist()), len(different))
        for [patch] in cells
    ]
    tick((len(cells) - len(different)) * len(prompt))
    table = run_cells(
        model,
        prompt,
        [cells[column_of.index(i)] for i in range(len(different))],
        positions=prompt.at("last"),
        measure=logprob,
        tick=tick,
    )
    return table[column_of].T


def transplant_at(questions: Questions, place: Place, *, last: int) -> Scored:
    """Free answers with the backbone's values written at a place."""
    pair, layers = questions.study.pair, blocks_to(last)
    [values] = entity_values(Reading(questions, "resid_post", layers))

    def cells_of(shown: Prompt, rows: Rows) -> list[list[Patch]]:
        at = place.positions(shown)
        return [transplant(pair, values[:, rows], layers=layers, write_at=at)]

    [texts] = said_in_cells(questions, cells_of, n_cells=1, marked=True)
    return questions.score(texts)
