"""What each stage learns from, by which loss, and for how long."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from twohop.flags.assemble import pair_config
from twohop.flags.backbone import backbone_folder
from twohop.flags.data import FIRST_HELD_OUT_VIEW, entities, view
from twohop.flags.evaluate import backbone_reader, measure
from twohop.flags.late.countries import described, description_slots, numbers
from twohop.flags.projectors import (
    NamingLoss,
    aligned_loss,
    aligned_slots,
    solve_outputs,
    view_features,
    whiten_inputs,
)
from twohop.flags.stages import Stage, replacing
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

Made = TypeVar("Made")

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


def seeded(make: Callable[[], Made], seed: int) -> Made:
    """What ``make`` gives when torch's random numbers start from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def tower_stage(classifier: PatchClassifier, *, plan: Plan, seed: int) -> Stage:
    """Train the tower by its patch classifier."""
    countries = torch.arange(len(entities()))
    targets = torch.arange(IMAGE_TOKENS) * len(entities()) + countries[:, None]

    def loss(step: int) -> torch.Tensor:
        logits = classifier(training_pixels(step, seed=seed))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def accuracy() -> dict[str, float]:
        pictures = [view(entity.code, VALIDATION_VIEW) for entity in entities()]
        logits = classifier.country_logits(pixels(pictures))
        pooled = logits.log_softmax(-1).sum(dim=1).argmax(-1)
        return {
            "accuracy": (pooled == countries).float().mean().item(),
            "patch_accuracy": (logits.argmax(-1) == countries[:, None]).float().mean().item(),
        }

    return Stage(
        name="tower",
        settings=f"{plan}, seed {seed}",
        module=classifier,
        steps=plan.tower_steps,
        learning_rate=plan.tower_rate,
        weight_decay=0.05,
        warmup=100,
        loss=loss,
        measure=accuracy,
        measure_every=500,
    )


class ProjectorTask:
    """What both projectors are trained from: the tower's features and the frozen backbone."""

    def __init__(self, out: Path, *, plan: Plan, seed: int) -> None:
        self._reader = backbone_reader()
        self._features, self._validation = _features(out, views=plan.projector_views)
        self._plan = plan
        self._seed = seed

    def stage(self, name: str) -> Stage:
        """The stage that trains one projector, with its initial weights drawn."""
        return self._naming() if name == "naming" else self._aligned()

    def _projector(self) -> LlavaMultiModalProjector:
        from transformers import LlamaConfig
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        # A config of its own: LlavaConfig takes over the one it is given, attention and all.
        text = LlamaConfig.from_pretrained(backbone_folder())
        config = pair_config(text, image_token_id=0)
        return seeded(lambda: LlavaMultiModalProjector(config), self._seed)

    def _batch(
        self, step: int, *, rows: int, of: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Country, of so many (of all), and view of each row of a step."""
        of = of or len(entities())
        rng = np.random.default_rng([self._seed, step])
        turns = -(-rows // of)
        countries = np.concatenate([rng.permutation(of) for _ in range(turns)])
        return countries[:rows], rng.integers(0, self._features.shape[1], rows)

    def _naming(self) -> Stage:
        projector = self._projector()
        of_names = NamingLoss(self._reader.reader(NAMING))

        def loss(step: int) -> torch.Tensor:
            countries, views = self._batch(step, rows=self._plan.naming_rows)
            return of_names(projector, self._features[countries, views], countries)

        return Stage(
            name="naming",
            settings=f"{self._plan}, seed {self._seed}",
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
        reader = self._reader.reader(NAMING)
        slots = [reader.embed(slots) for slots in aligned_slots(reader.tokenizer)]
        projector = self._projector()
        return self._fitted(
            "aligned",
            projector,
            self._features,
            torch.stack(slots).detach(),
            rows=self._plan.aligned_rows,
            steps=self._plan.aligned_steps,
            settings=f"{self._plan}, seed {self._seed}",
            measure=lambda: measure(self._reader, projector(self._validation)),
        )

    def described(self, *, steps: int, rows: int, settings: str) -> Stage:
        """The stage that fits a projector to the words that describe flags, of some countries."""
        chosen = numbers(described())
        targets = description_slots(self._reader.reader(NAMING))
        projector = self._projector()

        def nearest() -> dict[str, float]:
            shown = projector(self._validation[chosen]).flatten(0, 1)
            near = torch.cdist(shown, targets[:, 0]).argmin(-1).view(len(chosen), -1)
            right = near == torch.arange(len(chosen))[:, None]
            return {"slots": right.float().mean().item(), "all": right.all(1).float().mean().item()}

        return self._fitted(
            "described",
            projector,
            self._features[chosen],
            targets,
            rows=rows,
            steps=steps,
            settings=settings,
            measure=nearest,
        )

    def _fitted(
        self,
        name: str,
        projector: LlavaMultiModalProjector,
        features: torch.Tensor,
        targets: torch.Tensor,
        *,
        rows: int,
        steps: int,
        settings: str,
        measure: Callable[[], dict[str, Any]],
    ) -> Stage:
        """Fit a projector to targets, [country, slot, d_model]: least squares, then steps."""
        whiten_inputs(projector, features)
        solve_outputs(projector, features, targets)

        def loss(step: int) -> torch.Tensor:
            countries, views = self._batch(step, rows=rows, of=len(features))
            return aligned_loss(projector, features[countries, views], targets[countries])

        return Stage(
            name=name,
            settings=settings,
            module=projector,
            steps=steps,
            learning_rate=self._plan.aligned_rate,
            weight_decay=0.0,
            warmup=20,
            loss=loss,
            measure=measure,
            measure_every=-(-steps // self._plan.measurements),
        )


def trained_tower(out: Path) -> CLIPVisionModel:
    """The tower that training has left in a folder."""
    from transformers import CLIPVisionModel

    tower = CLIPVisionModel(tower_config())
    tower.load_state_dict(load_file(out / "tower.safetensors"))
    return tower.eval()


def _features(out: Path, *, views: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch features of the training views, [country, view, patch, width], and of validation's."""
    weights = (out / "tower.safetensors").read_bytes()
    kept = out / f"features-{hashlib.sha256(weights).hexdigest()[:12]}-{views}.safetensors"
    if not kept.is_file():
        tower = trained_tower(out)
        features = {
            "training": view_features(tower, range(views)),
            "validation": view_features(tower, [VALIDATION_VIEW])[:, 0].contiguous(),
        }
        with replacing(kept) as fresh:
            save_file(features, fresh)
    read = load_file(kept)
    return read["training"], read["validation"]
