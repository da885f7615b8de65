"""Cases: how long a fresh process takes to import the library, or to print help."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contest import Case, Contestant, Run

REPEATS = 3


def _process(command: Sequence[str]) -> Run:
    def run(units: list[int]) -> None:
        for _ in units:
            subprocess.run(command, check=True, capture_output=True)

    return run


def import_case() -> Case:
    """Ours imports nnsight."""
    python = [sys.executable, "-c"]
    return Case(
        "import",
        "importing in a new process",
        [
            Contestant("import nnsight", lambda: _process([*python, "import nnsight"])),
            Contestant(
                "import interventions",
                lambda: _process([*python, "import interventions"]),
                ours=True,
            ),
        ],
        units=REPEATS,
        aim=1 / 1.2,
    )


def help_case() -> Case:
    """The first thing that anybody types."""
    command = [str(Path(sys.executable).with_name("twohop")), "--help"]
    return Case(
        "help",
        "the command line answers",
        [Contestant("twohop --help", lambda: _process(command), ours=True)],
        units=REPEATS,
        limit=1.0,
    )
