"""How families lay the tokens of a picture out: one rule for each kind of layout.

What a processor did to a picture is taken from what it was called with and what it returned; where
the number of tiles follows from a rule of transformers', that rule is called and not written again.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interventions.architectures.picture_views import Axis, View


class UnknownLayout(Exception):
    """Why it is not known where the tokens of a picture lie in it."""


@dataclass(frozen=True)
class Processed:
    """What the pictures of one row were made into, and how.

    Attributes
    ----------
    module : torch.nn.Module
        The model.
    processor : transformers image processor
    settings : mapping
        What it worked with, whether by its own settings or by those of the call.
    output : mapping
        What it returned, before the processor of texts and images took what it needs.
    tensors : dict of str to Tensor
        What the model is given.
    sizes : list of (int, int)
        Height and width of each picture.
    """

    module: Any
    processor: Any
    settings: Mapping[str, Any]
    output: Mapping[str, Any]
    tensors: dict[str, torch.Tensor]
    sizes: list[tuple[int, int]]

    def axes(self, picture: int) -> tuple[Axis, Axis]:
        """Both sides of a picture before anything was done to it: down and across."""
        height, width = self.sizes[picture]
        return Axis(height, height), Axis(width, width)

    def function(self, name: str) -> Any:
        """A function of the module that the image processor is written in."""
        for kind in type(self.processor).__mro__:
            if hasattr(sys.modules[kind.__module__], name):
                return getattr(sys.modules[kind.__module__], name)
        raise UnknownLayout(f"{type(self.processor).__name__} has no {name}")


Rule = Callable[[Processed, int], list[View]]


@dataclass(frozen=True)
class Layout:
    """How a family lays the tokens of a picture out.

    Attributes
    ----------
    rule : callable
        ``rule(processed, picture)``: the views of a picture, in the order of their tokens.
    processors : tuple of str
        Image processors that the rule is about, without what says how they compute.
    """

    rule: Rule
    processors: tuple[str, ...]

    def views(self, processed: Processed, picture: int) -> list[View]:
        """The views of one picture of a row.

        Raises
        ------
        UnknownLayout
            With the reason.
        """
        self.check(processed)
        return self.rule(processed, picture)

    def check(self, processed: Processed) -> None:
        """Refuse, with an UnknownLayout, image processors that the rule is not about."""
        known = {f"{name}ImageProcessor{how}" for name in self.processors for how in ENGINES}
        if type(processed.processor).__name__ not in known:
            raise UnknownLayout(
                f"{type(processed.processor).__name__} is none of the image processors that are "
                f"known here for this family, {', '.join(self.processors)}"
            )


ENGINES = ("", "Pil", "Fast")
"""What the names of image processors end in, which do the same in other libraries."""


def size_of(value: Any, key: str) -> int | None:
    """A length in a processor's setting of a size; None where it is not set so."""
    return value.get(key) if hasattr(value, "get") else None


def _square_of(value: Any, what: str) -> tuple[int, int]:
    height, width = size_of(value, "height"), size_of(value, "width")
    if not height or not width:
        raise UnknownLayout(f"{what} is {value}, without a height and a width")
    return height, width


# A picture on one canvas, which is resized, padded or cut as plain processors do.


def on_one_canvas(
    cell: Callable[[Any], int],
    *,
    class_token: Callable[[Any], bool] = lambda _module: False,
    crops: Callable[[Processed, int], list[tuple[int, int, int, int]]] = lambda _p, _i: [],
) -> Rule:
    """Rule for pictures that plain processors bring onto a canvas of one size.

    Parameters
    ----------
    cell : callable
        ``cell(module)``: pixels of the canvas along a token's side.
    class_token : callable
        Whether a token ahead of the patches is kept.
    crops : callable
        ``crops(processed, picture)``: parts of the picture (y, x, height, width) that follow it,
        each on a canvas of its own.
    """

    def views(processed: Processed, picture: int) -> list[View]:
        size, before = cell(processed.module), int(class_token(processed.module))
        parts = crops(processed, picture)
        whole = _plain(processed, processed.axes(picture), size)
        first = View("thumbnail" if parts else "picture", whole[0], whole[1], before=before)
        if not parts:
            return [first]
        y, x = processed.axes(picture)
        grids = [
            _plain(processed, (y.cut(top, height), x.cut(left, width)), size)
            for top, left, height, width in parts
        ]
        down = len({top for top, *_ in parts})
        across = len(parts) // down
        lines = np.concatenate([grid[0] for grid in grids[::across]])
        columns = np.concatenate([grid[1] for grid in grids[:across]])
        return [first, View("tile", lines, columns, tiles=(down, across))]

    return views


def _plain(
    processed: Processed, axes: tuple[Axis, Axis], cell: int
) -> tuple[np.ndarray, np.ndarray]:
    settings, (y, x) = processed.settings, axes
    if settings.get("do_pad") and hasattr(processed.processor, "pad_to_square"):
        y, x = _padded_to_square(y, x)
    if settings.get("do_resize"):
        height, width = _resized(y.length, x.length, settings.get("size"))
        y, x = y.resized(height), x.resized(width)
    if settings.get("do_center_crop"):
        height, width = _square_of(settings.get("crop_size"), "crop_size")
        pil = getattr(processed.processor, "backend", "pil") == "pil"
        y, x = _from_centre(y, height, pil), _from_centre(x, width, pil)
    shape = tuple(processed.tensors["pixel_values"].shape[-2:])
    if shape != (y.length, x.length):
        raise UnknownLayout(
            f"a picture became {shape[0]} x {shape[1]} pixels, which does not follow from the "
            f"settings of {type(processed.processor).__name__}: {y.length:g} x {x.length:g}"
        )
    return y.cells(int(y.length // cell), cell), x.cells(int(x.length // cell), cell)


def _padded_to_square(y: Axis, x: Axis) -> tuple[Axis, Axis]:
    side = max(y.length, x.length)
    return y.cut(-((side - y.length) // 2), side), x.cut(-((side - x.length) // 2), side)


def _resized(height: float, width: float, size: Any) -> tuple[int, int]:
    """Height and width after a resize as plain processors do it."""
    shortest, longest = size_of(size, "shortest_edge"), size_of(size, "longest_edge")
    if shortest and not longest:
        from transformers.image_transforms import get_resize_output_image_size

        blank = blank_picture(int(height), int(width))
        return get_resize_output_image_size(
            blank, size=shortest, default_to_square=False, input_data_format="channels_first"
        )
    return _square_of(size, "size")


def blank_picture(height: int, width: int) -> np.ndarray:
    """An empty picture for functions of transformers that look at nothing but its shape."""
    return np.broadcast_to(np.zeros(1, dtype=np.uint8), (3, height, width))


def _from_centre(axis: Axis, length: int, pil: bool) -> Axis:
    """A cut from the middle, or zeros around what is shorter; PIL's puts the odd one in front."""
    spare = int(axis.length) - length
    begin = spare // 2 if spare >= 0 or pil else -(-spare // 2)
    return axis.cut(begin, length)


# A picture that is stretched onto a canvas of its own size.


def stretched(
    canvas: Callable[[Processed, int], tuple[int, int]], cell: Callable[[Any], int]
) -> Rule:
    """Rule for pictures that fill a canvas whose size the processor tells.

    Parameters
    ----------
    canvas : callable
        ``canvas(processed, picture)``: its height and width in pixels.
    cell : callable
        ``cell(module)``: pixels of the canvas along a token's side.
    """

    def views(processed: Processed, picture: int) -> list[View]:
        if processed.settings.get("do_center_crop"):
            raise UnknownLayout("the processor cuts pictures of this family, do_center_crop")
        size = cell(processed.module)
        pairs = zip(processed.axes(picture), canvas(processed, picture), strict=True)
        axes = (axis.resized(length) for axis, length in pairs)
        y, x = (axis.cells(int(axis.length // size), size) for axis in axes)
        return [View("picture", y, x)]

    return views


def grid_canvas(processed: Processed, picture: int) -> tuple[int, int]:
    """Of Qwen's and GLM's: a grid of patches."""
    _, down, across = processed.tensors["image_grid_thw"][picture].tolist()
    patch = processed.module.config.vision_config.patch_size
    return down * patch, across * patch


def sized_canvas(processed: Processed, picture: int) -> tuple[int, int]:
    """Of Pixtral's: a size in pixels."""
    height, width = processed.tensors["image_sizes"][picture].tolist()
    return height, width


def numbered_canvas(processed: Processed, picture: int) -> tuple[int, int]:
    """Of Gemma 4's: the places of patches, across and down."""
    across, down = processed.tensors["image_position_ids"][picture].amax(0).tolist()
    patch = processed.module.config.vision_config.patch_size
    return (down + 1) * patch, (across + 1) * patch


# A picture that is cut into tiles, with a small one of the whole behind them.


@dataclass(frozen=True)
class Tiled:
    """A picture on a canvas of tiles: both sides of it, tiles down and across, and their side."""

    y: Axis
    x: Axis
    down: int
    across: int
    side: int


def in_tiles(
    canvas: Callable[[Processed, int], Tiled],
    cell: Callable[[Any], float],
    *,
    whole: bool = True,
) -> Rule:
    """Rule for pictures that are cut into tiles, with the whole behind them if there are several.

    Parameters
    ----------
    canvas : callable
        ``canvas(processed, picture)``: the tiles.
    cell : callable
        ``cell(module)``: pixels of a tile along a token's side.
    whole : bool
        The whole is shown once more.
    """

    def views(processed: Processed, picture: int) -> list[View]:
        tiled = canvas(processed, picture)
        n = round(tiled.side / cell(processed.module))
        lines, columns = tiled.y.cells(n * tiled.down), tiled.x.cells(n * tiled.across)
        if tiled.down * tiled.across == 1:
            return [View("picture", lines, columns)]
        tiles = View("tile", lines, columns, tiles=(tiled.down, tiled.across))
        if not whole:
            return [tiles]
        y, x = (axis.resized(tiled.side).cells(n) for axis in processed.axes(picture))
        return [tiles, View("thumbnail", y, x)]

    return views


def _filled(processed: Processed, picture: int, down: int, across: int, side: int) -> Tiled:
    y, x = processed.axes(picture)
    return Tiled(y.resized(down * side), x.resized(across * side), down, across, side)


def closest_tiles(processed: Processed, picture: int) -> Tiled:
    """Of InternVL: as many tiles as are closest to the picture's shape."""
    settings = processed.settings
    side, _ = tile = _square_of(settings.get("size"), "size")
    across = down = 1
    if settings.get("crop_to_patches") and settings.get("max_patches", 1) > 1:
        closest = processed.function("get_optimal_tiled_canvas")
        bounds = settings.get("min_patches", 1), settings["max_patches"]
        across, down = closest(processed.sizes[picture], tile, *bounds)
    n = down * across + (down * across > 1)
    if n != int(processed.output["num_patches"][picture]):
        raise UnknownLayout(
            f"the processor cut it into {int(processed.output['num_patches'][picture])} pieces, "
            f"and not into {n}"
        )
    return _filled(processed, picture, down, across, side)


def counted_tiles(processed: Processed, picture: int) -> Tiled:
    """Of Idefics 3 and SmolVLM: as many tiles as the processor counted; none is one."""
    side = size_of(processed.settings.get("max_image_size"), "longest_edge")
    if side is None or set(processed.tensors["pixel_values"].shape[-2:]) != {side}:
        raise UnknownLayout(f"its tiles are not of max_image_size, {side}")
    [rows], [columns] = processed.output["rows"], processed.output["cols"]
    return _filled(processed, picture, max(rows[picture], 1), max(columns[picture], 1), side)


def fitted_tiles(processed: Processed, picture: int) -> Tiled:
    """Of Llama 4: the picture keeps its shape, and is at the top left of its tiles."""
    settings = processed.settings
    side, _ = _square_of(settings.get("size"), "size")
    down, across = (int(n) for n in processed.output["aspect_ratios"][picture])
    axes = processed.axes(picture)
    limits = [n * side for n in (down, across)]
    if not settings.get("resize_to_max_canvas"):
        limits = [
            min(max(int(axis.length), side), limit)
            for axis, limit in zip(axes, limits, strict=True)
        ]
    scale = min(limit / axis.length for axis, limit in zip(axes, limits, strict=True))
    y, x = (
        axis.resized(max(math.floor(axis.length * scale), 1)).cut(0, n * side)
        for axis, n in zip(axes, (down, across), strict=True)
    )
    return Tiled(y, x, down, across, side)
