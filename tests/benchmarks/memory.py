"""Peak memory of repeated sweeps, in a process of their own: python -m benchmarks.memory SHAPE."""

import gc
import json
import subprocess
import sys
from typing import Any

import psutil
import torch

from benchmarks.grids import text_only
from benchmarks.models import ANSWER, SHAPES, make
from interventions.sweeping.sweep import sweep
from twohop.stages.heights import forget, held

CALLS, SETTLED = 20, 5  # what the allocator keeps is settled after so many calls
BUDGET = 256 * 2**20
FLAT = 0.02


def peak() -> int:
    """Bytes, the most since it was forgotten."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else held()


def measure(shape: str) -> dict[str, Any]:
    """Sweep the same grid again and again, under a budget."""
    grid = text_only(make(SHAPES[shape]))
    gc.collect()
    before = (
        torch.cuda.memory_allocated()
        if torch.cuda.is_available()
        else psutil.Process().memory_info().rss
    )
    forget()  # making the models took more than any sweep
    peaks = []
    for _ in range(CALLS):
        sweep(
            grid.model,
            grid.prompt,
            grid.source,
            answers=ANSWER,
            roles=grid.roles[-4:],
            budget=BUDGET,
            progress=False,
        )
        peaks.append(peak())
    growth = peaks[-1] / peaks[SETTLED - 1] - 1
    return {
        "budget": BUDGET,
        "before": before,
        "peaks": peaks,
        "growth_after_settled": growth,
        "rise": peaks[-1] - before,
        "flat": growth < FLAT,
        "within_budget": peaks[-1] - before <= BUDGET,
    }


def in_subprocess(shape: str) -> dict[str, Any]:
    """Measure where nothing else has run."""
    command = [sys.executable, "-m", "benchmarks.memory", shape]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def line(found: dict[str, Any]) -> str:
    """The result, for people."""
    peaks = [one / 2**20 for one in found["peaks"]]
    return (
        f"memory: peak {peaks[SETTLED - 1]:.0f} MiB after {SETTLED} sweeps, {peaks[-1]:.0f} MiB "
        f"after {len(peaks)} ({'flat' if found['flat'] else 'GROWS'}); {found['rise'] / 2**20:.0f} "
        f"MiB above what was there, of a budget of {found['budget'] / 2**20:.0f} MiB "
        f"({'kept' if found['within_budget'] else 'EXCEEDED'})"
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1])) + "\n")
