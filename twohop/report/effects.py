"""What the arms of the recovery do: given back, harmed, net, and beside each other."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from twohop.protocol import DEFAULT, Protocol
from twohop.report.contrasts import PairedContrast, contrast, family
from twohop.stages.recovery.arms import WHOLE, WITHOUT_IMAGE_TOKENS
from twohop.statistics import NOT_MEASURED, Estimate, mean


@dataclass(frozen=True)
class Claim:
    """A contrast between two arms, and what it would show.

    Attributes
    ----------
    name : str
    first, second : str
        Names of arms; the second is taken off the first.
    says : str
        What is shown if the first gives back more.
    """

    name: str
    first: str
    second: str
    says: str


CLAIMS = (
    Claim(
        "transplant",
        WHOLE,
        "wrong_entity",
        "the entity's own values give back more than another's",
    ),
    Claim(
        "place",
        "place_resid",
        "place_random",
        "the chosen place gives back more than a random one of the same places",
    ),
    Claim(
        "span",
        "span_mlp",
        "span_random",
        "the span found by attribution gives back more than random spans",
    ),
    Claim(
        "span_back_patching",
        "span_mlp",
        "back_patching",
        "the backbone's MLP outputs in that span give back more than back-patching",
    ),
    Claim(
        "random_back_patching",
        "span_random",
        "back_patching",
        "those at random spans give back more than back-patching",
    ),
    Claim(
        "whole_back_patching",
        WHOLE,
        "back_patching",
        "the backbone's block outputs give back more than back-patching",
    ),
    Claim(
        "back_patching",
        "back_patching",
        "back_patching_null",
        "back-patching gives back more than another picture's states in the same cell",
    ),
    Claim(
        "back_patching_change",
        "back_patching",
        "back_patching_null_change",
        "it gives back more than another picture's change on the own earlier state, so that what "
        "the own later state holds is what helps",
    ),
    Claim(
        "same_question",
        WHOLE,
        "whole_other_question",
        "values read from the same question give back more than from another, so that part of what "
        "is transplanted is the answer",
    ),
    Claim(
        "restated",
        "cot_named",
        "cot_unnamed",
        "the name restated in the question gives back more than having said it",
    ),
)
"""The contrasts that are made together: their p-values are corrected as one family."""


def claims_of(names: set[str]) -> list[Claim]:
    """The contrasts of a VLM with these arms; where images have no tokens, with those in place."""
    there = [
        replace(claim, first=_present(claim.first, names), second=_present(claim.second, names))
        for claim in CLAIMS
    ]
    return [claim for claim in there if {claim.first, claim.second} <= names]


def _present(arm: str, names: set[str]) -> str:
    other = WITHOUT_IMAGE_TOKENS.get(arm, arm)
    return arm if arm in names else other


def measured_mean(values: np.ndarray, entities: np.ndarray) -> Estimate:
    """Mean over the items on which something was tried (not NaN)."""
    rows = ~np.isnan(values)
    return mean(values[rows], entities[rows])


def of_arms(recovery: xr.Dataset, name: str, along: str, arms: str = "arm") -> dict[str, Estimate]:
    """Mean of ``recovered``, ``still_right`` or ``followed`` for each arm, by its name."""
    entity = recovery[f"{along}_entity"].values
    return {
        str(arm): measured_mean(recovery[name].sel({arms: arm}).values, entity)
        for arm in recovery[arms].values
    }


@dataclass(frozen=True)
class Net:
    """What an arm does to all items that the VLM recognises and the backbone knows.

    Attributes
    ----------
    accuracy : Estimate
        Share of them right after it.
    change : Estimate
        That, less the share right before it.
    closed : Estimate
        The change as a part of the gap, which is all that was lost.
    """

    accuracy: Estimate
    change: Estimate
    closed: Estimate


def net(back: Estimate, kept: Estimate, *, n_lost: int, n_kept: int) -> Net:
    """Join what an arm gives back of the lost items, and leaves of those that were right.

    Of both samples were drawn, from so many lost and so many kept items. The interval is made from
    theirs (Zou and Donner, 2008), for these items: how many are lost is not drawn again.

    Parameters
    ----------
    back : Estimate
        Share of the lost items right after it.
    kept : Estimate
        Share of the others still right after it.
    n_lost, n_kept : int
    """
    n = back.n + kept.n
    if not n_lost or not back.measured or (n_kept and not kept.measured):
        return Net(NOT_MEASURED, NOT_MEASURED, NOT_MEASURED)
    lost = n_lost / (n_lost + n_kept)
    stays = kept if n_kept else Estimate(1.0, 1.0, 1.0, 0)
    accuracy = lost * back.value + (1 - lost) * stays.value

    def reach(of_lost: float, of_kept: float) -> float:
        return float(np.hypot(lost * of_lost, (1 - lost) * of_kept))

    low = accuracy - reach(back.value - back.low, stays.value - stays.low)
    high = accuracy + reach(back.high - back.value, stays.high - stays.value)
    ends = np.array([accuracy, max(low, 0.0), min(high, 1.0)])
    change = ends - (1 - lost)
    return Net(
        Estimate(*ends.tolist(), n=n),
        Estimate(*change.tolist(), n=n),
        Estimate(*(change / lost).tolist(), n=n),
    )


def nets(recovery: xr.Dataset) -> dict[str, Net]:
    """The net effect of every arm, by its name."""
    back = of_arms(recovery, "recovered", "tried")
    kept = of_arms(recovery, "still_right", "kept")
    counts = {name: int(recovery.attrs[name]) for name in ("n_lost", "n_kept")}
    return {arm: net(back[arm], kept.get(arm, NOT_MEASURED), **counts) for arm in back}


def contrasts(
    recovery: xr.Dataset, *, seed: int, protocol: Protocol = DEFAULT
) -> list[PairedContrast]:
    """Every contrast of :data:`CLAIMS` on the same lost items, corrected as one family."""
    arms = {str(arm): recovery["recovered"].sel(arm=arm).values for arm in recovery["arm"].values}
    measured = {name for name, values in arms.items() if not np.isnan(values).all()}
    entities = recovery["tried_entity"].values
    return family(
        [
            contrast(
                claim.name,
                arms,
                (claim.first, claim.second),
                entities,
                seed=seed,
                protocol=protocol,
            )
            for claim in claims_of(measured)
        ]
    )


def says(name: str) -> str:
    """What a contrast shows."""
    return next(claim.says for claim in CLAIMS if claim.name == name)


def contrasts_as_numbers(compared: list[PairedContrast]) -> dict[str, Mapping[str, Any]]:
    """Contrasts as ``summary.json`` has them, by name."""
    return {each.name: each.as_dict() for each in compared}
