"""Writing the backbone's entity at the one position of the VLM where it helps most elsewhere.

The position is found by exact patching on one half of the entities: the values are written at each
candidate, one at a time, and the log-probability of the answer is compared. A candidate is a place
that every prompt has: an image token by its share of the image, or a token of the question by its
distance from the end. The other half is scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interventions import Patch, Positions, Prompt
from interventions.alignment import layer_map
from interventions.positions import from_lists
from interventions.streams import Component
from twohop.asking import Scored, Study, by_relation, first_token, image_prompt, score
from twohop.cells import free_answers, run_cells
from twohop.entities.items import Item
from twohop.places import has_image_tokens, question_tokens
from twohop.transplant import blocks_to, entity_values

IMAGE_PLACES, QUESTION_PLACES = 8, 8


@dataclass(frozen=True)
class Place:
    """A token that every prompt with a picture has.

    Attributes
    ----------
    role : str
        ``"image"`` or ``"question"``.
    which : int
        Of the image, the ``which``-th of :data:`IMAGE_PLACES` parts' last token; of the question,
        the token so far from its end.
    """

    role: str
    which: int

    def __str__(self) -> str:
        if self.role == "image":
            return f"image token at {self.which + 1}/{IMAGE_PLACES}"
        return f"question token {-1 - self.which}"

    def positions(self, prompt: Prompt) -> Positions:
        """Return the place in every row."""
        tokens = prompt.at("image") if self.role == "image" else question_tokens(prompt)
        lists = []
        for index, n in zip(tokens.index, tokens.counts.tolist(), strict=True):
            ahead = -(-n * (self.which + 1) // IMAGE_PLACES) - 1
            chosen = ahead if self.role == "image" else max(n - 1 - self.which, 0)
            lists.append([int(index[chosen])])
        return from_lists(lists, length=prompt.length, single=True, role=str(self))


def places(study: Study) -> list[Place]:
    """The candidates, the end of the image first."""
    image = [Place("image", i) for i in reversed(range(IMAGE_PLACES))]
    asked = [Place("question", i) for i in range(QUESTION_PLACES)]
    return [*image, *asked] if has_image_tokens(study.vlm) else asked


def gains(
    study: Study, items: Sequence[Item], *, component: Component, last: int
) -> tuple[list[Place], np.ndarray]:
    """Log-probability of the answer's first token that each place gives, [place, item], nats."""
    found = places(study)
    values = entity_values(study, items, component, blocks_to(last))
    layers = [layer_map(study.vlm, study.backbone)[block] for block in range(len(values))]
    table = np.zeros((len(found), len(items)))
    for _, rows in by_relation(items):
        some = [items[i] for i in rows]
        shown = _shown(study, some)
        tokens = torch.tensor([first_token(study.vlm, shown, one.answers[0]) for one in some])
        there = [place.positions(shown) for place in found]

        def patches_of(
            batch: torch.Tensor,
            cells: torch.Tensor,
            there: list[Positions] = there,
            mine: torch.Tensor = values[:, rows],
        ) -> list[Patch]:
            return [
                Patch(component, layers, there[c].rows(batch).only(cells == c), mine[:, batch])
                for c in cells.unique().tolist()
            ]

        def logprob(
            logits: torch.Tensor, batch: torch.Tensor, tokens: torch.Tensor = tokens
        ) -> torch.Tensor:
            return logits[:, 0].cpu().log_softmax(-1).gather(1, tokens[batch, None])[:, 0]

        table[:, rows] = run_cells(
            study,
            study.vlm,
            shown,
            first_blocks=[layers[0]] * len(found),
            patches_of=patches_of,
            positions=shown.at("last"),
            measure=logprob,
        )
    return found, table


def transplant_at(
    study: Study, items: Sequence[Item], place: Place, *, component: Component, last: int
) -> Scored:
    """Free answers with the backbone's values written at a place."""
    values = entity_values(study, items, component, blocks_to(last))
    layers = [layer_map(study.vlm, study.backbone)[block] for block in range(len(values))]
    texts = [""] * len(items)
    for _, rows in by_relation(items):
        shown = _shown(study, [items[i] for i in rows])
        there = place.positions(shown)

        def patches_of(
            batch: torch.Tensor,
            _cells: torch.Tensor,
            there: Positions = there,
            mine: torch.Tensor = values[:, rows],
        ) -> list[Patch]:
            return [Patch(component, layers, there.rows(batch), mine[:, batch])]

        [said] = free_answers(study, study.vlm, shown, n_cells=1, patches_of=patches_of)
        for row, text in zip(rows, said, strict=True):
            texts[row] = text
    return score(study, items, texts, [""] * len(items))


def _shown(study: Study, items: Sequence[Item]) -> Prompt:
    template = study.benchmark.templates[items[0].relation]
    return image_prompt(
        study,
        template,
        [one.entity for one in items],
        marked=True,
        share_prefix=template.prefix,
    )
