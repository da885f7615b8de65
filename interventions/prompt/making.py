"""Text and images become the prompt of a model; see :meth:`interventions.Model.prompt`."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from interventions.architectures.wrapped import Wrapped
from interventions.errors import PictureError, PromptError, PromptWarning
from interventions.given import flag, named, of_kind, plain, several, text_of
from interventions.prompt.collating import collate
from interventions.prompt.feature_count import feature_count
from interventions.prompt.picture_grids import PictureGrid, slots_of
from interventions.prompt.picture_numbers import check_one_range
from interventions.prompt.picture_sources import pictures_in
from interventions.prompt.pictures import as_picture
from interventions.prompt.processor_settings import image_settings
from interventions.prompt.prompt import Prompt
from interventions.prompt.rows import Row, Span, build_row, checked_span
from interventions.prompt.tokenizing import ends_of
from interventions.prompt.written import Written, read_rows, written_rows

RESERVED = re.compile(r"image(_\d+)?|last_image|question|last|answer")


def make_prompt(
    model: Wrapped,
    text: str | Sequence[Any],
    *,
    images: Any | None,
    spans: Mapping[str, Span | Sequence[Span]] | None,
    share_prefix: bool | str,
    template_kwargs: Mapping[str, Any] | None,
    processor_kwargs: Mapping[str, Any] | None,
) -> Prompt:
    """Turn text and images into padded rows whose tokens have roles."""
    template_kwargs = named(template_kwargs, "template_kwargs")
    processor_kwargs = named(processor_kwargs, "processor_kwargs")
    if spans is not None:
        spans = _spans(spans)
    if not isinstance(share_prefix, str):
        share_prefix = flag(share_prefix, "share_prefix (a bool, or a text)")
    if taken := sorted(name for name in spans or {} if RESERVED.fullmatch(name)):
        raise PromptError(f"a span cannot be called {taken[0]!r}: that role is given already.")
    anatomy = model.anatomy
    given = read_rows(text)
    written = written_rows(model, given, _images(model, images, len(given)), template_kwargs)
    _check_begin(model, written)
    per_row = [row.images for row in written]  # those that messages hold, too
    if processor_kwargs and not any(per_row):
        raise PromptError(
            f"processor_kwargs {sorted(processor_kwargs)} were given, but no row has an image, so "
            "they would change nothing. Give images, or leave them out."
        )
    settings = image_settings(model.processor, processor_kwargs) if processor_kwargs else {}

    def count(tensors: dict[str, torch.Tensor], tokens: int) -> int | None:
        known = model.feature_counts
        return feature_count(
            model.module, anatomy, tensors, tokens=tokens, known=known, told=bool(settings)
        )

    rows, sizes = [], []
    for i, (row, pictures) in enumerate(zip(written, per_row, strict=True)):
        chosen = {
            name: row.moved(checked_span(_of_row(span, i, len(given), name), name=name))
            for name, span in (spans or {}).items()
        }
        pictures = _as_shown(pictures, i)
        sizes.append([picture.size for picture in pictures])
        rows.append(
            build_row(
                row.text,
                pictures,
                chosen,
                tokenizer=model.tokenizer,
                processor=model.processor,
                image_token_id=anatomy.image_token_id,
                count=count,
                settings=settings,
            )
        )
    check_one_range(
        (f"picture {k} of row {i}", picture)
        for i, pictures in enumerate(per_row)
        for k, picture in enumerate(pictures)
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
    # Padding between a prefix and a row would count in a recurrent state.
    sharable = sharable and anatomy.dependent_rows is None and not anatomy.recurrent_blocks
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
    grids = _grids(model, rows, sizes)
    prompt = replace(prompt, grids=grids, vision=slots_of(grids))
    if two_way == "prompt" and "token_type_ids" not in prompt.inputs:
        # Without it, text alone is read in one direction or in both, as attention goes.
        types = torch.zeros_like(prompt.inputs["input_ids"])
        prompt = replace(prompt, inputs={**prompt.inputs, "token_type_ids": types})
    return _in_a_plane(model, prompt) if anatomy.three_axis_positions else prompt


def _grids(
    model: Wrapped, rows: Sequence[Row], sizes: Sequence[Sequence[tuple[int, int]]]
) -> list[list[PictureGrid]]:
    """Where the tokens of pictures lie; on a server, which has not the rules, the reason alone."""
    try:
        from interventions.prompt.picture_placing import grids_of
    except ImportError:
        why = "a prompt that is made on a server does not know them: make it before it is sent"
        return [[PictureGrid(size, reason=why, tower_reason=why) for size in own] for own in sizes]
    return [grids_of(model, row, own) for row, own in zip(rows, sizes, strict=True)]


def _in_a_plane(model: Wrapped, prompt: Prompt) -> Prompt:
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


def _check_begin(model: Wrapped, rows: Sequence[Written]) -> None:
    """Say where a row does not begin as the model is used to."""
    begin, adds = model.tokenizer.bos_token, bool(ends_of(model.tokenizer).begin)
    if not begin:
        return
    for i, row in enumerate(rows):
        if _n_begins(model, row, begin, adds) > 1:
            warnings.warn(
                f"row {i} begins with {begin!r} twice, as it is written. {model.name} was trained "
                "with one: write it once, or leave it to the tokenizer.",
                PromptWarning,
                stacklevel=4,
            )
        elif not adds and not row.text.startswith(begin) and _begins(model, row):
            warnings.warn(
                f"row {i} does not begin with {begin!r}: the tokenizer of {model.name} adds none, "
                "and its chat template begins with one, so the model may be used to it. Write it "
                "in front of the text, or set tokenizer.add_bos_token.",
                PromptWarning,
                stacklevel=4,
            )


def _n_begins(model: Wrapped, row: Written, begin: str, adds: bool) -> int:
    """How many begin tokens there will be before a row says anything, be it behind its images."""
    # Llama 3.2 Vision is given one behind an image that a text begins with.
    mark = None if model.anatomy.cross_blocks else model.image_token
    ahead = "|".join(re.escape(token) for token in (begin, mark) if token)
    match = re.match(rf"(?:\s|{ahead})*", row.text)
    front = match[0] if match else ""
    by_processor = bool(mark) and mark in front and model.anatomy.family.processor_begins
    return front.count(begin) + (by_processor or (adds and not row.text.startswith(begin)))


def _begins(model: Wrapped, row: Written) -> bool:
    """Whether a chat template begins its prompts with the token that the tokenizer leaves out."""
    if row.images and model.anatomy.family.processor_begins:
        return False
    sources = (
        getattr(holder, "chat_template", None) for holder in (model.processor, model.tokenizer)
    )
    return any("bos_token" in str(source) for source in sources if source)


def _images(model: Wrapped, images: Any | None, n_rows: int) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(n_rows)]
    if model.processor is None:
        raise PromptError(
            f"images were given, but {model.name} is a text-only model (no processor). "
            "Load the VLM, or leave images out."
        )
    entries = pictures_in(images)
    entries = [images] if entries is None else entries
    listed = [pictures_in(entry) for entry in entries]
    flat = all(pictures is None for pictures in listed)
    if n_rows == 1 and flat and not (len(entries) == 1 and entries[0] is None):
        return [entries]
    if len(entries) != n_rows:
        raise PromptError(f"{len(entries)} images for {n_rows} rows. Give one entry per row.")
    return [
        pictures if pictures is not None else ([] if entry is None else [entry])
        for entry, pictures in zip(entries, listed, strict=True)
    ]


def _spans(spans: Any) -> dict[str, Any]:
    """Spans by name: one for all rows, or a list of one per row."""
    by_name = {}
    for name, span in of_kind(spans, Mapping, "spans", error=PromptError).items():
        value = plain(span)
        if not isinstance(value, str):
            value = [plain(entry) for entry in several(value, f"span {name!r}")]
            if isinstance(span, tuple) and len(value) == 2 and not any(map(_several, value)):
                value = tuple(value)
        by_name[text_of(name, "the name of a span")] = value
    return by_name


def _several(span: Any) -> bool:
    return isinstance(span, str | list | tuple)


def _as_shown(pictures: list[Any], row: int) -> list[Any]:
    """Pictures of a row as one rule makes them, whatever a processor would make of their form."""
    shown = []
    for i, picture in enumerate(pictures):
        try:
            shown.append(as_picture(picture))
        except PictureError as error:
            which = f"row {row}, picture {i}" if len(pictures) > 1 else f"row {row}"
            said = f"picture of {which}: {str(error).rstrip('.')}."
            raise PictureError(error.reason, said) from error
    return shown


def _of_row(span: Any, row: int, n_rows: int, name: str) -> Span:
    if isinstance(span, str | tuple):
        return span
    if len(span) != n_rows:
        raise PromptError(f"span {name!r} has {len(span)} entries for {n_rows} rows.")
    return span[row]
