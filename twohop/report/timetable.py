"""Figures of the recall timetable, and of what it predicts of a VLM's items."""

from collections import Counter
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Stroke

from twohop.report.estimates import p_value, written
from twohop.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    RED,
    look,
    nothing,
    percent_axis,
    sheet,
    spread,
)
from twohop.statistics import Estimate

MOST_WRITTEN = 10  # rows of a table whose numbers are written into it
LARGEST = 210.0  # points squared: the dot of the most items
PALE = LinearSegmentedColormap.from_list("pale", ["#ffffff", "#9ec9e6"])
NO_ITEM = "no fact is given in text\nby its canonical answer"


def timetable_figure(tree: xr.DataTree) -> Figure:
    """By when the entity must be there in each form, and when and how it is there in the VLM."""
    # That by which entities are held to be late: the VLM's own.
    stage = "timetable_vlm" if "timetable_vlm" in tree.children else "timetable"
    data = tree[stage].to_dataset()
    whose = "backbone" if data.attrs.get("same_as_backbone", 1) else "VLM's own text"
    with look():
        figure = sheet(4.7)
        axes = figure.subplots()
        axes.set_title(
            f"Recall timetable of the {whose}: its own state of the name, written late", loc="left"
        )
        if not data.sizes["item"]:
            nothing(axes, NO_ITEM)
            return figure
        mesh = _table(axes, data)
        _deadlines(axes, data)
        if "prediction" in tree.children:
            _arrivals(axes, data, tree["prediction"].to_dataset())
        _legend(figure, data, tree)
        bar = figure.colorbar(mesh, ax=axes, shrink=0.55, aspect=24, pad=0.02)
        bar.set_ticks([0, 0.5, 1], labels=["0", "50", "100 %"])
        bar.set_label(f"facts recalled, of {data.sizes['item']} in text", fontsize=8)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        return figure


def _place(data: xr.Dataset, layer: np.ndarray) -> np.ndarray:
    """Where a number of blocks is on the axes, whose cells are of one size."""
    layers = [*data["block"].values, int(data.attrs["n_layers"])]
    return np.interp(layer, layers, np.arange(len(layers))) + 0.5


def _table(axes: Axes, data: xr.Dataset) -> Any:
    layers, table = data["block"].values, data["accuracy"].values
    n = len(layers)
    mesh = axes.pcolormesh(
        np.arange(n + 1), np.arange(n + 1), table, cmap=PALE, vmin=0, vmax=1, edgecolors="white"
    )
    if n <= MOST_WRITTEN:
        for (row, column), value in np.ndenumerate(table):
            if not np.isnan(value):
                axes.text(
                    column + 0.04,
                    row + 0.9,
                    f"{100 * value:.0f}",
                    ha="left",
                    va="center",
                    fontsize=6.5,
                    color=MUTED,
                )
    axes.set_xticks(np.arange(n) + 0.5, layers)
    axes.set_yticks(np.arange(n) + 0.5, layers)
    axes.set_xlim(0, n + 0.02)
    axes.set_ylim(n, 0)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_xlabel("written into the input of block")
    axes.set_ylabel("form: the state after so many blocks")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def _deadlines(axes: Axes, data: xr.Dataset) -> None:
    """Draw the deadline of each form with its interval; an arrow where it was not reached."""
    n, deadline = len(data["form"]), data["deadline"].values
    state = data["deadline_state"].values
    end = float(data["block"].values[-1])
    low, high = (
        _place(data, np.minimum(data[f"deadline_{side}"].values, end)) for side in ("low", "high")
    )
    x = _place(data, deadline)
    rows = np.arange(n) + 0.5
    reached = state == "reached"
    outline = [Stroke(linewidth=3.2, foreground="white"), Stroke(linewidth=1.6, foreground=INK)]
    if reached.any():
        axes.plot(x[reached], rows[reached], color=INK, lw=1.6, path_effects=outline, zorder=4)
        for row in np.nonzero(reached)[0]:
            axes.plot([low[row], high[row]], [rows[row]] * 2, color=INK, lw=1.0, zorder=4)
    for row in np.nonzero(state == "not reached")[0]:
        axes.text(n - 0.05, rows[row], "later ▸", fontsize=7, ha="right", va="center", zorder=5)


def _arrivals(axes: Axes, data: xr.Dataset, items: xr.Dataset) -> None:
    """Draw when, and in which form, the VLM's entities can first be read: a dot for their items."""
    n, read, right = len(data["form"]), items["read"].values, items["right"].values
    places = zip(items["block"].values, items["form"].values, right, read, strict=True)
    counts = Counter(
        (int(block), int(form), bool(hit)) for block, form, hit, there in places if there
    )
    if items.sizes["item"]:
        most = max(counts.values(), default=1)
        for (block, form, hit), count in counts.items():
            x, y = (_place(data, np.array([at]))[0] for at in (block, form))
            axes.scatter(
                min(x, n - 0.2) + (-0.13 if hit else 0.13),
                min(y, n - 0.2) - 0.08,
                s=LARGEST * count / most,
                color=GREEN if hit else RED,
                alpha=0.75,
                lw=0.4,
                edgecolors="white",
                zorder=5,
            )


def _legend(figure: Figure, data: xr.Dataset, tree: xr.DataTree) -> None:
    """Say beneath the table what the dots are, and what the neutral run gives."""
    floor = 100 * float(data["neutral"].mean())
    handles = []
    if "prediction" in tree.children:
        items = tree["prediction"].to_dataset()
        read, right = items["read"].values, items["right"].values
        gone, told = int((~read & ~right).sum()), int((~read & right).sum())
        handles = [
            _dot(
                GREEN, f"first read there in the VLM, right from the image: {(read & right).sum()}"
            ),
            _dot(RED, f"first read there, lost: {(read & ~right).sum()} items"),
            _dot(None, f"never read in the VLM: {told} right, {gone} lost"),
        ]
    text = f"“{data.attrs['neutral_text']}” for the name, nothing written: {floor:.0f} %"
    line = Line2D([], [], color=INK, lw=1.6, label="deadline: half of what a form gives is lost")
    handles += [_dot(None, text), line]
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=2,
        handletextpad=0.4,
        columnspacing=1.0,
        borderpad=0,
    )


def _dot(colour: str | None, label: str) -> Line2D:
    return Line2D([], [], ls="", marker="o" if colour else "", color=colour or INK, label=label)


def calibration_figure(tree: xr.DataTree) -> Figure:
    """What the timetable expects of the VLM's items, against what it answers."""
    data = tree["prediction"].to_dataset()
    with look():
        figure = sheet(3.1)
        axes, beside = figure.subplots(1, 2, width_ratios=[1, 1.15])
        axes.set_title("What the timetable predicts", loc="left")
        beside.set_axis_off()
        if not data.attrs["n_items"]:
            nothing(axes, "no item that is named and known")
            return figure
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)))
        n = data["bin_n"].values
        for number in np.nonzero(n)[0]:
            x, y, low, high = (
                float(data[name].values[number])
                for name in ("bin_expected", "bin_right", "bin_right_low", "bin_right_high")
            )
            axes.plot([x, x], [low, high], color=BLUE, lw=1.2)
            axes.scatter(x, y, s=18 + 110 * n[number] / n.sum(), color=BLUE, zorder=4)
            axes.annotate(
                f"n {n[number]}",
                (x, high),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=7,
                ha="center",
                color=MUTED,
            )
        percent_axis(axes, along="y", top=1.12)
        percent_axis(axes, top=1.03)
        axes.set_xlabel("expected right, from onset and form")
        axes.set_ylabel("right from the image")
        lines = prediction_lines(data)
        for (text, colour, bold), y in zip(
            lines, spread([1 - 0.1 * i for i in range(len(lines))], gap=0.1), strict=True
        ):
            beside.text(
                0, y, text, fontsize=8, color=colour, va="top", weight="bold" if bold else "normal"
            )
        return figure


def prediction_lines(data: xr.Dataset) -> list[tuple[str, str, bool]]:
    """What is said beside the calibration: text, colour, and whether it is a heading."""
    attrs = data.attrs
    foretold, lost = int(attrs["n_predicted_lost"]), int(attrs["n_lost"])

    def number(name: str) -> Estimate:
        low, high = float(attrs[f"{name}_low"]), float(attrs[f"{name}_high"])
        return Estimate(float(attrs[name]), low, high, int(attrs["n_items"]))

    lines = [
        (f"{attrs['n_items']} items of {attrs['n_entities']} entities, named and known", INK, True),
        (f"predicted lost {foretold}, lost {lost}", INK, False),
        (f"lost, of those predicted lost: {written(number('lost_if_predicted'))}", INK, False),
        (f"lost, of the others: {written(number('lost_if_not'))}", INK, False),
    ]
    if attrs["not_measured"]:
        return [*lines, (f"ranking not measured: {attrs['not_measured']}", MUTED, False)]
    alone = float(data["auc"].sel(predictor="onset_alone"))
    dealt = Estimate(0.5, attrs["auc_permuted_low"], attrs["auc_permuted_high"], 0)
    return [
        *lines,
        (f"area under the curve {written(number('auc'), 'correlation')}", INK, True),
        (
            f"dealt out anew [{dealt.low:.2f}, {dealt.high:.2f}], {p_value(attrs['auc_p'])}",
            INK,
            False,
        ),
        (f"by the onset alone {alone:.2f}", INK, False),
        (f"slope {written(number('slope'), 'correlation')} (1: as expected)", INK, False),
        (
            f"squared error {attrs['brier']:.2f}; of one share for all {attrs['brier_base']:.2f}",
            INK,
            False,
        ),
    ]
