"""True-size configs become tiny ones: sizes shrink, everything else stays.

What stays: model type, flags, the pattern of layer types, whether heads share keys and values,
which norms there are, where features are taken from, rotary scaling. The ids of special tokens
become those of the tiny tokenizer, whose style is kept in ``config.tiny_style``.
"""

import copy
from typing import Any

from tiny.tokens import tiny_tokenizer
from tiny.vision import shrink_vision

D_MODEL, HEADS, D_MLP, WINDOW = 48, 4, 64, 8
BLOCKS = 4
MLLAMA_BLOCKS, MLLAMA_CROSS = 6, [1, 4]  # as many others as a language model has

SMOLLM_SIZES = (49_152, 49_280)  # of SmolLM2's vocabulary, and of SmolVLM's
TEXT_STYLES = {
    "qwen2": "qwen",
    "qwen3": "qwen",
    "qwen2_vl_text": "qwen",
    "qwen2_5_vl_text": "qwen",
    "qwen3_vl_text": "qwen",
    "qwen3_5_text": "qwen",
    "glm4": "glm",
    "glm4v_text": "glm",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gemma4_text": "gemma4",
    "mllama_text_model": "llama3",
    "llama4_text": "llama4",
}


def style_of(config: Any) -> str:
    """Return the name of the tokenizer style that a config's true tokenizer has."""
    if style := getattr(config, "tiny_style", None):
        return style
    text = config.get_text_config(decoder=True)
    if text.model_type == "mistral":
        return "tekken" if text.vocab_size > 32_100 else "llama2"  # from version 3 on
    if text.model_type == "llama":
        if text.vocab_size in SMOLLM_SIZES:
            return "smollm"
        return "llama3" if text.vocab_size > 100_000 else "llama2"
    return TEXT_STYLES[text.model_type]


def sees_of(config: Any) -> str:
    """Return the VLM type whose tokens a config's tokenizer has; empty for a language model."""
    if getattr(config, "vision_config", None) is None:
        return ""
    tower = config.vision_config.model_type
    return "pixtral" if config.model_type == "llava" and tower == "pixtral" else config.model_type


def shrink(config: Any) -> Any:
    """Return the tiny twin of a config.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a language model or a VLM, as large as it likes; left as it is.
    """
    tiny = copy.deepcopy(config)
    tiny.tiny_style, sees = style_of(config), sees_of(config)
    text = tiny.get_text_config(decoder=True)
    _shrink_text(text)
    tokenizer = tiny_tokenizer(tiny.tiny_style, sees)
    text.vocab_size = len(tokenizer) - (text.model_type == "mllama_text_model")
    for owner in {id(part): part for part in (tiny, text)}.values():
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if name in vars(owner):
                setattr(owner, name, getattr(tokenizer, name))
    if sees:
        _shrink_parts(tiny, tokenizer)
    return tiny


def _shrink_text(text: Any) -> None:
    text.per_layer_config = None  # of Gemma 4: made anew below
    heads, width = text.num_attention_heads, text.hidden_size
    shared = getattr(text, "num_key_value_heads", heads) or heads
    head_dim = getattr(text, "head_dim", None)
    natural = D_MODEL // HEADS
    tiny_dim = natural
    if head_dim is not None and head_dim * heads != width:
        tiny_dim = natural + (4 if head_dim * heads > width else -4)
    partial = (text.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    if int(natural * partial) < 6:  # three axes, two numbers each
        tiny_dim = 2 * natural
    scalar = getattr(text, "query_pre_attn_scalar", None)
    if scalar is not None:
        text.query_pre_attn_scalar = tiny_dim if scalar == head_dim else natural
    text.num_attention_heads = HEADS
    text.num_key_value_heads = {heads: HEADS, 1: 1}.get(shared, HEADS // 2)
    text.hidden_size, text.intermediate_size = D_MODEL, D_MLP
    if head_dim is not None:
        text.head_dim = tiny_dim
    if hasattr(text, "intermediate_size_mlp"):
        text.intermediate_size_mlp = D_MLP + 16
    if hasattr(text, "num_local_experts"):
        text.num_local_experts = min(4, text.num_local_experts)
        text.num_experts_per_tok = min(2, text.num_experts_per_tok)
    if hasattr(text, "linear_num_value_heads"):
        text.linear_num_key_heads, text.linear_num_value_heads = HEADS // 2, HEADS
        text.linear_key_head_dim, text.linear_value_head_dim = natural - 4, natural
    for name in ("sliding_window", "attention_chunk_size"):
        if getattr(text, name, None) is not None:
            setattr(text, name, WINDOW)
    if "mrope_section" in (text.rope_parameters or {}):
        half = int(tiny_dim * partial) // 2
        text.rope_parameters["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    _shrink_depth(text)
    if text.model_type == "gemma4_text":
        _shrink_global(text)


def _shrink_global(text: Any) -> None:
    """Gemma 4's blocks without a window have wider and fewer heads."""
    wide = {"head_dim": 2 * text.head_dim, "num_key_value_heads": text.num_key_value_heads // 2}
    text.per_layer_config = {
        i: dict(wide) for i, kind in enumerate(text.layer_types) if kind == "full_attention"
    }


def _shrink_depth(text: Any) -> None:
    if text.model_type == "mllama_text_model":
        text.num_hidden_layers, text.cross_attention_layers = MLLAMA_BLOCKS, list(MLLAMA_CROSS)
        return
    kinds = getattr(text, "layer_types", None) or []
    n = BLOCKS
    while n < len(kinds) and set(kinds[:n]) != set(kinds):
        n += 1
    text.num_hidden_layers = n
    for name in ("layer_types", "no_rope_layers"):
        if getattr(text, name, None) is not None:
            setattr(text, name, getattr(text, name)[:n])
    if getattr(text, "moe_layers", None) is not None:
        text.moe_layers = [layer for layer in text.moe_layers if layer < n]


def _shrink_parts(tiny: Any, tokenizer: Any) -> None:
    """Vision tower, projector, and the ids that text and images meet by."""
    shrink_vision(tiny, D_MODEL)
    ids = {
        "image_token_id": _image_token(tokenizer, tiny),
        "video_token_id": getattr(tokenizer, "video_token", None),
        "boi_token_id": getattr(tokenizer, "boi_token", "<|image_start|>"),
        "eoi_token_id": getattr(tokenizer, "eoi_token", "<|image_end|>"),
        **{
            f"{kind}_{end}_token_id": getattr(tokenizer, f"{kind}_{end}_token", None)
            for kind in ("image", "video")
            for end in ("start", "end")
        },
        "vision_start_token_id": getattr(tokenizer, "vision_bos_token", None),
        "vision_end_token_id": getattr(tokenizer, "vision_eos_token", None),
    }
    for name, token in ids.items():
        if token is not None and hasattr(tiny, name):
            setattr(tiny, name, tokenizer.convert_tokens_to_ids(token))
    if tiny.model_type == "paligemma":
        tiny.vocab_size = tiny.text_config.vocab_size
        tiny.hidden_size = tiny.projection_dim = tiny.vision_config.projection_dim = D_MODEL


def _image_token(tokenizer: Any, tiny: Any) -> str:
    by_type = {"internvl": "<IMG_CONTEXT>", "llama4": "<|patch|>", "mistral3": "[IMG]"}
    return by_type.get(tiny.model_type) or getattr(tokenizer, "image_token", "[IMG]")
