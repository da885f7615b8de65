"""How fast a model is: as its kind of device usually is, or by the clock."""

import time
from dataclasses import dataclass
from itertools import cycle, islice

from interventions import Model, run
from interventions.sweeping.sizes import FLOPS, PASS_SECONDS, Sizes
from twohop.ask.questions import Questions
from twohop.ask.room import rows_at_once
from twohop.ask.study import Study
from twohop.stages.work import Asked, Work

ROWS = 24
"""Of the pass that is timed beside that of one row."""
TRIES = 2
"""The first pass of each is slower: memory is fetched, kernels are chosen."""


@dataclass(frozen=True)
class Rate:
    """How fast a model is on a device.

    Attributes
    ----------
    flops : float
        Operations per second, of many tokens at once.
    of_pass : float
        Seconds that a block of a forward pass takes beside them.
    timed : bool
        Whether forward passes were timed; else it is the kind of device's.
    """

    flops: float
    of_pass: float
    timed: bool = False

    @classmethod
    def usual(cls, kind: str) -> "Rate":
        """Return the usual one of a kind of device, such as ``"cuda"``."""
        return cls(FLOPS.get(kind, FLOPS["cpu"]), PASS_SECONDS)

    def seconds(self, asked: Asked, work: Work) -> float:
        """How long forward passes take."""
        seen = work.pictures * asked.vision * asked.patches
        done = 2 * (asked.sizes.block * (work.tokens + work.more) + seen)
        return done / self.flops + work.passes * asked.sizes.n_layers * self.of_pass


@dataclass(frozen=True)
class Timed:
    """A call that was timed.

    Attributes
    ----------
    tokens : int
        Through each block, those of a shared beginning included, which a call runs once.
    passes : int
        Forward passes: one more where there is such a beginning.
    seconds : float
    """

    tokens: int
    passes: int
    seconds: float


def rate_of(model: Model, study: Study) -> Rate:
    """Time a call on one row of the study's first question in text, and one on many."""
    few, many = timed_calls(model, study)
    return rate_between(few, many, Sizes.of(model))


def timed_calls(model: Model, study: Study) -> tuple[Timed, Timed]:
    """Time the two calls.

    Rows are taken again where there are fewer than :data:`ROWS`: of a few tokens more, the clock
    tells nothing.
    """
    questions = Questions(study, study.benchmark.items)
    rows = max(questions.parts(), key=len)
    width = int(questions.named(model, rows[:1]).lengths[0])
    many = rows_at_once(model, "read", ROWS, width=width)
    few, more = (_timed(model, questions, [*islice(cycle(rows), n)]) for n in (1, many))
    return few, more


def rate_between(few: Timed, many: Timed, sizes: Sizes) -> Rate:
    """Return the rate at which a call of few tokens and one of many took what they took."""
    longer = max(many.seconds - few.seconds, many.seconds / 10)  # few may hide among the rest
    each = longer / max(1, many.tokens - few.tokens)
    fixed = max(0.0, few.seconds - few.tokens * each) / few.passes
    return Rate(2 * sizes.block * sizes.n_layers / each, fixed / sizes.n_layers, timed=True)


def _timed(model: Model, questions: Questions, rows: list[int]) -> Timed:
    prompt = questions.named(model, rows)
    took = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        logits = run(model, prompt).logits
        assert logits is not None
        logits.cpu()  # a device is done when its numbers are here
        took.append(time.perf_counter() - begun)
    before = len(prompt.prefix_ids)
    return Timed(before + len(prompt) * prompt.length, 1 + bool(before), min(took))
