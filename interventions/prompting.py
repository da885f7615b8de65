"""Text and images become the prompt of a model; see :meth:`interventions.Model.prompt`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from interventions.errors import PromptError
from interventions.prompts import Prompt, collate
from interventions.rows import Span, build_row

if TYPE_CHECKING:
    from interventions.model import Model

RESERVED = re.compile(r"image(_\d+)?|last_image|question|last|answer")


def make_prompt(
    model: "Model",
    text: str | Sequence[Any],
    *,
    images: Any | None,
    spans: Mapping[str, Span | Sequence[Span]] | None,
    share_prefix: bool | str,
) -> Prompt:
    """Turn text and images into padded rows whose tokens have roles."""
    if taken := sorted(name for name in spans or {} if RESERVED.fullmatch(name)):
        raise PromptError(f"a span cannot be called {taken[0]!r}: that role is given already.")
    anatomy = model.anatomy
    texts = _texts(model, text)
    per_row = _images(model, images, len(texts))
    rows = []
    for i, (one, pictures) in enumerate(zip(texts, per_row, strict=True)):
        if pictures and model.placeholder and model.placeholder not in one:
            one = (model.image_token or "") * len(pictures) + "\n" + one
        chosen = {name: _of_row(span, i, len(texts), name) for name, span in (spans or {}).items()}
        rows.append(
            build_row(
                one,
                pictures,
                chosen,
                tokenizer=model.tokenizer,
                processor=model.processor,
                image_token_id=anatomy.image_token_id,
                count=lambda tensors: anatomy.family.count(model.module, tensors),
            )
        )
    if not rows or any(not row.ids for row in rows):
        raise PromptError("a prompt needs at least one row, and every row at least one token.")
    pad = model.tokenizer.pad_token_id
    cross = bool(anatomy.cross_blocks)
    # A window is counted in tokens, padding between prefix and rows included; where tokens see
    # each other in both directions, or images come in from the side, a prefix is not alone.
    two_way = anatomy.family.two_way
    mixed = any(per_row) and (cross or two_way == "image")
    same = len({len(row.ids) for row in rows}) == 1
    sharable = not mixed and two_way != "prompt" and (same or not anatomy.windowed)
    sharable = sharable and anatomy.dependent_rows is None
    if cross and len({len(pictures) for pictures in per_row}) > 1:
        raise PromptError(
            f"rows with {sorted({len(pictures) for pictures in per_row})} images were given. "
            f"In {model.name}, tokens that may see no image still take something of every image "
            "in the batch, so rows with different numbers of images change each other. Give "
            "them in prompts of their own."
        )
    prompt = collate(
        rows,
        pad_id=pad if pad is not None else 0,
        share_prefix=share_prefix if sharable else False,
        per_row=anatomy.family.per_row,
        cross_attention=cross,
        first_position=anatomy.family.first_position,
    )
    if two_way == "prompt" and "token_type_ids" not in prompt.inputs:
        # Without it, text alone is read in one direction or in both, as attention goes.
        types = torch.zeros_like(prompt.inputs["input_ids"])
        prompt = replace(prompt, inputs={**prompt.inputs, "token_type_ids": types})
    return _in_a_plane(model, prompt) if anatomy.three_axis_positions else prompt


def _in_a_plane(model: "Model", prompt: Prompt) -> Prompt:
    """Give image tokens the (time, height, width) positions that the model is used to."""
    inputs = dict(prompt.inputs)
    grids = {key: value for key, value in inputs.items() if key.endswith("_grid_thw")}
    if not grids:
        return prompt
    prefix = len(prompt.prefix_ids)
    inner = getattr(model.module, "model", model.module)
    rope = getattr(model.module, "get_rope_index", None) or inner.get_rope_index
    positions, _ = rope(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        attention_mask=inputs["attention_mask"][:, prefix:],
        **grids,
    )
    inputs["position_ids"] = positions.transpose(0, 1) + prefix
    return replace(prompt, inputs=inputs)


def _texts(model: "Model", text: str | Sequence[Any]) -> list[str]:
    if isinstance(text, str):
        return [text]
    if text and isinstance(text[0], Mapping):
        text = [text]
    return [one if isinstance(one, str) else _templated(model, one) for one in text]


def _templated(model: "Model", messages: Any) -> str:
    source: Any = model.processor if model.processor is not None else model.tokenizer
    text = source.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    start = model.tokenizer.bos_token
    if start and model.tokenizer("")["input_ids"][:1] == [model.tokenizer.bos_token_id]:
        return text.removeprefix(start)  # the tokenizer puts its own in front
    return text


def _images(model: "Model", images: Any | None, n_rows: int) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(n_rows)]
    if model.processor is None:
        raise PromptError(
            f"images were given, but {model.name} is a text-only model (no processor). "
            "Load the VLM, or leave images out."
        )
    if not isinstance(images, list | tuple):
        images = [images]
    if n_rows == 1 and not any(isinstance(one, list | tuple) for one in images):
        images = [images]
    if len(images) != n_rows:
        raise PromptError(f"{len(images)} images for {n_rows} rows. Give one entry per row.")
    return [
        list(one) if isinstance(one, list | tuple) else ([] if one is None else [one])
        for one in images
    ]


def _of_row(span: Any, row: int, n_rows: int, name: str) -> Span:
    if isinstance(span, str) or (isinstance(span, tuple) and isinstance(span[0], int)):
        return span
    if len(span) != n_rows:
        raise PromptError(f"span {name!r} has {len(span)} entries for {n_rows} rows.")
    return span[row]
