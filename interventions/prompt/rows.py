"""One text with its images, processed, and the role of every token.

A processor writes each image placeholder out into the tokens its features will fill, with
whatever belongs around them (rows, tiles, begin and end marks), and tokenises the result. That
text is caught on its way to the tokenizer, with the character offsets of its tokens, so that spans
of the text as written can be placed exactly.
"""

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interventions.architectures.wrapped import placeholder_of
from interventions.errors import PromptError
from interventions.given import several, shown, whole
from interventions.prompt.picture_work import Work, watched
from interventions.prompt.tokenizing import Listener

Span = str | tuple[int, int]
SEQUENCE_KEYS = ("token_type_ids", "mm_token_type_ids", "cross_attention_mask")
"""What processors give beside the ids with one entry per token."""
LEFT_OUT = ("input_ids", "attention_mask", "labels")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
SENTINEL = "\ue000"  # a private-use character, which no text has


@dataclass(frozen=True)
class Row:
    """One unpadded row.

    Attributes
    ----------
    ids : list of int
    roles : dict of str to list of int
        Positions of the tokens of each role.
    text : str
        As written.
    ends : list of int
        Character at which each token ends, for the tokens before any image.
    images : dict of str to Tensor
        What the processor made of the images.
    aligned : dict of str to Tensor
        What it gave with one entry per token, [position, ...].
    work : Work or None
        How it made them.
    """

    ids: list[int]
    roles: dict[str, list[int]]
    text: str
    ends: list[int]
    images: dict[str, torch.Tensor]
    aligned: dict[str, torch.Tensor]
    work: Work | None = None


def checked_span(span: Any, *, name: str) -> str | tuple[int, int]:
    """Return a span as a text or two whole numbers, wherever in a text these may lie.

    Raises
    ------
    PromptError
        If it is neither.
    """
    if isinstance(span, str):
        return span
    expected = "a text of the row, or (start, stop) characters"
    ends = several(span, f"span {name!r}", expected=expected)
    if len(ends) != 2:
        raise PromptError(f"span {name!r} is {shown(span)}. Expected {expected}.")
    start, stop = (whole(end, f"an offset of span {name!r}") for end in ends)
    return start, stop


def span_bounds(text: str, span: Span, *, name: str) -> tuple[int, int]:
    """Character offsets of a span that must occur exactly once in ``text``.

    Raises
    ------
    PromptError
        If the text of the span is absent or ambiguous.
    """
    span = checked_span(span, name=name)
    if not isinstance(span, str):
        start, stop = span
        if not 0 <= start < stop <= len(text):
            raise PromptError(
                f"span {name!r}: offsets {span} are outside the text of {len(text)} characters, "
                f"or empty. Give 0 <= start < stop <= {len(text)}."
            )
        return start, stop
    count = text.count(span) if span else 0
    if count != 1:
        raise PromptError(
            f"span {name!r}: {span!r} occurs {count} times in {text!r}; it must occur exactly "
            "once. Give (start, stop) character offsets instead."
        )
    start = text.index(span)
    return start, start + len(span)


def _process(
    processor: Any, text: str, images: Sequence[Any], settings: Mapping[str, Any]
) -> tuple[Any, Listener, Work]:
    listener = Listener(processor.tokenizer)
    own = copy.copy(processor)
    own.tokenizer = listener
    own.image_processor, work = watched(processor.image_processor)
    try:
        with warnings.catch_warnings():
            # PaliGemma's processor turns tensors into arrays in a way that numpy complains about.
            warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
            processed = own(text=[text], images=[list(images)], return_tensors="pt", **settings)
            return processed, listener, work
    except Exception as error:  # processors check what they are given each in its own way
        raise PromptError(
            f"{type(processor).__name__} cannot process {text!r} with {len(images)} image(s): "
            f"{error}. Check that the processor belongs to the model and takes such images."
        ) from error


def _expansions(
    processor: Any,
    literals: Sequence[str],
    images: Sequence[Any],
    seen: str,
    placeholder: str,
    settings: Mapping[str, Any],
) -> list[str] | None:
    """What stands in ``seen`` in the place of each image placeholder between the literals."""
    if len(images) == 1:
        first, last = literals
        tail = next((end for end in ("", "\n") if seen.endswith(last + end)), None)
        stop = len(seen) - len(last) - len(tail or "")
        if tail is not None and seen.startswith(first) and stop > len(first):
            return [seen[len(first) : stop]]
        return None
    marked = SENTINEL.join([placeholder] * len(images))
    _, listener, _ = _process(processor, marked, images, settings)
    parts = listener.text.split(SENTINEL)
    for end in ("", "\n"):  # what the processor may put behind a whole text
        expansions = [*parts[:-1], parts[-1].removesuffix(end)]
        whole = "".join(a + b for a, b in zip(literals, [*expansions, end], strict=False))
        if len(parts) == len(images) and seen == whole:
            return expansions
    return None


def _gaps(literals: Sequence[str], seen: str) -> list[str] | None:
    """What stands in ``seen`` between the literals, each of which is looked for from the left."""
    gaps, cursor = [], len(literals[0])
    for literal in literals[1:-1]:
        start = seen.find(literal, cursor)
        if start < 0:
            return None
        gaps.append(seen[cursor:start])
        cursor = start + len(literal)
    stop = len(seen) - len(literals[-1])
    whole = seen.startswith(literals[0]) and seen.endswith(literals[-1]) and stop >= cursor
    return [*gaps, seen[cursor:stop]] if whole else None


class _Places:
    """Where characters of the text as written stand in the text that was tokenised."""

    def __init__(
        self, literals: Sequence[str], expansions: Sequence[str], placeholder: str, start: int
    ) -> None:
        self.literals: list[tuple[int, int, int]] = []  # start as written, start, length
        self.images: list[tuple[int, int]] = []
        written, tokenised = 0, start
        for i, literal in enumerate(literals):
            self.literals.append((written, tokenised, len(literal)))
            written += len(literal) + len(placeholder)
            tokenised += len(literal)
            if i < len(expansions):
                self.images.append((tokenised, tokenised + len(expansions[i])))
                tokenised += len(expansions[i])

    def of(self, start: int, stop: int) -> tuple[int, int]:
        """Tokenised offsets of the span [start, stop) as written."""
        pieces = [
            (there + max(start - here, 0), there + min(stop - here, length))
            for here, there, length in self.literals
            if here < stop and start < here + length
        ]
        if not pieces:
            return 0, 0
        return pieces[0][0], pieces[-1][1]

    def in_text(self, start: int, stop: int) -> bool:
        """Whether tokenised offsets touch the text as written."""
        return any(there < stop and start < there + n for _, there, n in self.literals)


def build_row(
    text: str,
    images: Sequence[Any],
    spans: Mapping[str, Span],
    *,
    tokenizer: Any,
    processor: Any | None,
    image_token_id: int | None,
    count: Callable[[dict[str, torch.Tensor], int], int | None] = lambda _images, _tokens: None,
    settings: Mapping[str, Any] | None = None,
) -> Row:
    """Process one text with its images and find the role of every token.

    Parameters
    ----------
    text : str
    images : sequence of images
    spans : dict of str to span
    tokenizer, processor
        Of the model.
    image_token_id : int or None
        Tokens whose place image features take.
    count : callable
        ``count(tensors, tokens)``: number of image features that the model will make of the image
        tensors, where known, for so many image tokens.
    settings : dict, optional
        For the processor's call.
    """
    if HALF_CHARACTER.search(text):
        raise PromptError(
            f"a text has half a character in it, which no tokenizer reads: {text!r}. Read its "
            "file as UTF-8, or mend it with text.encode('utf-16', 'surrogatepass').decode('utf-16')"
        )
    placeholder = placeholder_of(processor, tokenizer, image_token_id)
    written = text.count(placeholder) if placeholder else 0
    if written != len(images):
        raise PromptError(
            f"{len(images)} image(s) were given for a text with {written} image "
            f"placeholder(s): {text!r}. Write one placeholder per image"
            + (f", {placeholder!r}." if placeholder else "; this model takes no images.")
        )
    if images and processor is None:
        raise PromptError("images were given, but there is no processor to read them.")
    literals = text.split(placeholder) if images and placeholder else [text]
    expansions: list[str] | None = []
    begin, work = 0, None
    if images and placeholder:
        encoded, listener, work = _process(processor, text, images, settings or {})
        offsets, seen = listener.offsets, listener.text
        bos = tokenizer.bos_token
        if bos and seen.startswith(bos) and not text.startswith(bos):
            begin = len(bos)  # put there by the processor
        if image_token_id is None:
            expansions = _gaps(literals, seen[begin:])
        else:
            expansions = _expansions(
                processor, literals, images, seen[begin:], placeholder, settings or {}
            )
        if expansions is None:
            raise PromptError(
                f"the processor changed the text beyond writing images out: {text!r} became "
                f"{seen!r}, so character spans cannot be placed. Report this processor: "
                f"{type(processor).__name__}."
            )
    else:
        listener = Listener(tokenizer)
        encoded = listener(text)
        offsets = listener.offsets
    ids = [int(token) for token in (encoded["input_ids"][0] if images else encoded["input_ids"])]
    places = _Places(literals, expansions, placeholder or "", begin)
    roles = _image_roles(ids, offsets, places, image_token_id) if images else {}
    special = {*tokenizer.all_special_ids, image_token_id}
    roles["question"] = [
        i
        for i, (token, (a, b)) in enumerate(zip(ids, offsets, strict=True))
        if token not in special and b > a and places.in_text(a, b)
    ]
    if ids:
        roles["last"] = [len(ids) - 1]
    for name, span in spans.items():
        bounds = span_bounds(text, span, name=name)
        start, stop = places.of(*bounds)
        roles[name] = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
        if not roles[name]:
            raise PromptError(f"span {name!r}: no token covers {text[slice(*bounds)]!r}.")
    tensors = {
        key: value
        for key, value in (encoded.items() if images else ())
        if torch.is_tensor(value) and key not in LEFT_OUT
    }
    if wrong := [key for key, value in tensors.items() if not value.isfinite().all()]:
        raise PromptError(
            f"the processor made {wrong[0]} that are not finite. Look at its rescale_factor, "
            f"image_mean and image_std, and at processor_kwargs, {dict(settings or {})}."
        )
    aligned = {key: tensors.pop(key)[0] for key in SEQUENCE_KEYS if key in tensors}
    shown = len(roles.get("image", ()))
    unfilled = 0 if image_token_id is None else ids.count(image_token_id) - shown
    if unfilled:
        raise PromptError(
            f"the text has {unfilled} image token(s) that no image fills, "
            f"{tokenizer.convert_ids_to_tokens(image_token_id)!r}: {text!r}. Write one placeholder "
            f"per image, {placeholder!r}."
        )
    _check_count(shown, count(tensors, shown) if images else None, processor)
    end = begin + len(literals[0])
    first = next((i for i, (_, b) in enumerate(offsets) if b > end), len(ids))
    ends = [max(b - begin, 0) for _, b in offsets[:first]]
    return Row(ids, roles, text, ends, tensors, aligned, work)


def _image_roles(
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    places: _Places,
    image_token_id: int | None,
) -> dict[str, list[int]]:
    if image_token_id is None:
        return {}
    roles: dict[str, list[int]] = {"image": []}
    for i, (begin, end) in enumerate(places.images):
        mine = [
            position
            for position, (token, (a, b)) in enumerate(zip(ids, offsets, strict=True))
            if token == image_token_id and a < end and b > begin
        ]
        roles[f"image_{i}"] = mine
        roles["image"] += mine
    roles["last_image"] = roles["image"][-1:]
    return roles


def _check_count(tokens: int, features: int | None, processor: Any) -> None:
    if features is not None and tokens != features:
        raise PromptError(
            f"{type(processor).__name__} wrote {tokens} image tokens, but the model will make "
            f"{features} image features of these images. The processor does not belong to this "
            "model, lacks its patch_size or vision_feature_select_strategy, or was told a size "
            "that the model does not take."
        )
