"""What many items say of each cell of a map: means, intervals, and which cells are clear."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from interventions.errors import InterventionsError, PromptError, ResultsError
from interventions.given import of_kind, one_of, plain, several, whole
from interventions.sweeping.clustered import (
    CLEAR,
    CORRECTIONS,
    LEAST_CLUSTERS,
    Correction,
    adjusted,
    cluster_totals,
    flipped,
    means,
    shares,
    signs,
)
from interventions.sweeping.heatmap_data import change_of
from interventions.sweeping.metrics import OF_TWO_RUNS

FLIPS, MOST_FLIPS = 9999, 1_000_000
SHARE = "changed"
"""The metric whose mean is a share, which has intervals of its own."""


def cell_statistics(
    dataset: xr.Dataset,
    variable: str | None = None,
    *,
    clusters: Sequence[Any] | None = None,
    correction: Correction = "max",
    flips: int = FLIPS,
    seed: int = 0,
) -> xr.Dataset:
    """Mean, interval and p-values of every cell of a map, over its items.

    Of ``logprob``, ``logit_diff`` and ``rank`` it is the change from the clean run, item by item,
    that is looked at. Intervals are Student's, with the error that is robust to clusters; of
    ``changed``, a share, those of Korn and Graubard. P-values are of a test that flips the signs of
    whole clusters: under the hypothesis, a cluster is as likely to go down by an amount as up. All
    flips are tried where there are few, else ``flips`` are drawn.

    Parameters
    ----------
    dataset : Dataset
        With a dim ``item``: of a sweep, :func:`interventions.knockout_curves` or an attribution.
    variable : str, optional
        Default: the map that :func:`interventions.heatmap` draws.
    clusters : sequence, optional
        What each item belongs to, such as its entity or picture, one for each. Default: the
        coordinate ``cluster``, or each item by itself.
    correction : {"max", "holm", "fdr"}
        For the number of cells. ``"max"`` holds every cell against the largest of all in each flip:
        the chance of even one false alarm in the map is the p-value, and the smallest one possible
        is no larger than that of a single cell. ``"holm"`` the same from the p-values alone;
        ``"fdr"``: the share of false alarms among those called (Benjamini and Hochberg, 1995).
    flips : int
        At most so many.
    seed : int
        Of those that are drawn.

    Returns
    -------
    Dataset
        With the map's dims: ``change`` (mean over items), ``low``, ``high`` (95 %), ``p`` of each
        cell alone, ``p_map`` corrected for all cells, ``clear`` (``p_map`` below 0.05) and ``n``,
        how many items have the cell. NaN, and not clear, where fewer than six clusters have it.
        ``kl`` and ``changed`` are never below 0, so that signs say nothing of them: their p-values
        are NaN. Attributes ``n_clusters``, ``flips``, ``smallest_p`` and ``correction``.

    Raises
    ------
    ResultsError
        If there are fewer than six clusters, of which no p-value can be below 0.05: with n, the
        smallest is 2 to the -(n - 1). Or if there is no such map, or it holds infinite numbers.

    Examples
    --------
    >>> names = ["Avaria", "Belmora", "Corvenia", "Dravia", "Elsenia", "Fenmark", "Quenlo"]
    >>> batch = llm.prompt([question.format(name) for name in names], spans={"entity": names})
    >>> swept = iv.sweep(llm, batch, 0.0, answers="Marlow", roles=["entity", "last"])
    >>> by_cell = iv.cell_statistics(swept)
    >>> by_cell.attrs["smallest_p"]
    0.015625
    """
    of_kind(dataset, xr.Dataset, "the dataset", error=ResultsError)
    correction = one_of(correction, "correction", CORRECTIONS, error=ResultsError)
    least = 2 ** (LEAST_CLUSTERS - 1) - 1
    flips = whole(flips, "flips", least=least, most=MOST_FLIPS, error=ResultsError)
    seed = whole(seed, "seed", least=0, error=ResultsError)
    data, metric = change_of(dataset, variable)
    if "item" not in data.dims:
        raise ResultsError(f"{data.name} has no dim item, so there is nothing to take a mean over.")
    if n_infinite := int(np.isinf(data.values).sum()):
        raise ResultsError(
            f"{n_infinite} number(s) of {data.name} are infinite, so cells have no mean. Leave "
            "their items out, or use a metric that stays finite."
        )
    labels = cluster_labels(dataset, clusters)
    data = data.transpose(..., "item")
    dims = {str(dim): size for dim, size in data.sizes.items() if dim != "item"}
    table = _table(
        data.values.reshape(-1, data.sizes["item"]).astype(float),
        labels,
        share=metric == SHARE,
        signed=metric not in OF_TWO_RUNS,
        correction=correction,
        flips=flips,
        seed=seed,
    )
    units = data.attrs
    attrs = table.pop("attrs")
    result = xr.Dataset(
        {name: (tuple(dims), values.reshape(*dims.values())) for name, values in table.items()},
        coords={name: coord for name, coord in dataset.coords.items() if {*coord.dims} <= {*dims}},
        attrs={"variable": str(data.name), **attrs, "correction": correction, "seed": seed},
    )
    for name in ("change", "low", "high"):
        result[name].attrs.update(units)
    return result


def cluster_names(
    given: Sequence[Any] | None, n: int, *, error: type[InterventionsError] = PromptError
) -> list[str] | None:
    """What each of ``n`` items belongs to, as texts.

    Raises
    ------
    InterventionsError
        The ``error`` named, if there is not one for each.
    """
    if given is None:
        return None
    labels = [str(plain(label)) for label in several(given, "clusters=", error=error)]
    if len(labels) != n:
        raise error(f"{len(labels)} clusters for {n} items. Give a label for each.")
    return labels


def cluster_labels(dataset: xr.Dataset, given: Sequence[Any] | None) -> np.ndarray:
    """What each item of a Dataset belongs to, as texts: as is said here, or by its coordinates."""
    n = dataset.sizes["item"]
    if (labels := cluster_names(given, n, error=ResultsError)) is not None:
        return np.array(labels)
    name = "cluster" if "cluster" in dataset.coords else "item"
    return (dataset[name].values if name in dataset.coords else np.arange(n)).astype(str)


def _table(
    values: np.ndarray,
    labels: np.ndarray,
    *,
    share: bool,
    signed: bool,
    correction: Correction,
    flips: int,
    seed: int,
) -> dict[str, Any]:
    """Statistics of values [cell, item], each [cell]; and ``attrs``."""
    there = np.isfinite(values)
    used = there.any(0)
    if (n_clusters := len({*labels[used].tolist()})) < LEAST_CLUSTERS:
        raise ResultsError(too_few(n_clusters))
    drawn = signs(n_clusters, flips, seed)
    table: dict[str, Any] = {
        name: np.full(len(values), np.nan) for name in ("change", "low", "high", "p", "p_map")
    }
    table["n"] = there.sum(1)
    enough = np.zeros(len(values), dtype=bool)
    patterns, which = np.unique(there, axis=0, return_inverse=True)
    for k, pattern in enumerate(patterns):  # of cells that the same items have
        cells = np.flatnonzero(which.reshape(-1) == k)
        if len({*labels[pattern].tolist()}) < LEAST_CLUSTERS:
            continue
        enough[cells] = True
        totals, sizes = cluster_totals(values[cells][:, pattern], labels[pattern])
        if share:
            of_shares = shares(totals, sizes)
            ends = of_shares.value, of_shares.low, of_shares.high
        else:
            ends = means(totals, sizes)
        for name, part in zip(("change", "low", "high"), ends, strict=True):
            table[name][cells] = part
    if signed and enough.any():
        totals, _ = cluster_totals(np.nan_to_num(values[enough][:, used]), labels[used])
        table["p"][enough], table["p_map"][enough] = flipped(totals, drawn)
        if correction != "max":
            table["p_map"] = adjusted(table["p"], correction)
    table["clear"] = table["p_map"] < CLEAR
    smallest = 1 / len(drawn)
    return table | {
        "attrs": {"n_clusters": n_clusters, "flips": len(drawn), "smallest_p": smallest}
    }


def too_few(n_clusters: int) -> str:
    """Say what so few clusters cannot show."""
    return (
        f"{n_clusters} independent item(s) (clusters) are too few: the smallest p-value that "
        f"{n_clusters} can give is {2.0 ** -max(n_clusters - 1, 0):.3g}, and no interval of so few "
        f"is to be relied on. Give at least {LEAST_CLUSTERS}."
    )


def tested(dataset: xr.Dataset, variable: str) -> tuple[xr.Dataset | None, str]:
    """Statistics of a map that is drawn, where items are enough; and what is said of them."""
    data = dataset[variable]
    if "item" not in data.dims or data.sizes["item"] < 2:
        return None, ""
    try:
        by_cell = cell_statistics(dataset, variable)
    except ResultsError:
        n = len({*cluster_labels(dataset, None).tolist()})
        return None, f"n = {n}: too few to test, which takes {LEAST_CLUSTERS}"
    n = by_cell.attrs["n_clusters"]
    if variable in OF_TWO_RUNS:
        return by_cell, f"n = {n}; {variable} is never below 0, so it is not tested"
    return by_cell, f"n = {n}; clear: p < {CLEAR}, corrected for all cells"


def with_statistics(dataset: xr.Dataset, metrics: Sequence[str]) -> xr.Dataset:
    """Add means, intervals and p-values of metrics, where items are enough; else say why not.

    ``change_<metric>``, ``low_<metric>``, ``high_<metric>``, ``p_<metric>`` and ``p_map_<metric>``,
    as :func:`cell_statistics` gives them; the attribute ``statistics`` says of how many clusters.
    """
    for metric in metrics:
        try:
            by_cell = cell_statistics(dataset, metric)
        except ResultsError as error:
            return dataset.assign_attrs(statistics=f"none: {error}")
        dataset = dataset.assign(
            {
                f"{name}_{metric}": by_cell[name].astype(np.float32)
                for name in ("change", "low", "high", "p", "p_map")
            }
        )
        note = f"of {by_cell.attrs['n_clusters']} clusters, {by_cell.attrs['flips']} flips of signs"
        dataset = dataset.assign_attrs(statistics=note)
    return dataset
