"""Figure of the paper's claim over pairs: does the gap grow with lateness?"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from twohop.report import wording
from twohop.report.comparison import Classes, Run
from twohop.report.comparison_figures import wrapped
from twohop.report.style import CLASS_MARKS, INK, MUTED, SHADE, look, sheet
from twohop.statistics import Estimate

MARKER = 11  # points, wide enough for a number of two digits
STEP, NEAR = 0.055, 0.07  # of the axes: markers closer than both would overlap


def gap_against_lateness(classes: Classes) -> Figure:
    """Gap of each run over its lateness, with both intervals; beside it those without lateness.

    In layers, or, where the models differ in depth, in per cent of their blocks.
    """
    runs = [(kind, run) for kind, several in classes.items() for run in several]
    with_gap = [(kind, run) for kind, run in runs if run.summary["gap_points"].measured]
    placed = [(kind, run) for kind, run in with_gap if run.summary["lateness_layers"].measured]
    others = [(kind, run) for kind, run in with_gap if not run.summary["lateness_layers"].measured]
    alike = len({run.summary["n_layers"] for _, run in runs}) == 1
    names = [wrapped(run) for _, run in runs]
    lines = sum(1 + name.count("\n") for name in names) + len(classes)
    with look():
        figure = sheet(max(3.6, 0.155 * lines + 0.7))
        strip, axes, key = figure.subplots(
            1, 3, width_ratios=[0.35 + 0.16 * len(others), 3, 1.75], sharey=True
        )
        lateness = [_lateness(run, per_cent=not alike) for _, run in placed]
        bounds = [0.0, *(late.low for late in lateness), *(late.high for late in lateness)]
        pad = 1 if alike else 5
        low, high = min(bounds) - pad, max(bounds) + pad
        gaps = [run.summary["gap_points"] for _, run in placed]
        ends = [0.0, *(gap.low for gap in gaps), *(gap.high for gap in gaps)]
        moved = apart(
            [late.value for late in lateness],
            [gap.value for gap in gaps],
            step=STEP * (high - low),
            near=NEAR * (max(ends) - min(ends)),
        )
        for (kind, run), late, x in zip(placed, lateness, moved, strict=True):
            _point(axes, kind, run, late.value, x)
            y = run.summary["gap_points"].value
            axes.plot([late.low, late.high], [y, y], color=CLASS_MARKS[kind][0], lw=1.2, zorder=2)
        for x, (kind, run) in enumerate(others):
            _point(strip, kind, run, x, x)
        axes.axvspan(low, 0, color=SHADE, lw=0, zorder=0)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        unit = "layers" if alike else "per cent of the model's blocks"
        axes.set_xlabel(f"lateness in {unit}\n(shaded: in time)")
        axes.tick_params(axis="y", labelleft=False)
        if not placed:
            axes.text(
                0.5,
                0.5,
                "lateness is measured in no run",
                transform=axes.transAxes,
                ha="center",
                color=MUTED,
            )
        strip.set_xlim(-0.8, max(0, len(others) - 1) + 0.8)
        strip.set_xticks([])
        strip.set_xlabel("none\nmeasured")
        strip.set_ylabel("gap in points, free answers, recognised items")
        strip.tick_params(axis="y", labelleft=True)
        for panel in (strip, axes):
            panel.axhline(0, color=MUTED, lw=0.8, zorder=1)
        _key(key, classes)
        return figure


def _lateness(run: Run, *, per_cent: bool) -> Estimate:
    lateness = run.summary["lateness_layers"]
    return lateness.scaled(100 / run.summary["n_layers"]) if per_cent else lateness


def _point(axes: Axes, kind: str, run: Run, x: float, label_at: float) -> None:
    """A run's marker with its number, and, if this had to be moved, a dot at its true place."""
    colour, marker = CLASS_MARKS[kind]
    gap = run.summary["gap_points"]
    axes.plot([x, x], [gap.low, gap.high], color=colour, lw=1.2, zorder=2)
    axes.plot(x, gap.value, "o", color=colour, ms=4, zorder=3)
    axes.plot([x, label_at], [gap.value, gap.value], color=MUTED, lw=0.7, ls=":", zorder=3)
    axes.plot(label_at, gap.value, marker, color=colour, ms=MARKER, mec="white", mew=0.8, zorder=4)
    axes.text(
        label_at, gap.value, str(run.number), color="white", fontsize=6.5, weight="bold",
        ha="center", va="center_baseline", zorder=5,
    )  # fmt: skip


def apart(xs: Sequence[float], ys: Sequence[float], *, step: float, near: float) -> list[float]:
    """Move points sideways, by whole steps, until no two within ``near`` overlap.

    Examples
    --------
    >>> apart([0.0, 0.0, 0.0], [50.0, 50.0, 90.0], step=0.5, near=7)
    [0.0, 0.5, 0.0]
    """
    placed: list[tuple[float, float]] = []
    for x, y in zip(xs, ys, strict=True):
        moves = 0
        while any(
            abs(x + moves * step - taken_x) < step - 1e-9 and abs(y - taken_y) < near
            for taken_x, taken_y in placed
        ):
            moves = -moves if moves > 0 else 1 - moves
        placed.append((x + moves * step, y))
    return [x for x, _ in placed]


def _key(axes: Axes, classes: Classes) -> None:
    """Names of the runs by their numbers, under their classes."""
    axes.set_axis_off()
    y = 1.0
    height = axes.figure.get_figheight() - 0.5  # pyright: ignore[reportAttributeAccessIssue]
    line = 0.155 / height
    for kind, runs in classes.items():
        colour, marker = CLASS_MARKS[kind]
        axes.plot(0.03, y, marker, color=colour, ms=6, transform=axes.transAxes, clip_on=False)
        axes.text(
            0.1, y, wording.ARCHITECTURES[kind], transform=axes.transAxes, va="center",
            fontsize=8, color=MUTED, style="italic",
        )  # fmt: skip
        for run in runs:
            name = wrapped(run)
            y -= line * (0.5 + 0.5 * (1 + name.count("\n")))
            axes.text(
                0.1, y, name, transform=axes.transAxes, va="center", fontsize=7.5, color=INK,
                linespacing=0.9,
            )  # fmt: skip
            y -= line * 0.5 * name.count("\n")
        y -= 1.3 * line
