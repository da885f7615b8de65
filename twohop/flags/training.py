"""Train the embedded pairs: the tower, then the two projectors. Resumable, on a CPU.

``python -m twohop.flags.training --out DIR --seed 0``. The language model is frozen throughout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from interventions.errors import InterventionsError
from twohop.flags.assemble import pair_config
from twohop.flags.backbone import backbone_folder, quiet_transformers
from twohop.flags.data import FIRST_HELD_OUT_VIEW, entities, view
from twohop.flags.evaluate import PairReader, measure
from twohop.flags.projectors import (
    NamingLoss,
    aligned_loss,
    aligned_slots,
    solve_outputs,
    view_features,
    whiten_inputs,
)
from twohop.flags.stages import Stage, replacing, run_stage
from twohop.flags.templates import NAMING
from twohop.flags.tower import (
    IMAGE_TOKENS,
    VALIDATION_VIEWS,
    PatchClassifier,
    pixels,
    tower_config,
    training_pixels,
)

if TYPE_CHECKING:
    from transformers import CLIPVisionModel
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

StageName = Literal["tower", "naming", "aligned"]
STAGES: tuple[StageName, ...] = get_args(StageName)
VALIDATION_VIEW = FIRST_HELD_OUT_VIEW - VALIDATION_VIEWS
"""The view the curves are measured on: never trained on, and not one of the held-out ones."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast; the stopping rule is that each stage ends with its schedule.

    The defaults are what the shipped weights were trained with.
    """

    tower_steps: int = 2500
    tower_rate: float = 2e-3
    projector_views: int = 64
    """Views of every flag the projectors learn from."""
    naming_steps: int = 200
    naming_rate: float = 2e-3
    naming_rows: int = 48
    aligned_steps: int = 5000
    aligned_rate: float = 4e-3
    aligned_rows: int = 512
    measurements: int = 5
    """Times a projector is measured on the way, the end included."""


def train(
    *,
    out: Path,
    seed: int = 0,
    stages: Sequence[StageName] = STAGES,
    progress: bool = True,
    plan: Plan | None = None,
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
        Which parts, in order; a projector needs the tower.
    progress
        Whether to draw a progress bar.
    plan
        Steps and rates; ``None`` is how the shipped weights were trained.

    Raises
    ------
    InterventionsError
        If a projector is asked for and ``out`` has no tower, or a stage is unknown.
    BackboneUnavailable
        If the language model cannot be had.
    """
    if unknown := set(stages) - set(STAGES):
        raise InterventionsError(f"no stage {sorted(unknown)}; expected some of {list(STAGES)}")
    plan = plan or Plan()
    out.mkdir(parents=True, exist_ok=True)
    with _bar(shown=progress) as bar:
        if "tower" in stages and not (out / "tower.safetensors").is_file():
            classifier = _seeded(PatchClassifier, seed)
            stage = _tower_stage(classifier, plan=plan, seed=seed)
            history = run_stage(stage, out, progress=bar)
            _write(out, "tower", classifier.tower, seed=seed, plan=plan, history=history)
        projectors: list[StageName] = []
        for name in stages:
            if name != "tower" and not (out / f"flags-{name}.safetensors").is_file():
                projectors.append(name)
        if not projectors:
            return
        if not (out / "tower.safetensors").is_file():
            raise InterventionsError(
                f"{out} has no tower.safetensors for the projectors to read; train the stage "
                "'tower' first, or copy the shipped one there."
            )
        task = _ProjectorTask(out, plan=plan, seed=seed)
        for name in projectors:
            stage = task.stage(name)
            history = run_stage(stage, out, progress=bar)
            _write(out, f"flags-{name}", stage.module, seed=seed, plan=plan, history=history)


def _seeded(make: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


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


def _tower_stage(classifier: PatchClassifier, *, plan: Plan, seed: int) -> Stage:
    countries = torch.arange(len(entities()))
    targets = torch.arange(IMAGE_TOKENS) * len(entities()) + countries[:, None]

    def loss(step: int) -> torch.Tensor:
        logits = classifier(training_pixels(step, seed=seed))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def accuracy() -> dict[str, float]:
        pictures = [view(one.code, VALIDATION_VIEW) for one in entities()]
        logits = classifier.country_logits(pixels(pictures))
        pooled = logits.log_softmax(-1).sum(dim=1).argmax(-1)
        return {
            "accuracy": (pooled == countries).float().mean().item(),
            "patch_accuracy": (logits.argmax(-1) == countries[:, None]).float().mean().item(),
        }

    return Stage(
        name="tower",
        module=classifier,
        steps=plan.tower_steps,
        learning_rate=plan.tower_rate,
        weight_decay=0.05,
        warmup=100,
        loss=loss,
        measure=accuracy,
        measure_every=500,
    )


class _ProjectorTask:
    """What both projectors are trained from: the tower's features and the frozen backbone."""

    def __init__(self, out: Path, *, plan: Plan, seed: int) -> None:
        from transformers import AutoTokenizer, LlamaForCausalLM

        backbone = backbone_folder()
        with quiet_transformers():
            model = LlamaForCausalLM.from_pretrained(backbone, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(backbone)
        self._reader = PairReader(model, tokenizer)
        self._features, self._validation = _features(out, views=plan.projector_views)
        self._plan = plan
        self._seed = seed

    def stage(self, name: StageName) -> Stage:
        """The stage that trains one projector, with its initial weights drawn."""
        return self._naming() if name == "naming" else self._aligned()

    def _projector(self) -> LlavaMultiModalProjector:
        from transformers import LlamaConfig
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        # A config of its own: LlavaConfig takes over the one it is given, attention and all.
        text = LlamaConfig.from_pretrained(backbone_folder())
        config = pair_config(text, image_token_id=0)
        return _seeded(lambda: LlavaMultiModalProjector(config), self._seed)

    def _batch(self, step: int, *, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Country and view of each row of a step."""
        rng = np.random.default_rng([self._seed, step])
        turns = -(-rows // len(entities()))
        countries = np.concatenate([rng.permutation(len(entities())) for _ in range(turns)])
        return countries[:rows], rng.integers(0, self._features.shape[1], rows)

    def _naming(self) -> Stage:
        projector = self._projector()
        of_names = NamingLoss(self._reader.reader(NAMING))

        def loss(step: int) -> torch.Tensor:
            countries, views = self._batch(step, rows=self._plan.naming_rows)
            return of_names(projector, self._features[countries, views], countries)

        return Stage(
            name="naming",
            module=projector,
            steps=self._plan.naming_steps,
            learning_rate=self._plan.naming_rate,
            weight_decay=0.0,
            warmup=20,
            loss=loss,
            measure=lambda: measure(self._reader, projector(self._validation)),
            measure_every=-(-self._plan.naming_steps // self._plan.measurements),
        )

    def _aligned(self) -> Stage:
        projector = self._projector()
        reader = self._reader.reader(NAMING)
        targets = torch.stack(
            [reader.embed(slots) for slots in aligned_slots(reader.tokenizer)]
        ).detach()
        whiten_inputs(projector, self._features)
        solve_outputs(projector, self._features, targets)

        def loss(step: int) -> torch.Tensor:
            countries, views = self._batch(step, rows=self._plan.aligned_rows)
            return aligned_loss(projector, self._features[countries, views], targets[countries])

        return Stage(
            name="aligned",
            module=projector,
            steps=self._plan.aligned_steps,
            learning_rate=self._plan.aligned_rate,
            weight_decay=0.0,
            warmup=20,
            loss=loss,
            measure=lambda: measure(self._reader, projector(self._validation)),
            measure_every=-(-self._plan.aligned_steps // self._plan.measurements),
        )


def _tower(out: Path) -> CLIPVisionModel:
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel(tower_config())
    tower.load_state_dict(load_file(out / "tower.safetensors"))
    return tower.eval()


def _features(out: Path, *, views: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch features of the training views, [country, view, patch, width], and of validation's."""
    weights = (out / "tower.safetensors").read_bytes()
    kept = out / f"features-{hashlib.sha256(weights).hexdigest()[:12]}-{views}.safetensors"
    if not kept.is_file():
        tower = _tower(out)
        made = {
            "training": view_features(tower, range(views)),
            "validation": view_features(tower, [VALIDATION_VIEW])[:, 0].contiguous(),
        }
        with replacing(kept) as fresh:
            save_file(made, fresh)
    read = load_file(kept)
    return read["training"], read["validation"]


def _write(
    out: Path, name: str, module: nn.Module, *, seed: int, plan: Plan, history: list[dict[str, Any]]
) -> None:
    """Weights, rounded to bfloat16 as the language model's are, and where they come from."""
    rounded = {key: value.to(torch.bfloat16) for key, value in module.state_dict().items()}
    about = {
        "seed": seed,
        "dtype": "bfloat16",
        "command": f"python -m twohop.flags.training --out DIR --seed {seed}",
        "plan": vars(plan),
        "threads": torch.get_num_threads(),
        "versions": {one: version(one) for one in ("torch", "transformers", "numpy", "pillow")},
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
