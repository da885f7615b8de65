"""Checkpoints written in Mistral's own layout, of the tiny Pixtral in transformers' own."""

import base64
import json
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import save_file
from tiny.tokens import STYLES
from transformers.convert_slow_tokenizer import bytes_to_unicode

PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own
)
RENAMED = (
    ("model.language_model.embed_tokens", "tok_embeddings"),
    ("model.language_model.norm", "norm"),
    ("model.language_model.layers", "layers"),
    ("model.vision_tower", "vision_encoder"),
    ("model.multi_modal_projector.linear_1", "vision_language_adapter.w_in"),
    ("model.multi_modal_projector.linear_2", "vision_language_adapter.w_out"),
    ("lm_head", "output"),
    *(
        (f".{where}.{part}_proj", f".attention.w{part}")
        for part in "qkvo"
        for where in ("self_attn", "attention")
    ),
    *(
        (f".{where}.{part}_proj", f".feed_forward.{old}")
        for part, old in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
        for where in ("mlp", "feed_forward")
    ),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
)


def old_name(name: str) -> str:
    """What a weight of transformers' LLaVA is called in Mistral's layout."""
    for new, old in RENAMED:
        name = name.replace(new, old)
    return name


def in_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries and keys for rotations of neighbouring numbers: first and second half in turn."""
    first, second = weight.unflatten(0, (heads, 2, -1)).unbind(1)
    return torch.stack([first, second], 2).flatten(0, 2)


def write(folder: Path, *, pieces: int = 1) -> tuple[Any, Any]:
    """Write the tiny Pixtral so; return the model and processor that it was taken from."""
    folder.mkdir()
    module, processor = tiny.build("pixtral")
    text, vision = module.config.text_config, module.config.vision_config
    weights = {}
    for name, value in module.state_dict().items():
        seeing = "vision_tower" in name
        heads = {
            "q_proj": vision.num_attention_heads if seeing else text.num_attention_heads,
            "k_proj": vision.num_attention_heads if seeing else text.num_key_value_heads,
        }.get(name.split(".")[-2])
        weights[old_name(name)] = (in_pairs(value, heads) if heads else value).contiguous()
    for i in range(pieces):
        file = "consolidated.safetensors"
        if pieces > 1:
            file = f"consolidated-{i + 1:05}-of-{pieces:05}.safetensors"
        save_file({name: weights[name] for name in [*weights][i::pieces]}, folder / file)
    (folder / "params.json").write_text(json.dumps(params_of(text, vision, module.config)))
    (folder / "tekken.json").write_text(json.dumps(tekken_of(processor.tokenizer)))
    return module, processor


def params_of(text: Any, vision: Any, config: Any) -> dict[str, Any]:
    return {
        "dim": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "head_dim": text.head_dim,
        "hidden_dim": text.intermediate_size,
        "n_heads": text.num_attention_heads,
        "n_kv_heads": text.num_key_value_heads,
        "rope_theta": text.rope_parameters["rope_theta"],
        "norm_eps": text.rms_norm_eps,
        "vocab_size": text.vocab_size,
        "vision_encoder": {
            **{
                key: getattr(vision, key)
                for key in (
                    *("hidden_size", "num_channels", "image_size", "patch_size"),
                    *("intermediate_size", "num_hidden_layers", "num_attention_heads"),
                )
            },
            "rope_theta": vision.rope_parameters["rope_theta"],
            "image_token_id": config.image_token_id,
            "adapter_bias": True,
        },
    }


def tekken_of(tokenizer: Any) -> dict[str, Any]:
    """The tokens of the tiny tokenizer of Mistral's style, by rank."""
    special = STYLES["tekken"].front
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])[len(special) :]
    return {
        "config": {
            "pattern": PATTERN,
            "default_vocab_size": len(tokenizer),
            "default_num_special_tokens": len(special),
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(bytes(byte_of[c] for c in token)).decode()}
            for i, (token, _) in enumerate(vocab)
        ],
        "special_tokens": [
            {"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(special)
        ],
    }
