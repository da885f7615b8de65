"""Figures of several runs: gap, lateness and recovery side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from twohop.report import wording
from twohop.report.figures import interval
from twohop.report.numbers import measured, read, short
from twohop.report.style import (
    FAINT,
    INK,
    MUTED,
    PAIR_COLOURS,
    SHADE,
    group_title,
    look,
    nothing,
    percent_axis,
    sheet,
)


def colour_of(i: int) -> str:
    """Colour of the i-th run; they come round again."""
    return PAIR_COLOURS[i % len(PAIR_COLOURS)]


def gap_comparison(summaries: Sequence[Mapping[str, Any]]) -> Figure:
    """Gap of each run in points, by both scorers."""
    with look():
        figure = sheet(0.9 + 0.55 * len(summaries))
        axes = figure.subplots()
        n = len(summaries)
        for i, one in enumerate(summaries):
            y = n - 1 - i
            for key, shift, marker, fill in (
                ("gap_points", 0.13, "o", colour_of(i)),
                ("gap_points_forced", -0.13, "s", "white"),
            ):
                if measured(one[key]):
                    interval(axes, one[key], y + shift, colour=colour_of(i))
                    axes.plot(
                        one[key]["value"],
                        y + shift,
                        marker,
                        color=colour_of(i),
                        mfc=fill,
                        ms=6,
                        zorder=4,
                    )
            text = " / ".join(
                short(one[key], "points") for key in ("gap_points", "gap_points_forced")
            )
            axes.annotate(
                text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8
            )
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.set_yticks(range(n), [str(one["pair"]) for one in reversed(summaries)])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.6, n - 0.4)
        axes.set_xlabel("gap in points: free answer (filled) / forced choice (open)")
        return figure


def lateness_comparison(summaries: Sequence[Mapping[str, Any]]) -> Figure:
    """Lateness of each run, by the transfer probe and by the plain one."""
    with look():
        figure = sheet(0.9 + 0.55 * len(summaries))
        axes = figure.subplots()
        n = len(summaries)
        bounds = [0.0]
        for i, one in enumerate(summaries):
            y = n - 1 - i
            for key, shift, marker, fill in (
                ("lateness_layers", 0.13, "o", colour_of(i)),
                ("lateness_layers_plain", -0.13, "s", "white"),
            ):
                found = read(one[key])
                if measured(one[key]):
                    bounds += [found.low, found.high]
                    interval(axes, one[key], y + shift, colour=colour_of(i))
                    axes.plot(
                        found.value, y + shift, marker, color=colour_of(i), mfc=fill, ms=6, zorder=4
                    )
            said = " / ".join(
                short(one[key], "layers") for key in ("lateness_layers", "lateness_layers_plain")
            )
            axes.annotate(
                said, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8
            )
        low, high = min(bounds) - 1, max(bounds) + 1
        axes.axvspan(low, 0, color=SHADE, lw=0, zorder=0)
        axes.text(0, n - 0.5, "0 or less: in time  ", ha="right", fontsize=8, color=MUTED)
        axes.text(0, n - 0.5, "  too late", ha="left", fontsize=8, color=MUTED)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yticks(range(n), [str(one["pair"]) for one in reversed(summaries)])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.6, n - 0.2)
        axes.set_xlabel("lateness in layers: transfer probe (filled) / plain probe (open)")
        return figure


def recovery_comparison(summaries: Sequence[Mapping[str, Any]]) -> Figure:
    """Recovery of each arm, the runs side by side."""
    known = list(
        dict.fromkeys(
            arm for one in summaries for arm, value in one["recovered"].items() if measured(value)
        )
    )
    groups = wording.arm_groups(known)
    step = 0.5 + 0.28 * len(summaries)
    rows = sum(step * len(arms) + 1.1 for _, arms in groups)
    with look():
        figure = sheet(max(1.2, 0.3 * rows + 0.8))
        axes = figure.subplots()
        if not known:
            nothing(axes, "no item was lost in any run")
            return figure
        y, places, names = 0.0, [], []
        shifts = [0.14 * (len(summaries) - 1 - 2 * i) for i in range(len(summaries))]
        for title, arms in groups:
            group_title(axes, title, y)
            y -= 0.85
            for arm, label in arms.items():
                axes.axhline(y, color=FAINT, lw=0.6, zorder=0)
                for i, shift in enumerate(shifts):
                    value = summaries[i]["recovered"].get(arm)
                    if measured(value):
                        interval(axes, value, y + shift, colour=colour_of(i))
                        axes.plot(
                            value["value"], y + shift, "o", color=colour_of(i), ms=5.5, zorder=4
                        )
                places.append(y)
                names.append(label)
                y -= step
            y -= 0.25
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8.5)
        axes.spines["left"].set_visible(False)
        percent_axis(axes, top=1.03)
        axes.set_ylim(y + 0.5, 0.6)
        axes.set_xlabel("share of tried lost items answered right afterwards")
        for i, one in enumerate(summaries):
            lost = any(measured(value) for value in one["recovered"].values())
            axes.plot(
                [],
                [],
                "o-",
                color=colour_of(i),
                label=f"{one['pair']}{'' if lost else ' (no lost item)'}",
            )
        figure.legend(loc="outside upper left", ncols=2)
        return figure
