"""How far two computations of the same thing may differ, and what tests compare."""

import numpy as np
import torch

# Noise floors, as a share of the largest value compared. float32 through 8 blocks differs by the
# order of its sums: batching and padding change it. float64 must fall by eight orders.
# bfloat16 keeps 8 bits, so each of a few blocks adds some 2**-8 of the largest value.
FLOOR16 = 1e-1
FLOOR32 = 2e-5
FLOOR64 = 1e-12

NAMES = ("Avaria", "Belmora", "North Umbra", "Quenlo")


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def noise(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()
