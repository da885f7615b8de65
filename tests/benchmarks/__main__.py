"""Time everyone on the same work: ``make bench``."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from floors import FLOOR16, FLOOR32
from rich.console import Console

from benchmarks import analyses, commands, grids, inside, memory, report
from benchmarks.contest import Case, contest
from benchmarks.models import SHAPES, Bench, make

Maker = Callable[[Bench, float], Case]
CASES: dict[str, Maker] = {
    "text-roles": lambda bench, floor: grids.grid_case(
        "text-roles", "all layers x tokens after the picture", grids.text_roles(bench), 45, floor
    ),
    "image-positions": lambda bench, floor: grids.grid_case(
        "image-positions",
        "every third layer x image positions",
        grids.image_positions(bench),
        5,
        floor,
    ),
    "text-only": lambda bench, floor: grids.grid_case(
        "text-only", "all layers x positions of a text", grids.text_only(bench), 5, floor
    ),
    "transplant": lambda bench, floor: grids.grid_case(
        "transplant", "backbone values into the VLM", grids.transplanted(bench), None, floor
    ),
    "heads": inside.heads_case,
    "knockout": inside.knockout_case,
    "edges": inside.edges_case,
    "edges-last": lambda bench, floor: inside.edges_case(bench, floor, last=True),
    "pattern": inside.pattern_case,
    "attribution": analyses.attribution_case,
    "probes": lambda bench, _: analyses.probe_case(bench),
    "collection": analyses.collection_case,
    "import": lambda *_: commands.import_case(),
    "help": lambda *_: commands.help_case(),
}


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(prog="make bench", description=__doc__)
    made.add_argument("--case", nargs="+", choices=[*CASES, "memory"], help="default: all")
    made.add_argument("--quick", action="store_true", help="small shapes: a check, not a result")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: 7B shapes")
    made.add_argument("--repeats", type=int, default=5, help="at most (%(default)s)")
    made.add_argument(
        "--seconds", type=float, default=50.0, help="per case, for repeats (%(default)s)"
    )
    made.add_argument("--threads", type=int, help="default: torch's")
    made.add_argument("--out", type=Path, default=Path("bench.json"))
    return made


def main() -> int:
    """Run the cases, print tables, write the file; 1 if our numbers were refused."""
    asked = parser().parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    shape = "quick" if asked.quick else asked.device
    floor = FLOOR32 if SHAPES[shape].dtype == "float32" else FLOOR16
    console = Console(width=None if sys.stdout.isatty() else 140)
    bench = make(SHAPES[shape])
    results: dict[str, Any] = {"machine": report.machine(bench.vlm), "shape": vars(SHAPES[shape])}
    console.print_json(data=results)
    refused = False
    for name in asked.case or [*CASES, "memory"]:
        if name == "memory":
            results[name] = memory.in_subprocess(shape)
            console.print(memory.line(results[name]))
        else:
            case = CASES[name](bench, floor)
            outcomes = contest(case, repeats=asked.repeats, seconds=asked.seconds)
            results[name] = report.summary(case, outcomes)
            console.print(report.table(case, results[name]))
            refused |= any(one.contestant.ours and not one.seconds for one in outcomes)
        asked.out.write_text(json.dumps(results, indent=1))
    return int(refused)


if __name__ == "__main__":
    sys.exit(main())
