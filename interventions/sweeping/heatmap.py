"""Maps that people can read: layer x token or role, one panel per component."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interventions.errors import ResultsError
from interventions.given import of_kind, plain, text_of
from interventions.sweeping.cell_statistics import tested
from interventions.sweeping.heatmap_data import (
    change_of,
    chosen_map,
    component_names,
    drawable,
    footnote,
    of_item,
    title_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 40
LONGEST_LABEL = 14
HATCH, HATCHING = "////", "0.45"
LEAST, MOST, LOWEST_POWER = 1e-30, 1e30, -300
"""Largest values that are drawn as they are; others are scaled by a power of ten."""


def heatmap(
    dataset: xr.Dataset,
    variable: str | None = None,
    *,
    item: int | None = None,
    title: str | None = None,
    over: Any = None,
    **where: Any,
) -> "Figure":
    """Draw a map of layers and tokens (or roles), one panel per component.

    Red is up, blue is down, white is 0; all panels share one scale. Of a sweep's metrics,
    but ``kl`` and ``changed``, the change from the clean run is drawn. Runs of the same token, such
    as an image's, are drawn as they are and labelled once.

    Parameters
    ----------
    dataset : Dataset
        With dims ``layer`` and ``position``, ``role`` or ``route``, and any of ``item``,
        ``component`` and ``head``; what :func:`interventions.attribute` or a sweep returns.
    variable : str, optional
        Default: ``score``, ``effect`` or ``value``, whichever there is; else the only one with
        those dims.
    item : int, optional
        Draw this item. Default: the mean over items, where they share their columns.
    title : str, optional
        Default: of an attribution, its method, and which of its two sides runs.
    over : picture, optional
        Lay the values of image tokens over this picture, a panel for each layer:
        ``overlay(...).figure()``.
    **where
        With ``over``: ``grid``, ``picture`` and ``view`` of :func:`interventions.overlay`.

    Returns
    -------
    matplotlib Figure
        Save it with ``figure.savefig(path)``.

    Raises
    ------
    ResultsError
        If the Dataset has no such map or item.

    Examples
    --------
    >>> scores = iv.attribute(llm, other, named, answers="Marlow", foils="Brenn", verify=False)
    >>> iv.heatmap(scores, item=0).savefig("map.png")
    """
    if over is not None:
        from interventions.sweeping.overlay import overlay

        return overlay(dataset, over, variable, item=item, title=title, **where).figure()
    if where:
        raise ResultsError(f"heatmap takes {', '.join(sorted(where))} with over= only.")
    of_kind(dataset, xr.Dataset, "the dataset", error=ResultsError)
    title = None if title is None else text_of(title, "title", error=ResultsError)
    item = plain(item)
    data, column = chosen_map(dataset, variable)
    name = change_of(dataset, variable)[1]
    data = of_item(data, item)
    labels = _labels(dataset, column, item)
    note = "" if item is None else f"item {item}"
    clear, said = None, ""
    if "item" in data.dims:
        by_cell, said = tested(dataset, name)
        if by_cell is not None and bool(by_cell["p_map"].notnull().any()):
            clear = drawable(by_cell["clear"].rename(data.name), column)
        note = f"mean of {data.sizes['item']} items" if data.sizes["item"] > 1 else ""
        data = data.mean("item", skipna=True, keep_attrs=True)
    agreement = footnote(dataset, component_names(data))
    data = drawable(data, column)
    used = np.array(np.isfinite(data.values).any(axis=(0, 1)), ndmin=1)
    if not used.any():
        raise ResultsError(f"{data.name} is NaN everywhere, so there is nothing to draw.")
    kept = {column: np.flatnonzero(used)}
    return _drawn(
        data.isel(kept),
        None if clear is None else clear.isel(kept).values.astype(bool),
        said,
        column,
        [label for label, keep in zip(labels, used, strict=True) if keep],
        " · ".join(part for part in (title or title_of(dataset), note) if part),
        agreement,
        warned="spearman" not in dataset,
    )


def _labels(dataset: xr.Dataset, column: str, item: int | None) -> list[str]:
    """What the columns are called: tokens, where they are known for all that is drawn."""
    if column != "position":
        return [_short(str(name)) for name in dataset[column].values]
    numbers = [str(position) for position in dataset["position"].values]
    if not {"token", "role"} <= set(dataset.coords) or "position" not in dataset["token"].dims:
        return numbers
    tokens = _of_items(dataset["token"], item)
    source_tokens = tokens
    if "source_token" in dataset.coords:
        source_tokens = _of_items(dataset["source_token"], item)
    labels = []
    for i, position in enumerate(numbers):
        names = list(dict.fromkeys(tokens[:, i].tolist()))
        changed = list(dict.fromkeys(source_tokens[:, i].tolist()))
        if len(names) > 1:
            roles = (
                set(np.atleast_2d(dataset["role"].values)[:, i].tolist())
                if "role" in dataset.coords
                else set()
            )
            labels.append(f"<{roles.pop()}>" if len(roles) == 1 else position)
        else:
            labels.append(" / ".join(dict.fromkeys(map(_short, [*names, *changed[:1]]))))
    return labels


def _of_items(labels: xr.DataArray, item: Any) -> np.ndarray:
    """Labels [item, position] of all items or one; of a Dataset of one item too."""
    if "item" in labels.dims and item is not None:
        labels = labels.isel(item=[labels["item"].values.tolist().index(item)])
    return np.atleast_2d(labels.transpose(..., "position").values)


def _short(text: str) -> str:
    shown = text.strip().replace("\n", "↵") or repr(text)[1:-1].replace(" ", "␣")
    return shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…"


def _drawn(
    data: xr.DataArray,
    clear: np.ndarray | None,
    said: str,
    column: str,
    labels: list[str],
    title: str,
    agreement: str,
    *,
    warned: bool,
) -> "Figure":
    """Draw a map; ``clear`` [component, layer, column]: what is not is hatched, as ``said``."""
    from matplotlib.figure import Figure  # 0.4 s, which import interventions need not wait for
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    names = [str(name) for name in data["component"].values]
    shown = _runs(labels)
    width = float(np.clip(0.28 * len(labels), 2.4, 6.0))
    figure = Figure(figsize=(1.4 + width * len(names), 4.6), layout="constrained")
    panels: Any = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    most = float(np.nanmax(np.abs(data.values))) or 1.0
    # Colour maps take differences, which numbers at the ends of their range do not have.
    power = 0 if LEAST < most < MOST else max(int(np.floor(np.log10(most))), LOWEST_POWER)
    values, most = data.values / 10.0**power, most / 10.0**power
    layers = data["layer"].values
    drawn: Any = None
    for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
        edges = np.arange(len(labels) + 1) - 0.5, np.append(layers, layers[-1] + 1) - 0.5
        drawn = axes.pcolormesh(
            *edges,
            np.ma.masked_invalid(values[i]),
            cmap="RdBu_r",
            vmin=-most,
            vmax=most,
        )
        unclear = np.isfinite(values[i]) & (True if clear is None else ~clear[i])
        if clear is not None and unclear.any():
            axes.add_collection(_hatching(unclear, *edges), autolim=False)
        axes.set_facecolor("0.85")
        axes.set_title(name, fontsize=10)
        axes.set_xticks([i for i, _ in shown], [label for _, label in shown])
        axes.tick_params(axis="x", labelsize=8, rotation=90)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(column)
    panels[0].set_ylabel("layer")
    units = data.attrs.get("units")
    name = f"{data.name} ({units})" if units else str(data.name)
    scaled = f", times 1e{power}" if power else ""
    bar = figure.colorbar(drawn, ax=list(panels), label=f"{name}{scaled}")
    if np.nanmin(values) >= 0:
        bar.ax.set_ylim(0, most)
    figure.suptitle(title, fontsize=11)
    if clear is not None and not clear.all():
        hatched = Patch(facecolor="white", edgecolor=HATCHING, hatch=HATCH, label="not clear")
        figure.legend(handles=[hatched], loc="outside upper right", fontsize=7.5)
    if note := " · ".join(part for part in (agreement, said) if part):
        warned = warned and bool(agreement)
        figure.supxlabel(note, fontsize=7.5, color="firebrick" if warned else "0.3", wrap=True)
    return figure


def _hatching(unclear: np.ndarray, x: np.ndarray, y: np.ndarray) -> Any:
    """Hatched squares over cells [layer, column] of a map with these edges."""
    from matplotlib.collections import PolyCollection

    squares = [
        [(x[j], y[i]), (x[j + 1], y[i]), (x[j + 1], y[i + 1]), (x[j], y[i + 1])]
        for i, j in np.argwhere(unclear)
    ]
    return PolyCollection(
        squares, hatch=HATCH, facecolor="none", edgecolor=HATCHING, linewidth=0, label="not clear"
    )


def _runs(labels: list[str]) -> list[tuple[float, str]]:
    """Where labels go: one in the middle of each run of the same, and few enough to read."""
    runs: list[list[int]] = []
    for i, label in enumerate(labels):
        if runs and labels[runs[-1][0]] == label:
            runs[-1].append(i)
        else:
            runs.append([i])
    step = -(-len(runs) // MOST_LABELS)
    return [
        (float(np.mean(run)), labels[run[0]] + (f" ×{len(run)}" if len(run) > 1 else ""))
        for run in runs[::step]
    ]
