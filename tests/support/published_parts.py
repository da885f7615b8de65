"""Language models and vision towers that published models are made of, at their true sizes.

Each is the few facts that differ from the defaults of its transformers class: sizes, vocabulary,
rotary settings, windows. Token ids for generation, dtypes and what only a processor reads are not
here.
"""

from typing import Any

Facts = dict[str, Any]


def rope(theta: float, **more: Any) -> Facts:
    """Return rotary settings: plain ones, unless more is said."""
    return {"rope_type": "default", "rope_theta": theta} | more


LLAMA_31_ROPE = rope(
    500_000.0,
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
QWEN_VL_ROPE = rope(1_000_000.0, mrope_section=[16, 24, 24])
GEMMA_ROPE = {
    "full_attention": rope(1_000_000.0, rope_type="linear", factor=8.0),
    "sliding_attention": rope(10_000.0),
}

# ---------------------------------------------------------------- language models
# Vicuna v1.5 is Llama 2 with its context of 4096.
VICUNA_7B = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
VICUNA_13B = VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13_824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": rope(500_000.0),
}
LLAMA_31_8B = LLAMA_3_8B | {"max_position_embeddings": 131_072, "rope_parameters": LLAMA_31_ROPE}
LLAMA_31_70B = LLAMA_31_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
# From v0.2 on Mistral attends without a window.
MISTRAL_7B = {
    "model_type": "mistral",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "rope_parameters": rope(1_000_000.0),
}
# Its heads are narrower than hidden_size / num_attention_heads.
MISTRAL_NEMO = MISTRAL_7B | {
    "vocab_size": 131_072,
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
}
MISTRAL_LARGE = MISTRAL_7B | {
    "vocab_size": 32_768,
    "hidden_size": 12_288,
    "intermediate_size": 28_672,
    "num_hidden_layers": 88,
    "num_attention_heads": 96,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
}
QWEN_7B = {
    "model_type": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": rope(1_000_000.0),
}
QWEN_72B = QWEN_7B | {
    "hidden_size": 8192,
    "intermediate_size": 29_568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
QWEN3_8B = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": rope(1_000_000.0),
}
GLM_9B = {
    "model_type": "glm4",
    "vocab_size": 151_552,
    "hidden_size": 4096,
    "intermediate_size": 13_696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "rope_parameters": rope(10_000.0, partial_rotary_factor=0.5),
}
QWEN35_9B = {
    "model_type": "qwen3_5_text",
    "vocab_size": 248_320,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "layer_types": [*["linear_attention"] * 3, "full_attention"] * 8,
    "max_position_embeddings": 262_144,
    "rms_norm_eps": 1e-6,
    "rope_parameters": rope(
        10_000_000.0,
        partial_rotary_factor=0.25,
        mrope_section=[11, 11, 10],
        mrope_interleaved=True,
    ),
}
SMOLLM2_1_7B = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": rope(130_000.0),
}
# Five blocks with a window, then one without.
GEMMA_12B = {
    "model_type": "gemma3_text",
    "hidden_size": 3840,
    "intermediate_size": 15_360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "sliding_window": 1024,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 8,
    "rope_parameters": GEMMA_ROPE,
}
GEMMA_27B = GEMMA_12B | {
    "hidden_size": 5376,
    "intermediate_size": 21_504,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "query_pre_attn_scalar": 168,
    "layer_types": ([*["sliding_attention"] * 5, "full_attention"] * 11)[:62],
}
# The wide heads of blocks without a window have fewer keys, which are their values too.
GEMMA_4_31B = {
    "model_type": "gemma4_text",
    "hidden_size": 5376,
    "intermediate_size": 21_504,
    "num_hidden_layers": 60,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "num_global_key_value_heads": 4,
    "attention_k_eq_v": True,
    "max_position_embeddings": 262_144,
    "sliding_window": 1024,
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 0,
    "use_bidirectional_attention": "vision",
}
# Blocks 3, 8, 13 ... attend to the image and to nothing else.
MLLAMA_11B = {
    "model_type": "mllama_text_model",
    "cross_attention_layers": list(range(3, 40, 5)),
    "rope_parameters": LLAMA_31_ROPE,
}
MLLAMA_90B = MLLAMA_11B | {
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 100,
    "num_attention_heads": 64,
    "cross_attention_layers": list(range(3, 100, 5)),
}

# ---------------------------------------------------------------- vision towers
CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}
PIXTRAL_400M = {
    "model_type": "pixtral",
    "hidden_act": "silu",
    "rope_parameters": rope(10_000.0, rope_type="axial"),
}
PIXTRAL_1B = PIXTRAL_400M | {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 40,
}
GEMMA_4_VIT = {
    "model_type": "gemma4_vision",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 72,
    "standardize": True,
}
INTERN_VIT_300M = {
    "model_type": "internvl_vision",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": True,
    "image_size": [448, 448],
    "patch_size": [14, 14],
}
GLM_VIT = {
    "model_type": "glm4v_vision",
    "depth": 24,
    "hidden_size": 1536,
    "intermediate_size": 13_696,
    "out_hidden_size": 4096,
    "num_heads": 12,
    "image_size": 336,
    "patch_size": 14,
}
QWEN3_VIT = {
    "model_type": "qwen3_vl_vision",
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "deepstack_visual_indexes": [8, 16, 24],
}
QWEN35_VIT = {
    "model_type": "qwen3_5_vision",
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "out_hidden_size": 4096,
}
QWEN_VIT = {"model_type": "qwen2_5_vl_vision", "hidden_size": 1280, "tokens_per_second": 2}
MLLAMA_VIT = {"model_type": "mllama_vision_model", "image_size": 560}
