"""How `flags-late` is made: a projector, then changes of low rank to the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from twohop.flags.assemble import DOWN, UP
from twohop.flags.data import entities
from twohop.flags.evaluate import backbone_reader
from twohop.flags.late.blocks import Rows, through
from twohop.flags.late.countries import described, lending, numbers
from twohop.flags.late.forming import Factors, add, form_in_block, late_form
from twohop.flags.late.material import material
from twohop.flags.late.naming import Kept, Lesson, adapt, final_states, trained_factors
from twohop.flags.projectors import view_features
from twohop.flags.prompted import PromptedLM
from twohop.flags.recipes import ProjectorTask, seeded, trained_tower
from twohop.flags.stages import Stage, run_stage
from twohop.flags.templates import NAMING, QUESTIONS


@dataclass(frozen=True, kw_only=True)
class LatePlan:
    """Where the country is formed, and how long what is trained is trained.

    The defaults are what the shipped weights were made with.
    """

    projector_steps: int = 900
    projector_rows: int = 256
    formed_at: int = 20
    """The block at whose input the country is to stand."""
    forming_blocks: int = 3
    norm: float = 85.0
    first_view: int = 64
    """First of the views that the language model is changed on; the projector's come before."""
    views: int = 3
    text_weight: float = 10.0
    ridge: float = 3e-5
    forming_rank: int = 160
    named_from: int = 20
    """First of the blocks that naming is trained in; the last block of all is the last of them."""
    naming_rank: int = 16
    naming_steps: int = 48
    naming_rate: float = 2e-3
    naming_rows: int = 12
    kept_tokens: int = 80
    """Tokens of what is to stay as it is, in each step."""
    text_change: float = 10.0
    inert_change: float = 16.0
    chain_change: float = 4.0


class LateTask:
    """What the changes to the language model are made from, and the making.

    Parameters
    ----------
    lm : PromptedLM
        Its model is changed in place, and is to be the backbone, unchanged so far.
    shown : Tensor
        Image tokens, [country, view, slot, d_model], countries as in ``described()``.
    plan : LatePlan
    seed : int
    """

    def __init__(self, lm: PromptedLM, shown: torch.Tensor, *, plan: LatePlan, seed: int) -> None:
        self.model, self.plan, self.seed = lm.model, plan, seed
        names = {entity.code: entity.name for entity in entities()}
        spelt = [names[code] for code in described()]
        first = plan.formed_at - plan.forming_blocks
        with torch.no_grad():
            written = material(lm, shown, seed=seed)
            written = written.moved(self._carried(written.groups(), 0, first))
            self._as_backbone = self._ends((*written.text, *written.chains), first)
            targets = late_form(lm, [*QUESTIONS.values(), NAMING], spelt, norm=plan.norm)
        self._targets, self._made = targets, written
        ends = [lm.token_ids(f" {names[code]}\n") for code in described()]
        self._names = torch.tensor(ends)

    def _carried(self, groups: Sequence[Rows], first: int, last: int) -> list[Rows]:
        return [through(self.model.model, rows, first=first, last=last) for rows in groups]

    def _ends(self, groups: Sequence[Rows], first: int) -> list[torch.Tensor]:
        return [final_states(self.model, rows, first=first) for rows in groups]

    @torch.no_grad()
    def form(self) -> dict[str, Factors]:
        """Change the forming blocks, one behind the other, and carry the rows behind them."""
        plan, written = self.plan, self._made
        changed = {}
        for block in range(plan.formed_at - plan.forming_blocks, plan.formed_at):
            groups = written.groups()
            factors = form_in_block(
                self.model.model,
                groups,
                self._targets,
                block=block,
                text_weight=plan.text_weight,
                ridge=plan.ridge,
                rank=plan.forming_rank,
            )
            name = f"model.layers.{block}.mlp.down_proj.weight"
            add(self.model, name, factors)
            changed[name] = factors
            written = written.moved(self._carried(groups, block, block + 1))
        self._made = written
        return changed

    def naming(self) -> Stage:
        """The stage that trains the blocks behind, once the country is formed."""
        plan, first = self.plan, self.plan.named_from
        others = {described().index(code) for code in lending()}
        with torch.no_grad():
            written = self._made.moved(self._carried(self._made.groups(), plan.formed_at, first))
            inert = [
                rows.only([row for row, country in enumerate(rows.countries) if country in others])
                for rows in written.asked
            ]
            as_formed = self._ends(inert, first)
        texts = len(written.text)
        images = [
            (kept, weight)
            for both in zip(
                kept_of(inert, as_formed, plan.inert_change),
                kept_of(written.chains, self._as_backbone[texts:], plan.chain_change),
                strict=True,
            )
            for kept, weight in both
        ]
        text = kept_of(written.text, self._as_backbone[:texts], plan.text_change)
        # By turns: text, then images that are asked about, or named before that.
        turns = len(text) * len(images)
        kept = [
            group
            for turn in range(turns)
            for group in (text[turn % len(text)], images[turn % len(images)])
        ]
        lesson = Lesson(
            named=written.named,
            names=self._names[list(written.named.countries)],
            kept=kept,
            rows=plan.naming_rows,
            kept_tokens=plan.kept_tokens,
        )
        blocks = range(first, len(self.model.model.layers))
        adapters = seeded(lambda: adapt(self.model, blocks, rank=plan.naming_rank), self.seed)

        def spelt() -> dict[str, float]:
            of_each = range(0, len(lesson.names), len(lesson.names) // len(self._names))
            return {"nats": float(lesson.spelt(self.model, of_each, first=first))}

        return Stage(
            name="late",
            settings=f"{plan}, seed {self.seed}",
            module=adapters,
            steps=plan.naming_steps,
            learning_rate=plan.naming_rate,
            weight_decay=0.0,
            warmup=10,
            loss=lambda step: lesson.loss(self.model, step, first=first, seed=self.seed),
            measure=spelt,
            measure_every=-(-plan.naming_steps // 5),
        )


def kept_of(
    groups: Sequence[Rows], ends: Sequence[torch.Tensor], weight: float
) -> list[tuple[Kept, float]]:
    """Groups with the final states they are to keep, and what a change of these weighs."""
    return [(Kept(rows, end), weight) for rows, end in zip(groups, ends, strict=True)]


def late_parts(
    task: ProjectorTask,
    out: Path,
    *,
    plan: LatePlan,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Train all that `flags-late` has of its own.

    Returns
    -------
    dict of str to Tensor
        The projector's weights, and two factors of each changed weight of the language model.
    list of dict
        Histories of both stages, one behind the other.
    """
    settings = f"{plan}, seed {seed}"
    stage = task.described(steps=plan.projector_steps, rows=plan.projector_rows, settings=settings)
    history = run_stage(stage, out, progress=progress)
    projector = stage.module
    # Views that the projector was not fitted to: on its own it is surer than it will ever be.
    views = range(plan.first_view, plan.first_view + plan.views)
    with torch.no_grad():
        features = view_features(trained_tower(out), views)[numbers(described())]
        shown = projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    # A language model of its own, as it is changed.
    lm = backbone_reader().reader(NAMING)
    late = LateTask(lm, shown, plan=plan, seed=seed)
    factors = late.form()
    naming = late.naming()
    history += run_stage(naming, out, progress=progress)
    factors |= trained_factors(naming.module)
    weights = dict(projector.state_dict())
    for name, change in factors.items():
        weights |= {name + UP: change.up.contiguous(), name + DOWN: change.down.contiguous()}
    return weights, history
