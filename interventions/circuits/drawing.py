"""Circuits and faithfulness curves that people can read."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from interventions.circuits.graph import Graph
from interventions.errors import ResultsError
from interventions.given import text_of

UP, DOWN, BESIDE = "#b2182b", "#2166ac", "#555555"
PART_COLOURS = {"q": "#1b9e77", "k": "#d95f02", "v": "#7570b3"}
THICKEST, THINNEST = 4.5, 0.6


def draw_circuit(
    graph: Graph, edges: np.ndarray, scores: np.ndarray, *, title: str | None = None
) -> Figure:
    """Draw a circuit: layers upward, MLPs to the right of heads, wider edges for larger scores.

    Red edges have a positive score, blue ones a negative one, grey ones none. A letter below a
    head says whether its queries, keys or values are read into.

    Parameters
    ----------
    graph : Graph
    edges : ndarray of int
    scores : ndarray [edge]
        Of these.
    title : str, optional
    """
    title = None if title is None else text_of(title, "title", error=ResultsError)
    ends = _ends(graph, edges)
    places = _places({name for pair in ends for name in pair[:2]} | {"input", "logits"})
    height = 1.4 + 0.75 * (max(y for _, y in places.values()) + 1)
    width = 3.0 + 0.95 * max(_width_of_rows(places), 2)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    sizes = np.abs(np.nan_to_num(scores))
    largest = float(sizes.max(initial=0.0)) or 1.0
    order = np.argsort(sizes)  # the widest on top
    for i in order:
        sender, receiver, part = ends[i]
        score = scores[i]
        colour = BESIDE if not np.isfinite(score) or score == 0 else UP if score > 0 else DOWN
        thickness = THINNEST + (THICKEST - THINNEST) * float(sizes[i]) / largest
        _edge(axes, places[sender], places[receiver], part, colour, thickness)
    for name, (x, y) in places.items():
        axes.annotate(
            name,
            (x, y),
            ha="center",
            va="center",
            fontsize=8,
            zorder=5,
            bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": BESIDE, "lw": 0.8},
        )
    xs, ys = zip(*places.values(), strict=True)
    axes.set_xlim(min(xs) - 0.8, max(xs) + 0.8)
    axes.set_ylim(min(ys) - 0.6, max(ys) + 0.6)
    axes.set_axis_off()
    note = f"{len(edges)} of {len(graph.edges)} edges"
    axes.set_title(note if title is None else f"{title}\n{note}", fontsize=9)
    return figure


def _ends(graph: Graph, edges: np.ndarray) -> list[tuple[str, str, str]]:
    """Sender, the node that reads, and which part of it, of every edge."""
    ends = []
    for sender, receiver in graph.edges[edges]:
        node = graph.receivers[receiver]
        fed = graph.feeds[receiver]
        # Keys and values that several heads share are drawn at the first of these.
        reader = str(graph.senders[fed[0]]) if fed else str(node)
        ends.append((str(graph.senders[sender]), reader, node.part))
    return ends


def _places(names: set[str]) -> dict[str, tuple[float, float]]:
    """Where each node is drawn: a row for each layer's attention, and one for its MLP."""
    rows: dict[tuple[int, int], list[str]] = {}
    for name in names:
        rows.setdefault(_row(name), []).append(name)
    places = {}
    for y, key in enumerate(sorted(rows)):
        members = sorted(rows[key], key=_order)
        # MLPs stand to the right, so that edges up the middle do not run through them.
        shift = 0.5 * (len(members) - 1)
        aside = 1.6 if key[1] == 1 and 0 <= key[0] < 10**6 else 0.0
        for i, name in enumerate(members):
            # Neighbouring rows are staggered, or edges from row to row would lie on each other.
            stagger = 0.22 if y % 2 else -0.22
            places[name] = ((i - shift) * 1.15 + aside + stagger, float(y))
    return places


def _row(name: str) -> tuple[int, int]:
    if name == "input":
        return (-1, 0)
    if name == "logits":
        return (10**6, 0)
    layer, part = name[1:].split(".", 1)
    return (int(layer), int(part == "mlp"))


def _order(name: str) -> int:
    digits = name.rsplit("H", 1)[-1]
    return int(digits) if digits.isdigit() else 0


def _width_of_rows(places: dict[str, tuple[float, float]]) -> float:
    xs = [x for x, _ in places.values()]
    return max(xs) - min(xs) + 1


def _edge(
    axes: Any,
    start: tuple[float, float],
    end: tuple[float, float],
    part: str,
    colour: str,
    width: float,
) -> None:
    bend = 0.0 if end[1] - start[1] <= 1 else (0.14 if start[0] <= end[0] else -0.14)
    arrow = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=6 + width,
        connectionstyle=f"arc3,rad={bend}",
        lw=width,
        color=colour,
        alpha=0.65,
        shrinkA=9,
        shrinkB=9,
        zorder=2,
    )
    axes.add_patch(arrow)
    if part:
        offset = {"q": -0.24, "k": 0.0, "v": 0.24}[part]
        axes.annotate(
            part,
            (end[0] + offset, end[1] - 0.27),
            fontsize=7,
            ha="center",
            va="center",
            zorder=6,
            color=PART_COLOURS[part],
            fontweight="bold",
        )


def draw_curve(curve: pd.DataFrame, heading: str) -> Figure:
    """Draw faithfulness against the number of edges, with the band of random circuits.

    Parameters
    ----------
    curve : DataFrame
        As :meth:`interventions.Faithfulness.curve` gives it.
    heading : str
    """
    curve = curve.sort_values("n_edges")
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    x = curve["n_edges"].to_numpy()
    for level in (0, 1):
        axes.axhline(level, color="0.75", lw=0.8, zorder=0)
    if "random" in curve:
        low, high = (curve[f"random_{end}"].to_numpy() for end in ("low", "high"))
        axes.fill_between(x, low, high, color="0.6", alpha=0.35, lw=0)
        axes.plot(x, curve["random"], color="0.45", ls="--", label="random, 95 % of circuits")
    axes.fill_between(x, curve["low"], curve["high"], color=UP, alpha=0.2, lw=0)
    axes.plot(
        x, curve["faithfulness"], color=UP, marker="o", ms=3.5, label="circuit, 95 % interval"
    )
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("edges in the circuit")
    axes.set_ylabel("faithfulness")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title(text_of(heading, "title", error=ResultsError), fontsize=9)
    return figure
