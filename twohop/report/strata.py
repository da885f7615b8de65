"""The gap by relation, and by how well known the entities are."""

import numpy as np
import xarray as xr

from twohop.statistics import Estimate, difference

QUARTILES = ("least known", "below the middle", "above the middle", "best known")
"""Quarters of the entities by their popularity."""
SLASH, DIVISION = "/", "\u2215"  # the first parts the levels of a key


def gaps_by_stratum(gates: xr.Dataset) -> dict[str, dict[str, Estimate]]:
    """Gap between the backbone in text and the VLM from the image in each stratum, in points.

    Parameters
    ----------
    gates : Dataset
        From :func:`twohop.stages.recall.recall`.

    Returns
    -------
    dict
        ``relation`` and ``popularity``, each by stratum: on items whose entities the VLM names, as
        the gap over all of them. The strata of popularity are :data:`QUARTILES` of the entities;
        there are none where it is not known, or of fewer entities than quarters.
    """
    counted = ~gates["surface"].values.astype(bool)
    right = gates["right"].isel(item=np.nonzero(counted)[0])
    seen = right.sel(gate="recognised").values.astype(bool)
    text, image = (
        right.sel(gate=gate).values[seen].astype(float) for gate in ("backbone_text", "vlm_image")
    )
    entity = gates["entity"].values[counted]

    def gaps(stratum: np.ndarray, names: tuple[str, ...]) -> dict[str, Estimate]:
        by_name = {}
        for name in names:
            mine = stratum[seen] == name
            points = difference(text[mine], image[mine], entity[seen][mine]).scaled(100)
            by_name[name.replace(SLASH, DIVISION)] = points
        return by_name

    relation = gates["relation"].values[counted].astype(str)
    by = {"relation": gaps(relation, tuple(dict.fromkeys(relation.tolist()))), "popularity": {}}
    if "popularity" in gates:
        quarter = quartile(gates["popularity"].values[counted].astype(float), entity)
        if (quarter != "").any():
            by["popularity"] = gaps(quarter, QUARTILES)
    return by


def quartile(popularity: np.ndarray, entity: np.ndarray) -> np.ndarray:
    """Which of :data:`QUARTILES` of the entities each item's is in, [item]; empty if not known.

    By the share of entities that are less popular, half of those as popular counted with them, so
    that many at the bottom are never called well known. All are empty where fewer entities are
    known than there are quarters, or all are as popular.

    Examples
    --------
    >>> quartile(np.array([1.0, 2, 3, 4, np.nan]), np.array([*"abcde"])).tolist()[::2]
    ['least known', 'above the middle', '']
    """
    _, first = np.unique(entity, return_index=True)
    known = popularity[first]
    known = known[np.isfinite(known)]
    if len(known) < len(QUARTILES) or known.min() == known.max():
        return np.full(len(entity), "", dtype=object)
    ordered = np.sort(known)
    below, up_to = (np.searchsorted(ordered, popularity, side=side) for side in ("left", "right"))
    place = (below + up_to) * len(QUARTILES) // (2 * len(known))
    names = np.array([*QUARTILES, ""], dtype=object)
    return names[np.where(np.isfinite(popularity), place, len(QUARTILES))]
