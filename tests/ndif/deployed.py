"""The models on the server, and the same models here."""

from functools import cache

import torch
from families import Case, case_of

import interventions as iv

CLOSE = 1e-5


@cache
def remote(name: str) -> iv.Model:
    return iv.load(f"tiny/{name}", remote=True)


def pair_of(name: str) -> tuple[iv.Model, Case]:
    """The model on the server, and the same here with a prompt."""
    return remote(name), case_of(name, attn="sdpa")


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal to rounding in float32, as a share of the largest value."""
    assert ours.shape == theirs.shape
    scale = float(theirs.abs().max().clamp(min=1.0))
    assert float((ours - theirs).abs().max()) / scale < CLOSE
