"""Training every micro model from scratch, into the files the package ships."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from twohop.micro.backbone_training import train_backbone
from twohop.micro.folders import BACKBONE, VISION, backbone_model, weight_file
from twohop.micro.vision_training import (
    description_words,
    embeddings_of,
    features,
    fit_to_embeddings,
    name_words,
    train_by_naming,
    train_tower,
    training_pixels,
)

Result = TypeVar("Result")

BACKBONE_STEPS, TOWER_STEPS, NAMING_STEPS, FIT_STEPS = 450, 500, 300, 1200
VIEWS = 80
"""Views per entity the tower and the projectors are trained on."""


@dataclass(frozen=True)
class Stage:
    """One stage of the training, when it is over."""

    name: str
    steps: int
    loss: float
    """Mean loss of the last ten steps: nats, or mean squared error for `aligned` and `late`."""
    seconds: float


def train(*, out: Path, seed: int = 0, progress: bool = True) -> tuple[Stage, ...]:
    """Train backbone, tower and projectors, and write their weights.

    ``train(out=Path("weights"))`` takes 70 to 120 seconds on one core. The same seed gives the
    same weights on the same machine and versions; the seed the shipped weights come from is 0.

    Parameters
    ----------
    out
        Folder for the five `.safetensors` files (float16); made if missing. Open them with
        `micro_folder(key, weights=out)`.
    seed
        Seed of everything drawn at random.
    progress
        Whether to show a progress bar.

    Returns
    -------
    tuple of Stage
        What was trained, in order.
    """
    out.mkdir(parents=True, exist_ok=True)
    stages: list[Stage] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small for more, and sums keep their order
    try:
        with Progress(disable=not progress) as bar:
            _train_all(out, seed, _Stages(bar, stages))
    finally:
        torch.set_num_threads(threads)
    return tuple(stages)


class _Stages:
    """Runs stages one after the other, and keeps what came of them."""

    def __init__(self, bar: Progress, done: list[Stage]) -> None:
        self.bar = bar
        self.done = done

    def run(
        self, name: str, steps: int, stage: Callable[[Callable[[float], None]], Result]
    ) -> Result:
        task = self.bar.add_task(name, total=steps)
        losses: list[float] = []

        def advance(loss: float) -> None:
            losses.append(loss)
            self.bar.advance(task)

        started = time.perf_counter()
        result = stage(advance)
        last = losses[-10:]
        seconds = time.perf_counter() - started
        self.done.append(Stage(name, steps, sum(last) / len(last), seconds))
        return result


def _train_all(out: Path, seed: int, stages: _Stages) -> None:
    live = stages.run(
        "backbone",
        BACKBONE_STEPS,
        lambda advance: train_backbone(seed=seed, steps=BACKBONE_STEPS, advance=advance),
    )
    live = _write(live, out, BACKBONE)
    backbone = backbone_model(live).requires_grad_(False)

    pixels, targets = training_pixels(VIEWS)
    tower = stages.run(
        "tower",
        TOWER_STEPS,
        lambda advance: train_tower(pixels, targets, seed=seed, steps=TOWER_STEPS, advance=advance),
    )
    tower.load_state_dict(_write(tower.state_dict(), out, VISION))
    with torch.no_grad():
        seen = torch.cat([features(tower, chunk) for chunk in pixels.split(256)])

    naming = stages.run(
        "naming",
        NAMING_STEPS,
        lambda advance: train_by_naming(
            seen, targets, backbone, seed=seed, steps=NAMING_STEPS, advance=advance
        ),
    )
    _write(naming.state_dict(), out, "naming")
    for name, words in (("aligned", name_words()), ("late", description_words())):
        wanted = embeddings_of(words, backbone)[targets]
        fitted = stages.run(
            name,
            FIT_STEPS,
            lambda advance, wanted=wanted: fit_to_embeddings(
                seen, wanted, seed=seed, steps=FIT_STEPS, advance=advance
            ),
        )
        _write(fitted.state_dict(), out, name)


def _write(state: dict[str, Tensor], out: Path, part: str) -> dict[str, Tensor]:
    """Write weights as float16, and return them as they will be read: float32 again."""
    stored = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }
    path = weight_file(part, out)
    save_file(stored, path)
    path.chmod(0o644)
    return {name: tensor.to(torch.float32) for name, tensor in stored.items()}
