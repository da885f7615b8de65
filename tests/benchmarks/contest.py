"""Contestants do the same work in turns; their numbers are compared, their times reported."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Run = Callable[[list[int]], Any]


def same(numbers: torch.Tensor) -> torch.Tensor:
    """Compare the reference's numbers as they are."""
    return numbers


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes
    ----------
    name : str
    setup : callable
        Makes what runs some of the case's units and returns their numbers, [unit, ...], or None.
        What it raises is the reason that it cannot take part.
    sample : int, optional
        Units that are run, drawn at random; the time of all is extrapolated. Default: all.
    ours : bool
    peer : bool
        Whether ours is measured against it: it does the same work.
    view : callable
        What it computes of the reference's numbers.
    """

    name: str
    setup: Callable[[], Run]
    sample: int | None = None
    ours: bool = False
    peer: bool = True
    view: Callable[[torch.Tensor], torch.Tensor] = same


@dataclass(frozen=True)
class Case:
    """Work that is done by several contestants, of which the first is the reference.

    Attributes
    ----------
    name, title : str
    contestants : sequence of Contestant
        The last of ours is what the case is about.
    units : int
    unit : str
    aim : float, optional
        How many times faster than ``against`` ours should be.
    against : str, optional
        A contestant's name. Default: the fastest peer.
    limit : float, optional
        Seconds that ours may take.
    floor : float
        Largest difference allowed, as a share of the reference's largest number.
    bound : callable, optional
        After all ran: tokens x layers that are needed, as a share of those computed.
    """

    name: str
    title: str
    contestants: Sequence[Contestant]
    units: int = 1
    unit: str = "call"
    aim: float | None = None
    against: str | None = None
    limit: float | None = None
    floor: float = 0.0
    bound: Callable[[], float] | None = None


@dataclass
class Outcome:
    """What a contestant took: seconds per unit of each repeat; and its difference."""

    contestant: Contestant
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    compared: int = 0
    difference: float = 0.0
    share: float = 0.0

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Take the error of a peer that cannot do the work as its result; ours are raised."""
        try:
            yield
        except Exception as error:
            if self.contestant.ours:
                raise
            first = (str(error).strip().splitlines() or [""])[0]
            self.disqualify(f"cannot: {type(error).__name__}: {first}"[:160])

    def disqualify(self, why: str) -> None:
        """Leave it out of the ratios, and say why."""
        self.reason, self.seconds = why, []


def contest(case: Case, *, repeats: int, seconds: float, seed: int = 0) -> list[Outcome]:
    """Run the contestants in turns, at most ``repeats`` times, until ``seconds`` are over.

    Each takes part at least once, and all in a round run the same sample of units.
    """
    outcomes = [Outcome(one) for one in case.contestants]
    runs: dict[str, Run] = {}
    for outcome in outcomes:
        with outcome.reported():
            runs[outcome.contestant.name] = outcome.contestant.setup()
            runs[outcome.contestant.name]([case.units - 1])
    begun = time.perf_counter()
    rng = np.random.default_rng(seed)
    for turn in range(repeats):
        order = rng.permutation(case.units)
        numbers: dict[str, Any] = {}
        for i in range(len(outcomes)):
            outcome = outcomes[(i + turn) % len(outcomes)]
            one = outcome.contestant
            if outcome.reason:
                continue
            units = sorted(int(i) for i in order[: one.sample])
            with outcome.reported():
                start = time.perf_counter()
                found = runs[one.name](units)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                outcome.seconds.append((time.perf_counter() - start) / len(units))
                numbers[one.name] = (units, found)
        _compare(case, outcomes, numbers)
        if time.perf_counter() - begun > seconds:
            break
    for outcome in outcomes:
        if outcome.share > case.floor:
            outcome.disqualify(
                f"refused: differs by {outcome.difference:.1e}, {outcome.share:.1e} of the largest"
            )
    return outcomes


def _compare(case: Case, outcomes: Sequence[Outcome], numbers: dict[str, Any]) -> None:
    units, reference = numbers.get(case.contestants[0].name, ([], None))
    for outcome in outcomes[1:]:
        mine, found = numbers.get(outcome.contestant.name, ([], None))
        shared = [i for i in units if i in mine]
        if reference is None or found is None or not shared:
            continue
        expected = torch.stack([outcome.contestant.view(reference[units.index(i)]) for i in shared])
        got = torch.stack([found[mine.index(i)] for i in shared])
        difference = float((got.double().cpu() - expected.double().cpu()).abs().max())
        outcome.compared += len(shared)
        outcome.difference = max(outcome.difference, difference)
        largest = float(expected.abs().max())
        outcome.share = max(outcome.share, difference / max(largest, 1e-12))
