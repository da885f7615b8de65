"""How fast a model is: as its kind of device usually is, or by the clock."""

import time
from dataclasses import dataclass

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


def rate_of(model: Model, study: Study) -> Rate:
    """Time a forward pass of one row of the study's first question in text, and one of many."""
    sizes = Sizes.of(model)
    questions = Questions(study, study.benchmark.items)
    rows = max(questions.parts(), key=len)
    width = int(questions.named(model, rows[:1]).lengths[0])
    many = rows_at_once(model, "read", min(ROWS, len(rows)), width=width)
    tokens, seconds = zip(*(_pass(model, questions, rows[:n]) for n in (1, many)), strict=True)
    blocks = sizes.n_layers
    more = max(seconds[1] - seconds[0], seconds[1] / 10)  # one row may hide among the rest
    each = more / max(1, tokens[1] - tokens[0])
    fixed = max(0.0, seconds[0] - tokens[0] * each)
    return Rate(2 * sizes.block * blocks / each, fixed / blocks, timed=True)


def _pass(model: Model, questions: Questions, rows: list[int]) -> tuple[int, float]:
    """Tokens of a pass, and how long it takes."""
    prompt = questions.named(model, rows)
    took = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        logits = run(model, prompt).logits
        assert logits is not None
        logits.cpu()  # a device is done when its numbers are here
        took.append(time.perf_counter() - begun)
    return len(prompt) * prompt.length, min(took)
