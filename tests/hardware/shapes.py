"""LLaVA-1.5-7B with random weights, at its true size or with fewer blocks, and what it is asked."""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import tiny
import torch
import twins
from published_configs import published_config
from safetensors.torch import save_file
from tiny.building import build_model
from tiny.weights import scaled
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import interventions as iv
from twohop.ask.study import Study, longest_answer
from twohop.items.validation import check
from twohop.protocol import Protocol

REPO = "llava-hf/llava-1.5-7b-hf"
SHARD = 2**32  # bytes, at most
HEAD = "lm_head.weight"
LARGE = 1024  # d_model of what is drawn on its device
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def llava_config(*, blocks: int | None = None, small: bool = False) -> Any:
    """The published config, with the tokens of a tiny tokenizer; ``small``: a tiny one's sizes."""
    twin = tiny.shrink(published_config(REPO))
    if small:
        return twin
    config: Any = deepcopy(published_config(REPO))
    config.tiny_style, config.image_token_id = twin.tiny_style, twin.image_token_id
    for name in TOKENS:
        setattr(config.text_config, name, getattr(twin.text_config, name))
    if blocks is not None:
        config.text_config.num_hidden_layers = blocks
    return config


def _without_values(config: Any, dtype: torch.dtype) -> Any:
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, dtype=dtype)


def _drawn(module: Any, key: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    owner, _, name = key.rpartition(".")
    noise = torch.empty(like.shape, dtype=like.dtype, device=generator.device)
    return scaled(noise.normal_(generator=generator), module.get_submodule(owner), name)


def write_checkpoint(config: Any, folder: Path, dtype: torch.dtype, *, device: str = "cpu") -> int:
    """Write random weights in shards, one shard in memory at a time, and a processor.

    They are drawn on the device.

    Returns
    -------
    int
        Bytes of weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = _without_values(config, dtype)
    generator = torch.Generator(device).manual_seed(0)
    shards = list(_shards(module.state_dict()))
    index: dict[str, str] = {}
    processor = tiny.tiny_processor(config)
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        drawn = {key: _drawn(module, key, tensor, generator) for key, tensor in shard.items()}
        if HEAD in drawn:
            twins.say_words(drawn[HEAD], processor.tokenizer)
        save_file(drawn, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    told = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))
    config.architectures, config.dtype = [type(module).__name__], str(dtype).split(".")[-1]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return size


def _shards(state: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if shard and sum(other.nbytes for other in shard.values()) + tensor.nbytes > SHARD:
            yield shard
            shard = {}
        shard[key] = tensor
    yield shard


def pair_in_memory(
    config: Any, *, dtype: torch.dtype, device: str = "cpu", attn: str = "sdpa"
) -> tuple[iv.Model, iv.Model]:
    """A VLM and the backbone that it was built on: a module of its own over the same weights."""
    if device == "cpu" or config.text_config.hidden_size < LARGE:
        module: Any = build_model(config, dtype=dtype, attn_implementation=attn)
        module.to(device)
    else:  # drawn where they are used: 7B are too many to be moved
        with torch.device(device):
            module = AutoModelForImageTextToText.from_config(
                config, dtype=dtype, attn_implementation=attn
            ).eval()
    processor = tiny.tiny_processor(config)
    twins.say_words(module.lm_head.weight.data, processor.tokenizer)
    vlm = iv.load(module, processor=processor)
    return vlm, backbone_of(vlm, shared=True)


def backbone_of(vlm: iv.Model, *, shared: bool) -> iv.Model:
    """The language model inside a VLM, as one of its own; ``shared``: with the same weights."""
    module: Any = vlm.module
    config = deepcopy(module.config.text_config)
    inner, backbone = module.get_submodule("model.language_model"), None
    if shared:
        backbone = _without_values(config, vlm.dtype)
        backbone.model.rotary_emb = inner.rotary_emb  # its table is no weight
    else:
        with torch.device(vlm.device):
            backbone = AutoModelForCausalLM.from_config(config, dtype=vlm.dtype)
    backbone.model.load_state_dict(inner.state_dict(), assign=shared)
    backbone.lm_head.load_state_dict(module.lm_head.state_dict(), assign=shared)
    return iv.load(backbone.eval(), tokenizer=vlm.tokenizer)


def logits_of(model: iv.Model, prompt: iv.Prompt, patches: Sequence[iv.Patch] = ()) -> torch.Tensor:
    """Of the last token, [row, 1, vocab]."""
    logits = iv.run(model, prompt, patches=patches).logits
    assert logits is not None
    return logits


def shown(model: iv.Model, question: str = "the capital of the country is") -> iv.Prompt:
    """A picture and a question, in one row."""
    return model.prompt(f"{model.image_token} {question}", images=tiny.picture((40, 40)))


def knowing_study(
    vlm: iv.Model, backbone: iv.Model, folder: Path, entities: int, protocol: Protocol
) -> Study:
    """Two questions about each entity, whose answers are what these models say."""
    names = [f"{first}{second}" for first in "BKLMNPRS" for second in ("ern", "iel")][:entities]
    data = folder / "items.jsonl"
    twins.answered(vlm, backbone, twins.rows_of(folder, names), data)
    vlm = iv.load(vlm.module, processor=vlm.processor)  # where answers end is read anew
    backbone = iv.load(backbone.module, tokenizer=backbone.tokenizer)
    benchmark = twins.in_a_chat(vlm, check(data))
    length = longest_answer(backbone, benchmark, protocol=protocol)
    return Study(
        vlm=vlm,
        backbone=backbone,
        benchmark=benchmark,
        max_new_tokens=length,
        protocol=protocol,
    )
