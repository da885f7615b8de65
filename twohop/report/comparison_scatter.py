"""Figure of the paper's claim over pairs: does the gap grow with what comes late?"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twohop.report import wording
from twohop.report.comparison import Classes
from twohop.report.comparison_figures import wrapped
from twohop.report.replicates import AGAINST, GAP, Against, Pair, gap_against, pairs_of, placed
from twohop.report.style import CLASS_MARKS, INK, MUTED, look, sheet

MARKER = 11  # points, wide enough for a number of two digits
STEP, NEAR = 0.075, 0.07  # of the axes: markers closer than both would overlap
MARGIN = 5  # points


def gap_scatter(classes: Classes) -> Figure:
    """Gap of each pair over the share late, and over the predicted loss, with both intervals.

    Small dots are single runs of a pair that has several. A line is drawn where there are enough
    pairs to claim one, and thin ones for the classes that have.
    """
    pairs = pairs_of(classes)
    names = [_name(pair) for pair in pairs]
    lines = sum(1 + name.count("\n") for name in names) + len(classes)
    with look():
        figure = sheet(max(3.4, 0.155 * lines + 0.9))
        first, second, key = figure.subplots(1, 3, width_ratios=[2, 2, 1.6])
        second.sharey(first)
        for axes, against in zip((first, second), gap_against(pairs).values(), strict=True):
            _panel(axes, pairs, against)
        first.set_ylabel("gap in points, free answers, recognised items")
        second.tick_params(axis="y", labelleft=False)
        _key(key, pairs)
        return figure


def _panel(axes: Axes, pairs: list[Pair], against: Against) -> None:
    where, mine = AGAINST[against.key], placed(pairs, against.key)
    axes.axhline(0, color=MUTED, lw=0.8, zorder=1)
    axes.set_xlabel(f"{wording.AGAINST[against.key]}, %")
    axes.set_title(_titled(against, len(mine)), fontsize=7.5, color=MUTED, loc="left")
    if not mine:
        axes.text(
            0.5, 0.5, "measured\nin no run", transform=axes.transAxes, ha="center", color=MUTED
        )
        axes.set_xticks([])
        return
    numbers = [pair.mean(where).scaled(100) for pair in mine]
    gaps = [pair.mean(GAP) for pair in mine]
    low = min(0.0, *(number.low for number in numbers)) - MARGIN
    high = max(number.high for number in numbers) + MARGIN
    ends = [0.0, *(gap.low for gap in gaps), *(gap.high for gap in gaps)]
    moved = apart(
        [number.value for number in numbers],
        [gap.value for gap in gaps],
        step=STEP * (high - low),
        near=NEAR * (max(ends) - min(ends)),
    )
    for pair, x, y, at in zip(mine, numbers, gaps, moved, strict=True):
        colour, marker = CLASS_MARKS[pair.kind]
        for run in pair.runs if len(pair.runs) > 1 else ():
            axes.plot(
                100 * run.at(where).value, run.at(GAP).value, ".", color=colour, ms=3, alpha=0.6
            )
        axes.plot([x.low, x.high], [y.value, y.value], color=colour, lw=1.1, zorder=2)
        axes.plot([x.value, x.value], [y.low, y.high], color=colour, lw=1.1, zorder=2)
        axes.plot([x.value, at], [y.value, y.value], color=MUTED, lw=0.7, ls=":", zorder=3)
        axes.plot(x.value, y.value, "o", color=colour, ms=4, zorder=3)
        axes.plot(at, y.value, marker, color=colour, ms=MARKER, mec="white", mew=0.8, zorder=4)
        axes.text(
            at, y.value, str(pair.number), color="white", fontsize=6.5, weight="bold",
            ha="center", va="center_baseline", zorder=5,
        )  # fmt: skip
    for kind, of in (("", against.overall), *against.families.items()):
        rows = [i for i, pair in enumerate(mine) if kind in ("", pair.kind)]
        if of.claimable and of.slope.measured:
            xs = np.array([numbers[i].value for i in rows])
            ys = np.mean([gaps[i].value for i in rows]) + of.slope.value * (xs - xs.mean())
            colour, wide = (CLASS_MARKS[kind][0], 0.8) if kind else (INK, 1.2)
            order = [int(xs.argmin()), int(xs.argmax())]
            axes.plot(xs[order], ys[order], color=colour, lw=wide, ls="--", zorder=1)
    axes.set_xlim(low, high)


def _titled(against: Against, n: int) -> str:
    """What the pairs of a panel allow to be said."""
    if not against.overall.claimable:
        return f"{n} pair{'' if n == 1 else 's'}: too few for a slope"
    return f"{n} pairs, {'an association is shown' if against.overall.shown else 'not shown'}"


def _name(pair: Pair) -> str:
    """Its number and name in the key, with its replicates."""
    first = min(pair.runs, key=lambda run: run.number)
    if len(pair.runs) == 1:
        return wrapped(first.number, first.label)
    return wrapped(pair.number, f"{pair.name} ({len(pair.runs)} runs)")


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


def _key(axes: Axes, pairs: list[Pair]) -> None:
    """Names of the pairs by their numbers, under their classes."""
    axes.set_axis_off()
    y = 1.0
    height = axes.figure.get_figheight() - 0.9  # pyright: ignore[reportAttributeAccessIssue]
    line = 0.155 / height
    for kind in dict.fromkeys(pair.kind for pair in pairs):
        colour, marker = CLASS_MARKS[kind]
        axes.plot(0.03, y, marker, color=colour, ms=6, transform=axes.transAxes, clip_on=False)
        axes.text(
            0.1, y, wording.ARCHITECTURES[kind], transform=axes.transAxes, va="center",
            fontsize=8, color=MUTED, style="italic",
        )  # fmt: skip
        for pair in pairs:
            if pair.kind != kind:
                continue
            name = _name(pair)
            y -= line * (0.5 + 0.5 * (1 + name.count("\n")))
            axes.text(
                0.1, y, name, transform=axes.transAxes, va="center", fontsize=7, color=INK,
                linespacing=0.9,
            )  # fmt: skip
            y -= line * 0.5 * name.count("\n")
        y -= 1.3 * line
