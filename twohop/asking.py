"""From items to prompts, and from prompts to scored answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from interventions import Completion, Model, Patch, Prompt, complete
from interventions.answers import candidate_ids
from twohop.entities.items import Benchmark, Entity, Item, Template
from twohop.scoring import Outcome, names_it, outcome

MAX_NEW_TOKENS = 6
Tick = Callable[[int], None]


def no_tick(_rows: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Study:
    """What every stage works with.

    Attributes
    ----------
    vlm, backbone : Model
    benchmark : Benchmark
    seed : int
    tick : callable
        Told the number of rows done, for a progress bar.
    """

    vlm: Model
    backbone: Model
    benchmark: Benchmark
    seed: int = 0
    tick: Tick = field(default=no_tick, compare=False)


def by_relation(items: Sequence[Item]) -> Iterator[tuple[str, list[int]]]:
    """Relations with the indices of their items; rows of one relation share a prompt prefix."""
    for relation in dict.fromkeys(item.relation for item in items):
        yield relation, [i for i, item in enumerate(items) if item.relation == relation]


def text_prompt(
    model: Model,
    template: Template,
    entities: Sequence[Entity],
    *,
    share_prefix: bool | str = True,
) -> Prompt:
    """Ask about named entities; the role ``entity`` is the name."""
    return model.prompt(
        [template.fill(entity.name) for entity in entities],
        spans={"entity": [template.span(entity.name) for entity in entities]},
        share_prefix=share_prefix,
    )


def image_prompt(
    study: Study,
    template: Template,
    entities: Sequence[Entity],
    *,
    views: Sequence[int] | int = 0,
    share_prefix: bool | str = True,
) -> Prompt:
    """Ask the VLM about pictured entities, each by one of its held-out views."""
    chosen = [views] * len(entities) if isinstance(views, int) else views
    images = [
        study.benchmark.view(entity.code, view)
        for entity, view in zip(entities, chosen, strict=True)
    ]
    text = template.fill(study.vlm.image_token or "")
    return study.vlm.prompt([text] * len(images), images=images, share_prefix=share_prefix)


def chain_prompt(study: Study, items: Sequence[Item], names: Sequence[str]) -> Prompt:
    """Show the VLM the picture, put ``names`` in its mouth, then ask about the name."""
    shown = study.vlm.image_token or ""
    texts = [
        study.benchmark.chain(item.relation, name).fill(shown)
        for item, name in zip(items, names, strict=True)
    ]
    images = [study.benchmark.view(item.entity.code, 0) for item in items]
    return study.vlm.prompt(texts, images=images, share_prefix=True)


@dataclass(frozen=True)
class Scored:
    """Answers to items, scored both ways.

    Attributes
    ----------
    texts : list of str
        Free answers.
    outcomes : list of str
        Their classes (:data:`twohop.scoring.OUTCOMES`).
    choices : list of str
        Answers of the forced choice.
    choice_right : ndarray of bool [item]
    """

    texts: list[str]
    outcomes: list[Outcome]
    choices: list[str]
    choice_right: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether the free answer is right, [item]."""
        return np.array([one == "right" for one in self.outcomes], dtype=bool)


def ask(
    study: Study,
    model: Model,
    items: Sequence[Item],
    *,
    prompt_of: Callable[[str, list[Item]], Prompt],
    patches_of: Callable[[list[int], Prompt], Sequence[Patch]] | None = None,
    forced: bool = True,
) -> Scored:
    """Ask about items, relation by relation, and score the answers.

    Parameters
    ----------
    study : Study
    model : Model
        The one that is asked.
    items : sequence of Item
    prompt_of : callable
        ``prompt_of(relation, items)`` gives the prompt of one relation's items.
    patches_of : callable, optional
        ``patches_of(indices, prompt)`` gives the patches for these items.
    forced : bool
        Also choose among the relation's answers.
    """
    texts: list[str] = [""] * len(items)
    choices: list[str] = [""] * len(items)
    for relation, rows in by_relation(items):
        prompt = prompt_of(relation, [items[i] for i in rows])
        answer_set = study.benchmark.answer_set(relation)
        found: Completion = complete(
            model,
            prompt,
            patches=patches_of(rows, prompt) if patches_of else (),
            candidates=answer_set if forced else None,
            max_new_tokens=MAX_NEW_TOKENS,
            stop=study.benchmark.stop,
            on_rows=study.tick,
        )
        for i, row in enumerate(rows):
            texts[row] = found.texts[i]
            choices[row] = answer_set[found.choices[i]] if forced else ""
    return score(study, items, texts, choices)


def score(
    study: Study, items: Sequence[Item], texts: Sequence[str], choices: Sequence[str]
) -> Scored:
    """Score free answers and forced choices to items."""
    sets = {relation: study.benchmark.answer_set(relation) for relation, _ in by_relation(items)}
    outcomes: list[Outcome] = [
        outcome(
            text,
            answers=item.answers,
            names=item.entity.names,
            answer_set=sets[item.relation],
        )
        for item, text in zip(items, texts, strict=True)
    ]
    right = [choice == item.answers[0] for item, choice in zip(items, choices, strict=True)]
    return Scored(list(texts), outcomes, list(choices), np.array(right, dtype=bool))


def name_entities(study: Study, entities: Sequence[Entity]) -> tuple[list[str], np.ndarray]:
    """Ask the VLM which entity each picture shows; return its words and whether they are right."""
    prompt = image_prompt(study, study.benchmark.naming, entities)
    found = complete(
        study.vlm,
        prompt,
        max_new_tokens=MAX_NEW_TOKENS,
        stop=study.benchmark.stop,
        on_rows=study.tick,
    )
    everyone = [name for entity in study.benchmark.entities for name in entity.names]
    right = [
        names_it(text, names=entity.names, others=everyone)
        for entity, text in zip(entities, found.texts, strict=True)
    ]
    return found.texts, np.array(right, dtype=bool)


def first_token(model: Model, text: str) -> int:
    """Id of the first token of an answer as it follows a prompt."""
    return candidate_ids(model, [text])[0][0]


def derangement(groups: Sequence[object], *, seed: int) -> list[int]:
    """For each entry, the index of another with a different group, spread evenly.

    Used to pick "another entity": groups are answers, so that following it can be told apart.
    Entries for which there is none are given themselves.
    """
    n = len(groups)
    order = np.random.default_rng(seed).permutation(n)
    place = np.argsort(order)
    partner = []
    for i in range(n):
        ahead = (int(order[(place[i] + step) % n]) for step in range(1, n))
        partner.append(next((j for j in ahead if groups[j] != groups[i]), i))
    return partner


def mean_of_others(values: torch.Tensor) -> torch.Tensor:
    """For each row of [layer, row, ...], the mean over the other rows.

    A mean that includes the row itself would leak a share of what is to be taken away.
    """
    n = values.shape[1]
    return (values.sum(1, keepdim=True) - values) / max(n - 1, 1)


def item_coords(items: Sequence[Item]) -> dict[str, tuple[str, list[str]]]:
    """Coordinates along ``item``: id, entity, relation and canonical answer."""
    return {
        "item": ("item", [item.id for item in items]),
        "entity": ("item", [item.entity.name for item in items]),
        "relation": ("item", [item.relation for item in items]),
        "answer": ("item", [item.answers[0] for item in items]),
    }


def text_array(values: object) -> np.ndarray:
    """Strings as an object array, which netCDF stores as variable-length text."""
    return np.array(values, dtype=object)
