"""One true-size config per family, as its usual checkpoint has it: what is shrunk."""

from collections.abc import Callable
from typing import Any

from published_parts import GEMMA_4_31B
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4TextConfig,
    Glm4Config,
    Glm4vConfig,
    Glm46VConfig,
    Idefics3Config,
    InternVLConfig,
    Llama4Config,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    MistralConfig,
    MllamaConfig,
    PaliGemmaConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3VLConfig,
    SmolVLMConfig,
    VipLlavaConfig,
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA3: dict[str, Any] = {
    "vocab_size": 128_256,
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
    "rope_parameters": LLAMA3_ROPE,
}
QWEN2: dict[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
NEMO: dict[str, Any] = {
    "vocab_size": 131_072,
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "head_dim": 128,
    "sliding_window": None,
}
GLM4V: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [8, 12, 12],
    }
}
GEMMA3: dict[str, Any] = {
    "hidden_size": 3840,
    "intermediate_size": 15_360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "sliding_window": 1024,
}


def _m_rope(sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections, **more}


QWEN3_5_ROPE = _m_rope([11, 11, 10], mrope_interleaved=True, partial_rotary_factor=0.25)


def _qwen_vl(**more: Any) -> dict[str, Any]:
    return {**QWEN2, "rope_parameters": _m_rope([16, 24, 24]), **more}


TRUE: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**LLAMA3),
    "vicuna": lambda: LlamaConfig(max_position_embeddings=4096, rms_norm_eps=1e-5),
    "mistral": lambda: MistralConfig(rms_norm_eps=1e-5),
    "qwen2": lambda: Qwen2Config(**QWEN2),
    "qwen3": lambda: Qwen3Config(
        hidden_size=2560, num_key_value_heads=8, num_hidden_layers=36, tie_word_embeddings=True
    ),
    "glm4": lambda: Glm4Config(rms_norm_eps=1e-5),
    "gemma2": lambda: Gemma2Config(),
    "gemma3_text": lambda: Gemma3TextConfig(**GEMMA3),
    "llava": lambda: LlavaConfig(text_config=LlamaConfig(vocab_size=32_064)),
    "llava_next": lambda: LlavaNextConfig(
        text_config=MistralConfig(vocab_size=32_064, sliding_window=None)
    ),
    "llava_onevision": lambda: LlavaOnevisionConfig(text_config=Qwen2Config(**QWEN2)),
    "vipllava": lambda: VipLlavaConfig(text_config=LlamaConfig(vocab_size=32_064)),
    "pixtral": lambda: LlavaConfig(
        text_config=MistralConfig(**NEMO),
        vision_config=PixtralVisionConfig(hidden_act="silu"),
        image_token_index=10,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    ),
    "mistral3": lambda: Mistral3Config(),
    "gemma3": lambda: Gemma3Config(text_config=Gemma3TextConfig(**GEMMA3)),
    "gemma4_text": lambda: Gemma4TextConfig(**GEMMA_4_31B),
    "gemma4": lambda: Gemma4Config(
        text_config=GEMMA_4_31B,
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 72,
            "standardize": True,
        },
    ),
    "qwen2_vl": lambda: Qwen2VLConfig(text_config=_qwen_vl()),
    "qwen2_5_vl": lambda: Qwen2_5_VLConfig(text_config=_qwen_vl()),
    "qwen3_vl": lambda: Qwen3VLConfig(
        text_config={
            "num_key_value_heads": 8,
            "rope_parameters": _m_rope([24, 20, 20], mrope_interleaved=True),
        }
    ),
    "glm4v": lambda: Glm4vConfig(text_config=GLM4V),
    "glm46v": lambda: Glm46VConfig(text_config={"model_type": "glm4v_text", **GLM4V}),
    "qwen3_5_text": lambda: Qwen3_5TextConfig(rope_parameters=QWEN3_5_ROPE),
    "qwen3_5": lambda: Qwen3_5Config(
        text_config={"rope_parameters": QWEN3_5_ROPE}, vision_config={"out_hidden_size": 4096}
    ),
    "internvl": lambda: InternVLConfig(text_config=Qwen2Config(**QWEN2)),
    "idefics3": lambda: Idefics3Config(
        text_config=LlamaConfig(**LLAMA3),
        vision_config={"num_hidden_layers": 27, "image_size": 364, "patch_size": 14},
    ),
    "smolvlm": lambda: SmolVLMConfig(
        text_config=LlamaConfig(vocab_size=49_280, hidden_size=2048, num_hidden_layers=24),
        vision_config={"num_hidden_layers": 27, "image_size": 384, "patch_size": 14},
        scale_factor=3,
        image_token_id=49_190,
    ),
    "paligemma": lambda: PaliGemmaConfig(),
    "mllama": lambda: MllamaConfig(),
    "llama4": lambda: Llama4Config(),
}


def true_config(name: str) -> Any:
    """Return the config of a family's usual checkpoint, true to size."""
    return TRUE[name]()
