"""Figure of the maps, exact and by attribution: which sublayers at which tokens carry the fact."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from twohop.protocol import DEFAULT, Protocol
from twohop.report import wording
from twohop.report.estimates import whole
from twohop.report.style import FAINT, INK, MUTED, look, nothing, sheet
from twohop.stages.maps.agreement import doubtful

NO_ITEM = "no such item"
MOST_TICKS = 12
MAP_PANELS = (("text", "right"), ("image", "right"), ("image", "lost"))
"""Rows of the figure: a map, and the group of its items."""


@dataclass(frozen=True)
class Panel:
    """One map of the figure, exact or by attribution, of one group of items.

    Attributes
    ----------
    data : Dataset
        Of the group alone.
    title : str
    empty : str
        Why there is nothing to be drawn; empty if there is.
    """

    data: xr.Dataset
    title: str
    empty: str

    def table(self, name: str) -> np.ndarray:
        """A variable of the cells, [component and role, along the depth]."""
        cells = self.data[name].transpose("component", "role", ...).values
        return cells.reshape(-1, cells.shape[-1])

    def clear(self) -> np.ndarray:
        """Whether a cell's interval leaves out 0, in the shape of :meth:`table`."""
        return (self.table("effect_low") > 0) | (self.table("effect_high") < 0)


def map_figure(tree: xr.DataTree, *, protocol: Protocol = DEFAULT) -> Figure:
    """Maps of the backbone in text, and of the VLM on items it answers and on lost ones.

    Exact at the left, by attribution at the right, all in logits on one scale of colours. Cells
    whose interval includes 0 are grey.
    """
    lines = [_panels(tree, medium, group) for medium, group in MAP_PANELS]
    drawn = [panel for line in lines for panel in line if not panel.empty]
    strongest = [np.abs(panel.table("effect")[panel.clear()]).max(initial=0) for panel in drawn]
    most = max(strongest, default=0) or 1.0
    with look():
        figure = sheet(8.2)
        grid = figure.subplots(len(lines), 2, sharey=True)
        mesh = None
        for line, panels in zip(grid, lines, strict=True):
            for axes, panel in zip(line, panels, strict=True):
                if panel.empty:
                    nothing(axes, panel.empty)
                else:
                    mesh = _map_panel(axes, panel, most=most, protocol=protocol)
                axes.set_title(panel.title, loc="left", fontsize=8)
        if mesh is not None:
            bar = figure.colorbar(
                mesh, ax=grid, shrink=0.45, aspect=40, pad=0.01, orientation="horizontal"
            )
            bar.set_label("logits brought over; grey: the interval includes 0", fontsize=8)
            bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return figure


def _panels(tree: xr.DataTree, medium: str, group: str) -> tuple[Panel, Panel]:
    """The exact map and the one by attribution of one row."""
    exact, estimated = (
        tree[f"{stage}_{medium}"].to_dataset().sel(group=group) for stage in ("map", "attribution")
    )
    n = int((exact["map_group"].values == group).sum())
    title = f"{wording.MAPS[medium]}, {wording.MAP_GROUPS[group]}"
    few = "" if n else NO_ITEM
    refused = "attribution is refused:\nsee the note" if estimated.attrs["refused"] else few
    said = f"{title} (n {n})\nspan {span_of(exact)}" if n else title
    return Panel(exact, said, few), Panel(estimated, "by attribution", refused)


def span_of(data: xr.Dataset) -> str:
    """Say how large the whole difference between both runs is, in a map of one group."""
    mean, low, high = (float(data[f"span_{end}"]) for end in ("mean", "low", "high"))
    ends = "no interval" if np.isnan(low) else f"{tenths(low)}, {tenths(high)}"
    return f"{tenths(mean)} [{ends}] logits"


def tenths(value: float) -> str:
    """Write a number of logits, with a true minus sign and no minus zero.

    Examples
    --------
    >>> tenths(-0.04), tenths(-3.16)
    ('0.0', '−3.2')
    """
    text = f"{abs(value):.1f}"
    return f"−{text}" if value < 0 and float(text) else text


def _map_panel(axes: Axes, panel: Panel, *, most: float, protocol: Protocol) -> Any:
    """Draw one map; windows are as wide as their blocks, so that maps side by side compare."""
    data = panel.data
    rows = [
        (component, role) for component in data["component"].values for role in data["role"].values
    ]
    windows = "first_block" in data
    table = np.where(panel.clear(), panel.table("effect"), np.nan)
    first = data["first_block"].values if windows else data["layer"].values
    last = data["last_block"].values if windows else first
    edges = np.array([*first, last[-1] + 1])
    lines = {"edgecolors": "white", "lw": 0.8 if len(first) <= MOST_TICKS else 0.2}
    there = np.where(np.isfinite(panel.table("effect")), 0.0, np.nan)
    heights = np.arange(len(rows) + 1)
    axes.pcolormesh(edges, heights, there, cmap=ListedColormap([FAINT]), **lines)
    mesh = axes.pcolormesh(edges, heights, table, cmap="RdBu_r", vmin=-most, vmax=most, **lines)
    if len(first) <= MOST_TICKS:
        _write_values(axes, table, (edges[:-1] + edges[1:]) / 2, most=most)
    names = [
        str(start) if start == end else f"{start}–{end}"
        for start, end in zip(first, last, strict=True)
    ]
    every = -(-len(names) // MOST_TICKS)
    turned = 90 if any(len(name) > 2 for name in names) else 0
    middles = (first + last + 1) / 2
    axes.set_xticks(middles[::every], names[::every], rotation=turned, fontsize=7)
    labels = [
        f"{wording.COMPONENTS.get(component, component)}, {wording.MAP_ROLES.get(role, role)}"
        for component, role in rows
    ]
    axes.set_yticks(np.arange(len(rows)) + 0.5, labels, fontsize=7.5)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_ylim(len(rows), 0)
    per = len(data["role"])
    for i in range(per, len(rows), per):
        axes.axhline(i, color=MUTED, lw=1)
    _mark_doubtful(axes, data, per, protocol=protocol)
    axes.set_xlabel("blocks" if windows else "block", fontsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def _write_values(axes: Axes, table: np.ndarray, middles: np.ndarray, *, most: float) -> None:
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value) and round(abs(value), 1) > 0:
            axes.text(
                float(middles[j]),
                i + 0.5,
                tenths(value).replace("0.", ".") if abs(value) < 9.95 else whole(value),
                ha="center",
                va="center",
                fontsize=5.5,
                color="white" if abs(value) > 0.6 * most else INK,
            )


def _mark_doubtful(axes: Axes, data: xr.Dataset, per: int, *, protocol: Protocol) -> None:
    """Cross out the components of an attribution that do not agree with the exact map."""
    if "group_agreement_low" not in data:
        return
    width = axes.get_xlim()
    for i, component in enumerate(data["component"].values):
        low = float(data["group_agreement_low"].sel(measure=component))
        if doubtful(low, protocol=protocol):
            axes.fill_between(
                width, i * per, (i + 1) * per, facecolor="none", edgecolor=MUTED, hatch="//", lw=0
            )


def attribution_methods(tree: xr.DataTree) -> str:
    """By which method each map was attributed, in words; empty if none was."""
    methods = []
    for medium, title in wording.MAPS.items():
        attrs = tree[f"attribution_{medium}"].attrs
        if not attrs["refused"]:
            steps = f", {attrs['steps']} steps" if attrs["steps"] else ""
            methods.append(f"{title}: {attrs['method_name']}{steps}")
    return "; ".join(methods)
