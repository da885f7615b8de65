"""How a sweep's cost grows with cells, tokens and layers: ``make growth``.

On a Llama of random weights: cells drawn at random from all layers x positions of a prompt, each a
patch of ``resid_post`` at one token. They are run as :func:`interventions.replay` runs them, and by
a full forward pass for each with a PyTorch hook (a few of them timed, the rest extrapolated).
Written are the seconds of both, and the tokens that went through blocks.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from rich.console import Console

import interventions as iv
from benchmarks.bound import counted, needed
from benchmarks.models import SHAPES, Shape, make
from benchmarks.peers import Cell, Task, raw
from benchmarks.report import machine
from interventions.sweeping.replay import replay

say = Console(highlight=False, soft_wrap=True).print
BASE = Shape(256, 40, 4, 688, side=2, text=4, alone=256)
CELLS, SAMPLE, TURNS, LONG = 256, 3, 3, 20
"""Where tokens or layers grow; cells that take a pass of their own; repeats, of which the median is
taken; seconds after which there are no more of them."""
GROWING: dict[str, Sequence[int]] = {
    "cells": (1, 10, 100, 1000, 10_000),
    "tokens": (64, 128, 256, 512, 1024, 2048, 4096),
    "layers": (8, 16, 24, 32, 40, 48),
}
SLOW = "a pass per cell"
QUICK: dict[str, Sequence[int]] = {"cells": (1, 16), "tokens": (16, 32), "layers": (2, 4)}
WORDS = {
    "cells": f"cells, of {BASE.n_layers} layers x {BASE.alone} tokens",
    "tokens": f"tokens of the prompt; {CELLS} cells, {BASE.n_layers} layers",
    "layers": f"layers; {CELLS} cells, {BASE.alone} tokens",
}


def measured(shape: Shape, n_cells: int) -> dict[str, float]:
    """Seconds and tokens through blocks of so many cells, and of as many full runs."""
    bench = make(shape)
    model, prompt = bench.backbone, bench.told
    every = shape.n_layers * prompt.length
    chosen = np.sort(np.random.default_rng(0).choice(every, n_cells, replace=False))
    value = torch.randn(shape.d_model, generator=torch.Generator().manual_seed(0))
    cells = [Cell(int(i) // prompt.length, (int(i) % prompt.length,), value) for i in chosen]
    patches = [[_patch(prompt, cell)] for cell in cells]
    full = raw(Task(model, prompt, cells))
    sample = sorted({*np.linspace(0, n_cells - 1, SAMPLE).round().astype(int).tolist()})
    replay(model, prompt, patches[:1])
    full(sample[:1])
    ours: list[float] = []
    theirs: list[float] = []
    with counted(model.module) as counts:
        while len(ours) < TURNS and sum(ours) < LONG:
            counts.clear()
            begun = time.perf_counter()
            found = replay(model, prompt, patches)[:, 0, -1]
            ours.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            expected = full(sample)
            theirs.append((time.perf_counter() - begun) / len(sample) * n_cells)
            torch.testing.assert_close(found[sample].float(), expected, atol=1e-3, rtol=1e-3)
    tokens = sum(counts)
    length = prompt.length
    return {
        "seconds": float(np.median(ours)),
        "seconds_full": float(np.median(theirs)),
        "tokens": tokens,
        "tokens_full": n_cells * shape.n_layers * length,
        "tokens_needed": needed(cells, n_layers=shape.n_layers, length=length, full_runs=1),
    }


def _patch(prompt: iv.Prompt, cell: Cell) -> iv.Patch:
    index = torch.tensor([cell.positions])
    where = iv.Positions(index, torch.ones_like(index, dtype=torch.bool), prompt.length, False, "")
    return iv.Patch("resid_post", cell.layer, where, cell.value[None])


def shape_of(axis: str, value: int, base: Shape) -> tuple[Shape, int]:
    """Return the shape and the cells of a point."""
    if axis == "cells":
        return base, value
    grown = replace(base, **{"alone" if axis == "tokens" else "n_layers": value})
    return grown, min(CELLS, grown.alone * grown.n_layers)


def draw(points: dict[str, list[dict[str, float]]], out: Path) -> None:
    """One panel for each: seconds of both ways, and how many times fewer tokens through blocks."""
    figure, panels = plt.subplots(
        2, len(points), figsize=(11, 5.2), sharex="col", height_ratios=(2, 1), layout="constrained"
    )
    for column, (axis, found) in enumerate(points.items()):
        at = [point["at"] for point in found]
        above: Axes = panels[0, column]
        above.loglog(at, [p["seconds_full"] for p in found], "o--", color="0.45", label=SLOW)
        above.loglog(at, [p["seconds"] for p in found], "o-", color="#0b6fa4", label="replay")
        below: Axes = panels[1, column]
        fewer = [p["tokens_full"] / p["tokens"] for p in found]
        faster = [p["seconds_full"] / p["seconds"] for p in found]
        below.semilogx(at, faster, "o-", color="#0b6fa4", label="times faster")
        below.semilogx(at, fewer, "s:", color="0.45", label="times fewer tokens x blocks")
        below.set_xlabel(WORDS[axis])
        below.set_ylim(0, 1.15 * max(*faster, *fewer))
        below.set_xticks(at, [f"{value:,}" for value in at], fontsize=8)
        below.minorticks_off()
        for panel in (above, below):
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("ratio")
    for row in panels:
        row[0].legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure every point, and write the table and the picture."""
    parser = argparse.ArgumentParser(prog="make growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small shapes: a check, not a result")
    parser.add_argument(
        "--axis", nargs="+", choices=[*GROWING], default=[*GROWING], help="others stay as they were"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    asked = parser.parse_args()
    base, growing = (SHAPES["quick"], QUICK) if asked.quick else (BASE, GROWING)
    asked.out.mkdir(parents=True, exist_ok=True)
    written = asked.out / "growth.json"
    points: dict[str, list[dict[str, float]]] = {}
    if len(asked.axis) < len(growing):
        points = json.loads(written.read_text())["points"]
    for axis in asked.axis:
        points[axis] = []
        for value in growing[axis]:
            shape, n_cells = shape_of(axis, value, base)
            point = {"at": value, **measured(shape, n_cells)}
            points[axis].append(point)
            faster = point["seconds_full"] / point["seconds"]
            say(f"{axis} {value}: {point['seconds']:.2f} s, {faster:.1f} times faster")
    about = {"machine": machine(make(SHAPES["quick"]).vlm), "shape": vars(base), "points": points}
    written.write_text(json.dumps(about, indent=1))
    draw(points, asked.out / "growth.png")


if __name__ == "__main__":
    main()
