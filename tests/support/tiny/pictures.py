"""Pictures with enough in them that two never look alike to a random vision tower."""

import numpy as np
from PIL import Image


def picture(size: tuple[int, int] = (24, 16), seed: int = 0) -> Image.Image:
    """Draw an RGB picture: coloured rectangles over a gradient, and some noise.

    Parameters
    ----------
    size : (int, int)
        Width and height in pixels.
    seed : int
        Another seed, another picture.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width]
    ramp = ((down / max(height - 1, 1) + across / max(width - 1, 1)) / 2)[..., None]
    canvas = rng.uniform(0, 255, 3) * ramp + rng.uniform(0, 255, 3) * (1 - ramp)
    for _ in range(4):
        top, left = rng.integers(0, height), rng.integers(0, width)
        tall, wide = rng.integers(1, height + 1), rng.integers(1, width + 1)
        canvas[top : top + tall, left : left + wide] = rng.uniform(0, 255, 3)
    canvas += rng.normal(0, 12, canvas.shape)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
