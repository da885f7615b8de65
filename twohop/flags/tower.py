"""The vision tower: a small CLIP vision model that tells flags apart, patch by patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from twohop.flags.data import FIRST_HELD_OUT_VIEW, entities, view

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

IMAGE_SIZE = 48
PATCH_SIZE = 24
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
"""Patches of a picture, each of which becomes one image token."""
TOWER_WIDTH = 96
VALIDATION_VIEWS = 100
"""How many of the views that may be trained on, the last ones, are kept for validation."""


def tower_config() -> CLIPVisionConfig:
    """Four blocks, 0.54 M parameters, 4 patches."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu",
    )


def image_processor() -> CLIPImageProcessorPil:
    """Stretch a picture to a square of :data:`IMAGE_SIZE`, and centre its values; no cropping."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )


def pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as the tower takes them, [row, channel, height, width], float32."""
    from PIL import Image

    # What image_processor() gives, to the last bits of float32 and several times as fast.
    square = [
        np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
        for picture in pictures
    ]
    return (torch.from_numpy(np.stack(square)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def training_view(step: int, *, seed: int) -> int:
    """Which view of every flag a training step shows: all of them once before any twice."""
    # The number of usable views and the stride share no factor.
    return (step * 7919 + seed * 1237) % (FIRST_HELD_OUT_VIEW - VALIDATION_VIEWS)


def training_pixels(step: int, *, seed: int) -> torch.Tensor:
    """One training view of every country, [country, channel, height, width]."""
    return pixels([view(entity.code, training_view(step, seed=seed)) for entity in entities()])


def patch_features(tower: CLIPVisionModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """What LLaVA reads: the last block's output at the patches, [row, patch, width]."""
    return tower(pixel_values, output_hidden_states=True).hidden_states[-1][:, 1:]


class PatchClassifier(nn.Module):
    """The tower with a linear head that must tell, from each patch alone, country and place.

    One classifier over (patch, country) and not over countries alone: a projector has to write
    different tokens of a name into different slots, so a patch must also know which one it is.
    """

    def __init__(self) -> None:
        from transformers import CLIPVisionModel

        super().__init__()
        self.tower = CLIPVisionModel(tower_config())
        self.head = nn.Linear(TOWER_WIDTH, IMAGE_TOKENS * len(entities()))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits of (patch, country), [row, patch, patch * country]."""
        return self.head(patch_features(self.tower, pixel_values))

    def country_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits of the country from each patch's own place, [row, patch, country]."""
        rows = self(pixel_values).unflatten(-1, (IMAGE_TOKENS, len(entities())))
        return rows.diagonal(dim1=1, dim2=2).transpose(1, 2)
