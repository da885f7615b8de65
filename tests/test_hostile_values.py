"""Whatever is handed over: a result, or a named error before anything runs that leaves nothing."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import CALLS, VALUES, text

from interventions.errors import InterventionsError


@pytest.fixture(autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Relative paths that a call takes for a folder lie in one of its own."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    yield
    os.chdir(before)


def state() -> dict[str, Any]:
    """Everything that a refusal might leave behind."""
    module = text().model.module
    return {
        "hooks": sum(
            len(hooks)
            for one in module.modules()
            for hooks in (one._forward_hooks, one._forward_pre_hooks, one._backward_hooks)
        ),
        "training": [one.training for one in module.modules()],
        "gradients": [(one.requires_grad, one.grad is None) for one in module.parameters()],
        "weights": [float(one.detach().double().sum()) for one in module.parameters()],
        "enabled": torch.is_grad_enabled(),
        "random": (torch.get_rng_state().sum().item(), np.random.get_state()[2]),
        "files": sorted(str(one) for one in Path().rglob("*")),
    }


def outcome(call: str, parameter: str, value: str) -> str:
    """Make a call with one value exchanged; say what came of it."""
    act, _ = CALLS[call]
    before = state()
    try:
        act(**{parameter: VALUES[value]()})
    except InterventionsError as error:
        assert state() == before
        return f"refused: {error}"
    except Exception as error:
        raise AssertionError(
            f"{call}({parameter}={value}): {type(error).__name__}: {error}"
        ) from error
    after = state()
    for kept in before.keys() - {"files"}:
        assert after[kept] == before[kept], kept
    return "done"
