"""Models with random weights, large enough that arithmetic decides, and their prompts."""

import copy
from dataclasses import dataclass
from typing import Any

import tiny
import torch
from tiny.building import build_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import interventions as iv

WORDS = ("the", "of", "is")  # one token each
ANSWER, FOIL = WORDS[:2]
MODULES = {"llava": AutoModelForImageTextToText, "llama": AutoModelForCausalLM}


@dataclass(frozen=True)
class Shape:
    """How large the models and prompts are.

    Attributes
    ----------
    d_model, n_layers, n_heads, inner : int
        Of the decoder.
    side : int
        Image tokens per side of a picture.
    text : int
        Tokens after the picture, about.
    alone : int
        Tokens of a prompt without a picture.
    columns : int
        Image positions in a grid over them.
    rows : int
        Prompts to collect from.
    features : int
        Rows of activations to fit probes on.
    device, dtype : str
    """

    d_model: int = 512
    n_layers: int = 12
    n_heads: int = 8
    inner: int = 1376
    side: int = 24
    text: int = 30
    alone: int = 64
    columns: int = 64
    rows: int = 200
    features: int = 1000
    device: str = "cpu"
    dtype: str = "float32"


SHAPES = {
    "cpu": Shape(),
    "quick": Shape(64, 4, 4, 128, side=6, text=12, alone=16, columns=8, rows=40, features=200),
    "cuda": Shape(4096, 32, 32, 11008, device="cuda", dtype="bfloat16"),  # LLaVA-1.5 7B
}


@dataclass(frozen=True)
class Bench:
    """A LLaVA-type VLM, the backbone it was built on (the same weights), and what they are asked.

    Attributes
    ----------
    shape : Shape
    vlm, backbone : Model
    shown, aside : Prompt
        The same question about two pictures.
    told, untold : Prompt
        Two texts without a picture, of the same length.
    """

    shape: Shape
    vlm: iv.Model
    backbone: iv.Model
    shown: iv.Prompt
    aside: iv.Prompt
    told: iv.Prompt
    untold: iv.Prompt


def make(shape: Shape) -> Bench:
    """Build the models and prompts of a shape."""
    base, _ = tiny.build("llava")
    config: Any = copy.deepcopy(base.config)
    text = config.text_config
    text.hidden_size, text.num_hidden_layers = shape.d_model, shape.n_layers
    text.num_attention_heads = text.num_key_value_heads = shape.n_heads
    text.head_dim, text.intermediate_size = shape.d_model // shape.n_heads, shape.inner
    config.vision_config.image_size = shape.side * config.vision_config.patch_size
    config.image_seq_length = shape.side**2
    processor = tiny.tiny_processor(config)
    module = _module("llava", config, shape)
    backbone = _module("llama", text, shape)
    backbone.model.load_state_dict(module.model.language_model.state_dict())
    backbone.lm_head.load_state_dict(module.lm_head.state_dict())
    vlm = iv.load(module, processor=processor)
    return of_models(shape, vlm, iv.load(backbone, tokenizer=processor.tokenizer))


def of_models(shape: Shape, vlm: iv.Model, llm: iv.Model) -> Bench:
    """Ask models that are there already."""
    shown, aside = (
        vlm.prompt(f"{vlm.image_token} {_words(shape.text)}", images=tiny.picture((40, 40), seed=i))
        for i in range(2)
    )
    told, untold = (llm.prompt(_words(shape.alone - 1, shift)) for shift in range(2))
    return Bench(shape, vlm, llm, shown, aside, told, untold)


def plain(model: iv.Model) -> Any:
    """The same weights in a module of its own, which nothing has been wrapped around."""
    module: Any = model.module
    kind = MODULES[module.config.model_type]
    with torch.device(model.device):
        made = kind.from_config(
            copy.deepcopy(module.config), dtype=model.dtype, attn_implementation="sdpa"
        )
    made.load_state_dict(module.state_dict(), assign=True)
    return made.eval()


def _words(n: int, shift: int = 0) -> str:
    return " ".join(WORDS[i % len(WORDS)] for i in range(shift, shift + n))


def _module(kind: str, config: Any, shape: Shape) -> Any:
    dtype = getattr(torch, shape.dtype)
    if shape.device == "cpu":
        return build_model(config, dtype=dtype, attn_implementation="sdpa")
    with torch.device(shape.device):  # drawn where they are used: 7B are too many to be moved
        return MODULES[kind].from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
