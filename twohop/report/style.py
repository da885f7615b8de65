"""One look for every figure: colours that colour-blind readers can tell apart, few lines."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 6.4
INK, MUTED, FAINT = "#222222", "#6b6b6b", "#d9d9d9"
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, GREY, DARK = "#56B4E9", "#CC79A7", "#B4B4B4", "#4d4d4d"
SHADE = "#f3ead2"
PAPER = {"fc": "white", "ec": "none", "pad": 1.5}  # behind words, over lines

OUTCOME_COLOURS = {
    "right": GREEN,
    "same_type": ORANGE,
    "echo": SKY,
    "other": PINK,
    "empty": GREY,
}
VERDICT_COLOURS = {
    "right": GREEN,
    "knowledge_missing": GREY,
    "not_recognised": SKY,
    "echo_or_format": PINK,
    "late": RED,
    "never_in_circuit": ORANGE,
    "in_time": BLUE,
    "unexplained": DARK,
    "not_tested": FAINT,
}
ARM_COLOURS = {"transplant": BLUE, "control": GREY, "back_patching": ORANGE, "chain": GREEN}
"""Of each group of arms."""
CLASS_MARKS = {
    "llava": (BLUE, "o"),
    "native": (GREEN, "s"),
    "cross-attention": (RED, "D"),
    "other": (DARK, "h"),
}
"""Colour and marker of each class of architecture."""

SETTINGS: dict[Any, Any] = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.hashsalt": "twohop",
    "svg.fonttype": "path",
}


@contextmanager
def look() -> Iterator[None]:
    """Draw with this look inside the block; the global settings are as before afterwards."""
    with mpl.rc_context(SETTINGS):
        yield


def sheet(height: float) -> Figure:
    """Return an empty figure of the page's width, in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")


def percent_axis(axes: Axes, *, along: str = "x", top: float = 1.0) -> None:
    """Make an axis of shares, from 0 to 1, ticked in per cent."""
    ticks = [0, 0.25, 0.5, 0.75, 1.0]
    labels = ["0", "25", "50", "75", "100 %"]
    if along == "x":
        axes.set_xlim(-0.015, top)
        axes.set_xticks(ticks, labels)
        axes.spines["bottom"].set_bounds(0, 1)
    else:
        axes.set_ylim(-0.03, top)
        axes.set_yticks(ticks, labels)
        axes.spines["left"].set_bounds(0, 1)


def spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Move labels apart so that no two are closer than ``gap``, keeping their order.

    Examples
    --------
    >>> spread([0.5, 0.5], gap=0.2)
    [0.4, 0.6]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[tuple[list[int], float]] = []
    for i in order:
        members, centre = [i], heights[i]
        while groups:
            others, middle = groups[-1]
            if centre - middle >= gap * (len(members) + len(others)) / 2 - 1e-9:
                break
            groups.pop()
            size = len(members) + len(others)
            centre = (centre * len(members) + middle * len(others)) / size
            members = others + members
        groups.append((members, centre))
    placed = [0.0] * len(heights)
    for members, centre in groups:
        for rank, i in enumerate(members):
            placed[i] = round(centre + gap * (rank - (len(members) - 1) / 2), 6)
    return placed


def nothing(axes: Axes, why: str) -> None:
    """Say in an empty panel why it is empty."""
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        f"not measured: {why}",
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=MUTED,
        wrap=True,
    )


def group_title(axes: Axes, title: str, y: float, *, ha: Literal["left", "right"] = "left") -> None:
    """Write the title of a group of rows at the left edge, at height ``y``."""
    axes.text(
        -0.02,
        y,
        title,
        ha=ha,
        va="center",
        fontsize=8.5,
        color=MUTED,
        style="italic",
        transform=axes.get_yaxis_transform(),
    )
