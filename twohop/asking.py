"""From items to prompts, and from prompts to scored answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from interventions import Model, Prompt
from interventions.answer_tokens import candidate_ids, spaced, token_ids
from interventions.choosing import RULES
from twohop.answering import ASKED_ROWS, DEFAULT_RULE, WITHOUT_PRIOR, Decoding, answers
from twohop.entities.digest import asked_parts, named
from twohop.entities.items import Benchmark, Entity, Item, Template
from twohop.places import has_image_tokens
from twohop.protocol import DEFAULT, Protocol
from twohop.running import Tick, no_tick, on_each
from twohop.scoring import Outcome, names_it, normalise, outcome

SEPARATOR = " | "  # between accepted answers, where they are stored as one text


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
    """Tokens to generate: the longest name or accepted answer, and the protocol's spare ones.

    Of the whole benchmark, also where only some of its items are asked about. In a chat, room for
    a sentence at least, :attr:`Protocol.sentence_tokens`.
    """
    texts = {*benchmark.every_name}
    texts |= {answer for item in benchmark.universe or benchmark.items for answer in item.answers}
    asked = text_prompt(model, benchmark.naming, benchmark.entities[:1])
    found = token_ids(model, sorted(texts), space=spaced(model, asked))
    longest = max(len(ids) for ids in found) + protocol.spare_tokens
    return max(longest, protocol.sentence_tokens) if benchmark.chat else longest


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
    by_rule : dict of str to list of str
        Answers of the forced choice under every rule of it that could be had.
    scores : list of list of float
        Of each item, the log-probabilities of its candidates, if all were asked for.
    cut : list of bool
        Whether a free answer was at the limit of tokens before it ended.
    """

    texts: list[str]
    outcomes: list[Outcome]
    choices: list[str]
    choice_right: np.ndarray
    by_rule: dict[str, list[str]] = field(default_factory=dict)
    scores: list[list[float]] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)

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
    prior: Sequence[Sequence[float]] | None = None,
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
    prior : sequence of sequence of float, optional
        Of each item, the log-probabilities of its candidates where nothing is told of it, as
        ``scores`` gives them. Without it, all candidates are scored: it is what these may become.
    """
    rules = RULES if prior is not None else WITHOUT_PRIOR
    texts: list[str] = [""] * len(items)
    by_rule = {rule: [""] * len(items) for rule in rules}
    scores: list[list[float]] = [[]] * len(items)
    cut = [False] * len(items)
    asked = [
        (relation, part) for relation, rows in by_relation(items) for part in sendable(model, rows)
    ]
    tasks = (
        (
            prompt_of(relation, [items[i] for i in rows]),
            study.benchmark.answer_set(relation),
            study.decoding,
            rules,
            None if prior is None else torch.tensor([prior[i] for i in rows]),
        )
        for relation, rows in asked
    )
    found = on_each(model, answers, tasks, tick=study.tick)
    for (relation, rows), said in zip(asked, found, strict=True):
        answer_set = study.benchmark.answer_set(relation)
        for i, row in enumerate(rows):
            texts[row], cut[row] = said["texts"][i], said["cut"][i]
            for rule in rules:
                by_rule[rule][row] = answer_set[said["choices"][rule][i]]
            scores[row] = said["scores"][i]
    scored = score(study, items, texts, by_rule[DEFAULT_RULE])
    return replace(scored, by_rule=by_rule, scores=scores, cut=cut)


def sendable(model: Model, rows: list[int]) -> list[list[int]]:
    """Rows in parts: the pictures of thousands would make a request too large to send."""
    most = ASKED_ROWS if model.remote else len(rows)
    return [rows[i : i + most] for i in range(0, len(rows), most)]


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
    return Scored(list(texts), outcomes, list(choices), chosen_right(items, choices))


def chosen_right(items: Sequence[Item], choices: Sequence[str]) -> np.ndarray:
    """Whether forced choices are accepted answers, [item]."""
    right = [
        normalise(choice) in {normalise(answer) for answer in item.answers}
        for item, choice in zip(items, choices, strict=True)
    ]
    return np.array(right, dtype=bool)


def name_entities(
    study: Study, entities: Sequence[Entity]
) -> tuple[list[str], np.ndarray, list[bool]]:
    """Ask the VLM which entity each picture shows.

    Returns
    -------
    texts : list of str
        Its words.
    right : ndarray of bool [entity]
    cut : list of bool
        Whether they were at the limit of tokens before they ended.
    """
    prompt = image_prompt(study, study.benchmark.naming, entities)
    [said] = on_each(study.vlm, answers, [(prompt, None, study.decoding)], tick=study.tick)
    everyone = study.benchmark.every_name
    right = [
        names_it(text, names=entity.names, others=everyone)
        for entity, text in zip(entities, said["texts"], strict=True)
    ]
    return said["texts"], np.array(right, dtype=bool), said["cut"]


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
