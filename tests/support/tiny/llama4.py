"""Llama 4's image processor in numpy: transformers has it for torchvision only."""

from typing import Any

import numpy as np
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs


class Llama4ImageProcessorKwargs(ImagesKwargs, total=False):
    max_patches: int
    resize_to_max_canvas: bool


class Llama4ImageProcessorPil(PilBackend):
    """Fits an image onto a canvas of tiles; a smaller copy of it follows where there are several.

    Returns ``pixel_values`` [tile, channel, height, width], the tiles of all images one behind the
    other, and ``aspect_ratios`` [image, 2], tiles down and across.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = [0.5, 0.5, 0.5]  # noqa: RUF012
    image_std = [0.5, 0.5, 0.5]  # noqa: RUF012
    size = {"height": 336, "width": 336}  # noqa: RUF012
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    max_patches = 16
    resize_to_max_canvas = False
    valid_kwargs = Llama4ImageProcessorKwargs

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def _preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: list[np.ndarray], **kwargs: Any
    ) -> BatchFeature:
        tiles: list[np.ndarray] = []
        ratios: list[list[int]] = []
        for image in images:
            mine, ratio = self._tiles(image, **kwargs)
            tiles += mine
            ratios.append(ratio)
        data = {"pixel_values": np.stack(tiles), "aspect_ratios": np.array(ratios)}
        return BatchFeature(data=data, tensor_type=kwargs["return_tensors"])

    def _tiles(
        self, image: np.ndarray, *, size: Any, max_patches: int, resample: Any, **kwargs: Any
    ) -> tuple[list[np.ndarray], list[int]]:
        side, (height, width) = size.height, image.shape[-2:]
        down, across = best_canvas(height, width, side, max_patches)
        limit = min(max(height, side), down * side), min(max(width, side), across * side)
        scale = min(limit[0] / height, limit[1] / width)
        shape = max(int(height * scale), 1), max(int(width * scale), 1)
        fitted = self.resize(image, SizeDict(height=shape[0], width=shape[1]), resample=resample)
        pad = (0, 0), (0, down * side - shape[0]), (0, across * side - shape[1])
        fitted = self._coloured(np.pad(fitted, pad), **kwargs)
        tiles = [
            fitted[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
            for i in range(down)
            for j in range(across)
        ]
        if len(tiles) > 1:
            tiles.append(self._coloured(self.resize(image, size, resample=resample), **kwargs))
        return tiles, [down, across]

    def _coloured(
        self, image: np.ndarray, *, rescale_factor: float, image_mean: Any, image_std: Any, **_: Any
    ) -> np.ndarray:
        return self.normalize(self.rescale(image, rescale_factor), image_mean, image_std)


def best_canvas(height: int, width: int, side: int, max_tiles: int) -> tuple[int, int]:
    """Tiles down and across: least enlarging, else least shrinking; then the smallest canvas."""
    shapes = [
        (down, across)
        for down in range(1, max_tiles + 1)
        for across in range(1, max_tiles // down + 1)
    ]
    scales = [min(down * side / height, across * side / width) for down, across in shapes]
    larger = [scale for scale in scales if scale >= 1]
    chosen = min(larger) if larger else max(scales)
    fitting = [shape for shape, scale in zip(shapes, scales, strict=True) if scale == chosen]
    return min(fitting, key=lambda shape: shape[0] * shape[1])
