"""Train the embedded pairs: the tower, then each pair's own part. Resumable, on a CPU.

``python -m twohop.flags.training --out DIR --seed 0``. The language model is frozen, except that
`flags-late` changes some of its blocks.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file

from interventions.errors import InterventionsError
from twohop.flags.late.training import LatePlan, late_parts
from twohop.flags.recipes import Plan, ProjectorTask, seeded, tower_stage
from twohop.flags.stages import replacing, run_stage
from twohop.flags.tower import PatchClassifier

StageName = Literal["tower", "naming", "aligned", "late"]
STAGES: tuple[StageName, ...] = get_args(StageName)


def train(
    *,
    out: Path,
    seed: int = 0,
    stages: Sequence[StageName] = STAGES,
    progress: bool = True,
    plan: Plan | None = None,
    late: LatePlan | None = None,
) -> None:
    """Train and write ``<stage>.safetensors`` and what is known of them, as JSON, into ``out``.

    A rerun goes on where the last one was stopped, losing at most half a minute, and ends at the
    same bits as a run that was not stopped, on the same machine with the same number of threads.
    A stage that is finished is not run again.

    Parameters
    ----------
    out
        Folder for weights and checkpoints; a tower that lies there already is used.
    seed
        Sets initial weights and the order of views, of the tower too if it is trained.
    stages
        Which parts, in order; all others need the tower.
    progress
        Whether to draw a progress bar.
    plan, late
        Steps and rates, and those of `flags-late`; ``None`` is how the shipped weights were
        trained.

    Raises
    ------
    InterventionsError
        If a projector is asked for and ``out`` has no tower, if a stage is unknown, or if ``out``
        holds checkpoints of another seed or plan.
    BackboneUnavailable
        If the language model cannot be had.
    """
    if unknown := set(stages) - set(STAGES):
        raise InterventionsError(f"no stage {sorted(unknown)}; expected some of {list(STAGES)}")
    plan, late = plan or Plan(), late or LatePlan()
    out.mkdir(parents=True, exist_ok=True)
    with _bar(shown=progress) as bar:
        if "tower" in stages and not (out / "tower.safetensors").is_file():
            classifier = seeded(PatchClassifier, seed)
            stage = tower_stage(classifier, plan=plan, seed=seed)
            history = run_stage(stage, out, progress=bar)
            weights = classifier.tower.state_dict()
            _write(out, "tower", weights, seed=seed, plan=vars(plan), history=history)
        pairs = [
            name
            for name in stages
            if name != "tower" and not (out / f"flags-{name}.safetensors").is_file()
        ]
        if not pairs:
            return
        if not (out / "tower.safetensors").is_file():
            raise InterventionsError(
                f"{out} has no tower.safetensors for the pairs to read; train the stage "
                "'tower' first, or copy the shipped one there."
            )
        task = ProjectorTask(out, plan=plan, seed=seed)
        for name in pairs:
            settings = vars(plan)
            if name == "late":
                weights, history = late_parts(task, out, plan=late, seed=seed, progress=bar)
                settings = {**settings, "late": vars(late)}
            else:
                stage = task.stage(name)
                history = run_stage(stage, out, progress=bar)
                weights = stage.module.state_dict()
            _write(out, f"flags-{name}", weights, seed=seed, plan=settings, history=history)


def _bar(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )


def _write(
    out: Path,
    name: str,
    weights: Mapping[str, torch.Tensor],
    *,
    seed: int,
    plan: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Weights, rounded to bfloat16 as the language model's are, and where they come from."""
    rounded = {key: value.to(torch.bfloat16) for key, value in weights.items()}
    about = {
        "seed": seed,
        "dtype": "bfloat16",
        "command": f"python -m twohop.flags.training --out DIR --seed {seed}",
        "plan": plan,
        "threads": torch.get_num_threads(),
        "versions": {
            package: version(package) for package in ("torch", "transformers", "numpy", "pillow")
        },
        "python": platform.python_version(),
        "history": history,
    }
    with replacing(out / f"{name}.json") as fresh:
        fresh.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    with replacing(out / f"{name}.safetensors") as fresh:
        save_file(rounded, fresh)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    asked = parser.parse_args()
    train(out=asked.out, seed=asked.seed, stages=asked.stages)


if __name__ == "__main__":
    main()
