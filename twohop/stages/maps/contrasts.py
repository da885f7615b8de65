"""Items beside the same question about another entity: the two runs that a map compares."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from interventions import Model, Prompt
from interventions.prompt.answer_tokens import spaced, token_ids
from twohop.ask.questions import Questions, Rows, draw_rivals
from twohop.ask.roles import question_tokens
from twohop.ask.study import Study, first_tokens, text_prompt
from twohop.items.items import Item
from twohop.stages.windows import known_items

MAP_ROLES = ("entity", "between", "last")
Pair = tuple[Item, Item]
"""An item, and one of the same relation about another entity."""


@dataclass(frozen=True)
class Swap:
    """Items of one relation as two runs: about their own entities, and about the others.

    Attributes
    ----------
    rows : list of int
        Which pairs these are.
    pairs : list of Pair
    clean, corrupt : Prompt
        Both have the :attr:`roles`, of as many tokens in the one as in the other.
    roles : list of str
        Those of :data:`MAP_ROLES` that every row has.
    answers, foils : list of int
        First token of the answer about the own entity, and about the other.
    """

    rows: list[int]
    pairs: list[Pair]
    clean: Prompt
    corrupt: Prompt
    roles: list[str]
    answers: list[int]
    foils: list[int]


def swapped_items(study: Study, model: Model, right: np.ndarray, *, shown: bool) -> list[Pair]:
    """Items, each with another that it can be told from; at most the protocol's ``map_items``.

    Their answers begin with different tokens. Names have as many tokens where there is such a
    pair, so that the runs correspond token by token. Which items are drawn, and with whom each is
    swapped, depends on the item and the seed alone, so that the maps of two models, and in text and
    with pictures, are of the same pairs as far as both have the items.

    Parameters
    ----------
    study : Study
    model : Model
        The one that will be asked.
    right : ndarray of bool [item]
        Items to draw from.
    shown : bool
        Whether it is asked about pictures.
    """
    benchmark = study.benchmark
    items = known_items(benchmark.items, right, seed=study.seed, limit=study.protocol.map_items)
    if not items:
        return []
    told = told_apart(study, model)
    names = [entity.name for entity in benchmark.entities]
    lengths = dict(zip(names, map(len, token_ids(model, names)), strict=True))

    def alike(item: Item, other: Item) -> bool:
        same_length = lengths[item.entity.name] == lengths[other.entity.name]
        return same_length and told(item, other)

    rivals = draw_rivals(study, items, alike=alike, alone=True)
    pairs = zip(items, rivals, strict=True)
    return [(own, other) for own, other in pairs if other is not None and told(own, other)]


def told_apart(study: Study, model: Model) -> Callable[[Item, Item], bool]:
    """Whether the answers to two items begin with different tokens, as a function of them."""
    items, templates = study.benchmark.items, study.benchmark.templates
    asked = text_prompt(model, templates[items[0].relation], [items[0].entity])
    answers = [item.answers[0] for item in items]
    ids = token_ids(model, answers, space=spaced(model, asked))
    firsts = {item.id: tokens[:1] for item, tokens in zip(items, ids, strict=True)}
    return lambda item, other: firsts[item.id] != firsts[other.id]


def swaps(study: Study, model: Model, pairs: Sequence[Pair], *, shown: bool) -> Iterator[Swap]:
    """Pairs as prompts, relation by relation.

    Parameters
    ----------
    study : Study
    model : Model
    pairs : sequence of Pair
    shown : bool
        Whether it is asked about pictures, as the VLM is, or about names, as the backbone is.
    """
    own, others = (Questions(study, [pair[side] for pair in pairs]) for side in (0, 1))
    for rows in own.parts():
        clean, corrupt, roles = with_map_roles(*_both(model, own, others, rows, shown=shown))
        answers, foils = (
            first_tokens(model, clean, [side.items[i].answers[0] for i in rows])
            for side in (own, others)
        )
        yield Swap(rows, [pairs[i] for i in rows], clean, corrupt, roles, answers, foils)


def _both(
    model: Model, own: Questions, others: Questions, rows: Rows, *, shown: bool
) -> tuple[Prompt, Prompt]:
    """Both prompts, with the same prefix shared among their rows, or none."""

    def asked(questions: Questions, share_prefix: bool) -> Prompt:
        if not shown:
            return questions.named(model, rows, share_prefix=share_prefix)
        # Pictures of one size have as many tokens.
        return questions.shown(rows, like=own, share_prefix=share_prefix)

    clean, corrupt = asked(own, True), asked(others, True)
    # A name's first letter may have joined the word before it, in some rows only.
    if torch.equal(clean.prefix_ids, corrupt.prefix_ids):
        return clean, corrupt
    return asked(own, False), asked(others, False)


def with_map_roles(clean: Prompt, corrupt: Prompt) -> tuple[Prompt, Prompt, list[str]]:
    """Give two prompts the roles of a map, and say which they are.

    Should a role of a row have more tokens in the one than in the other, it is the last ones.
    """
    sides = [[map_tokens(prompt, row) for row in range(len(prompt))] for prompt in (clean, corrupt)]
    every = [tokens for side in sides for tokens in side]
    roles = [name for name in MAP_ROLES if all(tokens.get(name) for tokens in every)]
    for own, other in zip(*sides, strict=True):
        for name in roles:
            n = min(len(own[name]), len(other[name]))
            own[name], other[name] = own[name][-n:], other[name][-n:]
    marked = [
        replace(
            prompt,
            roles=[
                {**roles_of_row, **{name: tokens[name] for name in roles}}
                for roles_of_row, tokens in zip(prompt.roles, side, strict=True)
            ],
        )
        for prompt, side in zip((clean, corrupt), sides, strict=True)
    ]
    return marked[0], marked[1], roles


def map_tokens(prompt: Prompt, row: int) -> dict[str, list[int]]:
    """Entity tokens (image, or the name's last), the last token, and what lies between.

    Where an image has no tokens, the question's are between.
    """
    roles = prompt.roles[row]
    last = roles["last"]
    if prompt.has_images and prompt.cross_attention:
        asked = question_tokens(prompt)
        return {"between": asked.index[row][asked.mask[row]].tolist(), "last": last}
    entity = roles["image"] if prompt.has_images else roles["entity"][-1:]
    return {"entity": entity, "between": list(range(entity[-1] + 1, last[0])), "last": last}
