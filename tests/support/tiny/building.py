"""Build a family's tiny model, or write it as an ordinary Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from tiny.configs import true_config
from tiny.processors import tiny_processor
from tiny.shrinking import sees_of, shrink
from tiny.weights import randomise

TEXT = (
    "llama",
    "vicuna",
    "mistral",
    "qwen2",
    "qwen3",
    "glm4",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
)
VLMS = (
    *("llava", "llava_next", "llava_onevision", "vipllava", "pixtral", "mistral3", "gemma3"),
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm", "paligemma"),
    *("mllama", "llama4", "glm4v", "glm46v", "gemma4", "qwen3_5"),
)
FAMILIES = TEXT + VLMS

VIDEO_PROCESSORS = {
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "qwen3_5": "Qwen3VLVideoProcessor",
    "gemma4": "Gemma4VideoProcessor",
    "glm4v": "Glm4vVideoProcessor",
    "glm46v": "Glm46VVideoProcessor",
    "internvl": "InternVLVideoProcessor",
    "smolvlm": "SmolVLMVideoProcessor",
}


def build(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "eager",
    seed: int = 0,
) -> tuple[PreTrainedModel, Any]:
    """Build the tiny model of a family, in eval mode, with its processor or tokenizer.

    Parameters
    ----------
    name : str
        One of ``FAMILIES``.
    dtype : torch.dtype
        The weights are drawn in float32 and cast, so all dtypes have the same.
    attn_implementation : str
        ``"eager"`` or ``"sdpa"``.
    seed : int
        The same seed gives the same weights.
    """
    config = shrink(true_config(name))
    model = build_model(config, dtype=dtype, attn_implementation=attn_implementation, seed=seed)
    return model, tiny_processor(config)


def build_model(
    config: Any,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "eager",
    seed: int = 0,
) -> PreTrainedModel:
    """Build the model of a (shrunken) config with weights drawn from ``seed``."""
    auto = AutoModelForImageTextToText if sees_of(config) else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU
        model = auto.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    randomise(model, seed)
    return model.eval()


def save(name: str, folder: Path) -> Path:
    """Write a family's tiny model, float32 and seed 0, as a folder that transformers opens.

    It is what a checkpoint's folder is, video settings included: without torchvision,
    ``AutoProcessor`` refuses it exactly as it refuses the real one (``Quirks.auto_processor``).
    """
    return save_model(*build(name), folder)


def save_model(model: PreTrainedModel, processor: Any, folder: Path) -> Path:
    """Write any tiny model and its processor or tokenizer so."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    if kind := VIDEO_PROCESSORS.get(model.config.model_type):
        path = folder / "processor_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({**settings, "video_processor": {"video_processor_type": kind}}))
    return folder
