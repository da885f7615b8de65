"""Right among given candidates, wrong in its own words: how much of that is luck.

A forced choice among few candidates is often right by chance. How often is told by giving every
item another item's choice: the choices are the same, and what they say of the item is gone.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import xarray as xr

from twohop.ask.study import SEPARATOR
from twohop.scoring import normalise
from twohop.stages.evidence import Measured
from twohop.statistics import TAIL

ANSWERS = ("same_type", "right")
"""Outcomes that are answers of the relation: whatever else is wrong there, it is not the format."""


@dataclass(frozen=True)
class Echo:
    """The items whose forced choice is right while the free answer is no answer.

    Attributes
    ----------
    right : ndarray of bool [item]
        These items.
    weight : ndarray [item]
        The share of its relation's that is not luck; 0 elsewhere.
    relation : ndarray of str [item]
    tests : dict of str to Measured
        By relation: right choices beside those of permuted ones, of the items that gave no answer.
        Only where it is shown that there are more of them than luck gives, items were masked by
        their format. The relations are tested together, each at its part of the level (Bonferroni).
    """

    right: np.ndarray
    weight: np.ndarray
    relation: np.ndarray
    tests: dict[str, Measured]

    def masked(self, shown: Collection[str]) -> np.ndarray:
        """Those that their format masked, if so much was shown of these relations, [item]."""
        return self.right & np.isin(self.relation, [*shown])


def echo(gates: xr.Dataset, lost: np.ndarray) -> Echo:
    """Find the items that may have been masked by their format.

    Parameters
    ----------
    gates : Dataset
        From :func:`twohop.stages.recall.recall`.
    lost : ndarray of bool [item]
        Recognised, known and wrong from the image.
    """
    choice = gates["choice"].sel(gate="vlm_image").values
    right = gates["choice_right"].sel(gate="vlm_image").values.astype(bool)
    said = gates["outcome"].sel(gate="vlm_image").values
    relation, entity = gates["relation"].values, gates["entity"].values
    silent = lost & ~np.isin(said, ANSWERS)
    weight = np.zeros(len(lost))
    tests: dict[str, Measured] = {}
    names = [*dict.fromkeys(relation[silent].tolist())]
    for name in names:
        rows = np.nonzero(silent & (relation == name))[0]
        luck = of_others(choice[rows], gates["accepted"].values[rows])
        tests[name] = Measured.of(right[rows], luck, entity[rows], tail=TAIL / len(names))
        # Of those that do not know it as many are right as of the permuted choices.
        chance, share = luck.mean(), right[rows].mean()
        if share > chance:
            weight[rows] = right[rows] * (share - chance) / (1 - chance) / share
    return Echo(silent & right, weight, relation, tests)


def of_others(choices: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """How often the other items' choices would be right for each item, [item]."""
    said = [normalise(str(choice)) for choice in choices]
    luck = np.zeros(len(said))
    for i, joined in enumerate(accepted):
        known = {normalise(answer) for answer in str(joined).split(SEPARATOR)}
        others = sum(choice in known for choice in said) - (said[i] in known)
        luck[i] = others / max(len(said) - 1, 1)
    return luck
