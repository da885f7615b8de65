"""Figures of several runs by class: gap and lateness as rows, recovery as bars side by side."""

import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from twohop.report import wording
from twohop.report.comparison import Classes, runs_of
from twohop.report.estimates import NOT_MEASURED, Unit, measured, short
from twohop.report.figures import arm_colour, interval
from twohop.report.replicates import AGAINST
from twohop.report.style import (
    CLASS_MARKS,
    FAINT,
    INK,
    MUTED,
    PAPER,
    group_title,
    look,
    sheet,
)
from twohop.stages.recovery.arms import ALL_ARMS

LONGEST = 30  # characters of a run's name in a line of a figure
ROW = 0.3  # inches
BARS_END = 1.85  # of the axis of a panel of bars: beside them it has words
PANELS = sorted((arm for arm in ALL_ARMS if arm.panel), key=lambda arm: arm.panel or ())
N_PANELS = 3  # of the recovery figure, side by side


def wrapped(number: int, label: str) -> str:
    """A run's number and name in at most two lines; what is left out is marked."""
    name = f"{number}\u00a0 {label}".replace(" ", "\u00a0", 1)
    lines = textwrap.wrap(name, LONGEST)
    if len(lines) > 2:
        rest = " ".join(lines[1:])
        lines = [lines[0], "…" + rest[-(LONGEST - 1) :]]
    return "\n".join(lines)


def heights(classes: Classes) -> tuple[dict[str, float], dict[int, float], float]:
    """Places of rows from 0 downwards: of each class's title, of each run, and of the end."""
    titles, rows, y = {}, {}, 0.0
    for kind, runs in classes.items():
        titles[kind] = y
        for i, run in enumerate(runs):
            rows[run.number] = y - 1 - i
        y -= 1.15 + len(runs)
    return titles, rows, y


def run_axis(axes: Axes, classes: Classes, *, names: bool = True, until: float = 1) -> None:
    """Make the y axis one of runs under the titles of their classes; lines go ``until`` there."""
    titles, rows, end = heights(classes)
    runs = runs_of(classes)
    axes.set_yticks(
        [rows[run.number] for run in runs],
        [wrapped(run.number, run.label) if names else "" for run in runs],
        linespacing=0.9,
    )
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8)
    axes.spines["left"].set_visible(False)
    if names:
        for kind, y in titles.items():
            group_title(axes, wording.ARCHITECTURES[kind], y, ha="right")
    for y in rows.values():
        axes.axhline(y, xmax=until, color=FAINT, lw=0.6, zorder=0)
    axes.set_ylim(end + 0.5, 0.6)


def why_not(summary: Mapping[str, Any], key: str) -> str:
    """What is said in place of a number that is not there."""
    return "not available" if key in summary["not_available"] else NOT_MEASURED


def dots(axes: Axes, classes: Classes, keys: tuple[str, str], unit: Unit, *, margin: float) -> None:
    """Two numbers of each run as dots with intervals, filled and open, and written beside."""
    _, rows, _ = heights(classes)
    ends = [0.0]
    for kind, runs in classes.items():
        colour, marker = CLASS_MARKS[kind]
        for run in runs:
            y, said = rows[run.number], []
            for key, shift, fill in ((keys[0], 0.17, colour), (keys[1], -0.17, "white")):
                number = run.at(key)
                said.append(short(number, unit) if measured(number) else "–")
                if measured(number):
                    ends += [number.low, number.high]
                    interval(axes, number, y + shift, colour=colour)
                    axes.plot(
                        number.value, y + shift, marker, color=colour, mfc=fill, ms=5, zorder=4
                    )
            n = max(run.at(key).n for key in keys)
            text = f"{' / '.join(said)}  n {n}" if n else why_not(run.summary, keys[0])
            axes.annotate(
                text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=7.5
            )
    axes.set_xlim(min(ends) - margin, max(ends) + margin)
    axes.axvline(0, color=MUTED, lw=0.8, zorder=1)


def gap_comparison(classes: Classes) -> Figure:
    """Gap of each run in points, by both scorers."""
    with look():
        figure = sheet(0.7 - ROW * heights(classes)[2])
        axes = figure.subplots()
        dots(axes, classes, ("gap_points", "gap_points_forced"), "points", margin=3)
        run_axis(axes, classes)
        axes.set_xlabel("gap in points: free answer (filled) / forced choice (open)")
        return figure


def lateness_comparison(classes: Classes) -> Figure:
    """Share of entities late in each run, and the loss that the timetable predicts from it."""
    with look():
        figure = sheet(0.9 - ROW * heights(classes)[2])
        axes = figure.subplots()
        dots(axes, classes, (AGAINST["late"], AGAINST["expected_loss"]), "share", margin=0.03)
        run_axis(axes, classes)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("share of entities late (filled) / predicted loss of items (open)")
        return figure


def recovery_comparison(classes: Classes) -> Figure:
    """Recovery of each run: a panel for each of the main arms and controls."""
    n_lines = -(-len(PANELS) // N_PANELS)
    with look():
        figure = sheet(n_lines * (0.75 - 0.72 * ROW * heights(classes)[2]))
        panels = figure.subplots(n_lines, N_PANELS, sharex=True)
        for arm, axes in zip(PANELS, panels.flat, strict=True):
            assert arm.panel is not None
            place, title = arm.panel
            _bars(axes, classes, arm.name)
            run_axis(axes, classes, names=place % N_PANELS == 0, until=1 / BARS_END)
            axes.set_title(title, fontsize=8, loc="left")
            axes.set_xlim(0, BARS_END)
            axes.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
            axes.spines["bottom"].set_bounds(0, 1)
        figure.supxlabel(
            "share of tried lost items answered right afterwards; n: items tried", fontsize=9
        )
        return figure


def _bars(axes: Axes, classes: Classes, at_image: str) -> None:
    _, rows, _ = heights(classes)
    for run in runs_of(classes):
        arm, y = run.arm(at_image), rows[run.number]
        share = run.summary["recovered"].get(arm)
        if not measured(share):
            lost = any(map(measured, run.summary["recovered"].values()))
            text = why_not(run.summary, f"recovered/{arm}") if lost else "no lost item"
            axes.text(0.03, y, text, va="center", fontsize=7, color=MUTED, bbox=PAPER)
            continue
        axes.barh(y, share.value, height=0.62, color=arm_colour(arm), alpha=0.85, zorder=2)
        interval(axes, share, y, colour=INK, wide=1.1)
        axes.text(1.06, y, f"{short(share)}  n {share.n}", va="center", fontsize=7)
