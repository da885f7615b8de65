"""Figures over layers: where the entity resolves, and where the backbone recalls."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twohop.report import wording
from twohop.report.estimates import estimate, short
from twohop.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PINK,
    RED,
    SHADE,
    look,
    nothing,
    percent_axis,
    sheet,
    spread,
)
from twohop.report.summary import vlm_block
from twohop.stages.timing import at_places
from twohop.statistics import estimates, of_entities, shares

KINDS = {
    "plain": ("plain probe", BLUE, "-"),
    "transfer": ("transfer probe", RED, "-"),
    "transfer_centred": ("transfer, centred", ORANGE, "-"),
    "transfer_null": ("shuffled labels", MUTED, ":"),
}


def band(hits: np.ndarray, entities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of each point of a curve of hits [layer, row], over entities."""
    points = shares(*of_entities(hits.astype(float), list(entities)))
    return points.low, points.high


def curve(
    axes: Axes,
    x: np.ndarray,
    hits: np.ndarray,
    entities: np.ndarray,
    *,
    colour: str,
    **how: Any,
) -> np.ndarray:
    """Draw the mean of hits [layer, row] with its interval, and return it."""
    low, high = band(hits, entities)
    axes.fill_between(x, low, high, color=colour, alpha=0.14, lw=0)
    axes.plot(x, hits.mean(1), color=colour, **how)
    return hits.mean(1)


def end_labels(axes: Axes, x: float, labels: list[tuple[float, str, str]], *, gap: float) -> None:
    """Write each curve's name at its right end, moved apart where they would overlap."""
    places = spread([max(height, gap / 5) for height, _, _ in labels], gap=gap)
    for (_, text, colour), y in zip(labels, places, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8,
            annotation_clip=False,
        )


def mark_windows(axes: Axes, end: int, out: int) -> None:
    """Shade the layers that the enrichment window reads, and mark the end of the read-out."""
    if end >= 0:
        axes.axvspan(-0.5, end + 0.5, color=SHADE, lw=0, zorder=0)
    if out >= 0:
        axes.axvline(out + 1, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)


def layer_axis(axes: Axes, last: int) -> None:
    """Ticks at whole layers, at most a dozen or so."""
    step = max(1, round(last / 12))
    axes.set_xticks(range(0, last + 1, step))
    axes.set_xlim(-0.5, last + 0.3)


def last_block(summary: Mapping[str, Any], window: str) -> int:
    """Last block of a window of the backbone; -1 if there is none, or it was not measured."""
    end = estimate(summary["windows"][window])
    return int(end.value) if end.measured else -1


def resolution_figure(tree: xr.DataTree, summary: Mapping[str, Any]) -> Figure:
    """Where the entity (above) and the answer (below) can be read, against the recall windows."""
    data = tree["resolution"].to_dataset()
    summary = estimates(summary)
    x, entities = data["layer"].values, data["entity"].values
    last = int(x[-1])
    end, out = (
        vlm_block(data, last_block(summary, key)) for key in ("enrichment_end", "readout_end")
    )
    with look():
        figure = sheet(5.4)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.45, 1])
        labels = []
        placed = at_places(data, "probe").transpose("kind", "layer", "entity")
        for kind, (name, colour, line) in KINDS.items():
            hits, wide = placed.sel(kind=kind).values, 1.2 if line == ":" else 2.0
            mean = curve(above, x, hits, entities, colour=colour, lw=wide, ls=line)
            labels.append((mean[-1], name, colour))
        own = data["backbone_accuracy"].values
        above.plot(x, own, color=INK, lw=1.2, ls="-.")
        labels.append((own[-1], "backbone's own text", INK))
        if not data.attrs["drift_copied"]:
            text = data["drift"].sel(kind="transfer").mean("entity").values
            above.plot(x, text, color=GREEN, lw=1.2, ls="--")
            labels.append((text[-1], "VLM's own text", GREEN))
        end_labels(above, last, labels, gap=0.075)
        mark_windows(above, end, out)
        percent_axis(above, along="y", top=1.4)
        above.text(last, 1.1, _when(summary), color=RED, va="center", ha="right", fontsize=8)
        above.text(
            -0.4,
            1.27,
            f"MLPs needed:\nblocks 0–{end}" if end >= 0 else "no MLP needed",
            fontsize=8,
            color=MUTED,
            va="center",
        )
        if out >= 0:
            above.text(
                out + 1.15,
                1.27,
                f"read-out until\nafter block {out}",
                fontsize=8,
                color=MUTED,
                va="center",
            )
        above.set_ylabel("entity read right")
        places = " / ".join(
            wording.PLACES.get(str(role), str(role))
            for role in dict.fromkeys(np.atleast_1d(data.attrs["chosen_role"]).tolist())
        )
        above.set_title(f"Hop 1: the entity, at {places}", loc="left")

        _answer_panel(below, data, x)
        mark_windows(below, end, out)
        layer_axis(below, last)
        below.set_xlabel("layer (l is the input of block l; the last is the output)")
        return figure


def _when(summary: Mapping[str, Any]) -> str:
    """Shares of the entities by when they come."""
    came = summary["lateness"]
    return (
        f"entities in time {short(came['early'])}, too late {short(came['late'])}, "
        f"never {short(came['never'])}"
    )


def _answer_panel(axes: Axes, data: xr.Dataset, x: np.ndarray) -> None:
    probed = data["answer_probe"]
    lens = data["lens_answer"].sel(role="last").values
    lines = (
        (probed.sel(model="vlm").values, "probe, VLM", PINK, "-"),
        (probed.sel(model="backbone").values, "probe, backbone", INK, "-."),
        (lens, "lens (prob.), VLM", ORANGE, "-"),
    )
    labels = []
    for values, name, colour, style in lines:
        axes.plot(x, values, color=colour, lw=1.6, ls=style)
        labels.append((float(values[-1]), name, colour))
    chance = float(data.attrs["answer_chance"])
    axes.axhline(chance, color=GREY, lw=1, ls=":")
    labels.append((chance, "chance", MUTED))
    end_labels(axes, float(x[-1]), labels, gap=0.12)
    percent_axis(axes, along="y", top=1.05)
    axes.set_ylabel("read right, or probability")
    axes.set_title("Hop 2: the answer at the last token", loc="left")


CURVES = (
    ("enrichment", "edge", "what is needed:\nsurvives ablation\nfrom here up", BLUE),
    ("sufficiency", "edge", "what suffices:\nrestored up to here", GREEN),
    ("readout", "block", "follows a swap\nafter this block", RED),
)
"""Of the windows: variable, what it is along, what it shows, colour."""


def windows_figure(tree: xr.DataTree) -> Figure:
    """The recall windows: what survives ablation, what suffices, and what follows a swap."""
    data = tree["windows"].to_dataset()
    own = tree["windows_vlm"].to_dataset()
    with look():
        figure = sheet(3.2)
        axes = figure.subplots()
        if not data.sizes["item"]:
            nothing(axes, "the backbone answers no item right in text")
            return figure
        labels = []
        for name, along, said, colour in CURVES:
            x, values = data[along].values, data[name].values
            asked, there = (~np.isnan(values).all(axis) for axis in (1, 0))
            if not there.any():
                continue
            hits, entities = values[np.ix_(asked, there)], data["entity"].values[there]
            mean = curve(axes, x[asked], hits, entities, colour=colour, lw=2, marker="o", ms=3)
            labels.append((float(mean[-1]), said, colour))
            if not own.attrs["same_as_backbone"] and own.sizes["item"]:
                of_vlm = own[name].mean("item").values
                measured = ~np.isnan(of_vlm)
                axes.plot(own[along].values[measured], of_vlm[measured], color=colour, ls="--")
        for row, (name, colour) in enumerate((("necessity", BLUE), ("sufficiency", GREEN))):
            half, low, high = (
                float(data[part].sel(curve=name))
                for part in ("half_point", "half_low", "half_high")
            )
            if np.isfinite(half):
                y = 1.12 + 0.09 * row
                axes.plot([low, high], [y, y], color=colour, lw=1.4)
                axes.plot(half, y, "D", color=colour, ms=5)
                axes.text(high + 0.4, y, "half-point", color=colour, fontsize=7.5, va="center")
        last = int(data["edge"].values[-1])
        end_labels(axes, last, labels, gap=0.34)
        percent_axis(axes, along="y", top=1.3)
        layer_axis(axes, last)
        axes.set_xlabel(
            "block" + ("" if own.attrs["same_as_backbone"] else " (dashed: VLM's own text)")
        )
        axes.set_ylabel(f"of {data.sizes['item']} items")
        return figure
