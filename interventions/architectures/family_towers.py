"""Where in a picture the tokens of the vision tower lie, and what its projector gives, by family.

Beside :mod:`interventions.architectures.family_layouts`, which is about the tokens of the language
model: those may be fewer, as patches are merged, or what is padding is cut off.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from interventions.architectures.family_layouts import LAYOUTS, gemma3_crops, patch_side
from interventions.architectures.picture_layouts import (
    Layout,
    Processed,
    Rule,
    Tiled,
    UnknownLayout,
    closest_tiles,
    counted_tiles,
    fitted_tiles,
    grid_canvas,
    in_tiles,
    numbered_canvas,
    on_one_canvas,
    size_of,
    sized_canvas,
    stretched,
)
from interventions.architectures.picture_lines import before_packing
from interventions.architectures.picture_views import View
from interventions.architectures.tower_views import Arrangement

Finish = Callable[[Processed, int, Arrangement], Arrangement]


def _as_it_is(_processed: Processed, _picture: int, arranged: Arrangement) -> Arrangement:
    return arranged


@dataclass(frozen=True)
class TowerLayout:
    """How a family lays a picture out in its tower.

    Attributes
    ----------
    patches : callable
        ``patches(processed, picture)``: the views of its patches, in the order of their tokens.
    finish : callable
        Adds class tokens and filler to these, or puts them in another order.
    features : callable
        What becomes of that behind the projector: by default what the language model is given.
    """

    patches: Rule
    finish: Finish = _as_it_is
    features: Callable[[Processed, int, Arrangement], Arrangement] | None = None

    def arranged(
        self, processed: Processed, picture: int, seen: tuple[View, ...]
    ) -> tuple[Arrangement, Arrangement]:
        """The tokens of one picture in the tower, and those behind the projector.

        Raises
        ------
        UnknownLayout
            With the reason.
        """
        views = tuple(self.patches(processed, picture))
        n_canvases = sum(view.tiles[0] * view.tiles[1] for view in views)
        tower = self.finish(processed, picture, Arrangement(views, n_canvases))
        if self.features is not None:
            return tower, self.features(processed, picture, tower)
        if not seen:
            raise UnknownLayout("it is not known where the tokens of its text lie")
        return tower, Arrangement(seen)


def tower_of(
    processed: Processed, picture: int, kind: str, seen: tuple[View, ...]
) -> tuple[Arrangement, Arrangement]:
    """The tokens of one picture in the tower of a family, and those behind the projector.

    ``seen``: the views whose tokens its text has, if these are known.

    Raises
    ------
    UnknownLayout
        With the reason.
    """
    if kind not in TOWERS:
        raise UnknownLayout(f"the layout of the family {kind!r} is not known here")
    known = LAYOUTS.get(kind, _MLLAMA)
    known.check(processed)
    return TOWERS[kind].arranged(processed, picture, seen)


# Class tokens and filler.


def _class_ahead(processed: Processed, _picture: int, arranged: Arrangement) -> Arrangement:
    clip = processed.module.config.vision_config.model_type == "clip_vision_model"
    return replace(arranged, before=int(clip))


def _class_always(_processed: Processed, _picture: int, arranged: Arrangement) -> Arrangement:
    return replace(arranged, before=1)


def _class_behind(_processed: Processed, _picture: int, arranged: Arrangement) -> Arrangement:
    return replace(arranged, behind=1)


def _without_class(_processed: Processed, _picture: int, tower: Arrangement) -> Arrangement:
    return replace(tower, before=0)


def _in_eights(processed: Processed, _picture: int, arranged: Arrangement) -> Arrangement:
    """Of Llama 3.2: tokens of a tile to a multiple of 8, and as many tiles as there may be."""
    side = processed.module.config.vision_config.image_size // patch_side(processed.module)
    most = processed.tensors["pixel_values"].shape[2]
    return replace(
        arranged,
        before=1,
        filler=-(side * side + 1) % 8,
        blank=most - arranged.n_canvases,
    )


def _without_filler(_processed: Processed, _picture: int, tower: Arrangement) -> Arrangement:
    return replace(tower, filler=0)


# Other orders.


def merged_order(shape: tuple[int, int], merge: int, units: Sequence[int] | None) -> np.ndarray:
    """Order of the patches of a grid whose neighbours that are merged stand together, [token].

    Parameters
    ----------
    shape : (int, int)
        Patches down and across.
    merge : int
        Of these, so many down and across make one feature.
    units : sequence of int, optional
        In which order the features' patches come. Default: line by line.
    """
    cells = np.arange(shape[0] * shape[1]).reshape(
        shape[0] // merge, merge, shape[1] // merge, merge
    )
    squares = cells.transpose(0, 2, 1, 3).reshape(-1, merge * merge)
    return squares[list(units)].flatten() if units is not None else squares.flatten()


def _squares(processed: Processed, picture: int, arranged: Arrangement) -> Arrangement:
    """Of Qwen's and GLM's: patches that are merged stand together."""
    [view] = arranged.views
    merge = processed.module.config.vision_config.spatial_merge_size
    order = merged_order((len(view.y), len(view.x)), merge, _windows(processed, picture))
    return replace(arranged, order=order)


def _windows(processed: Processed, picture: int) -> list[int] | None:
    """Of Qwen2.5-VL: the order of features, window by window; None where there are no windows."""
    vision = processed.module.config.vision_config
    if getattr(vision, "window_size", None) is None:
        return None
    inner = processed.module.get_submodule("model.visual")
    index = sys.modules[type(inner).__module__].get_vision_window_index
    grid = processed.tensors["image_grid_thw"][picture][None]
    sizes = vision.spatial_merge_size, vision.window_size, vision.patch_size
    return index(grid, *sizes)[0].tolist()


def _by_window(processed: Processed, picture: int, tower: Arrangement) -> Arrangement:
    features = Arrangement(tuple(LAYOUTS["qwen2_5_vl"].rule(processed, picture)))
    return replace(features, order=np.array(_windows(processed, picture)))


def _numbered(processed: Processed, picture: int, arranged: Arrangement) -> Arrangement:
    """Of Gemma 4: each patch has its place, and what is left of a length for all is filler."""
    [view] = arranged.views
    across, down = processed.tensors["image_position_ids"][picture].unbind(-1)
    order = torch.where(across < 0, -1, down * len(view.x) + across)
    return replace(arranged, order=order.numpy())


# Llama 3.2 Vision, whose text has no image tokens.


def _cross_tiles(processed: Processed, picture: int) -> Tiled:
    settings = processed.settings
    side, other = size_of(settings["size"], "height"), size_of(settings["size"], "width")
    if side is None or side != other:
        raise UnknownLayout(f"its tiles are of {settings['size']}, and no squares")
    which = int(processed.tensors["aspect_ratio_ids"][0, picture]) - 1
    ratios = processed.function("get_all_supported_aspect_ratios")(settings["max_image_tiles"])
    down, across = ratios[which]
    fitted = processed.function("get_image_size_fit_to_canvas")
    height, width = fitted(*processed.sizes[picture], down * side, across * side, side)
    y, x = processed.axes(picture)
    y, x = (
        axis.resized(int(length)).cut(0, n * side)
        for axis, length, n in zip((y, x), (height, width), (down, across), strict=True)
    )
    return Tiled(y, x, down, across, side)


def _cross_views(processed: Processed, picture: int) -> list[View]:
    return in_tiles(_cross_tiles, patch_side, whole=False)(processed, picture)


_MLLAMA = Layout(_cross_views, ("Mllama",))


def _llava_patches(processed: Processed, picture: int) -> list[View]:
    sized = processed.module.config.vision_config.model_type == "pixtral"
    return (_SIZED if sized else _PLAIN)(processed, picture)


def _internvl_side(module: Any) -> int:
    return module.config.vision_config.patch_size[0]


_SIZED = stretched(sized_canvas, patch_side)
_PLAIN = on_one_canvas(patch_side)
_LINES = TowerLayout(before_packing, _class_ahead, _without_class)
_GRID = TowerLayout(stretched(grid_canvas, patch_side), _squares)
_TILES = TowerLayout(in_tiles(counted_tiles, patch_side))

TOWERS: dict[str, TowerLayout] = {
    "llava": TowerLayout(_llava_patches, _class_ahead),
    "vipllava": TowerLayout(_PLAIN, _class_ahead),
    "mistral3": TowerLayout(_SIZED),
    "llava_next": _LINES,
    "llava_onevision": _LINES,
    "gemma3": TowerLayout(on_one_canvas(patch_side, crops=gemma3_crops)),
    "gemma4": TowerLayout(stretched(numbered_canvas, patch_side), _numbered),
    "paligemma": TowerLayout(_PLAIN),
    "qwen2_vl": _GRID,
    "qwen2_5_vl": replace(_GRID, features=_by_window),
    "qwen3_vl": _GRID,
    "qwen3_5": _GRID,
    "glm4v": _GRID,
    "glm46v": _GRID,
    "internvl": TowerLayout(in_tiles(closest_tiles, _internvl_side), _class_always),
    "idefics3": _TILES,
    "smolvlm": _TILES,
    "mllama": TowerLayout(_cross_views, _in_eights, _without_filler),
    "llama4": TowerLayout(in_tiles(fitted_tiles, patch_side), _class_behind),
}
"""Of the families that see pictures, by ``config.model_type``."""
