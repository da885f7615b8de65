"""Small tokenizers, made here: a vocabulary of bytes and a few merges, plus a family's own tokens.

Any text can be encoded and every token knows its characters. Tokens that two models of one style
share have one id in both, so a VLM and its backbone agree about text.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tiny.templates import chat_template

TEXT = """
The capital of France is Paris. The capital of this country is called Rome by its people.
Question: What is the capital of the country whose flag is shown? Answer: Berlin, Madrid, Lisbon.
What is in the picture? The flag of Germany has three bands of black, red and gold.
A user asks an assistant about an image. The answer is short: yes, no, left, right, blue, green.
"""
N_MERGES = 100


@dataclass(frozen=True)
class Style:
    """How the tokenizers of one line of language models work."""

    kind: Literal["bytes", "pieces"]  # byte-level BPE, or SentencePiece's with byte fallback
    front: tuple[str, ...] = ()  # special tokens that have the first ids
    back: tuple[str, ...] = ()  # special tokens behind the vocabulary
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    adds_bos: bool = False
    prefix_space: bool = False


LLAMA2 = Style(
    "pieces",
    front=("<unk>", "<s>", "</s>"),
    bos="<s>",
    eos="</s>",
    pad="<unk>",
    unk="<unk>",
    adds_bos=True,
    prefix_space=True,
)
LLAMA3 = Style(
    "bytes",
    back=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad="<|finetune_right_pad_id|>",
    adds_bos=True,
)
TEKKEN = Style(
    "bytes",
    front=(
        *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
        *("[IMG_END]",),
    ),
    bos="<s>",
    eos="</s>",
    pad="<pad>",
    unk="<unk>",
    adds_bos=True,
)
QWEN = Style(
    "bytes",
    back=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
)
SMOLLM = Style(
    "bytes",
    front=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos="<|im_start|>",
    eos="<|im_end|>",
    pad="<|endoftext|>",
)
GLM = Style(
    "bytes",
    back=(
        *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>"),
        *("<|user|>", "<|assistant|>", "<|observation|>"),
    ),
    eos="<|endoftext|>",
    pad="<|endoftext|>",
)
GEMMA = Style(
    "pieces",
    front=("<pad>", "<eos>", "<bos>", "<unk>"),
    back=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
    bos="<bos>",
    eos="<eos>",
    pad="<pad>",
    unk="<unk>",
    adds_bos=True,
)
GEMMA4 = replace(GEMMA, back=("<|turn>", "<turn|>"))
LLAMA4 = Style(
    "bytes",
    back=(
        *("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad|>", "<|header_start|>"),
        *("<|header_end|>", "<|eot|>", "<|python_tag|>", "<|image_start|>", "<|image_end|>"),
        *("<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>", "<|patch|>"),
    ),
    bos="<|begin_of_text|>",
    eos="<|eot|>",
    pad="<|finetune_right_pad|>",
    adds_bos=True,
)
STYLES = {
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "tekken": TEKKEN,
    "qwen": QWEN,
    "smollm": SMOLLM,
    "glm": GLM,
    "gemma": GEMMA,
    "gemma4": GEMMA4,
    "llama4": LLAMA4,
}

LLAVA = {"image_token": "<image>"}
QWEN_VL = {
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
GLM_V = {
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
    "video_start_token": "<|begin_of_video|>",
    "video_end_token": "<|end_of_video|>",
    "image_token": "<|image|>",
    "video_token": "<|video|>",
}
SEES: dict[str, dict[str, str]] = {
    "llava": LLAVA,
    "llava_next": LLAVA,
    "vipllava": LLAVA,
    "llava_onevision": {**LLAVA, "video_token": "<video>"},
    "gemma3": {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
    "gemma4": {
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "audio_token": "<|audio|>",
        "video_token": "<|video|>",
    },
    "qwen2_vl": QWEN_VL,
    "qwen2_5_vl": QWEN_VL,
    "qwen3_vl": QWEN_VL,
    "qwen3_5": QWEN_VL,
    "glm4v": GLM_V,
    "glm46v": GLM_V,
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "idefics3": {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
    },
    "paligemma": LLAVA,
    "mllama": {"image_token": "<|image|>"},
}
SEES["smolvlm"] = SEES["idefics3"]
"""Tokens a VLM adds, by the name its processor knows them by."""

PLAIN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llava", "llava_next", "vipllava"), ("<pad>",)),
    **dict.fromkeys(
        ("idefics3", "smolvlm"),
        tuple(f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)),
    ),
    "paligemma": tuple(
        [f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)]
    ),
}
"""Tokens a VLM adds that have no name."""


@cache
def _learnt(kind: Literal["bytes", "pieces"]) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    tokenizer = Tokenizer(models.BPE())
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        alphabet = [chr(code) for code in range(33, 127)]
    size = N_MERGES + len(set(TEXT) | set(alphabet))
    trainer: Any = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.strip().splitlines(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], tuple((left, right) for left, right in model["merges"])


def _backend(style: Style) -> Tokenizer:
    vocab, merges = _learnt(style.kind)
    pieces = style.kind == "pieces"
    raw = [f"<0x{byte:02X}>" for byte in range(256)] if pieces else []
    order = [*style.front, *raw, *sorted(vocab, key=lambda token: vocab[token])]
    ids = {token: i for i, token in enumerate(dict.fromkeys(order))}
    model: Any = models.BPE(
        vocab=ids,
        merges=list(merges),
        unk_token=style.unk if pieces else None,
        byte_fallback=pieces,
        fuse_unk=pieces,
    )
    tokenizer: Any = Tokenizer(model)
    space = normalizers.Replace(" ", "▁")
    if style.prefix_space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    elif pieces:
        tokenizer.normalizer = space
    if pieces:
        strip = [decoders.Strip(" ", 1, 0)] if style.prefix_space else []
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(parts + strip)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@cache
def _finished(style_name: str, sees: str) -> tuple[str, dict[str, Any]]:
    style = STYLES[style_name]
    tokenizer: Any = _backend(style)
    named = SEES.get(sees, {})
    extra = dict.fromkeys((*style.front, *style.back, *named.values()))
    tokenizer.add_special_tokens(list(extra))
    tokenizer.add_special_tokens(list(PLAIN.get(sees, ())))
    if style.adds_bos:
        bos = (style.bos, tokenizer.token_to_id(style.bos))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{style.bos} $A",
            pair=f"{style.bos} $A {style.bos} $B:1",
            special_tokens=[bos],
        )
    pad = "<pad>" if "<pad>" in PLAIN.get(sees, ()) else style.pad
    settings: dict[str, Any] = {
        "bos_token": style.bos,
        "eos_token": style.eos,
        "pad_token": pad,
        "unk_token": style.unk,
        "extra_special_tokens": dict(named),
    }
    return tokenizer.to_str(), {k: v for k, v in settings.items() if v}


def tiny_tokenizer(style: str, sees: str = "") -> PreTrainedTokenizerFast:
    """Make the tokenizer of one style, for a VLM of type ``sees`` or for a language model."""
    serialised, settings = _finished(style, sees)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(serialised),
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        chat_template=chat_template(style, sees),
        **settings,
    )
