"""How far a map by attribution agrees with the exact map, and whether it can be believed."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from interventions.attribution.agreement import correlation, spearman
from twohop.protocol import DEFAULT, Protocol
from twohop.stages.maps.exact import MAP_COMPONENTS
from twohop.statistics import Estimate, cluster_sums, interval

MEASURES = ("all", *MAP_COMPONENTS, "rank", "top")
ATTRIBUTION_STAGES = {"text": "attribution_text", "image": "attribution_image"}


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
    of_windows = [
        [
            of_component[end] if name == "resid_post" else of_component[start : end + 1].sum(0)
            for start, end in zip(first, last, strict=True)
        ]
        for name, of_component in zip(MAP_COMPONENTS, score, strict=True)
    ]
    return np.array(of_windows)


def agreement(
    estimate: np.ndarray,
    exact: np.ndarray,
    entities: Sequence[str],
    *,
    seed: int,
    protocol: Protocol = DEFAULT,
) -> dict[str, Estimate]:
    """Compare two maps of the same cells, each the mean over items.

    Parameters
    ----------
    estimate, exact : ndarray [component, window, role, item]
        In logits; cells that are NaN in either are left out.
    entities : sequence of str
        Of each item.
    seed : int
    protocol : Protocol

    Returns
    -------
    dict of str to Estimate
        By :data:`MEASURES`: Pearson's correlation over the cells of ``all`` components and of each;
        ``rank``: Spearman's, over all; ``top``: the share of the strongest exact cells, as many as
        the protocol's ``top_cells``, that are among as many strongest estimated ones. NaN where a
        map is constant. The interval is a bootstrap over entities; with fewer of them than
        ``least_clusters`` it is as wide as the measure allows. ``n`` counts items.
    """
    n = exact.shape[-1]
    cells = (np.isfinite(estimate) & np.isfinite(exact)).all(-1)
    component = np.nonzero(cells)[0]
    both = np.stack([estimate[cells], exact[cells]], -1)  # [cell, item, 2]
    nothing = Estimate(np.nan, np.nan, np.nan, n)
    if not n or not cells.any():
        return dict.fromkeys(MEASURES, nothing)
    top = protocol.top_cells
    values = measures(both.mean(1), component, top=top)
    few = len(set(entities)) < protocol.least_clusters
    again = []
    if not few:
        sums, _ = cluster_sums(both.transpose(1, 0, 2), entities, seed=seed, protocol=protocol)
        used = sums[: protocol.agreement_resamples]
        again = [measures(maps, component, top=top) for maps in used]
    estimates = {}
    for name, value in values.items():
        drawn = np.array([measured[name] for measured in again])
        if np.isnan(value):
            estimates[name] = nothing
        elif few:
            estimates[name] = Estimate(value, 0.0 if name == "top" else -1.0, 1.0, n)
        else:
            low, high = interval(drawn)
            estimates[name] = Estimate(value, min(low, value), max(high, value), n)
    return estimates


def measures(maps: np.ndarray, component: np.ndarray, *, top: int) -> dict[str, float]:
    """Every measure of two maps [cell, 2]; ``component`` [cell] counts :data:`MAP_COMPONENTS`."""
    estimate, exact = maps.T
    of_one = {
        name: correlation(estimate[component == i], exact[component == i])
        for i, name in enumerate(MAP_COMPONENTS)
    }
    strongest = [
        set(np.argsort(-np.abs(scores), kind="stable")[:top].tolist()) for scores in maps.T
    ]
    return {
        "all": correlation(estimate, exact),
        **of_one,
        "rank": spearman(estimate, exact),
        "top": len(strongest[0] & strongest[1]) / min(top, len(exact)),
    }


def agreement_of_run(tree: xr.DataTree) -> dict[str, dict[str, Estimate]]:
    """Numbers of both maps of a run, by map and measure."""
    by_map: dict[str, dict[str, Estimate]] = {}
    for medium, stage in ATTRIBUTION_STAGES.items():
        data = tree[stage].to_dataset()
        by_map[medium] = {
            str(measure): Estimate(
                *(
                    float(data[name].sel(measure=measure))
                    for name in ("agreement", "agreement_low", "agreement_high")
                ),
                n=data.sizes["map_item"],
            )
            for measure in data["measure"].values
        }
    return by_map


def refusals(tree: xr.DataTree) -> dict[str, str]:
    """Why a map could not be made by attribution, by the summary's keys; empty if both could."""
    reasons = {
        medium: str(tree[stage].attrs["refused"]) for medium, stage in ATTRIBUTION_STAGES.items()
    }
    return {
        f"attribution_agreement/{medium}/{measure}": reason
        for medium, reason in reasons.items()
        if reason
        for measure in MEASURES
    }


def doubtful(low: float, *, protocol: Protocol = DEFAULT) -> bool:
    """Whether a correlation's interval reaches below ``least_agreement``, or there is none."""
    return not low >= protocol.least_agreement
