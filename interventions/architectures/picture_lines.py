"""LLaVA-NeXT's kind of layout: a picture at once, and then its tiles put together, line by line."""

import math
from dataclasses import replace
from typing import Any

import torch

from interventions.architectures.picture_layouts import (
    Processed,
    Tiled,
    UnknownLayout,
    blank_picture,
    size_of,
)
from interventions.architectures.picture_views import Axis, View


def in_lines(processed: Processed, picture: int) -> list[View]:
    """The picture at once, and then lines over all of its tiles, each with a token that ends it.

    Lines and columns of nothing but padding are left out, and of LLaVA-OneVision's, what is more
    than the model takes is shrunk. Of several pictures in a row, OneVision's processor tiles none.
    """
    side, n = _side(processed), _patches(processed.module)
    if not _is_tiled(processed):
        return [replace(_squared(processed, picture, n), behind=1)]
    tiled = _tiled(processed, picture, side)
    shape = tiled.down * n, tiled.across * n
    return [
        _thumbnail(processed, picture, n),
        _packed(processed, picture, tiled.y, tiled.x, shape, side / n),
    ]


def before_packing(processed: Processed, picture: int) -> list[View]:
    """The picture at once, and then each of its tiles, as the tower is given them."""
    side, n = _side(processed), _patches(processed.module)
    if not _is_tiled(processed):
        return [_squared(processed, picture, n)]
    tiled = _tiled(processed, picture, side)
    lines, columns = tiled.y.cells(tiled.down * n), tiled.x.cells(tiled.across * n)
    tiles = View("tile", lines, columns, tiles=(tiled.down, tiled.across))
    return [_thumbnail(processed, picture, n), tiles]


def _squared(processed: Processed, picture: int, n: int) -> View:
    """A picture that is not tiled, padded to a square."""
    y, x = processed.axes(picture)
    longest = max(y.length, x.length)
    y, x = (axis.cut(-((longest - axis.length) // 2), longest) for axis in (y, x))
    return View("picture", y.cells(n), x.cells(n))


def _thumbnail(processed: Processed, picture: int, n: int) -> View:
    y, x = processed.axes(picture)
    return View("thumbnail", y.cells(n), x.cells(n))


def _tiled(processed: Processed, picture: int, side: int) -> Tiled:
    y, x = processed.axes(picture)
    down, across = _canvas(processed, picture, side)
    height, width = _fitted(processed, picture, (down * side, across * side))
    y = _centred(y.resized(height), down * side)
    return Tiled(y, _centred(x.resized(width), across * side), down, across, side)


def _side(processed: Processed) -> int:
    """Pixels along a tile's side, which what is done to a tile later must leave alone."""
    settings = processed.settings
    size, crop = settings.get("size"), settings.get("crop_size")
    plain = size_of(size, "height") or size_of(size, "shortest_edge")
    side = size_of(crop, "height") or plain
    cropped = settings.get("do_center_crop") and size_of(crop, "width") != side
    if side is None or plain != side or cropped or not settings.get("do_resize"):
        raise UnknownLayout(f"its tiles, of {side}, are changed once more: size {size}")
    if side != processed.module.config.vision_config.image_size:
        raise UnknownLayout(f"its tiles are of {side} pixels, and not of those of the model")
    return side


def _patches(module: Any) -> int:
    vision = module.config.vision_config
    return vision.image_size // vision.patch_size


def _is_tiled(processed: Processed) -> bool:
    return len(processed.sizes) == 1 or "batch_num_images" not in processed.output


def _canvas(processed: Processed, picture: int, side: int) -> tuple[int, int]:
    """Tiles down and across, by the processor's choice of sizes, which must be the model's."""
    from transformers.image_processing_utils import select_best_resolution

    size = processed.sizes[picture]
    theirs = processed.module.config.image_grid_pinpoints
    chosen, expected = (
        tuple(select_best_resolution(size, points))
        for points in (processed.settings["image_grid_pinpoints"], theirs)
    )
    if chosen != expected:
        raise UnknownLayout(f"the processor chooses tiles of {chosen}, the model of {expected}")
    return chosen[0] // side, chosen[1] // side


def _fitted(processed: Processed, picture: int, canvas: tuple[int, int]) -> tuple[int, int]:
    from transformers.image_processing_utils import get_patch_output_size

    blank = blank_picture(*processed.sizes[picture])
    return get_patch_output_size(blank, canvas, input_data_format="channels_first")


def _centred(axis: Axis, length: int) -> Axis:
    return axis.cut(-((length - int(axis.length)) // 2), length)


def _packed(
    processed: Processed,
    picture: int,
    y: Axis,
    x: Axis,
    shape: tuple[int, int],
    cell: float,
) -> View:
    """The lines of the tiles together, as the model packs them."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    cells = torch.arange(shape[0] * shape[1]).view(1, *shape)
    kept = unpad_image(cells, processed.sizes[picture])[0]
    if not kept.numel():
        raise UnknownLayout("the model leaves all of its tiles out as padding")
    (top, left), (n_rows, n_columns) = divmod(int(kept[0, 0]), shape[1]), kept.shape
    y, x = y.cut(top * cell, n_rows * cell), x.cut(left * cell, n_columns * cell)
    most = getattr(processed.module.config, "vision_aspect_ratio", None)
    if most is not None:
        limit = int(most.removeprefix("anyres_max_")) * _patches(processed.module) ** 2
        ratio = math.sqrt(n_rows * n_columns / limit)
        if ratio > SHRUNK_ABOVE:
            n_rows, n_columns = int(n_rows // ratio), int(n_columns // ratio)
    return View("tile", y.cells(n_rows), x.cells(n_columns), newlines=True)


SHRUNK_ABOVE = 1.1
"""Sides of a grid may be so many times larger than what LLaVA-OneVision takes."""
