"""True-size configs of the published models, put together from their parts.

A model built from one has the shapes of the published weights, so that it can be taken apart on the
meta device without a download.
"""

from copy import deepcopy
from typing import Any

from published_parts import (
    CLIP_L_336,
    GEMMA_4_31B,
    GEMMA_4_VIT,
    GEMMA_12B,
    GEMMA_27B,
    GLM_9B,
    GLM_VIT,
    INTERN_VIT_300M,
    LLAMA_3_8B,
    LLAMA_31_8B,
    LLAMA_31_70B,
    MISTRAL_7B,
    MISTRAL_LARGE,
    MISTRAL_NEMO,
    MLLAMA_11B,
    MLLAMA_90B,
    MLLAMA_VIT,
    PIXTRAL_1B,
    PIXTRAL_400M,
    QWEN3_8B,
    QWEN3_VIT,
    QWEN35_9B,
    QWEN35_VIT,
    QWEN_7B,
    QWEN_72B,
    QWEN_VIT,
    QWEN_VL_ROPE,
    SIGLIP_SO400M,
    SMOLLM2_1_7B,
    VICUNA_7B,
    VICUNA_13B,
    Facts,
    rope,
)
from transformers import AutoConfig, PreTrainedConfig

from interventions.errors import InterventionsError, did_you_mean
from twohop.published import PublishedPair


def _vlm(model_type: str, text: Facts, vision: Facts, **more: Any) -> Facts:
    return {"model_type": model_type, "text_config": text, "vision_config": vision, **more}


def _qwen_vl(text: Facts, **vision: Any) -> Facts:
    own = {
        "model_type": "qwen2_5_vl_text",
        "max_position_embeddings": 128_000,
        "rope_parameters": QWEN_VL_ROPE,
    }
    return _vlm("qwen2_5_vl", text | own, QWEN_VIT | vision)


# Pixtral gives the language model every patch of the tower's last layer.
PIXTRAL = {
    "image_token_index": 10,
    "image_seq_length": 1,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
# llava-hf's conversions append `<image>` and `<pad>` and round the vocabulary up to a multiple of
# 64. The layer their CLIP features come from (-2, without the class token) is the class's default.
MODELS: dict[str, Facts] = {
    "llava-hf/llava-1.5-7b-hf": _vlm("llava", VICUNA_7B | {"vocab_size": 32_064}, CLIP_L_336),
    "llava-hf/llava-1.5-13b-hf": _vlm("llava", VICUNA_13B | {"vocab_size": 32_064}, CLIP_L_336),
    "llava-hf/llava-v1.6-mistral-7b-hf": _vlm(
        "llava_next", MISTRAL_7B | {"vocab_size": 32_064}, CLIP_L_336
    ),
    "llava-hf/llama3-llava-next-8b-hf": _vlm(
        "llava_next",
        LLAMA_3_8B | {"vocab_size": 128_320},
        CLIP_L_336,
        image_token_index=128_256,
    ),
    # The original layout marks images with -200, which is no token, and trained no new ones: the
    # vocabulary stays Llama's, whose first reserved token can stand for the image. The two-layer
    # GELU projector and the second-to-last CLIP layer are what transformers' class has by default.
    "aimagelab/LLaVA_MORE-llama_3_1-8B-finetuning": _vlm(
        "llava", LLAMA_31_8B, CLIP_L_336, image_token_index=128_002
    ),
    # 152,064 + `<image>` + `<video>`, rounded up. SigLIP without its last layer.
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": _vlm(
        "llava_onevision",
        QWEN_7B | {"vocab_size": 152_128},
        SIGLIP_SO400M | {"num_hidden_layers": 26, "image_size": 384},
    ),
    "mistral-community/pixtral-12b": _vlm(
        "llava",
        MISTRAL_NEMO
        | {"max_position_embeddings": 1_024_000, "rope_parameters": rope(1_000_000_000.0)},
        PIXTRAL_400M,
        **PIXTRAL,
    ),
    # What the checkpoint's params.json corresponds to; unlike the 12B, its projector has no bias.
    "mistralai/Pixtral-Large-Instruct-2411": _vlm(
        "llava",
        MISTRAL_LARGE | {"rope_parameters": rope(1_000_000_000.0)},
        PIXTRAL_1B,
        multimodal_projector_bias=False,
        **PIXTRAL,
    ),
    "google/gemma-3-12b-it": _vlm("gemma3", GEMMA_12B, SIGLIP_SO400M),
    "google/gemma-3-27b-it": _vlm("gemma3", GEMMA_27B, SIGLIP_SO400M),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen_vl(QWEN_7B),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen_vl(
        QWEN_72B, intermediate_size=3456, out_hidden_size=8192
    ),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": _vlm("mllama", MLLAMA_11B, MLLAMA_VIT),
    "meta-llama/Llama-3.2-90B-Vision-Instruct": _vlm("mllama", MLLAMA_90B, MLLAMA_VIT),
    # Its head is not the embedding, as that of its backbone is.
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": _vlm(
        "smolvlm",
        SMOLLM2_1_7B | {"vocab_size": 49_280, "tie_word_embeddings": False},
        SIGLIP_SO400M | {"model_type": "smolvlm_vision", "image_size": 384},
        scale_factor=3,
        image_token_id=49_190,
    ),
    # The class ties head and embedding, unless it is told otherwise.
    "OpenGVLab/InternVL3_5-8B-HF": _vlm(
        "internvl",
        QWEN3_8B,
        INTERN_VIT_300M,
        image_token_id=151_671,
        tie_word_embeddings=False,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": _vlm(
        "qwen3_vl",
        QWEN3_8B
        | {
            "model_type": "qwen3_vl_text",
            "max_position_embeddings": 262_144,
            "rope_parameters": rope(
                5_000_000.0, mrope_section=[24, 20, 20], mrope_interleaved=True
            ),
        },
        QWEN3_VIT | {"out_hidden_size": 4096},
    ),
    "zai-org/GLM-4.1V-9B-Thinking": _vlm(
        "glm4v",
        GLM_9B
        | {
            "model_type": "glm4v_text",
            "max_position_embeddings": 65_536,
            "rope_parameters": rope(10_000.0, partial_rotary_factor=0.5, mrope_section=[8, 12, 12]),
        },
        GLM_VIT,
    ),
    # Without the block that guesses a second token, which no class of transformers has.
    "Qwen/Qwen3.5-9B": _vlm("qwen3_5", QWEN35_9B, QWEN35_VIT),
    "google/gemma-4-31B-it": _vlm("gemma4", GEMMA_4_31B, GEMMA_4_VIT),
    "lmsys/vicuna-7b-v1.5": VICUNA_7B,
    "lmsys/vicuna-13b-v1.5": VICUNA_13B,
    "mistralai/Mistral-7B-Instruct-v0.2": MISTRAL_7B,
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_31_8B,
    "meta-llama/Llama-3.1-70B-Instruct": LLAMA_31_70B,
    "Qwen/Qwen2-7B-Instruct": QWEN_7B,
    "Qwen/Qwen2.5-7B-Instruct": QWEN_7B,
    "Qwen/Qwen2.5-72B-Instruct": QWEN_72B,
    "Qwen/Qwen3-8B": QWEN3_8B,
    "zai-org/GLM-4-9B-0414": GLM_9B,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": SMOLLM2_1_7B,
    "mistralai/Mistral-Nemo-Instruct-2407": MISTRAL_NEMO,
    "mistralai/Mistral-Large-Instruct-2411": MISTRAL_LARGE,
}


def published_config(repo: str, *, text_only: bool = False) -> PreTrainedConfig:
    """Return the config of a published model, at its true size.

    Parameters
    ----------
    repo : str
        Its id on the Hugging Face hub. Nothing is fetched.
    text_only : bool
        Give the config of the text decoder alone. A native VLM's backbone is this.

    Returns
    -------
    transformers.PreTrainedConfig
        A new object; changing it changes nothing else.

    Raises
    ------
    InterventionsError
        If the model is in none of the registered pairs; the nearest id is named.
    """
    if repo not in MODELS:
        raise InterventionsError(f"no published config of {repo!r}. {did_you_mean(repo, MODELS)}")
    config = AutoConfig.for_model(**deepcopy(MODELS[repo]))
    return config.get_text_config(decoder=True) if text_only else config


def vlm_config(pair: PublishedPair) -> PreTrainedConfig:
    """Return the config of a pair's VLM."""
    return published_config(pair.vlm)


def backbone_config(pair: PublishedPair) -> PreTrainedConfig:
    """Return the config of a pair's backbone: of a native VLM, its text decoder's."""
    return published_config(pair.backbone, text_only=pair.same_weights)
