"""Right among given candidates, wrong in its own words: how much of that is luck.

A forced choice among few candidates is often right by chance. How often is told by giving every
item another item's choice: the choices are the same, and what they say of the item is gone.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from twohop.ask.study import SEPARATOR
from twohop.scoring import normalise
from twohop.statistics import Estimate, difference

ANSWERS = ("same_type", "right")
"""Outcomes that are answers of the relation: whatever else is wrong there, it is not the format."""


@dataclass(frozen=True)
class Echo:
    """The items whose forced choice is right while the free answer is no answer.

    Attributes
    ----------
    masked : ndarray of bool [item]
        Those of relations in which there are more of them than luck gives.
    weight : ndarray [item]
        The share of each relation's that is not luck; 0 elsewhere.
    by_relation : dict of str to Estimate
        Right choices minus those of permuted ones, as a share of the items that gave no answer.
    """

    masked: np.ndarray
    weight: np.ndarray
    by_relation: dict[str, Estimate]


def echo(gates: xr.Dataset, lost: np.ndarray) -> Echo:
    """Find the items that were masked by their format.

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
    masked, weight = np.zeros(len(lost), bool), np.zeros(len(lost))
    by_relation: dict[str, Estimate] = {}
    for name in dict.fromkeys(relation[silent]):
        rows = np.nonzero(silent & (relation == name))[0]
        luck = of_others(choice[rows], gates["accepted"].values[rows])
        excess = difference(right[rows].astype(float), luck, entity[rows])
        by_relation[str(name)] = excess
        if not excess.low > 0:
            continue
        masked[rows] = right[rows]
        # Of those that do not know it as many are right as of the permuted choices.
        chance = luck.mean()
        weight[rows] = right[rows] * (right[rows].mean() - chance) / (1 - chance)
        weight[rows] /= right[rows].mean()
    return Echo(masked, weight, by_relation)


def of_others(choices: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """How often the other items' choices would be right for each item, [item]."""
    said = [normalise(str(choice)) for choice in choices]
    luck = np.zeros(len(said))
    for i, joined in enumerate(accepted):
        known = {normalise(answer) for answer in str(joined).split(SEPARATOR)}
        others = sum(choice in known for choice in said) - (said[i] in known)
        luck[i] = others / max(len(said) - 1, 1)
    return luck
