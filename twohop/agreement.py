"""How far a map by attribution agrees with the exact map, and whether it can be believed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from interventions.attribution.agreement import correlation, spearman
from twohop.localize import MAP_COMPONENTS
from twohop.statistics import MIN_CLUSTERS, Estimate, cluster_sums

TOP = 10
MEASURES = ("all", *MAP_COMPONENTS, "rank", "top")
LEAST_AGREEMENT = 0.5
ATTRIBUTION_STAGES = {"text": "attribution_text", "image": "attribution_image"}
RESAMPLES_USED = 500  # of those drawn: a rank correlation of each takes time


def in_windows(score: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Scores of blocks as those of the exact map's windows.

    Sublayers are summed over the blocks of a window, which are patched together there; of the
    residual stream it is what follows the last block.

    Parameters
    ----------
    score : ndarray [component, layer, role, item]
    first, last : ndarray [window]
        Blocks.

    Returns
    -------
    ndarray [component, window, role, item]
    """
    found = [
        [
            one[b] if name == "resid_post" else one[a : b + 1].sum(0)
            for a, b in zip(first, last, strict=True)
        ]
        for name, one in zip(MAP_COMPONENTS, score, strict=True)
    ]
    return np.array(found)


def agreement(
    estimate: np.ndarray, exact: np.ndarray, entities: Sequence[str], *, seed: int
) -> dict[str, Estimate]:
    """Compare two maps of the same cells, each the mean over items.

    Parameters
    ----------
    estimate, exact : ndarray [component, window, role, item]
        In logits; cells that are NaN in either are left out.
    entities : sequence of str
        Of each item.
    seed : int

    Returns
    -------
    dict of str to Estimate
        By :data:`MEASURES`: Pearson's correlation over the cells of ``all`` components and of each;
        ``rank``: Spearman's, over all; ``top``: the share of the :data:`TOP` strongest exact cells
        that are among the :data:`TOP` strongest estimated ones. NaN where a map is constant. The
        interval is a bootstrap over entities; with fewer than five of them it is as wide as the
        measure allows. ``n`` counts items.
    """
    n = exact.shape[-1]
    cells = (np.isfinite(estimate) & np.isfinite(exact)).all(-1)
    component = np.nonzero(cells)[0]
    both = np.stack([estimate[cells], exact[cells]], -1)  # [cell, item, 2]
    nothing = Estimate(np.nan, np.nan, np.nan, n)
    if not n or not cells.any():
        return dict.fromkeys(MEASURES, nothing)
    values = measures(both.mean(1), component)
    sums, _ = cluster_sums(both.transpose(1, 0, 2), entities, seed=seed)
    again = [measures(one, component) for one in sums[:RESAMPLES_USED]]
    few = len(set(entities)) < MIN_CLUSTERS
    found = {}
    for name, value in values.items():
        drawn = np.array([one[name] for one in again])
        if np.isnan(value):
            found[name] = nothing
        elif few:
            found[name] = Estimate(value, 0.0 if name == "top" else -1.0, 1.0, n)
        else:
            low, high = np.nanpercentile(drawn, [2.5, 97.5])
            found[name] = Estimate(value, min(float(low), value), max(float(high), value), n)
    return found


def measures(maps: np.ndarray, component: np.ndarray) -> dict[str, float]:
    """Every measure of two maps [cell, 2]; ``component`` [cell] counts :data:`MAP_COMPONENTS`."""
    estimate, exact = maps.T
    of_one = {
        name: correlation(estimate[component == i], exact[component == i])
        for i, name in enumerate(MAP_COMPONENTS)
    }
    strongest = [set(np.argsort(-np.abs(one), kind="stable")[:TOP].tolist()) for one in maps.T]
    return {
        "all": correlation(estimate, exact),
        **of_one,
        "rank": spearman(estimate, exact),
        "top": len(strongest[0] & strongest[1]) / min(TOP, len(exact)),
    }


def agreement_of_run(tree: xr.DataTree) -> dict[str, dict[str, Any]]:
    """Numbers of both maps of a run, by map and measure, as the summary has them."""
    found: dict[str, dict[str, Any]] = {}
    for which, stage in ATTRIBUTION_STAGES.items():
        data = tree[stage].to_dataset()
        found[which] = {
            str(measure): Estimate(
                *(
                    float(data[name].sel(measure=measure))
                    for name in ("agreement", "agreement_low", "agreement_high")
                ),
                n=data.sizes["map_item"],
            ).as_dict()
            for measure in data["measure"].values
        }
    return found


def refusals(tree: xr.DataTree) -> dict[str, str]:
    """Why a map could not be made by attribution, by the summary's keys; empty if both could."""
    reasons = {
        which: str(tree[stage].attrs["refused"]) for which, stage in ATTRIBUTION_STAGES.items()
    }
    return {
        f"attribution_agreement/{which}/{measure}": reason
        for which, reason in reasons.items()
        if reason
        for measure in MEASURES
    }


def doubtful(low: float) -> bool:
    """Whether a correlation's interval reaches below :data:`LEAST_AGREEMENT`, or there is none."""
    return not low >= LEAST_AGREEMENT
