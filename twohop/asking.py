"""From items to prompts, and from prompts to scored answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from interventions import Model, Prompt, complete
from interventions.answer_tokens import candidate_ids, spaced, token_ids
from twohop.entities.digest import asked_parts, named
from twohop.entities.items import Benchmark, Entity, Item, Template
from twohop.memory import Batches
from twohop.places import has_image_tokens
from twohop.protocol import DEFAULT, Protocol
from twohop.running import Tick, no_tick, on_each
from twohop.scoring import Outcome, names_it, normalise, outcome

SEPARATOR = " | "  # between accepted answers, where they are stored as one text
ASKED_ROWS = 64  # rows of like length, so that little padding is run
ALIKE_ROWS = 192  # where all are of one length


@dataclass(frozen=True)
class Decoding:
    """How answers are written down.

    Attributes
    ----------
    max_new_tokens : int
        How long one may be, see :func:`longest_answer`.
    stop : str
        Text that ends one.
    end : str or None
        Text that ends a candidate that begins another one, where that is not ``stop``.
    """

    max_new_tokens: int
    stop: str
    end: str | None


@dataclass(frozen=True)
class Study:
    """What every stage works with.

    Attributes
    ----------
    vlm, backbone : Model
    benchmark : Benchmark
    seed : int
    max_new_tokens : int
        How long an answer may be, see :func:`longest_answer`.
    kept : dict
        What the backbone gave and later pairs on it will ask for again.
    tick : callable
        Told the number of rows done, for a progress bar.
    protocol : Protocol
        Every number that decides what is measured.
    """

    vlm: Model
    backbone: Model
    benchmark: Benchmark
    seed: int = 0
    max_new_tokens: int = 8
    kept: dict[Any, Any] = field(default_factory=dict, compare=False)
    tick: Tick = field(default=no_tick, compare=False)
    protocol: Protocol = DEFAULT

    @property
    def decoding(self) -> Decoding:
        """How the benchmark's answers are written down."""
        return Decoding(self.max_new_tokens, self.benchmark.stop, self.benchmark.end)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What results depend on, as a run's settings have it; JSON types."""
        parts = asked_parts(self.benchmark, protocol=self.protocol)
        return {
            "vlm": self.vlm.name,
            "backbone": self.backbone.name,
            "benchmark": named(self.benchmark, parts),
            "asked": parts,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "protocol": self.protocol.as_settings(),
        }


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
    sized_as: Sequence[Entity] | None = None,
    marked: bool = False,
    share_prefix: bool | str = True,
) -> Prompt:
    """Ask the VLM about pictured entities, each by one of its held-out views.

    Parameters
    ----------
    study : Study
    template : Template
    entities : sequence of Entity
    views : int or sequence of int
        For all, or one each.
    sized_as : sequence of Entity, optional
        Bring each picture to the size of this entity's: as large pictures have as many tokens.
    marked : bool
        Give the question, without worked examples, the role ``asked``; done anyway where an image
        has no tokens.
    share_prefix : bool or str
        As in :meth:`interventions.Model.prompt`.
    """
    chosen = [views] * len(entities) if isinstance(views, int) else views
    images = [
        study.benchmark.view(entity.code, view)
        for entity, view in zip(entities, chosen, strict=True)
    ]
    if sized_as is not None:
        sizes = [study.benchmark.view(entity.code, 0).size for entity in sized_as]
        images = [
            image if image.size == size else image.resize(size)
            for image, size in zip(images, sizes, strict=True)
        ]
    text = template.show(study.vlm.image_token or "")
    marked = marked or not has_image_tokens(study.vlm)
    return study.vlm.prompt(
        [text] * len(images),
        images=images,
        spans={"asked": (len(template.prefix), len(text))} if marked else None,
        share_prefix=share_prefix,
    )


def chain_prompt(study: Study, items: Sequence[Item], names: Sequence[str]) -> Prompt:
    """Show the VLM the picture, put ``names`` in its mouth, then ask about the name."""
    shown = study.vlm.image_token or ""
    texts = [
        study.benchmark.chain(item.relation, name).show(shown)
        for item, name in zip(items, names, strict=True)
    ]
    images = [study.benchmark.view(item.entity.code, 0) for item in items]
    return study.vlm.prompt(texts, images=images, share_prefix=True)


def longest_answer(model: Model, benchmark: Benchmark, *, protocol: Protocol = DEFAULT) -> int:
    """Tokens to generate: the longest name or accepted answer, and the protocol's spare ones."""
    texts = {name for entity in benchmark.entities for name in entity.names}
    texts |= {answer for item in benchmark.items for answer in item.answers}
    asked = text_prompt(model, benchmark.naming, benchmark.entities[:1])
    found = token_ids(model, sorted(texts), space=spaced(model, asked))
    return max(len(ids) for ids in found) + protocol.spare_tokens


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
    """
    texts: list[str] = [""] * len(items)
    choices: list[str] = [""] * len(items)
    asked = [
        (relation, part) for relation, rows in by_relation(items) for part in sendable(model, rows)
    ]
    tasks = (
        (
            prompt_of(relation, [items[i] for i in rows]),
            study.benchmark.answer_set(relation),
            study.decoding,
        )
        for relation, rows in asked
    )
    found = on_each(model, answers, tasks, tick=study.tick)
    for (relation, rows), (said, chosen) in zip(asked, found, strict=True):
        answer_set = study.benchmark.answer_set(relation)
        for i, row in enumerate(rows):
            texts[row] = said[i]
            choices[row] = answer_set[chosen[i]]
    return score(study, items, texts, choices)


def sendable(model: Model, rows: list[int]) -> list[list[int]]:
    """Rows in parts: the pictures of thousands would make a request too large to send."""
    most = ASKED_ROWS if model.remote else len(rows)
    return [rows[i : i + most] for i in range(0, len(rows), most)]


def answers(
    model: Model,
    prompt: Prompt,
    candidates: Sequence[str] | None,
    decoding: Decoding,
    *,
    tick: Tick = no_tick,
) -> tuple[list[str], list[int]]:
    """Ask a prompt: the free answer of every row and, given candidates, the likeliest of them.

    Rows of like length run together.
    """
    texts = [""] * len(prompt)
    choices = [-1] * len(prompt)
    ragged = len(prompt.lengths.unique()) > 1
    order = prompt.lengths.argsort(stable=True)
    batches = Batches(order, ASKED_ROWS if ragged else ALIKE_ROWS)
    for rows in batches:
        some, _ = prompt.select(rows).trimmed()
        with batches.attempt(rows):
            found = complete(
                model,
                some,
                candidates=candidates,
                max_new_tokens=decoding.max_new_tokens,
                stop=decoding.stop,
                end=decoding.end,
                batch_rows=len(rows),
            )
            for i, row in enumerate(rows.tolist()):
                texts[row] = found.texts[i]
                if candidates is not None:
                    choices[row] = found.choices[i]
            tick(len(rows))
    return texts, choices


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
    right = [
        normalise(choice) in {normalise(answer) for answer in item.answers}
        for item, choice in zip(items, choices, strict=True)
    ]
    return Scored(list(texts), outcomes, list(choices), np.array(right, dtype=bool))


def name_entities(study: Study, entities: Sequence[Entity]) -> tuple[list[str], np.ndarray]:
    """Ask the VLM which entity each picture shows; return its words and whether they are right."""
    prompt = image_prompt(study, study.benchmark.naming, entities)
    [(texts, _)] = on_each(study.vlm, answers, [(prompt, None, study.decoding)], tick=study.tick)
    everyone = study.benchmark.every_name
    right = [
        names_it(text, names=entity.names, others=everyone)
        for entity, text in zip(entities, texts, strict=True)
    ]
    return texts, np.array(right, dtype=bool)


def first_token(model: Model, prompt: Prompt, text: str) -> int:
    """Id of the first token of an answer as it follows a prompt."""
    return candidate_ids(model, [text], space=spaced(model, prompt))[0][0]


def another(
    study: Study, items: Sequence[Item], *, alike: Callable[[Item, Item], bool] | None = None
) -> list[Item | None]:
    """For each item, one of the same relation about another entity, with none of its answers.

    Drawn from the whole benchmark, so that following the other can be told from being right; from
    those that are ``alike(item, other)`` where there are any. None where there is no such item.
    """
    accepted = {item.id: {normalise(one) for one in item.answers} for item in study.benchmark.items}
    found: list[Item | None] = []
    generator = np.random.default_rng(study.seed)
    for item in items:
        rivals = [
            other
            for other in study.benchmark.items
            if other.relation == item.relation
            and other.entity.code != item.entity.code
            and accepted[other.id].isdisjoint(accepted[item.id])
        ]
        if alike is not None:
            rivals = [other for other in rivals if alike(item, other)] or rivals
        found.append(rivals[int(generator.integers(len(rivals)))] if rivals else None)
    return found


def mean_of_others(values: torch.Tensor, items: Sequence[Item]) -> torch.Tensor:
    """For each row of [layer, row, ...], the mean over the rows of other entities.

    A mean that includes the row itself would leak a share of what is to be taken away. Zero where
    there is no other entity.
    """
    codes = [item.entity.code for item in items]
    weights = torch.tensor([[float(a != b) for b in codes] for a in codes], dtype=values.dtype)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return torch.einsum("ij,lj...->li...", weights.to(values.device), values)


def item_coords(items: Sequence[Item]) -> dict[str, tuple[str, list[str]]]:
    """Coordinates along ``item``: id, entity, relation, canonical and all accepted answers."""
    return {
        "item": ("item", [item.id for item in items]),
        "entity": ("item", [item.entity.name for item in items]),
        "relation": ("item", [item.relation for item in items]),
        "answer": ("item", [item.answers[0] for item in items]),
        "accepted": ("item", [SEPARATOR.join(item.answers) for item in items]),
    }


def text_array(values: object) -> np.ndarray:
    """Strings as an object array, which netCDF stores as variable-length text.

    It cannot hold a zero byte, which a broken or untrained model may well say: a replacement
    character stands for it.
    """
    found = np.array(values, dtype=object)
    for where, text in np.ndenumerate(found):
        found[where] = text.replace("\0", "\ufffd")
    return found
