"""Vision towers become tiny ones that give each image a handful of tokens."""

from collections.abc import Callable
from typing import Any

D_VISION, D_MLP, HEADS, LAYERS, PATCH = 32, 48, 4, 2, 4
SIDE = 16  # of a square image or tile, in pixels


def shrink_vision(tiny: Any, d_model: int) -> None:
    """Shrink the vision part of a VLM config in place.

    Parameters
    ----------
    tiny : PreTrainedConfig
        A copy whose text part is tiny already.
    d_model : int
        Width of that text part.
    """
    SHRINKERS[tiny.vision_config.model_type](tiny, tiny.vision_config, d_model)


def _tower(vision: Any, *, side: int = SIDE, patch: int = PATCH, layers: int = LAYERS) -> None:
    vision.hidden_size, vision.intermediate_size = D_VISION, D_MLP
    vision.num_hidden_layers, vision.num_attention_heads = layers, HEADS
    vision.image_size, vision.patch_size = side, patch


def _clip_like(tiny: Any, vision: Any, d_model: int) -> None:
    """CLIP and SigLIP towers behind LLaVA's kin, Gemma 3 and PaliGemma."""
    taken = getattr(tiny, "vision_feature_layer", -1)
    true_side = vision.image_size
    pinpoints = getattr(tiny, "image_grid_pinpoints", None)
    several = not isinstance(taken, int)
    _tower(
        vision,
        side=SIDE // 2 if pinpoints else SIDE,
        layers=len(taken) + 1 if several else LAYERS,
    )
    if several:  # one layer each, from as far apart as there is room
        behind = iter(range(-2, -len(taken) - 2, -1))
        before = iter(range(1, len(taken) + 1))
        tiny.vision_feature_layer = [next(behind if x < 0 else before) for x in taken]
    if hasattr(vision, "projection_dim"):
        vision.projection_dim = D_VISION
    if pinpoints:
        scale = vision.image_size / true_side
        tiny.image_grid_pinpoints = [[round(x * scale) for x in pair] for pair in pinpoints]
    tokens = (vision.image_size // vision.patch_size) ** 2
    if hasattr(tiny, "image_seq_length"):
        tiny.image_seq_length = tokens
    if tiny.model_type == "gemma3":
        tiny.mm_tokens_per_image = tokens // 4
    if tiny.model_type == "paligemma":
        tiny.text_config.num_image_tokens = tokens


def _pixtral(tiny: Any, vision: Any, d_model: int) -> None:
    _tower(vision, side=2 * SIDE)
    vision.head_dim = D_VISION // HEADS


def _qwen2_vl(tiny: Any, vision: Any, d_model: int) -> None:
    vision.depth, vision.embed_dim, vision.num_heads = LAYERS, D_VISION, HEADS
    vision.patch_size, vision.hidden_size, vision.mlp_ratio = PATCH, d_model, 2


def _qwen2_5_vl(tiny: Any, vision: Any, d_model: int) -> None:
    _tower_of_qwen(vision, d_model)
    vision.window_size = 2 * PATCH * vision.spatial_merge_size
    vision.fullatt_block_indexes = [LAYERS - 1]


def _qwen3_vl(tiny: Any, vision: Any, d_model: int) -> None:
    _tower_of_qwen(vision, d_model)
    deep = len(vision.deepstack_visual_indexes)
    vision.depth, vision.deepstack_visual_indexes = deep + 1, list(range(deep))
    vision.num_position_embeddings = 16


def _qwen3_5(tiny: Any, vision: Any, d_model: int) -> None:
    _tower_of_qwen(vision, d_model)
    vision.num_position_embeddings = 16


def _glm(tiny: Any, vision: Any, d_model: int) -> None:
    _tower_of_qwen(vision, d_model)
    vision.image_size = SIDE


def _gemma4(tiny: Any, vision: Any, d_model: int) -> None:
    vision.hidden_size, vision.intermediate_size = D_VISION, D_MLP
    vision.num_hidden_layers, vision.patch_size = LAYERS, PATCH
    vision.num_attention_heads = vision.num_key_value_heads = HEADS
    vision.head_dim, vision.position_embedding_size = D_VISION // HEADS, 64


def _tower_of_qwen(vision: Any, d_model: int) -> None:
    vision.depth, vision.hidden_size, vision.intermediate_size = LAYERS, D_VISION, D_MLP
    vision.num_heads, vision.patch_size, vision.out_hidden_size = HEADS, PATCH, d_model


def _internvl(tiny: Any, vision: Any, d_model: int) -> None:
    _tower(vision)
    vision.image_size, vision.patch_size = [SIDE, SIDE], [PATCH, PATCH]
    tiny.image_seq_length = int((SIDE // PATCH) ** 2 * tiny.downsample_ratio**2)


def _idefics(tiny: Any, vision: Any, d_model: int) -> None:
    patch = PATCH if tiny.scale_factor <= 2 else PATCH // 2
    _tower(vision, side=2 * tiny.scale_factor * patch, patch=patch)  # 2 x 2 tokens per tile


def _mllama(tiny: Any, vision: Any, d_model: int) -> None:
    _tower(vision, side=SIDE // 2)
    vision.num_global_layers, vision.intermediate_layers_indices = 1, [0, 1]
    vision.vision_output_dim = D_VISION * (1 + len(vision.intermediate_layers_indices))


def _llama4(tiny: Any, vision: Any, d_model: int) -> None:
    _tower(vision)
    shuffled = int(D_VISION / vision.pixel_shuffle_ratio**2)
    vision.intermediate_size = shuffled  # the adapter reads as many channels
    vision.projector_input_dim = vision.projector_output_dim = D_VISION
    vision.vision_output_dim = D_VISION


SHRINKERS: dict[str, Callable[[Any, Any, int], None]] = {
    "clip_vision_model": _clip_like,
    "siglip_vision_model": _clip_like,
    "pixtral": _pixtral,
    "qwen2_vl_vision": _qwen2_vl,
    "qwen2_5_vl_vision": _qwen2_5_vl,
    "qwen3_vl_vision": _qwen3_vl,
    "gemma4_vision": _gemma4,
    "qwen3_5_vision": _qwen3_5,
    "glm4v_vision": _glm,
    "internvl_vision": _internvl,
    "idefics3_vision": _idefics,
    "smolvlm_vision": _idefics,
    "mllama_vision_model": _mllama,
    "llama4_vision_model": _llama4,
}
