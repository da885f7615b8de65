"""Processors that fit a tiny config: its tokenizer, and images of a few patches."""

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from tiny.llama4 import Llama4ImageProcessorPil
from tiny.shrinking import sees_of, style_of
from tiny.tokens import tiny_tokenizer
from tiny.videoless import processor_class

hf: Any = transformers  # its processors' signatures are too loose to check
MAX_PIXTRAL_SIDE = 24
MAX_QWEN_TOKENS = 24


def tiny_processor(config: Any) -> Any:
    """Return the processor (for a VLM) or tokenizer (for a language model) of a tiny config."""
    tokenizer = tiny_tokenizer(style_of(config), sees_of(config))
    sees = sees_of(config)
    if not sees:
        return tokenizer
    return MAKERS[sees](config, tokenizer, chat_template=tokenizer.chat_template)


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _llava(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    vision = config.vision_config
    side = vision.image_size
    crop = {"size": {"shortest_edge": side}, "crop_size": _square(side)}
    common: dict[str, Any] = {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": getattr(
            config, "vision_feature_select_strategy", "default"
        ),
        "num_additional_image_tokens": 1,  # the class token
        **more,
    }
    if config.model_type == "llava_next":
        images = hf.LlavaNextImageProcessorPil(
            image_grid_pinpoints=config.image_grid_pinpoints, **crop
        )
        return hf.LlavaNextProcessor(images, tokenizer, **common)
    images = hf.CLIPImageProcessorPil(**crop)
    return hf.LlavaProcessor(images, tokenizer, **common)


def _llava_onevision(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    vision = config.vision_config
    images = hf.LlavaOnevisionImageProcessorPil(
        size=_square(vision.image_size), image_grid_pinpoints=config.image_grid_pinpoints
    )
    return processor_class("LlavaOnevisionProcessor")(
        images,
        tokenizer,
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_aspect_ratio=config.vision_aspect_ratio,
        **more,
    )


def _pixtral(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    patch, merge = config.vision_config.patch_size, getattr(config, "spatial_merge_size", 1)
    images = hf.PixtralImageProcessorPil(
        patch_size=_square(patch), size={"longest_edge": MAX_PIXTRAL_SIDE}
    )
    return processor_class("PixtralProcessor")(
        images, tokenizer, patch_size=patch, spatial_merge_size=merge, **more
    )


def _gemma3(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    images = hf.Gemma3ImageProcessorPil(size=_square(config.vision_config.image_size))
    length = config.mm_tokens_per_image
    return hf.Gemma3Processor(images, tokenizer, image_seq_length=length, **more)


def _gemma4(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    vision = config.vision_config
    images = hf.Gemma4ImageProcessorPil(
        patch_size=vision.patch_size,
        pooling_kernel_size=vision.pooling_kernel_size,
        max_soft_tokens=70,  # the fewest that it takes
    )
    sounds = hf.Gemma4AudioFeatureExtractor()
    return processor_class("Gemma4Processor")(sounds, images, tokenizer, **more)


def _qwen_vl(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    vision = config.vision_config
    area = (vision.patch_size * vision.spatial_merge_size) ** 2
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        size={"shortest_edge": 2 * area, "longest_edge": MAX_QWEN_TOKENS * area},
    )
    kind = {
        "qwen2_vl": "Qwen2VLProcessor",
        "qwen2_5_vl": "Qwen2_5_VLProcessor",
        "qwen3_vl": "Qwen3VLProcessor",
        "qwen3_5": "Qwen3VLProcessor",
    }[config.model_type]
    return processor_class(kind)(images, tokenizer, **more)


def _glm(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    vision = config.vision_config
    # Its sizes count both frames that one picture is made into.
    volume = vision.temporal_patch_size * (vision.patch_size * vision.spatial_merge_size) ** 2
    kind = {"glm4v": "Glm4v", "glm46v": "Glm46V"}[config.model_type]
    images = getattr(hf, f"{kind}ImageProcessorPil")(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        size={"shortest_edge": 4 * volume, "longest_edge": MAX_QWEN_TOKENS * volume},
    )
    return processor_class(f"{kind}Processor")(images, tokenizer, **more)


def _internvl(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    images = hf.GotOcr2ImageProcessorPil(
        size=_square(config.vision_config.image_size[0]),
        crop_to_patches=True,
        max_patches=3,
    )
    return processor_class("InternVLProcessor")(
        images, tokenizer, image_seq_length=config.image_seq_length, **more
    )


def _idefics(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    vision = config.vision_config
    side = vision.image_size
    sizes = {"size": {"longest_edge": 2 * side}, "max_image_size": {"longest_edge": side}}
    length = (side // vision.patch_size // config.scale_factor) ** 2
    if config.model_type == "idefics3":
        images = hf.Idefics3ImageProcessorPil(**sizes)
        return hf.Idefics3Processor(images, tokenizer, image_seq_len=length, **more)
    images = hf.SmolVLMImageProcessorPil(**sizes)
    return processor_class("SmolVLMProcessor")(images, tokenizer, image_seq_len=length, **more)


def _paligemma(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    vision = config.vision_config
    images = hf.SiglipImageProcessorPil(size=_square(vision.image_size))
    images.image_seq_length = (vision.image_size // vision.patch_size) ** 2
    return hf.PaliGemmaProcessor(images, tokenizer, **more)


def _mllama(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    images = hf.MllamaImageProcessorPil(
        size=_square(config.vision_config.image_size),
        max_image_tiles=config.vision_config.max_num_tiles,
    )
    return hf.MllamaProcessor(images, tokenizer, **more)


def _llama4(config: Any, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    vision = config.vision_config
    tile = _square(vision.image_size)
    images = Llama4ImageProcessorPil(size=tile, max_patches=4)
    return processor_class("Llama4Processor")(
        images,
        tokenizer,
        patch_size=vision.patch_size,
        pixel_shuffle_ratio=vision.pixel_shuffle_ratio,
        **more,
    )


MAKERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("llava", "llava_next", "vipllava"), _llava),
    "llava_onevision": _llava_onevision,
    **dict.fromkeys(("pixtral", "mistral3"), _pixtral),
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), _qwen_vl),
    **dict.fromkeys(("glm4v", "glm46v"), _glm),
    "internvl": _internvl,
    **dict.fromkeys(("idefics3", "smolvlm"), _idefics),
    "paligemma": _paligemma,
    "mllama": _mllama,
    "llama4": _llama4,
}
