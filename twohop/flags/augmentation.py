"""Views of a picture: moved, tilted, recoloured, on another background, a little noisy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter


def augment(picture: Image.Image, *, seed: Sequence[int]) -> Image.Image:
    """One view of an RGB picture, of the same size, determined by ``seed``.

    Flags are told apart by colour and by which way round they are, so there is no mirroring, no
    turn beyond 10 degrees and no change of hue.
    """
    # Uniform doubles only: of numpy's streams they are the one least likely ever to change.
    rng = np.random.default_rng(list(seed))
    u = rng.random(20)
    width, height = picture.size

    angle = np.deg2rad(10 * _signed(u[0]))
    shear = 0.12 * _signed(u[1])
    scale_x = 0.85 + 0.3 * u[2]
    scale_y = scale_x * (1 + 0.12 * _signed(u[3]))
    shift = np.array([0.10 * width * _signed(u[4]), 0.10 * height * _signed(u[5])])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    placed = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([scale_x, scale_y])
    back = np.linalg.inv(placed)  # PIL maps the view's pixels to the picture's
    centre = np.array([width / 2, height / 2])
    offset = centre - back @ (centre + shift)
    affine = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])

    opaque = picture.convert("RGBA")
    moved = opaque.transform(
        picture.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    )
    blobs = Image.fromarray((255 * rng.random((3, 4, 3))).astype(np.uint8), "RGB")
    ground = blobs.resize(picture.size, Image.Resampling.BICUBIC).convert("RGBA")
    view = Image.alpha_composite(ground, moved).convert("RGB")
    if u[6] < 0.3:
        view = view.filter(ImageFilter.GaussianBlur(float(1.2 * u[7])))

    pixels = np.asarray(view, dtype=np.float32) / 255
    grey = (pixels[..., :1] + pixels[..., 1:2] + pixels[..., 2:]) / 3
    pixels = grey + (1 + 0.3 * np.float32(_signed(u[8]))) * (pixels - grey)
    gain = 1 + 0.2 * _signed(u[9]) + 0.06 * _signed(u[10:13])
    pixels = pixels * gain.astype(np.float32) + np.float32(0.08 * _signed(u[13]))
    noise = rng.random(pixels.shape, dtype=np.float32) - np.float32(0.5)
    pixels += np.float32(0.12 * u[14]) * noise
    return Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8), "RGB")


def _signed(u):
    """Uniform on [0, 1) to uniform on [-1, 1)."""
    return 2 * u - 1
