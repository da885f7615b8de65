"""Figures over layers: where the entity resolves, and where the backbone recalls."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twohop.ask.roles import IMAGE_ROLES
from twohop.report.estimates import written
from twohop.report.style import (
    BLUE,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PINK,
    RED,
    SHADE,
    look,
    nothing,
    percent_axis,
    sheet,
    spread,
)
from twohop.report.summary import image_hits, vlm_block
from twohop.stages.provenance import protocol_of
from twohop.statistics import estimates, of_entities, shares

KINDS = {
    "plain": ("plain probe", BLUE),
    "transfer": ("transfer probe", RED),
    "shuffled": ("shuffled labels", MUTED),
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


def resolution_figure(tree: xr.DataTree, summary: Mapping[str, Any]) -> Figure:
    """Where the entity (above) and the answer (below) can be read, against the recall windows."""
    data = tree["resolution"].to_dataset()
    summary = estimates(summary)
    x, entities = data["layer"].values, data["entity"].values
    last = int(x[-1])
    end, out = (vlm_block(data, summary[key]) for key in ("enrichment_end", "readout_end"))
    unavailable = summary["not_available"].get("lateness_layers")
    there = [role for role in IMAGE_ROLES if role in data["role"].values]
    with look():
        figure = sheet(5.4)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.45, 1])
        labels = []
        for kind, (name, colour) in KINDS.items():
            hits = image_hits(data, kind)
            style = {"lw": 2.0} if kind != "shuffled" else {"lw": 1.2, "ls": ":"}
            mean = np.zeros(len(x))
            if there:
                mean = curve(above, x, hits, entities, colour=colour, **style)
                labels.append((mean[-1], name, colour))
            if kind == "shuffled":
                continue
            for role in there:
                of_role = data["probe"].sel(kind=kind, role=role).values.mean(1)
                above.plot(x, of_role, color=colour, lw=0.6, alpha=0.6)
            question = data["probe"].sel(kind=kind, role="last").values.mean(1)
            above.plot(x, question, color=colour, lw=1.1, ls=(0, (3, 2)))
            labels.append((question[-1], f"{name.split()[0]}, last token", colour))
            known = "lateness_layers" if kind == "transfer" else "lateness_layers_plain"
            if summary[known].measured:
                first = end + round(summary[known].value)
                above.plot(first, mean[first], "v", color=colour, ms=8, mec="white", zorder=6)
        own = data["backbone_accuracy"].values
        above.plot(x, own, color=INK, lw=1.2, ls="-.")
        labels.append((own[-1], "backbone's own text", INK))
        end_labels(above, last, labels, gap=0.075)
        mark_windows(above, end, out)
        percent_axis(above, along="y", top=1.32)
        late = summary["lateness_layers"]
        if late.measured:
            resolved = end + late.value
            words = f"lateness {written(late, 'layers')} layers"
            above.annotate(
                "",
                (resolved, 1.09),
                (end, 1.09),
                arrowprops={"arrowstyle": "->", "color": RED, "lw": 1.5},
            )
            place = max(end, resolved) + 0.02 * last
            above.text(place, 1.09, words, color=RED, va="center", fontsize=8, bbox=PAPER)
        else:
            above.text(
                last,
                1.09,
                f"lateness not available: {unavailable}"
                if unavailable
                else "lateness not measured: transfer probe no better than shuffled labels",
                color=RED,
                va="center",
                ha="right",
                fontsize=8,
                bbox=PAPER,
            )
        above.text(
            -0.4,
            1.22,
            f"enrichment window\nblocks 0–{end}" if end >= 0 else "no enrichment window",
            fontsize=8,
            color=MUTED,
            va="center",
        )
        if out >= 0:
            above.text(
                out + 1.15,
                1.22,
                f"read-out until\nafter block {out}",
                fontsize=8,
                color=MUTED,
                va="center",
            )
        above.set_ylabel("entity read right")
        above.set_title("Hop 1: the entity at the image tokens", loc="left")

        _answer_panel(below, data, x)
        mark_windows(below, end, out)
        layer_axis(below, last)
        below.set_xlabel("layer (l is the input of block l; the last is the output)")
        return figure


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


def windows_figure(tree: xr.DataTree) -> Figure:
    """The backbone's recall windows: what survives ablation, what follows a swap."""
    data, protocol = tree["windows"].to_dataset(), protocol_of(tree)
    with look():
        figure = sheet(3.0)
        axes = figure.subplots()
        if not data.sizes["item"]:
            nothing(axes, "the backbone answers no item right in text")
            return figure
        entities = data["entity"].values
        edge, block = data["edge"].values, data["block"].values
        how = {"lw": 2, "marker": "o", "ms": 3}
        kept = curve(axes, edge, data["enrichment"].values, entities, colour=BLUE, **how)
        followed = curve(axes, block, data["readout"].values, entities, colour=RED, **how)
        last = int(edge[-1])
        for level, colour in (
            (protocol.window_keeps * kept[-1], BLUE),
            (protocol.readout_follows * followed.max(), RED),
        ):
            axes.hlines(level, 0, last, color=colour, lw=0.8, ls=":")
        end, out = int(data.attrs["enrichment_end"]), int(data.attrs["readout_end"])
        ends = ((end, "enrichment ends", BLUE), (out, "read-out ends", RED))
        # The first is named on its left, away from the other, where there is room.
        first = min(ends) if min(ends)[0] > last / 3 else None
        for window in ends:
            where, name, colour = window
            said = (
                f"{name}\nafter block {where}"
                if where >= 0
                else f"{name.split()[0]}:\nno block needed"
            )
            axes.axvline(max(where, 0) + 0.5, color=colour, lw=1, ls=(0, (4, 3)), ymax=0.84)
            left = window == first
            x = where + 0.4 if left else max(where, 0) + 0.6
            side = "right" if left else "left"
            axes.text(x, 1.16, said, color=colour, fontsize=8, ha=side, va="center")
        end_labels(
            axes,
            last,
            [
                (float(kept[-1]), "survives\nablation from\nthis block up", BLUE),
                (float(followed[-1]), "follows a swap\nafter this block", RED),
            ],
            gap=0.34,
        )
        percent_axis(axes, along="y", top=1.3)
        layer_axis(axes, last)
        axes.set_xlabel("block")
        axes.set_ylabel(f"of {data.sizes['item']} items")
        return figure
