"""What neither structure nor config of a model tells, per family, as data.

Most of a model is found from its structure (:mod:`interventions.architectures.anatomy_finding`).
What is left: how an image is written in a prompt, how its tensors stack, how many tokens its
features fill, and which tokens of a prompt see each other both ways. A new architecture needs an
entry here only if one of these differs from the defaults of :class:`Family`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

Tensors = dict[str, torch.Tensor]


def _no_count(_module: Any, _tensors: Tensors) -> int | None:
    return None


@dataclass(frozen=True)
class Family:
    """Facts about one architecture.

    Attributes
    ----------
    placeholder : str
        How one image is written in a prompt, around the processor's own ``{image_token}``.
    per_row : bool
        Image tensors have one entry per row along their first axis (and one per image along the
        second), instead of one per image, tile or patch.
    two_way : "image", "prompt" or None
        Which tokens see each other in both directions in the prefill: those of an image, or all
        of a prompt that has an image. None: the decoder is causal.
    two_way_key : str or None
        What in a text config says whether they do, where models of one family differ in it.
    first_position : int
        Position id of a prompt's first token.
    projector_reads : {"tower", "features"}
        What the projector is given: every token of the tower, which it merges itself, or as many
        as it gives.
    processor_begins : bool
        The begin token is written by the processor, behind the images, and not by the tokenizer.
    count : callable
        ``count(module, tensors)``: number of image features that the family's usual parts make of
        one row's image tensors; None where there is no formula for it.
    """

    placeholder: str = "{image_token}"
    per_row: bool = False
    two_way: Literal["image", "prompt"] | None = None
    two_way_key: str | None = None
    first_position: int = 0
    processor_begins: bool = False
    projector_reads: Literal["tower", "features"] = "features"
    count: Callable[[Any, Tensors], int | None] = _no_count

    def of(self, text: Any) -> "Family":
        """The facts about one model, whose text config may say how its images are read."""
        if getattr(text, "use_bidirectional_attention", None) == "vision":
            return replace(self, two_way="image")
        if self.two_way_key is None or getattr(text, self.two_way_key, None):
            return self
        return replace(self, two_way=None)


def _clip_patches(module: Any, tensors: Tensors) -> int:
    vision = module.config.vision_config
    strategy = getattr(module.config, "vision_feature_select_strategy", "default")
    patches = (vision.image_size // vision.patch_size) ** 2
    return len(tensors["pixel_values"]) * (patches + (strategy == "full"))


def _sized_patches(module: Any, tensors: Tensors) -> int:
    merge = getattr(module.config, "spatial_merge_size", 1)
    side = module.config.vision_config.patch_size * merge
    return sum((h // side) * (w // side) for h, w in tensors["image_sizes"].tolist())


def _llava_patches(module: Any, tensors: Tensors) -> int:
    sized = module.config.vision_config.model_type == "pixtral"
    return (_sized_patches if sized else _clip_patches)(module, tensors)


def _packed_patches(module: Any, tensors: Tensors) -> int | None:
    # The model's own packing of tiles, tried on features of width 1, so that nothing is computed.
    vision = module.config.vision_config
    pixels, sizes = tensors["pixel_values"], tensors["image_sizes"]
    if pixels.ndim != 5:
        return None
    tokens = (vision.image_size // vision.patch_size) ** 2
    if getattr(module.config, "vision_feature_select_strategy", "default") == "full":
        tokens += vision.model_type == "clip_vision_model"
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    pinpoints = module.config.image_grid_pinpoints
    counts = [image_size_to_num_patches(size, pinpoints, vision.image_size) for size in sizes]
    features = [torch.zeros(n, tokens, 1) for n in counts]
    packed, *_ = module.model.pack_image_features(
        features,
        sizes,
        vision_feature_select_strategy=module.config.vision_feature_select_strategy,
        image_newline=torch.zeros(1),
    )
    return sum(len(picture) for picture in packed)


def _grid_patches(module: Any, tensors: Tensors) -> int:
    merge = module.config.vision_config.spatial_merge_size
    return int((tensors["image_grid_thw"].prod(-1) // merge**2).sum())


def _gemma3_patches(module: Any, tensors: Tensors) -> int:
    return len(tensors["pixel_values"]) * module.config.mm_tokens_per_image


def _gemma4_patches(module: Any, tensors: Tensors) -> int:
    pooled = module.config.vision_config.pooling_kernel_size**2
    real = (tensors["image_position_ids"] != -1).all(-1).sum(-1)
    return int((real // pooled).sum())


def _paligemma_patches(module: Any, tensors: Tensors) -> int:
    vision = module.config.vision_config
    return len(tensors["pixel_values"]) * (vision.image_size // vision.patch_size) ** 2


def _internvl_patches(module: Any, tensors: Tensors) -> int:
    height, width = module.config.vision_config.image_size
    patch, ratio = module.config.vision_config.patch_size[0], module.config.downsample_ratio
    per_tile = int(height // patch * ratio) * int(width // patch * ratio)
    return len(tensors["pixel_values"]) * per_tile


def _idefics3_patches(module: Any, tensors: Tensors) -> int:
    vision, scale = module.config.vision_config, module.config.scale_factor
    return tensors["pixel_values"].shape[1] * (vision.image_size // vision.patch_size // scale) ** 2


_QWEN = Family(
    "<|vision_start|>{image_token}<|vision_end|>", count=_grid_patches, projector_reads="tower"
)
_GLM = Family("<|begin_of_image|>{image_token}<|end_of_image|>", count=_grid_patches)
_IDEFICS = Family(per_row=True, count=_idefics3_patches, projector_reads="tower")

FAMILIES: dict[str, Family] = {
    "llava": Family(count=_llava_patches),
    "vipllava": Family(count=_clip_patches),
    "mistral3": Family(count=_sized_patches, projector_reads="tower"),
    "llava_next": Family(count=_packed_patches),
    "llava_onevision": Family(),
    "gemma3": Family(two_way="image", count=_gemma3_patches, projector_reads="tower"),
    "gemma4": Family(
        two_way="image", two_way_key="use_bidirectional_attention", count=_gemma4_patches
    ),
    "paligemma": Family(
        two_way="prompt", first_position=1, processor_begins=True, count=_paligemma_patches
    ),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_5": _QWEN,
    "glm4v": _GLM,
    "glm46v": _GLM,
    "internvl": Family(count=_internvl_patches),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "mllama": Family(per_row=True),
    "llama4": Family(),
}
"""The VLM families of the conformance suite, by ``config.model_type``."""

TEXT_FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "glm4",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "qwen3_5_text",
)
"""The language-model families of the conformance suite."""


def family(model_type: str) -> Family:
    """Return the facts about an architecture; the defaults for one without an entry."""
    return FAMILIES.get(model_type, Family())


def tested(model_type: str) -> bool:
    """Whether the conformance suite covers an architecture."""
    return model_type in FAMILIES or model_type in TEXT_FAMILIES
