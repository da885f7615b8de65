"""Figure of the maps, exact and by attribution: which sublayers at which tokens carry the fact."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twohop.report import wording
from twohop.report.style import FAINT, INK, MUTED, look, nothing, sheet
from twohop.stages.maps.agreement import doubtful

ALIKE = "an entity\nand its swap\nare answered alike"
NO_ITEM = "no item that\nthe model should know"
MOST_TICKS = 12


def map_figure(tree: xr.DataTree) -> Figure:
    """Maps of the backbone in text and of the VLM with images, on one colour scale.

    Above the exact ones, beneath them those by attribution, of the same blocks.
    """
    with look():
        figure = sheet(6.2)
        panels = figure.subplots(2, 2, sharey=True)
        mesh = None
        for column, (medium, title) in zip(panels.T, wording.MAPS.items(), strict=True):
            exact = tree[f"map_{medium}"].to_dataset()
            estimated = tree[f"attribution_{medium}"].to_dataset()
            n = exact.sizes["map_item"]
            few = ALIKE if n else NO_ITEM
            refused = "attribution is refused:\nsee the note" if estimated.attrs["refused"] else few
            titles = (f"{title} ({n} items): exact", f"{title}: by attribution")
            for axes, data, said, why in zip(
                column, (exact, estimated), titles, (few, refused), strict=True
            ):
                if np.isnan(data["effect"].values).all():
                    nothing(axes, why)
                else:
                    mesh = _map_panel(axes, data)
                axes.set_title(said, loc="left", fontsize=8.5)
        if mesh is not None:
            bar = figure.colorbar(mesh, ax=panels, shrink=0.5, aspect=28, pad=0.02)
            bar.set_ticks([-1, 0, 1], labels=["−1", "0", "1"])
            bar.set_label("share of the answer brought over", fontsize=8)
            bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return figure


def _map_panel(axes: Axes, data: xr.Dataset) -> Any:
    """Draw one map; windows are as wide as their blocks, so that maps above one another compare."""
    rows = [
        (component, role) for component in data["component"].values for role in data["role"].values
    ]
    windows = "window" in data.dims
    along = "window" if windows else "layer"
    table = data["effect"].transpose("component", "role", along).values.reshape(len(rows), -1)
    first = data["first_block"].values if windows else data["layer"].values
    last = data["last_block"].values if windows else first
    edges = np.array([*first, last[-1] + 1])
    axes.set_facecolor(FAINT)
    mesh = axes.pcolormesh(
        edges,
        np.arange(len(rows) + 1),
        table.clip(-1, 1),
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        edgecolors="white",
        lw=0.8 if len(first) <= MOST_TICKS else 0.2,
    )
    if len(first) <= MOST_TICKS:
        _write_values(axes, table, (edges[:-1] + edges[1:]) / 2)
    names = [
        str(start) if start == end else f"{start}–{end}"
        for start, end in zip(first, last, strict=True)
    ]
    every = -(-len(names) // MOST_TICKS)
    turned = 90 if any(len(name) > 2 for name in names) else 0
    middles = (first + last + 1) / 2
    axes.set_xticks(middles[::every], names[::every], rotation=turned, fontsize=7.5)
    labels = [
        f"{wording.COMPONENTS.get(component, component)}, {wording.MAP_ROLES.get(role, role)}"
        for component, role in rows
    ]
    axes.set_yticks(np.arange(len(rows)) + 0.5, labels)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_ylim(len(rows), 0)
    per = len(data["role"])
    for i in range(per, len(rows), per):
        axes.axhline(i, color=MUTED, lw=1)
    _mark_doubtful(axes, data, per)
    axes.set_xlabel("blocks" if windows else "block")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def _write_values(axes: Axes, table: np.ndarray, middles: np.ndarray) -> None:
    for (i, j), value in np.ndenumerate(table):
        if abs(value) >= 0.095:
            axes.text(
                float(middles[j]),
                i + 0.5,
                f"{value:.1f}".replace("-", "−").replace("0.", "."),
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if abs(value) > 0.6 else INK,
            )


def _mark_doubtful(axes: Axes, data: xr.Dataset, per: int) -> None:
    """Cross out the components of an attribution that do not agree with the exact map."""
    if "agreement_low" not in data:
        return
    width = axes.get_xlim()
    for i, component in enumerate(data["component"].values):
        if doubtful(float(data["agreement_low"].sel(measure=component))):
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
