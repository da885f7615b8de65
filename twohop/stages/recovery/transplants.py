"""Writing the backbone's entity into the VLM, and the controls that must fail."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from interventions import Model, Positions, Prompt, transplant
from interventions.model.sites import Component
from twohop.ask.on_server import Task
from twohop.ask.places import Place
from twohop.ask.questions import Questions, Rows, Scored
from twohop.ask.roles import entity_tokens, has_image_tokens, last_entity_token
from twohop.ask.study import mean_of_others
from twohop.items.items import Benchmark, Item, Template
from twohop.stages.patched import free_answers
from twohop.stages.recovery.arms import LAST, WHOLE, WHOLE_MLP, WITHOUT_IMAGE_TOKENS
from twohop.stages.recovery.shared import shared_text
from twohop.stages.recovery.values import (
    Reading,
    Sites,
    blocks_to,
    entity_values,
    matched_noise,
)


def own_arm(vlm: Model, arm: str) -> str:
    """Name of an arm in a VLM: by the tokens where it writes."""
    return arm if has_image_tokens(vlm) else WITHOUT_IMAGE_TOKENS.get(arm, arm)


@dataclass(frozen=True)
class Writing:
    """What an arm writes, and where.

    Attributes
    ----------
    component : str
    values : Tensor [layer, item, d_model]
        From the backbone's block 0 on.
    at : callable
        ``at(prompt, rows)``: the tokens of the rows of a prompt; each gets its item's value.
    """

    component: Component
    values: torch.Tensor
    at: Callable[[Prompt, Rows], Positions]


@dataclass(frozen=True)
class Outcomes:
    """What came of an arm.

    Attributes
    ----------
    right : ndarray of float [item]
        Whether the answer is right; a share, over several tries; NaN where it could not be tried.
    texts : list of str
        Free answers; empty where there are several.
    """

    right: np.ndarray
    texts: list[str]

    @classmethod
    def of(cls, scored: Scored) -> "Outcomes":
        """Return those of answers."""
        return cls(scored.right.astype(float), scored.texts)

    def without(self, items: np.ndarray) -> "Outcomes":
        """Return the same with nothing for some items, bool [item]: it could not be tried there."""
        texts = ["" if gone else text for gone, text in zip(items, self.texts, strict=True)]
        return replace(self, right=np.where(items, np.nan, self.right), texts=texts)


def free_outcomes(
    questions: Questions, writings: Mapping[str, Writing], *, candidates: Sequence[Place] = ()
) -> dict[str, Outcomes]:
    """Free answers about the pictures of items under each writing.

    Parameters
    ----------
    questions : Questions
    writings : dict of str to Writing
        By arm.
    candidates : sequence of Place
        Where text may be written into: nothing ahead of all of them. Default: nowhere.
    """
    study = questions.study

    def arguments(rows: Rows) -> Task:
        ahead = shared_text(questions, rows, candidates) if candidates else True
        shown = questions.shown(rows, marked=bool(candidates), share_prefix=ahead)
        # One arm to a cell: a decoding step costs the same for all arms as for one.
        cells = [
            transplant(
                study.pair,
                writing.values[:, rows],
                component=writing.component,
                layers=slice(len(writing.values)),
                write_at=writing.at(shown, rows),
            )
            for writing in writings.values()
        ]
        return shown, cells, study.decoding

    of_items = questions.map(free_answers, arguments, model=study.vlm, passes=len(writings))
    return {
        arm: Outcomes.of(questions.score([texts[cell] for texts in of_items]))
        for cell, arm in enumerate(writings)
    }


def everywhere(prompt: Prompt, _rows: Rows) -> Positions:
    """All image tokens; the question's, where an image has none."""
    return entity_tokens(prompt)


def at_the_end(prompt: Prompt, _rows: Rows) -> Positions:
    """The last image token; the last token of all, where an image has none."""
    return last_entity_token(prompt)


WHOLE_ARMS: dict[str, tuple[Component, str, Callable[[Prompt, Rows], Positions]]] = {
    WHOLE: ("resid_post", "own", everywhere),
    LAST: ("resid_post", "own", at_the_end),
    WHOLE_MLP: ("mlp_out", "own", everywhere),
    "whole_other_question": ("resid_post", "question", everywhere),
    "whole_naming_prompt": ("resid_post", "naming", everywhere),
    "wrong_entity": ("resid_post", "wrong", everywhere),
    "mean_entity": ("resid_post", "mean", everywhere),
    "norm_matched": ("resid_post", "noise", everywhere),
}
"""What each arm at all image tokens or the last one writes, of :class:`Sources`, and where."""


@dataclass(frozen=True)
class Sources:
    """What the arms write, read from the backbone in one go.

    Attributes
    ----------
    resid : dict of str to Tensor [layer, item, d_model]
        Block outputs, of blocks 0 to ``last_block``: ``own``; of ``wrong``, another entity; of
        the ``mean`` over the others; of ``noise`` of the same norm; and the entity's own as another
        ``question`` or the ``naming`` prompt has them.
    mlp : dict of str to Tensor [layer, item, d_model]
        MLP outputs, of blocks 0 to ``last_mlp``: the first four.
    no_other_question : ndarray of bool [item]
        Whether there is no question about another fact; its values are then ``own``.
    no_mean : bool
        Whether there is no other entity, so that its mean is zero.
    """

    resid: dict[str, torch.Tensor]
    mlp: dict[str, torch.Tensor]
    no_other_question: np.ndarray
    no_mean: bool


def sources(questions: Questions, *, last_block: int, last_mlp: int) -> Sources:
    """Read from the backbone what the arms write.

    Parameters
    ----------
    questions : Questions
    last_block : int
        Block outputs are read of blocks 0 to this one.
    last_mlp : int
        MLP outputs are read of blocks 0 to this one.
    """
    study, benchmark = questions.study, questions.study.benchmark
    other = {relation: other_question(benchmark, relation) for relation in benchmark.relations}

    def another(rows: Rows) -> Template:
        relation = questions.items[rows[0]].relation
        return benchmark.templates[other[relation] or relation]

    resid: Sites = [("resid_post", blocks_to(last_block))]
    both: Sites = [*resid, ("mlp_out", blocks_to(last_mlp))]
    [own, own_mlp], [wrong, wrong_mlp], [question], [naming] = entity_values(
        Reading(questions, both),
        Reading(questions.others, both),
        Reading(questions, resid, another),
        Reading(questions, resid, lambda rows: benchmark.naming),
    )
    return Sources(
        {
            **controls(own, wrong, questions.items, seed=study.seed),
            "question": question,
            "naming": naming,
        },
        controls(own_mlp, wrong_mlp, questions.items, seed=study.seed),
        np.array([other[item.relation] is None for item in questions.items], dtype=bool),
        len({item.entity.code for item in questions.items}) < 2,
    )


def controls(
    own: torch.Tensor, wrong: torch.Tensor, items: Sequence[Item], *, seed: int
) -> dict[str, torch.Tensor]:
    """An entity's values, another's, the mean of the others', and noise; [layer, item, d_model]."""
    return {
        "own": own,
        "wrong": wrong,
        "mean": mean_of_others(own, items),
        "noise": matched_noise(own, seed=seed),
    }


def other_question(benchmark: Benchmark, relation: str) -> str | None:
    """The next relation that asks for another fact: its answers are not the same ones.

    None where there is none: a relation in another wording is no other question.
    """
    order = benchmark.relations
    start = order.index(relation)
    return next(
        (
            other
            for other in (*order[start + 1 :], *order[:start])
            if benchmark.answer_set(other) != benchmark.answer_set(relation)
        ),
        None,
    )


def whole_arms(questions: Questions, read: Sources) -> dict[str, Outcomes]:
    """Arms that write at all image tokens, or the last one.

    Into all of the question's tokens or the last of the prompt, where an image has none.

    Returns
    -------
    dict of str to Outcomes
        By :func:`own_arm`.
    """
    told = {"resid_post": read.resid, "mlp_out": read.mlp}
    table = {
        arm: Writing(component, told[component][source], at)
        for arm, (component, source, at) in WHOLE_ARMS.items()
    }
    outcomes = free_outcomes(questions, table)
    outcomes["whole_other_question"] = outcomes["whole_other_question"].without(
        read.no_other_question
    )
    if read.no_mean:
        del outcomes["mean_entity"]
    return {own_arm(questions.study.vlm, arm): outcome for arm, outcome in outcomes.items()}


def whole_transplant(questions: Questions, *, last_block: int) -> Outcomes:
    """The whole transplant alone: what the diagnosis of every lost item needs."""
    [[own]] = entity_values(Reading(questions, [("resid_post", blocks_to(last_block))]))
    [outcome] = free_outcomes(questions, {WHOLE: Writing("resid_post", own, everywhere)}).values()
    return outcome
