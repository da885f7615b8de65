"""Figures of a run's numbers: gates, classes of answers, recovery; and how figures are saved."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interventions.storable import write_atomically
from twohop.report import wording
from twohop.report.estimates import NOT_MEASURED, Number, estimate, measured, short, written
from twohop.report.style import (
    ARM_COLOURS,
    BLUE,
    DARK,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    OUTCOME_COLOURS,
    RED,
    VERDICT_COLOURS,
    group_title,
    look,
    nothing,
    percent_axis,
    sheet,
)
from twohop.stages.recovery.arms import KNOWN, arm_groups
from twohop.statistics import Estimate, estimates

PNG_DPI = 150


def rendered(figure: Figure) -> dict[str, bytes]:
    """Return a figure as ``"png"`` and ``"svg"`` bytes, the same for the same figure."""
    by_format = {}
    with look():
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=metadata)
            figure.set_layout_engine("none")  # both formats get the layout of the first
            by_format[kind] = buffer.getvalue()
    return by_format


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Write each figure to ``folder/figures/`` as PNG (150 dpi) and SVG.

    Returns
    -------
    dict of str to bytes
        The SVG of each figure.
    """
    vectors = {}
    for name, figure in figures.items():
        for kind, data in rendered(figure).items():
            write_atomically(folder / "figures" / f"{name}.{kind}", data)
            if kind == "svg":
                vectors[name] = data
    return vectors


def interval(axes: Axes, number: Estimate, y: float, *, colour: str, wide: float = 1.4) -> None:
    """Draw an interval as a horizontal line."""
    axes.plot(
        [number.low, number.high], [y, y], color=colour, lw=wide, solid_capstyle="butt", zorder=3
    )


def gates_figure(summary: Mapping[str, Any]) -> Figure:
    """Accuracy at every gate, in free answers and forced choice, and the gap."""
    with look():
        figure = sheet(3.1)
        axes = figure.subplots()
        gates = list(wording.GATES)
        for row, gate in enumerate(gates):
            y = len(gates) - 1 - row
            free, forced = summary[gate], summary["forced"].get(gate)
            axes.axhline(y, color=FAINT, lw=0.6, zorder=0)
            label = short(free)
            if measured(free):
                interval(axes, free, y + 0.13, colour=BLUE)
                axes.plot(free.value, y + 0.13, "o", color=BLUE, ms=6, zorder=4)
            if forced and measured(forced):
                interval(axes, forced, y - 0.13, colour=ORANGE)
                axes.plot(
                    forced.value, y - 0.13, "s", mfc="white", mec=ORANGE, mew=1.6, ms=5, zorder=4
                )
                label += f" / {short(forced)}"
            axes.text(1.03, y, label, va="center", fontsize=8)
        axes.set_yticks(range(len(gates)), [wording.GATES[gate] for gate in reversed(gates)])
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9)
        axes.spines["left"].set_visible(False)
        percent_axis(axes, top=1.25)
        axes.set_ylim(-0.6, len(gates) - 0.3)
        axes.set_xlabel(f"answered right, all {summary['n_items']} items")
        axes.plot([], [], "o-", color=BLUE, ms=6, label="free answer")
        axes.plot([], [], "s-", color=ORANGE, mfc="white", mew=1.6, ms=5, label="forced choice")
        gap = written(summary["gap_points"], "points")
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.8)
        said = f"gap on recognised items: {gap}" + (" points" if gap != NOT_MEASURED else "")
        axes.set_title(said, loc="right", color=RED, fontsize=9, pad=4)
        return figure


def stacked(
    axes: Axes,
    shares: Mapping[str, Number],
    labels: Mapping[str, tuple[str, str]],
    colours: Mapping[str, str],
    *,
    title: str,
) -> None:
    """One stacked bar of classes that add up to 1, with a legend that carries the shares."""
    left = 0.0
    for name, (label, _) in labels.items():
        share = estimate(shares.get(name)).value
        if not share >= 0:
            continue
        axes.barh(
            0,
            share,
            left=left,
            height=0.8,
            color=colours[name],
            edgecolor="white",
            lw=1,
            label=f"{label} {short(shares[name])}",
        )
        if share >= 0.06:
            dark = colours[name] in (DARK, BLUE, RED, GREEN)
            axes.text(
                left + share / 2,
                0,
                short(shares[name]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else INK,
            )
        left += share
    if left == 0:
        nothing(axes, "no item to sort")
    axes.set_title(title, loc="left")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.4, 0.4)
    axes.set_axis_off()
    if left:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.01, 0.0),
            ncols=3,
            handlelength=0.9,
            handleheight=0.9,
            columnspacing=1.4,
            borderpad=0.2,
        )


def outcomes_figure(summary: Mapping[str, Any]) -> Figure:
    """What is said of images, and why items are lost: two stacked bars."""
    with look():
        figure = sheet(2.9)
        above, below = figure.subplots(2, 1)
        n = summary["outcomes"]["right"].n
        stacked(
            above,
            summary["outcomes"],
            wording.OUTCOMES,
            OUTCOME_COLOURS,
            title=f"What the VLM says of the image ({n} recognised items)",
        )
        stacked(
            below,
            summary["diagnosis"],
            wording.VERDICTS,
            VERDICT_COLOURS,
            title=f"Diagnosis (all {summary['n_items']} items)",
        )
        return figure


def arm_colour(name: str) -> str:
    """Colour of an arm's bar: controls and nulls are grey."""
    arm = KNOWN.get(name)
    if arm is None:
        return BLUE
    return GREY if arm.control else ARM_COLOURS[arm.group]


def recovery_figure(summary: Mapping[str, Any]) -> Figure:
    """Share of lost items that each arm gives back, with its controls, and follow rates."""
    summary = estimates(summary)
    arms = {arm: share for arm, share in summary["recovered"].items() if measured(share)}
    groups = arm_groups([*arms])
    rows = sum(len(labels) + 1.1 for _, labels in groups)
    with look():
        figure = sheet(max(1.2, 0.235 * rows + 0.7))
        axes = figure.subplots()
        if not arms:
            nothing(axes, "no item was lost, so there is nothing to give back")
            return figure
        y, places, names = 0.0, [], []
        for title, labels in groups:
            group_title(axes, title, y)
            y -= 1
            for arm, label in labels.items():
                axes.barh(
                    y, arms[arm].value, height=0.62, color=arm_colour(arm), alpha=0.85, zorder=2
                )
                interval(axes, arms[arm], y, colour=INK, wide=1.2)
                follow = summary["followed"].get(arm)
                text = f"{short(arms[arm])}  n {arms[arm].n}"
                axes.text(1.04, y, text, va="center", fontsize=7.5)
                if measured(follow):
                    interval(axes, follow, y, colour=RED, wide=1.0)
                    axes.plot(follow.value, y, "D", color=RED, ms=5, zorder=5)
                    axes.text(
                        1.46, y, f"follows {short(follow)}", va="center", fontsize=7.5, color=RED
                    )
                places.append(y)
                names.append(label)
                y -= 1
            y -= 0.1
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8.5)
        axes.spines["left"].set_visible(False)
        percent_axis(axes, top=1.85)
        axes.set_ylim(y + 0.4, 0.6)
        axes.set_xlabel("share of tried lost items answered right afterwards")
        return figure
