"""Curves over layers, with their intervals: a figure."""

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interventions.errors import ResultsError
from interventions.given import of_kind, text_of
from interventions.sweeping.cell_statistics import tested
from interventions.sweeping.heatmap_data import change_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CURVES = 12


def lineplot(
    dataset: xr.Dataset, variable: str | None = None, *, title: str | None = None
) -> "Figure":
    """Draw curves over layers: one for each route (or role, head, ...), with its interval.

    A curve is the mean over items, its band the 95 % interval over clusters, and a filled marker
    says that the cell is clear: its p-value, corrected for all that is drawn, is below 0.05. All
    three are :func:`interventions.cell_statistics` of the Dataset's items. With too few items for
    these, the mean alone is drawn, and the figure says so.

    Parameters
    ----------
    dataset : Dataset
        With a dim ``layer``: of :func:`interventions.knockout_curves` or a sweep. Select what is to
        be drawn: there may be 12 curves.
    variable : str, optional
        Default: the map that :func:`interventions.heatmap` draws.
    title : str, optional

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ResultsError
        If there are no curves, or too many.

    Examples
    --------
    >>> curves = iv.knockout_curves(llm, named, "entity -> last", answers="Marlow", window=3)
    >>> iv.lineplot(curves).savefig("curves.png")
    """
    of_kind(dataset, xr.Dataset, "the dataset", error=ResultsError)
    title = None if title is None else text_of(title, "title", error=ResultsError)
    data, name = change_of(dataset, variable)
    if "layer" not in data.dims:
        raise ResultsError(f"{data.name} has no dim layer, so it is no curve.")
    by_cell, note = tested(dataset, name)
    if by_cell is not None:
        low, high, clear = (by_cell[part] for part in ("low", "high", "clear"))
        data = by_cell["change"].rename(data.name).assign_attrs(data.attrs)
        note = f"{note}; band: 95 % interval" + ("; filled: clear" if bool(clear.any()) else "")
    else:
        if "item" in data.dims:
            data = data.mean("item", skipna=True, keep_attrs=True)
        low, high, clear = data, data, data.isnull()
    others = [str(dim) for dim in data.dims if dim != "layer"]
    n = int(np.prod([data.sizes[dim] for dim in others]))
    if n > MOST_CURVES:
        raise ResultsError(
            f"{n} curves are too many to tell apart. Select at most {MOST_CURVES}, with "
            f"dataset.sel({others[-1]}=...), or draw a map: heatmap(dataset)."
        )
    parts = [part.sortby("layer").transpose(..., "layer") for part in (data, low, high, clear)]
    return _drawn(*parts, others=others, note=note, axis=_axis(dataset), title=title or "")


def _axis(dataset: xr.Dataset) -> str:
    """What the layers are."""
    if "last_layer" not in dataset.coords:
        return "layer"
    widths = np.atleast_1d(dataset["last_layer"].values - dataset["layer"].values) + 1
    return f"first layer of a window of {widths.max()}" if widths.max() > 1 else "layer"


def _drawn(
    data: xr.DataArray,
    low: xr.DataArray,
    high: xr.DataArray,
    clear: xr.DataArray,
    *,
    others: list[str],
    note: str,
    axis: str,
    title: str,
) -> "Figure":
    from matplotlib.figure import Figure  # 0.4 s, which import interventions need not wait for
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Any = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=0.8)
    layers = data["layer"].values
    for labels in product(*(data[dim].values.tolist() for dim in others)):
        place = dict(zip(others, labels, strict=True))
        name = ", ".join(
            str(label) if dim in ("route", "role", "component") else f"{dim} {label}"
            for dim, label in place.items()
            if data.sizes[dim] > 1 or len(others) == 1
        )
        values, filled = data.sel(place).values, clear.sel(place).values
        [line] = axes.plot(layers, values, marker="o", markersize=4, label=name or str(data.name))
        line.set_markerfacecolor("white")
        colour = line.get_color()
        axes.plot(layers[filled], values[filled], "o", color=colour, markersize=4, label="_clear")
        ends = low.sel(place).values, high.sel(place).values
        axes.fill_between(layers, *ends, color=colour, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(axis)
    units = data.attrs.get("units")
    axes.set_ylabel(f"{data.name} ({units})" if units else str(data.name))
    axes.legend(fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    if note:
        figure.supxlabel(note, fontsize=7.5, color="0.3", wrap=True)
    return figure
