"""Figure of the patching maps: which sublayers, at which tokens, carry the fact."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twohop.report import wording
from twohop.report.style import FAINT, INK, MUTED, look, nothing, sheet

ALIKE = "an entity\nand its swap\nare answered alike"


def map_figure(tree: xr.DataTree) -> Figure:
    """Patching maps of the backbone in text and of the VLM with images, on one colour scale."""
    with look():
        figure = sheet(3.6)
        panels = figure.subplots(1, 2, sharey=True)
        mesh = None
        for axes, stage, title in zip(
            panels, ("map_text", "map_image"), ("Backbone, text", "VLM, image"), strict=True
        ):
            data = tree[stage].to_dataset()
            n = data.sizes["map_item"]
            if np.isnan(data["effect"].values).all():
                few = ALIKE if n else "no item that\nthe model should know"
                nothing(axes, few)
                axes.set_title(title, loc="left")
                continue
            mesh = _map_panel(axes, data)
            axes.set_title(f"{title} ({n} items)", loc="left")
        if mesh is not None:
            bar = figure.colorbar(mesh, ax=panels, shrink=0.8, aspect=28, pad=0.02)
            bar.set_ticks([-1, 0, 1], labels=["−1", "0", "1"])
            bar.set_label("share of the answer brought over", fontsize=8)
            bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return figure


def _map_panel(axes: Axes, data: xr.Dataset) -> Any:
    rows = [(c, r) for c in data["component"].values for r in data["role"].values]
    effect = data["effect"].transpose("component", "role", "window").values
    table = effect.reshape(len(rows), -1)
    axes.set_facecolor(FAINT)
    mesh = axes.pcolormesh(
        table.clip(-1, 1), cmap="RdBu_r", vmin=-1, vmax=1, edgecolors="white", lw=0.8
    )
    for (i, j), value in np.ndenumerate(table):
        if abs(value) >= 0.095:
            strong = abs(value) > 0.6
            axes.text(
                j + 0.5,
                i + 0.5,
                f"{value:.1f}".replace("-", "−").replace("0.", "."),
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if strong else INK,
            )
    first, last = data["first_block"].values, data["last_block"].values
    names = [str(a) if a == b else f"{a}–{b}" for a, b in zip(first, last, strict=True)]
    turned = 90 if any(len(name) > 2 for name in names) else 0
    axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=turned, fontsize=7.5)
    labels = [f"{wording.COMPONENTS.get(c, c)}, {wording.MAP_ROLES.get(r, r)}" for c, r in rows]
    axes.set_yticks(np.arange(len(rows)) + 0.5, labels)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_ylim(len(rows), 0)
    per = len(data["role"])
    for i in range(per, len(rows), per):
        axes.axhline(i, color=MUTED, lw=1)
    axes.set_xlabel("blocks")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh
