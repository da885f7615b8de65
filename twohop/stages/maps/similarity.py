"""How alike two exact maps are: the backbone's in text, and the VLM's with images.

Whether the VLM recalls where its backbone does is a correlation over cells, between two means that
are each measured on few entities. Noise in either lowers it. So it is given without that noise,
where both maps are reliable enough to tell; with an interval over the entities of both; and beside
what is found if places have nothing to do with each other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from twohop.protocol import DEFAULT, Protocol
from twohop.stages.maps.exact import GROUPS, MAP_COMPONENTS
from twohop.statistics import TAIL, Estimate, of_entities

SIMILARITIES = ("sublayers", *MAP_COMPONENTS, "all")
"""Over the cells of attention and MLPs; of each component; over all. The residual stream carries
the fact from the entity to the end in any model that answers, so that the first is the one to look
at."""
PERMUTATIONS = 999


@dataclass(frozen=True)
class Similarity:
    """One measure of two maps.

    Attributes
    ----------
    correlation : Estimate
        Over cells, between the means of the maps without the noise of their entities; ``n`` counts
        the items of the VLM's map. Not measured where a map is not reliable enough.
    as_measured : float
        The same with the noise, which lowers it; NaN where nothing was measured.
    reliability_text, reliability_image : float
        Share of each map's variance over cells that is not noise: the correlation to be expected
        with a map of as many other entities.
    null_high : float
        95 % of the correlations as measured are below it if windows and roles are renamed at
        random.
    p : float
        One-sided, of those.
    """

    correlation: Estimate
    as_measured: float = np.nan
    reliability_text: float = np.nan
    reliability_image: float = np.nan
    null_high: float = np.nan
    p: float = np.nan

    def as_dict(self) -> dict[str, Any]:
        """As ``summary.json`` has it, with None for what was not measured."""
        numbers = {name: value for name, value in vars(self).items() if name != "correlation"}
        return {
            "correlation": self.correlation,
            **{name: None if np.isnan(value) else value for name, value in numbers.items()},
        }


@dataclass(frozen=True)
class ByEntity:
    """A map by entity.

    Attributes
    ----------
    sums : ndarray [component, window, role, entity]
        Over the items of each entity; 0 where the map has none.
    sizes : ndarray [entity]
        How many items these are.
    """

    sums: np.ndarray
    sizes: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over all items, [component, window, role]."""
        return self.sums.sum(-1) / self.sizes.sum()

    def without(self, entity: int) -> "ByEntity":
        """Return the map without one of the entities."""
        return ByEntity(np.delete(self.sums, entity, -1), np.delete(self.sizes, entity))


def similarity(
    text: xr.Dataset,
    image: xr.Dataset,
    *,
    group: str,
    seed: int,
    protocol: Protocol = DEFAULT,
) -> dict[str, Similarity]:
    """Compare the backbone's map in text with the VLM's, on one group of the VLM's items.

    Parameters
    ----------
    text, image : Dataset
        From :func:`twohop.stages.maps.exact.patching_map`. Windows correspond one by one: in models
        of different depth, those at the same part of it.
    group : str
        Of ``image``; of ``text`` it is always what is answered right.
    seed : int
        Of the permutations.
    protocol : Protocol
        On fewer entities in either map than its ``least_clusters``, and on maps with different
        numbers of windows, nothing is measured; ``least_reliability`` is what both maps must have
        for the correlation without noise.

    Returns
    -------
    dict of str to Similarity
        By :data:`SIMILARITIES`.

    Notes
    -----
    The variances over cells of both means, and their covariance, are given without what the
    entities' spread adds to them (that of entities in both maps adds to the covariance too). The
    interval is Student's, on the jackknife over the entities of both maps, with one degree of
    freedom less than the smaller map has entities.
    """
    maps = maps_of(text, image, group=group)
    n = int((image["map_group"].values == group).sum())
    nothing = Estimate(np.nan, np.nan, np.nan, n)
    if maps is None or min((side.sizes > 0).sum() for side in maps) < protocol.least_clusters:
        return dict.fromkeys(SIMILARITIES, Similarity(nothing))
    generator = np.random.default_rng(seed)
    renamed = _renamed(maps[1].mean, generator)
    measures = {}
    for name in SIMILARITIES:
        measured = float(_correlation(maps[0].mean, maps[1].mean, name))
        if np.isnan(measured):
            measures[name] = Similarity(nothing)
            continue
        _, *reliable = without_noise(maps[0], maps[1], name)
        null = _correlation(maps[0].mean, renamed, name)
        estimate = nothing
        if min(reliable) >= protocol.least_reliability:
            estimate = jackknife(maps[0], maps[1], name, n=n)
        measures[name] = Similarity(
            estimate,
            as_measured=measured,
            reliability_text=reliable[0],
            reliability_image=reliable[1],
            null_high=float(np.nanpercentile(null, 95)),
            p=float((1 + (null >= measured - 1e-9).sum()) / (1 + PERMUTATIONS)),
        )
    return measures


def maps_of(text: xr.Dataset, image: xr.Dataset, *, group: str) -> tuple[ByEntity, ByEntity] | None:
    """Both maps at the roles that both have, on the entities of either; None if there are none.

    Also where they have different numbers of windows, so that cells do not correspond.
    """
    tables, owners = [], []
    for data, which in ((text, "right"), (image, group)):
        mine = data.isel(map_item=np.nonzero(data["map_group"].values == which)[0])
        restored = mine["restored"].transpose("component", "window", "role", "map_item")
        tables.append(restored.values)
        owners.append(mine["map_entity"].values.astype(str))
    if text.sizes["window"] != image.sizes["window"] or not all(map(len, owners)):
        return None
    there = np.all([np.isfinite(table).all((0, 1, 3)) for table in tables], axis=0)
    if not there.any():
        return None
    codes = np.unique(np.concatenate(owners))
    sides = []
    for table, owner in zip(tables, owners, strict=True):
        sums, sizes = of_entities(table[:, :, there], owner)
        place = np.searchsorted(codes, np.unique(owner))
        every, counts = np.zeros((*sums.shape[:-1], len(codes))), np.zeros(len(codes))
        every[..., place], counts[place] = sums, sizes
        sides.append(ByEntity(every, counts))
    return sides[0], sides[1]


def _cells(maps: np.ndarray, measure: str) -> np.ndarray:
    """Cells of a measure of maps [..., component, window, role], about their mean, [..., cell]."""
    chosen = {
        "all": MAP_COMPONENTS,
        "sublayers": ("attn_out", "mlp_out"),
        **{name: (name,) for name in MAP_COMPONENTS},
    }[measure]
    of_measure = maps[..., [MAP_COMPONENTS.index(name) for name in chosen], :, :]
    cells = of_measure.reshape(*maps.shape[:-3], -1)
    return cells - cells.mean(-1, keepdims=True)


def _correlation(first: np.ndarray, second: np.ndarray, measure: str) -> np.ndarray:
    """Correlation over cells of maps [..., component, window, role]; NaN of a constant map."""
    cells = [_cells(maps, measure) for maps in (first, second)]
    scale = np.sqrt((cells[0] ** 2).sum(-1) * (cells[1] ** 2).sum(-1))
    varies = scale > 1e-12
    return np.where(varies, (cells[0] * cells[1]).sum(-1) / np.where(varies, scale, 1), np.nan)


def without_noise(first: ByEntity, second: ByEntity, measure: str) -> tuple[float, float, float]:
    """Correlation of two maps without the noise of their entities, and each map's reliability.

    NaN where a map is no more than noise.
    """
    means, residuals, factors, reliable, variances = [], [], [], [], []
    for side in (first, second):
        mean = _cells(side.mean, measure)
        sums = _cells(np.moveaxis(side.sums, -1, 0), measure)
        residual = (sums - side.sizes[:, None] * mean) / side.sizes.sum()  # [entity, cell]
        factor = _unbiased(side.sizes > 0)
        variance = float(mean @ mean - factor * (residual**2).sum())
        means.append(mean)
        residuals.append(residual)
        factors.append(factor)
        variances.append(variance)
        reliable.append(max(variance, 0.0) / float(mean @ mean) if mean.any() else 0.0)
    both = (first.sizes > 0) & (second.sizes > 0)
    shared = float((residuals[0] * residuals[1])[both].sum()) * _unbiased(both)
    if min(variances) <= 0:
        return np.nan, reliable[0], reliable[1]
    value = (float(means[0] @ means[1]) - shared) / np.sqrt(variances[0] * variances[1])
    return float(value), reliable[0], reliable[1]


def _unbiased(there: np.ndarray) -> float:
    """What the spread of so many entities about their own mean is multiplied by."""
    n = int(there.sum())
    return n / (n - 1) if n > 1 else 1.0


def jackknife(first: ByEntity, second: ByEntity, measure: str, *, n: int) -> Estimate:
    """Correlation without noise, with Student's interval from leaving out each of the entities.

    Parameters
    ----------
    first, second : ByEntity
        On the same entities.
    measure : str
    n : int
        Items, for the estimate.
    """
    # Loaded where it is used: importing the package is to stay light.
    from scipy.special import stdtrit

    value, *_ = without_noise(first, second, measure)
    entities = range(len(first.sizes))
    others = np.array(
        [without_noise(first.without(i), second.without(i), measure)[0] for i in entities]
    )
    fewest = min(int((side.sizes > 0).sum()) for side in (first, second))
    spread = (len(others) - 1) / len(others) * ((others - others.mean()) ** 2).sum()
    reach = float(stdtrit(fewest - 1, 1 - TAIL) * np.sqrt(spread))
    if np.isnan(reach):  # without one of them a map is no more than noise
        return Estimate(float(np.clip(value, -1, 1)), -1.0, 1.0, n)
    low, value, high = (float(np.clip(end, -1, 1)) for end in (value - reach, value, value + reach))
    return Estimate(value, low, high, n)


def _renamed(maps: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A map [component, window, role] with windows and roles in other orders, [draw, ...].

    The same orders for all components, so that a draw keeps what they have in common.
    """
    _, n_windows, n_roles = maps.shape
    return np.array(
        [
            maps[:, generator.permutation(n_windows)][:, :, generator.permutation(n_roles)]
            for _ in range(PERMUTATIONS)
        ]
    )


def similarity_of_run(
    tree: xr.DataTree, *, seed: int, protocol: Protocol = DEFAULT
) -> dict[str, dict[str, Any]]:
    """Similarities of a run's two maps by group and measure, and on how many items they rest.

    Returns
    -------
    dict
        By group: the measures, as :meth:`Similarity.as_dict` has them, and ``n_text``,
        ``n_image``, ``n_common``: items of each map, and of both.
    """
    text, image = (tree[name].to_dataset() for name in ("map_text", "map_image"))
    asked = {str(item) for item in text["map_item"].values}
    by_group = {}
    for group in GROUPS:
        own = {str(item) for item in image["map_item"].values[image["map_group"].values == group]}
        measures = similarity(text, image, group=group, seed=seed, protocol=protocol)
        by_group[group] = {
            **{name: measure.as_dict() for name, measure in measures.items()},
            "n_text": len(asked),
            "n_image": len(own),
            "n_common": len(asked & own),
        }
    return by_group
