"""Writing the backbone's entity at the one position of the VLM where it helps most elsewhere.

The position is found by exact patching on one part of the entities: the values are written at each
candidate, one at a time, and the log-probability of the answer is compared. A candidate is a place
that every prompt has: an image token by its share of the image, or a token of the question by its
distance from the end. The others are scored.
"""

from dataclasses import dataclass

import numpy as np
import torch

from interventions import Model, Patch, Positions, Prompt, transplant
from interventions.prompt.positions import from_lists
from twohop.ask.on_server import Task, Tick
from twohop.ask.questions import Questions, Rows, Scored, side_by_side
from twohop.ask.roles import has_image_tokens, question_tokens
from twohop.ask.study import Study, first_tokens
from twohop.stages.patched import Cells, run_cells
from twohop.stages.recovery.transplants import Reading, blocks_to, entity_values, said_in_cells


@dataclass(frozen=True)
class Place:
    """A token that every prompt with a picture has.

    Attributes
    ----------
    role : str
        ``"image"`` or ``"question"``.
    which : int
        Of the image, the ``which``-th of its parts' last token; of the question, the token so far
        from its end.
    parts : int
        Of the image.
    """

    role: str
    which: int
    parts: int

    def __str__(self) -> str:
        if self.role == "image":
            return f"image token at {self.which + 1}/{self.parts}"
        return f"question token {-1 - self.which}"

    def positions(self, prompt: Prompt) -> Positions:
        """Return the place in every row."""
        tokens = prompt.at("image") if self.role == "image" else question_tokens(prompt)
        lists = []
        for index, n in zip(tokens.index, tokens.counts.tolist(), strict=True):
            ahead = -(-n * (self.which + 1) // self.parts) - 1
            chosen = ahead if self.role == "image" else max(n - 1 - self.which, 0)
            lists.append([int(index[chosen])])
        return from_lists(lists, length=prompt.length, single=True, role=str(self))


def places(study: Study) -> list[Place]:
    """The candidates, the end of the image first."""
    parts = study.protocol.image_places
    image = [Place("image", i, parts) for i in reversed(range(parts))]
    asked = [Place("question", i, parts) for i in range(study.protocol.question_places)]
    return [*image, *asked] if has_image_tokens(study.vlm) else asked


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
