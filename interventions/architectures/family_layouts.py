"""Where in a picture its tokens lie, family by family: which kind of layout each has, as data.

A token stands for a square of the canvas that a processor brings a picture onto; how large it is
follows from a model's config.
"""

import math
from typing import Any

import numpy as np

from interventions.architectures.picture_layouts import (
    Layout,
    Processed,
    closest_tiles,
    counted_tiles,
    fitted_tiles,
    grid_canvas,
    in_tiles,
    numbered_canvas,
    on_one_canvas,
    sized_canvas,
    stretched,
)
from interventions.architectures.picture_lines import in_lines
from interventions.architectures.picture_views import View


def patch_side(module: Any) -> int:
    """Pixels along the side of a patch."""
    return module.config.vision_config.patch_size


def _merged_side(module: Any) -> int:
    return patch_side(module) * module.config.vision_config.spatial_merge_size


def _pixtral_side(module: Any) -> int:
    return patch_side(module) * getattr(module.config, "spatial_merge_size", 1)


def _gemma3_side(module: Any) -> int:
    patches = module.config.vision_config.image_size // patch_side(module)
    return patch_side(module) * (patches // math.isqrt(module.config.mm_tokens_per_image))


def _gemma4_side(module: Any) -> int:
    return patch_side(module) * module.config.vision_config.pooling_kernel_size


def _internvl_side(module: Any) -> float:
    return module.config.vision_config.patch_size[0] / module.config.downsample_ratio


def _idefics_side(module: Any) -> int:
    return patch_side(module) * module.config.scale_factor


def _llama4_side(module: Any) -> float:
    return patch_side(module) / module.config.vision_config.pixel_shuffle_ratio


def _keeps_class(module: Any) -> bool:
    whole = getattr(module.config, "vision_feature_select_strategy", "default") == "full"
    return whole and module.config.vision_config.model_type == "clip_vision_model"


def gemma3_crops(processed: Processed, picture: int) -> list[tuple[int, int, int, int]]:
    """Of Gemma 3: parts (y, x, height, width) of a picture that are shown once more."""
    settings = processed.settings
    if not settings.get("do_pan_and_scan"):
        return []
    keys = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
    asked = {f"pan_and_scan_{key}": settings[f"pan_and_scan_{key}"] for key in keys}
    # Of a picture whose pixels are its places, so that crops say where they are from.
    height, width = processed.sizes[picture]
    crops = processed.processor.pan_and_scan(np.indices((height, width)), **asked)
    return [(int(crop[0, 0, 0]), int(crop[1, 0, 0]), *crop.shape[1:]) for crop in crops]


def _llava_views(processed: Processed, picture: int) -> list[View]:
    sized = processed.module.config.vision_config.model_type == "pixtral"
    return (_SIZED if sized else _PLAIN)(processed, picture)


_SIZED = stretched(sized_canvas, _pixtral_side)
_PLAIN = on_one_canvas(patch_side, class_token=_keeps_class)
_PLAIN_PROCESSORS = ("CLIP", "Siglip", "Llava")
_LINES = Layout(in_lines, ("LlavaNext", "LlavaOnevision"))
_GRID = Layout(stretched(grid_canvas, _merged_side), ("Qwen2VL", "Glm4v", "Glm46V"))
_TILES = Layout(in_tiles(counted_tiles, _idefics_side), ("Idefics3", "SmolVLM"))

_GEMMA3 = on_one_canvas(_gemma3_side, crops=gemma3_crops)

LAYOUTS: dict[str, Layout] = {
    "llava": Layout(_llava_views, (*_PLAIN_PROCESSORS, "Pixtral")),
    "vipllava": Layout(on_one_canvas(patch_side), _PLAIN_PROCESSORS),
    "mistral3": Layout(_SIZED, ("Pixtral",)),
    "llava_next": _LINES,
    "llava_onevision": _LINES,
    "gemma3": Layout(_GEMMA3, ("Gemma3",)),
    "gemma4": Layout(stretched(numbered_canvas, _gemma4_side), ("Gemma4",)),
    "paligemma": Layout(on_one_canvas(patch_side), ("Siglip",)),
    "qwen2_vl": _GRID,
    "qwen2_5_vl": _GRID,
    "qwen3_vl": _GRID,
    "qwen3_5": _GRID,
    "glm4v": _GRID,
    "glm46v": _GRID,
    "internvl": Layout(in_tiles(closest_tiles, _internvl_side), ("GotOcr2",)),
    "idefics3": _TILES,
    "smolvlm": _TILES,
    "llama4": Layout(in_tiles(fitted_tiles, _llama4_side), ("Llama4",)),
}
"""Of the families whose images have tokens, by ``config.model_type``."""
