"""Weights drawn so that nothing is trivial: no parameter is 0 or 1, every part matters."""

from typing import Any

import torch

NORM_SPREAD, BIAS, TABLE = 0.2, 0.1, 0.7
GAIN = 1.2
AROUND_ZERO = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "Qwen3_5RMSNorm")
"""Norms that add 1 to their weight."""
STORED = ("layer_scalar", "std_scale", "std_bias")
"""Buffers that a checkpoint has."""


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int) -> None:
    """Draw every parameter anew; the same seed gives the same weights, whatever the dtype.

    Parameters
    ----------
    module : torch.nn.Module
        Any transformers model.
    seed : int
        Of the generator; torch's own state stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    owners = dict(module.named_modules())
    for path, parameter in module.named_parameters():
        owner, name = owners[path.rpartition(".")[0]], path.rpartition(".")[2]
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(scaled(noise, owner, name))
    for path, buffer in module.named_buffers():
        if path.endswith(STORED):  # Gemma 4's, which a new model has as 1 and 0
            noise = torch.randn(buffer.shape, generator=generator)
            buffer.copy_(0.8 + NORM_SPREAD * noise)


def scaled(noise: torch.Tensor, owner: Any, name: str) -> torch.Tensor:
    """Give a parameter of a module its size."""
    kind = type(owner).__name__
    if "Norm" in kind and name == "weight":
        centre = 0.0 if kind in AROUND_ZERO else 1.0
        return centre + NORM_SPREAD * noise
    if "gate" in name and noise.ndim == 1:  # Mllama's gates, which a checkpoint starts at zero
        return noise.sign() * (0.5 + 0.2 * noise.abs())
    if name.startswith("lambda"):  # InternVL's layer scale
        return 0.5 + NORM_SPREAD * noise
    if noise.ndim < 2:
        return (BIAS if "bias" in name else TABLE) * noise
    if isinstance(owner, torch.nn.Embedding):
        return noise * (noise.shape[-1] ** -0.5 if "Scaled" in kind else TABLE)
    if isinstance(owner, torch.nn.Linear) or kind.startswith("Conv"):
        fan_in = noise[0].numel()
    else:
        fan_in = noise.shape[-2]  # bare matrices multiply from the right: experts, projections
    return noise * GAIN * fan_in**-0.5
