"""Training that can be stopped at any moment and goes on where it was, to the same bits."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from interventions.errors import InterventionsError

SECONDS_BETWEEN_CHECKPOINTS = 30.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One module to train for a fixed number of steps.

    The loss is a function of the step alone (and of the seed it was built with), so the module,
    the optimiser and the step are all there is to restore: no random state outlives a step.
    """

    name: str
    settings: str
    """What the result depends on besides the code; a checkpoint of other settings is refused."""
    module: nn.Module
    """What is trained; its initial weights come from the seed."""
    steps: int
    learning_rate: float
    weight_decay: float
    warmup: int
    loss: Callable[[int], torch.Tensor]
    measure: Callable[[], dict[str, Any]]
    """Numbers of the module as it stands, for the history."""
    measure_every: int


def rate(stage: Stage, step: int) -> float:
    """Learning rate at a step: linear warm-up, then a half cosine to zero."""
    warm = min(1.0, (step + 1) / stage.warmup)
    return stage.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / stage.steps))


def run_stage(
    stage: Stage, folder: Path, *, progress: Progress, stop_after: int | None = None
) -> list[dict[str, Any]]:
    """Train a stage, from its last checkpoint if there is one, and return its history.

    Parameters
    ----------
    stage
        What to train.
    folder
        Where ``<name>.checkpoint.pt`` is kept.
    progress
        A running rich progress display.
    stop_after
        Leave after this many steps of this call, as if the process had been killed right after a
        checkpoint; for tests.

    Returns
    -------
    list of dict
        One entry per measurement: its step, its training loss and what was measured.

    Raises
    ------
    InterventionsError
        If the checkpoint was left by a run with other settings.
    """
    kept = folder / f"{stage.name}.checkpoint.pt"
    optimizer = torch.optim.AdamW(
        stage.module.parameters(),
        lr=stage.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=stage.weight_decay,
    )
    done, history, last_loss = 0, [], math.nan
    if kept.is_file():
        checkpoint = torch.load(kept, weights_only=True)
        if checkpoint["settings"] != stage.settings:
            raise InterventionsError(
                f"{kept} was left by a run with other settings.\n  there: {checkpoint['settings']}"
                f"\n  asked: {stage.settings}\nTrain into another folder, or delete the file."
            )
        done, last_loss = checkpoint["done"], checkpoint["last_loss"]
        history = json.loads(checkpoint["history"])
        stage.module.load_state_dict(checkpoint["module"])
        optimizer.load_state_dict(checkpoint["optimizer"])

    def keep() -> None:
        state = {
            "settings": stage.settings,
            "done": done,
            "last_loss": last_loss,
            "history": json.dumps(history),
            "module": stage.module.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with replacing(kept) as fresh:
            torch.save(state, fresh)

    task = progress.add_task(stage.name, total=stage.steps, completed=done)
    last_kept = time.monotonic()
    leave_at = stage.steps if stop_after is None else min(stage.steps, done + stop_after)
    while True:
        due = done == stage.steps or (done > 0 and done % stage.measure_every == 0)
        if due and (not history or history[-1]["step"] < done):
            keep()  # measuring takes its time
            stage.module.eval()
            with torch.no_grad():
                history.append({"step": done, "loss": last_loss, **stage.measure()})
            keep()
            last_kept = time.monotonic()
        if done >= leave_at:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(stage, done)
        stage.module.train()
        loss = stage.loss(done)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(stage.module.parameters(), 1.0)
        optimizer.step()
        done, last_loss = done + 1, loss.item()
        if time.monotonic() - last_kept > SECONDS_BETWEEN_CHECKPOINTS:
            keep()
            last_kept = time.monotonic()
        progress.update(task, completed=done, description=f"{stage.name} {last_loss:.3f}")
    keep()
    stage.module.eval()
    return history


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A neighbouring path to write to, which takes ``path``'s place when the block succeeds."""
    fresh = path.with_name(f"{path.name}.partial")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
