"""Checkpoints written in LLaVA's original layout, of models in transformers' own."""

import json
from pathlib import Path
from typing import Any

import tiny
from safetensors.torch import save_file
from tiny.tokens import tiny_tokenizer
from transformers import CLIPVisionModel

RESERVED = "<|reserved_special_token_0|>"
INSIDE = "model.vision_tower.vision_tower.vision_model."


def old_name(name: str) -> str:
    """What a weight of transformers' LLaVA is called in the original layout."""
    for new, old in (
        ("model.vision_tower.", INSIDE),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.language_model.", "model."),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def write(
    folder: Path, *, inside: bool = True, shards: int = 1, reserved: bool = True, **config: Any
) -> Any:
    """Write the tiny LLaVA in the original layout; return the model it was taken from."""
    source, processor = tiny.build("llava")
    tokenizer = tiny_tokenizer("llama2")
    if reserved:
        tokenizer.add_tokens([RESERVED], special_tokens=True)
    write_model(
        folder,
        source,
        processor.image_processor,
        tokenizer,
        inside=inside,
        shards=shards,
        **{"mm_vision_select_layer": -2, **config},
    )
    return source


def write_model(
    folder: Path,
    source: Any,
    image_processor: Any,
    tokenizer: Any,
    *,
    inside: bool = True,
    shards: int = 1,
    **config: Any,
) -> None:
    """Write a LLaVA of transformers in the original layout."""
    folder.mkdir(exist_ok=True)
    tower = folder / "tower"
    vision = CLIPVisionModel(source.config.vision_config)
    vision.load_state_dict(source.model.vision_tower.state_dict())
    vision.save_pretrained(tower)
    image_processor.save_pretrained(tower)
    tokenizer.save_pretrained(folder)
    text = source.config.text_config.to_dict()
    text |= {"vocab_size": len(tokenizer), "model_type": "llava_llama"}
    text |= {"pad_token_id": tokenizer.pad_token_id}
    text |= {"architectures": ["LlavaLlamaForCausalLM"], "mm_projector_type": "mlp2x_gelu"}
    text |= {"mm_vision_tower": "tower", "mm_hidden_size": source.config.vision_config.hidden_size}
    text |= {"mm_vision_select_feature": "patch", "tie_word_embeddings": False, **config}
    (folder / "config.json").write_text(json.dumps(text))
    weights = {old_name(name): value for name, value in source.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][: len(tokenizer)].clone()
    names = [name for name in weights if inside or not name.startswith(INSIDE)]
    for shard in range(shards):
        part = {name: weights[name].contiguous() for name in names[shard::shards]}
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
