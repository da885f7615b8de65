"""Backward passes of which the weights have no part."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from interventions.model.model import Model


@contextmanager
def frozen_weights(model: Model) -> Iterator[None]:
    """Let no parameter collect gradients, which would cost as much memory as the weights."""
    training = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    for parameter in training:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in training:
            parameter.requires_grad_(True)
