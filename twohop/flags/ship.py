"""Put trained weights in their place: ``python -m twohop.flags.ship RUN0 RUN1 RUN2``.

The first run's weights are the ones that are shipped; of the others only the curves are kept,
together with the first's, in ``curves.json``: the gap between text and image against training
steps, for every seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from twohop.flags.assemble import PAIR_KEYS, SHIPPED_WEIGHTS, WeightsMissing


def ship(runs: Sequence[Path], *, to: Path = SHIPPED_WEIGHTS) -> None:
    """Copy the first run's weights and collect all runs' curves.

    Raises
    ------
    WeightsMissing
        If a run is not finished.
    """
    parts = ("tower", *PAIR_KEYS)
    for run in runs:
        asked = parts if run == runs[0] else PAIR_KEYS
        missing = [name for name in asked if not (run / f"{name}.json").is_file()]
        if missing:
            raise WeightsMissing(f"{run} has no {missing}: let its training finish first")
    to.mkdir(parents=True, exist_ok=True)
    for name in parts:
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(runs[0] / f"{name}{suffix}", to / f"{name}{suffix}")
    curves = []
    for run in runs:
        for key in PAIR_KEYS:
            about = json.loads((run / f"{key}.json").read_text(encoding="utf-8"))
            curves += [
                {"pair": key, "seed": about["seed"], **row}
                for row in about["history"]
                if "named" in row  # a projector that was fitted to words was not asked
            ]
    lines = ",\n".join(json.dumps(row) for row in curves)
    (to / "curves.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders training has written")
    ship(parser.parse_args().runs)


if __name__ == "__main__":
    main()
