"""Writing the backbone's entity at the one position of the VLM where it helps most elsewhere.

The position is found by exact patching on one part of the entities: the values are written at each
candidate, one at a time, and the log-probability of the answer is compared. A candidate is a place
that every prompt has: an image token by its share of the image, or a token of the question by its
distance from the end. The others are scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interventions import Model, Patch, Positions, Prompt
from interventions.alignment import layer_map
from interventions.positions import from_lists
from interventions.sites import Component
from twohop.asking import Scored, Study, by_relation, first_token, image_prompt, score
from twohop.cells import run_cells
from twohop.entities.items import Item
from twohop.places import has_image_tokens, question_tokens
from twohop.running import Task, Tick, on_each
from twohop.transplant import Wanted, blocks_to, entity_values, said_in_cells


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


def gains(
    study: Study, items: Sequence[Item], *, component: Component, last: int
) -> tuple[list[Place], np.ndarray]:
    """Log-probability of the answer's first token that each place gives, [place, item], nats."""
    found = places(study)
    [values] = entity_values(study, Wanted(items, component, blocks_to(last)))
    layers = layer_map(study.vlm, study.backbone)[: len(values)]
    groups = list(by_relation(items))

    def task(rows: list[int]) -> Task:
        some = [items[i] for i in rows]
        template = study.benchmark.templates[some[0].relation]
        shown = image_prompt(
            study,
            template,
            [one.entity for one in some],
            marked=True,
            share_prefix=template.prefix,
        )
        tokens = torch.tensor([first_token(study.vlm, shown, one.answers[0]) for one in some])
        cells = [
            Patch(component, layers, place.positions(shown), values[:, rows]) for place in found
        ]
        return shown, cells, tokens

    table = np.zeros((len(found), len(items)))
    tasks = (task(rows) for _, rows in groups)
    for (_, rows), part in zip(
        groups, on_each(study.vlm, logprobs_in_cells, tasks, tick=study.tick), strict=True
    ):
        table[:, rows] = part
    return found, table


def logprobs_in_cells(
    model: Model, prompt: Prompt, cells: Sequence[Patch], tokens: torch.Tensor, *, tick: Tick
) -> np.ndarray:
    """Log-probability of each row's token at its end, under each patch, [cell, row], nats."""

    def logprob(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return logits[:, 0].cpu().log_softmax(-1).gather(1, tokens[rows, None])[:, 0]

    # Of a short question, or an image of few tokens, several places are the same token.
    found: dict[tuple[int, ...], int] = {}
    which = [
        found.setdefault(tuple(one.positions.index.flatten().tolist()), len(found)) for one in cells
    ]
    tick((len(cells) - len(found)) * len(prompt))
    table = run_cells(
        model,
        prompt,
        [[cells[which.index(i)]] for i in range(len(found))],
        positions=prompt.at("last"),
        measure=logprob,
        tick=tick,
    )
    return table[which]


def transplant_at(
    study: Study, items: Sequence[Item], place: Place, *, component: Component, last: int
) -> Scored:
    """Free answers with the backbone's values written at a place."""
    [values] = entity_values(study, Wanted(items, component, blocks_to(last)))
    layers = layer_map(study.vlm, study.backbone)[: len(values)]

    def cells_of(shown: Prompt, rows: list[int]) -> list[list[Patch]]:
        return [[Patch(component, layers, place.positions(shown), values[:, rows])]]

    [texts] = said_in_cells(study, items, cells_of, marked=True) or [[]]
    return score(study, items, texts, [""] * len(items))
