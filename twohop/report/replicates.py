"""Pairs of models in a comparison: several runs of one pair are replicates, and count once.

Runs of one pair with other seeds, wordings or pictures are no further models. Their numbers are
averaged, and how far they lie apart is shown beside the mean.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twohop.report.association import Association, association, together
from twohop.report.comparison import Classes, Run
from twohop.report.contrasts import LEVEL, holm
from twohop.statistics import NOT_MEASURED, TAIL, Estimate

GAP = "gap_points"
AGAINST = {"late": "lateness/late", "expected_loss": "prediction/expected_loss"}
"""What the gap is held against: where the numbers are in a summary, both shares."""


@dataclass(frozen=True)
class Pair:
    """The runs of one pair of models.

    Attributes
    ----------
    name : str
    kind : str
        Class of its architecture.
    runs : tuple of Run
    p_holm : float
        Two-sided, that there is no gap, corrected for all pairs; NaN where it was not measured.
    """

    name: str
    kind: str
    runs: tuple[Run, ...]
    p_holm: float = math.nan

    @property
    def number(self) -> int:
        """What it is called in figures: as the first of its runs."""
        return min(run.number for run in self.runs)

    def of_runs(self, key: str) -> list[Estimate]:
        """A number of each run that has it."""
        return [number for run in self.runs if (number := run.at(key)).measured]

    def mean(self, key: str) -> Estimate:
        """A number's mean over runs, and the means of its intervals' ends.

        Runs of one pair are about the same entities, so that their errors do not average out: the
        interval is as wide as that of one run. ``n`` is the most items of a run.
        """
        several = self.of_runs(key)
        if not several:
            return NOT_MEASURED
        value, low, high = (
            float(np.mean([getattr(number, name) for number in several]))
            for name in ("value", "low", "high")
        )
        return Estimate(value, low, high, max(number.n for number in several))

    @property
    def loses(self) -> bool:
        """Whether there is clearly a gap, after the correction."""
        return self.mean(GAP).low > 0 and self.p_holm < LEVEL

    def as_dict(self) -> dict[str, Any]:
        """As ``compare.json`` has it."""

        def number(key: str) -> dict[str, Any]:
            values = [each.value for each in self.of_runs(key)]
            ends = {"lowest": min(values), "highest": max(values)} if values else {}
            return {**self.mean(key).as_dict(), **ends}

        return {
            "pair": self.name,
            "architecture": self.kind,
            "runs": sorted(run.index for run in self.runs),
            "gap_points": number(GAP),
            **{name: number(key) for name, key in AGAINST.items()},
            "p_holm": None if math.isnan(self.p_holm) else self.p_holm,
            "loses": self.loses,
        }


def p_of(number: Estimate) -> float:
    """Two-sided p-value of a number being 0, from how far its interval reaches towards 0.

    It is below .05 where the 95 % interval leaves out 0.

    Examples
    --------
    >>> round(p_of(Estimate(2.0, 0.0, 4.0, 9)), 3), p_of(Estimate(0.0, -1.0, 1.0, 9))
    (0.05, 1.0)
    """
    # Loaded where it is used: importing the package is to stay light.
    from scipy.special import ndtr, ndtri

    if not number.measured:
        return math.nan
    reach = number.value - number.low if number.value > 0 else number.high - number.value
    if number.value == 0 or reach <= 0:
        return float(number.value == 0)
    return float(2 * ndtr(ndtri(TAIL) * abs(number.value) / reach))


def pairs_of(classes: Classes) -> list[Pair]:
    """Pairs of the runs, in the order of their numbers, their gaps tested together."""
    grouped: dict[tuple[str, str], list[Run]] = {}
    for kind, runs in classes.items():
        for run in runs:
            grouped.setdefault((str(run.summary["pair"]), kind), []).append(run)
    pairs = [Pair(name, kind, tuple(runs)) for (name, kind), runs in grouped.items()]
    corrected = holm([p_of(pair.mean(GAP)) for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, corrected, strict=True)]


@dataclass(frozen=True)
class Against:
    """The gap over one number, over pairs of models.

    Attributes
    ----------
    key : str
        Of :data:`AGAINST`.
    overall : Association
        Over all pairs; slope in points of the gap for each point of the number.
    within : Association, optional
        Of differences within classes of architecture alone, if there are several classes.
    families : dict of str to Association
        Over the pairs of each class that has three or more.
    """

    key: str
    overall: Association
    within: Association | None
    families: Mapping[str, Association]

    def as_dict(self) -> dict[str, Any]:
        """As ``compare.json`` has it."""
        return {
            "overall": self.overall.as_dict(),
            "within_architectures": self.within.as_dict() if self.within else None,
            "by_architecture": {kind: each.as_dict() for kind, each in self.families.items()},
        }


def placed(pairs: list[Pair], key: str) -> list[Pair]:
    """The pairs that have a gap and the number that it is held against."""
    return [pair for pair in pairs if pair.of_runs(GAP) and pair.of_runs(AGAINST[key])]


def gap_against(pairs: list[Pair]) -> dict[str, Against]:
    """How the gap goes with each of :data:`AGAINST`; all that may be claimed tested together."""
    raw: list[tuple[str, str, Association]] = []
    for key, where in AGAINST.items():
        mine = placed(pairs, key)
        numbers = [100 * pair.mean(where).value for pair in mine]
        gaps, kinds = [pair.mean(GAP).value for pair in mine], [pair.kind for pair in mine]
        raw.append((key, "overall", association("overall", numbers, gaps)))
        if len({*kinds}) < 2:  # within the one class is over all
            continue
        raw.append((key, "within", association("within", numbers, gaps, families=kinds)))
        for kind in dict.fromkeys(kinds):
            rows = [i for i, other in enumerate(kinds) if other == kind]
            of_kind = [[values[i] for i in rows] for values in (numbers, gaps)]
            raw.append((key, kind, association(kind, *of_kind)))
    corrected = together([each for _, _, each in raw])
    table = {(key, part): each for (key, part, _), each in zip(raw, corrected, strict=True)}
    return {
        key: Against(
            key,
            table[key, "overall"],
            table.get((key, "within")),
            {
                part: each
                for (of_key, part), each in table.items()
                if of_key == key and part not in ("overall", "within") and each.slope.measured
            },
        )
        for key in AGAINST
    }
