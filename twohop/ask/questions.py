"""Items with their prompts: grouped, sent where a model runs, and answered in the items' order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
import torch

from interventions import Model, Prompt
from interventions.running.forced_choice import RULES
from twohop.ask.answers import DEFAULT_RULE, WITHOUT_PRIOR, answers
from twohop.ask.on_server import Task, on_each
from twohop.ask.shards import SHARD_ROWS
from twohop.ask.study import Study, image_prompt, text_prompt
from twohop.items.items import Item, Template
from twohop.scoring import Outcome, normalise, outcome

Rows = list[int]
Rivals = list[Item | None]


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
        Answers of the forced choice; empty where there was none.
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
        return np.array([outcome == "right" for outcome in self.outcomes], dtype=bool)


@dataclass(frozen=True)
class Questions:
    """Items of one or more relations, to be asked about.

    One prompt is about items of one relation, whose rows share what is ahead of the entity. What
    comes back is in the order of the items, whatever their relations are.

    Attributes
    ----------
    study : Study
    items : sequence of Item
    views : int or sequence of int
        Which held-out picture each is asked about by; one prompt is about pictures of one number.
    """

    study: Study
    items: Sequence[Item]
    views: Sequence[int] | int = 0

    def __len__(self) -> int:
        return len(self.items)

    def only(self, rows: Sequence[int]) -> "Questions":
        """Return some of the questions; their rivals are drawn anew."""
        views = self.views if isinstance(self.views, int) else [self.views[i] for i in rows]
        return replace(self, items=[self.items[i] for i in rows], views=views)

    def parts(self, most: int | None = None) -> list[Rows]:
        """Rows that make one prompt each: of one relation and view, at most ``most`` of them."""
        views = [self.views] * len(self) if isinstance(self.views, int) else self.views
        groups: dict[tuple[int, str], Rows] = {}
        for row, (view, item) in enumerate(zip(views, self.items, strict=True)):
            groups.setdefault((view, item.relation), []).append(row)
        return [
            rows[i : i + (most or len(rows))]
            for rows in groups.values()
            for i in range(0, len(rows), most or len(rows))
        ]

    def view(self, rows: Rows) -> int:
        """Which picture rows of one view are asked about by."""
        return self.views if isinstance(self.views, int) else self.views[rows[0]]

    def template(self, rows: Rows) -> Template:
        """The prompt's text, for rows of one relation."""
        return self.study.benchmark.templates[self.items[rows[0]].relation]

    def named(self, model: Model, rows: Rows, *, share_prefix: bool | str = True) -> Prompt:
        """Prompt of rows of one relation, about the entities by name."""
        entities = [self.items[i].entity for i in rows]
        return text_prompt(model, self.template(rows), entities, share_prefix=share_prefix)

    def shown(
        self,
        rows: Rows,
        *,
        like: "Questions | None" = None,
        marked: bool = False,
        share_prefix: bool | str = True,
    ) -> Prompt:
        """Prompt of rows of one relation and view, about the pictured entities.

        Parameters
        ----------
        rows : list of int
        like : Questions, optional
            Bring each picture to the size of the same row's here.
        marked, share_prefix
            As in :func:`twohop.ask.study.image_prompt`.
        """
        return image_prompt(
            self.study,
            self.template(rows),
            [self.items[i].entity for i in rows],
            views=self.view(rows),
            sized_as=None if like is None else [like.items[i].entity for i in rows],
            sized_view=0 if like is None else like.view(rows),
            marked=marked,
            share_prefix=share_prefix,
        )

    def map(
        self,
        function: Callable[..., Any],
        arguments: Callable[[Rows], Task],
        *,
        model: Model,
        passes: int | Sequence[int] = 1,
        most: int | None = SHARD_ROWS,
    ) -> list[Any]:
        """Call ``function(model, *arguments(rows), tick=...)`` for each part, where a model runs.

        Parameters
        ----------
        function : callable
            See :func:`twohop.ask.on_server.on_each`. Gives something with an entry for each row.
        arguments : callable
            What it is given after the model, for the rows of a part. Called when its turn comes.
        model : Model
        passes : int or sequence of int
            Rows that are run for each item: those that the progress is told of.
        most : int, optional
            Rows in one part; None: all of a relation and view, where these are not each its own.

        Returns
        -------
        list
            For each item, its row's entry.
        """
        parts, progress = self.parts(most), self.study.progress
        progress.expect(passes * len(self) if isinstance(passes, int) else sum(passes))
        tasks = (arguments(rows) for rows in parts)
        results = on_each(model, function, tasks, tick=progress.tick)
        of_items: list[Any] = [None] * len(self)
        for rows, result in zip(parts, results, strict=True):
            for row, entry in zip(rows, result, strict=True):
                of_items[row] = entry
        return of_items

    def ask(
        self,
        model: Model,
        prompt: Callable[[Rows], Prompt],
        *,
        prior: Sequence[Sequence[float]] | None = None,
    ) -> Scored:
        """Let a model answer, freely and in a forced choice, and score the answers.

        Parameters
        ----------
        model : Model
        prompt : callable
            ``prompt(rows)`` of rows of one relation, such as :meth:`shown`.
        prior : sequence of sequence of float, optional
            Of each item, the log-probabilities of its candidates where nothing is told of it, as
            ``scores`` gives them. Without it, all candidates are scored: it is what these may
            become.
        """
        study, rules = self.study, RULES if prior is not None else WITHOUT_PRIOR
        candidates = {
            relation: study.benchmark.answer_set(relation)
            for relation in {item.relation for item in self.items}
        }

        def arguments(rows: Rows) -> Task:
            told = None if prior is None else torch.tensor([prior[i] for i in rows])
            relation = self.items[rows[0]].relation
            return prompt(rows), candidates[relation], study.decoding, rules, told

        answered = self.map(answers, arguments, model=model)
        by_rule: dict[str, list[str]] = {
            rule: [
                candidates[item.relation][answer["choices"][rule]]
                for item, answer in zip(self.items, answered, strict=True)
            ]
            for rule in rules
        }
        return replace(
            self.score([answer["text"] for answer in answered], by_rule[DEFAULT_RULE]),
            by_rule=by_rule,
            scores=[answer["scores"] for answer in answered],
            cut=[answer["cut"] for answer in answered],
        )

    def score(self, texts: Sequence[str], choices: Sequence[str] | None = None) -> Scored:
        """Score free answers, and forced choices if there were any."""
        benchmark = self.study.benchmark
        relations = {item.relation for item in self.items}
        sets = {relation: benchmark.answer_set(relation) for relation in relations}
        outcomes: list[Outcome] = [
            outcome(
                text,
                answers=item.answers,
                names=item.entity.names,
                answer_set=sets[item.relation],
            )
            for item, text in zip(self.items, texts, strict=True)
        ]
        chosen = [""] * len(self) if choices is None else list(choices)
        return Scored(list(texts), outcomes, chosen, chosen_right(self.items, chosen))

    # The same questions about others

    @cached_property
    def rivals(self) -> Rivals:
        """For each item, another that can be told from it, see :func:`draw_rivals`."""
        return draw_rivals(self.study, self.items)

    @cached_property
    def others(self) -> "Questions":
        """The questions about the rivals; about the item itself, where it has none."""
        pairs = zip(self.rivals, self.items, strict=True)
        return replace(self, items=[rival or item for rival, item in pairs])

    @property
    def has_rival(self) -> np.ndarray:
        """Whether there is another entity to put in an item's place, [item]."""
        return np.array([rival is not None for rival in self.rivals], dtype=bool)

    def follows(self, texts: Sequence[str]) -> np.ndarray:
        """Whether each answer is that of the entity put in; NaN where there was none, [item]."""
        followed = self.others.score(texts).right.astype(float)
        return np.where(self.has_rival, followed, np.nan)


def draw_rivals(
    study: Study,
    items: Sequence[Item],
    *,
    alike: Callable[[Item, Item], bool] | None = None,
    alone: bool = False,
) -> Rivals:
    """For each item, one of the same relation about another entity, with none of its answers.

    Drawn from the whole benchmark, so that following the other can be told from being right; from
    those that are ``alike(item, other)`` where there are any. None where there is no such item.
    ``alone``: an item's rival is the same whatever other items there are.
    """
    known = study.benchmark.items
    accepted = {item.id: {normalise(answer) for answer in item.answers} for item in known}
    rivals: Rivals = []
    generator = np.random.default_rng(study.seed)
    for item in items:
        possible = [
            other
            for other in known
            if other.relation == item.relation
            and other.entity.code != item.entity.code
            and accepted[other.id].isdisjoint(accepted[item.id])
        ]
        if alike is not None:
            possible = [other for other in possible if alike(item, other)] or possible
        if alone:
            generator = np.random.default_rng([study.seed, crc32(item.id.encode())])
        rivals.append(possible[int(generator.integers(len(possible)))] if possible else None)
    return rivals


def by_relation(items: Sequence[Item]) -> Iterator[tuple[str, Rows]]:
    """Relations, in order of first appearance, with the indices of their items."""
    groups: dict[str, Rows] = {}
    for row, item in enumerate(items):
        groups.setdefault(item.relation, []).append(row)
    yield from groups.items()


def chosen_right(items: Sequence[Item], choices: Sequence[str]) -> np.ndarray:
    """Whether forced choices are accepted answers, [item]."""
    right = [
        normalise(choice) in {normalise(answer) for answer in item.answers}
        for item, choice in zip(items, choices, strict=True)
    ]
    return np.array(right, dtype=bool)


def side_by_side(
    of_items: Sequence[Any], shape: tuple[int, ...], *, dtype: type = float
) -> np.ndarray:
    """What there is of each item, [*shape] each, as one array [*shape, item]."""
    array = np.array([*of_items], dtype=dtype).reshape(len(of_items), *shape)
    return np.ascontiguousarray(np.moveaxis(array, 0, -1))
