"""Text and images become padded rows whose tokens have roles.

Roles are found row by row from the ids the processor really produced, never by arithmetic on
constants: ``image`` (every image token), ``question`` (every token of the text), ``last`` (the
token that predicts the answer), and any named span of the text, such as ``entity``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from interventions.errors import PromptError, RoleError, did_you_mean
from interventions.positions import Positions, from_lists

Span = str | tuple[int, int]
TEXT_KEYS = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class Prompt:
    """A padded batch that a model can run, with the role of every token.

    Made by :meth:`interventions.Model.prompt`. Rows are padded on the left and position ids count
    from each row's first real token.

    Attributes
    ----------
    inputs : dict of str to Tensor
        What the model's forward takes. ``input_ids`` and ``position_ids`` are [row, position];
        ``attention_mask`` also covers the shared prefix: [row, prefix + position].
    roles : list of dict
        For each row, role name to the positions of its tokens.
    texts : list of str
        The text of each row, after any chat template, before image tokens are expanded.
    prefix_ids : Tensor [prefix]
        Tokens that all rows share and whose keys and values are computed once. Empty unless the
        prompt was made with ``share_prefix``. They hold no positions of the prompt.
    images_per_row : list of int
        Number of images of each row.
    """

    inputs: dict[str, torch.Tensor]
    roles: list[dict[str, list[int]]]
    texts: list[str]
    prefix_ids: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    images_per_row: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def length(self) -> int:
        """Number of tokens of each padded row, without the shared prefix."""
        return self.inputs["input_ids"].shape[1]

    @property
    def full_ids(self) -> torch.Tensor:
        """Token ids with the shared prefix in front, [row, prefix + position]."""
        prefix = self.prefix_ids.expand(len(self), -1)
        return torch.cat([prefix, self.inputs["input_ids"]], dim=1)

    def at(self, role: str, index: int | slice | None = None) -> Positions:
        """Positions of a token role in every row.

        Parameters
        ----------
        role : str
            ``"image"``, ``"question"``, ``"last"``, or the name of a span.
        index : int or slice, optional
            Which of the role's tokens: ``-1`` is the last one. Default: all of them.

        Returns
        -------
        Positions
            One position per row for an int (and for ``"last"``), else all of them.

        Raises
        ------
        RoleError
            If the role, or the index, does not exist in some row.

        Examples
        --------
        >>> prompt.at("entity", -1)        # doctest: +SKIP
        """
        known = sorted({name for roles in self.roles for name in roles})
        if role not in known:
            hint = ""
            if role == "image":
                hint = " This prompt has no image tokens: pass images= to prompt()."
            raise RoleError(f"no role {role!r} in this prompt. {did_you_mean(role, known)}{hint}")
        lists: list[list[int]] = []
        for row, roles in enumerate(self.roles):
            found = roles.get(role, [])
            if isinstance(index, int):
                if found and not -len(found) <= index < len(found):
                    raise RoleError(
                        f"role {role!r} has {len(found)} token(s) in row {row}, so there is no "
                        f"index {index}. Use -1 for its last token."
                    )
                found = [found[index]] if found else []
            elif index is not None:
                found = found[index]
            lists.append(found)
        single = isinstance(index, int) or role == "last"
        return from_lists(lists, length=self.length, single=single, role=role)

    def every(self) -> Positions:
        """Every real token of every row (padding left out)."""
        mask = self.inputs["attention_mask"][:, -self.length :]
        lists = [row.nonzero().flatten().tolist() for row in mask]
        return from_lists(lists, length=self.length, single=False, role="every token")

    def select(self, rows: Sequence[int] | torch.Tensor) -> "Prompt":
        """Return some rows as a prompt of their own.

        Parameters
        ----------
        rows : sequence of int, or Tensor [row] of bool
            In the order given, repeats allowed; negative rows count from the end.
        """
        if isinstance(rows, torch.Tensor) and rows.dtype == torch.bool:
            rows = rows.nonzero().flatten()
        everything = range(len(self))
        picked = [everything[int(row)] for row in rows]
        inputs = {key: self.inputs[key][picked] for key in TEXT_KEYS}
        starts = [sum(self.images_per_row[:row]) for row in range(len(self) + 1)]
        for key, value in self.inputs.items():
            if key in TEXT_KEYS:
                continue
            which = [i for row in picked for i in range(starts[row], starts[row + 1])]
            inputs[key] = value[which]
        return replace(
            self,
            inputs=inputs,
            roles=[self.roles[row] for row in picked],
            texts=[self.texts[row] for row in picked],
            images_per_row=[self.images_per_row[row] for row in picked],
        )


@dataclass(frozen=True)
class Row:
    """One unpadded row: ids, roles and whatever else the processor made of its images."""

    ids: list[int]
    roles: dict[str, list[int]]
    text: str
    ends: list[int]  # character at which each token ends, for the tokens before any image
    extras: dict[str, torch.Tensor]
    n_images: int


def span_bounds(text: str, span: Span, *, name: str) -> tuple[int, int]:
    """Character offsets of a span that must occur exactly once in ``text``.

    Raises
    ------
    PromptError
        If the text of the span is absent or ambiguous.
    """
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


def build_row(
    text: str,
    images: Sequence[Any],
    spans: Mapping[str, Span],
    *,
    tokenizer: Any,
    processor: Any | None,
    image_token_id: int | None,
) -> Row:
    """Process one text with its images and find the role of every token.

    The text is tokenised once as written, for character offsets, and once by the processor, which
    expands each image placeholder; the two are aligned token by token.
    """
    written = tokenizer(text, return_offsets_mapping=True)
    raw_ids, offsets = written["input_ids"], written["offset_mapping"]
    placeholders = sum(token == image_token_id for token in raw_ids)
    if placeholders != len(images):
        raise PromptError(
            f"{len(images)} image(s) were given for a text with {placeholders} image "
            f"placeholder(s): {text!r}. Write one placeholder per image."
        )
    extras: dict[str, torch.Tensor] = {}
    if images:
        if processor is None:
            raise PromptError("images were given, but there is no processor to read them.")
        encoded = processor(text=[text], images=list(images), return_tensors="pt")
        ids = encoded.pop("input_ids")[0].tolist()
        encoded.pop("attention_mask", None)
        encoded.pop("mm_token_type_ids", None)
        extras = {key: value for key, value in encoded.items() if torch.is_tensor(value)}
    else:
        ids = list(raw_ids)

    moved: list[int] = []  # where each written token starts among the processed ones
    roles: dict[str, list[int]] = {}
    image: list[int] = []
    cursor = 0
    for token in raw_ids:
        moved.append(cursor)
        if token == image_token_id:
            start = cursor
            while cursor < len(ids) and ids[cursor] == image_token_id:
                image.append(cursor)
                cursor += 1
            behind_another = len(moved) > 1 and raw_ids[len(moved) - 2] == image_token_id
            if cursor == start and not behind_another:  # a run of placeholders is one run of images
                raise PromptError(f"the processor dropped an image token of {text!r}.")
        elif cursor < len(ids) and ids[cursor] == token:
            cursor += 1
        else:
            raise PromptError(
                f"the processor changed the text of {text!r} beyond expanding image tokens, so "
                "character spans cannot be placed. Report this processor: "
                f"{type(processor).__name__}."
            )
    if image:
        roles["image"] = image
    special = set(tokenizer.all_special_ids)
    roles["question"] = [
        moved[i] for i, token in enumerate(raw_ids) if token not in special | {image_token_id}
    ]
    if ids:
        roles["last"] = [len(ids) - 1]
    for name, span in spans.items():
        start, stop = span_bounds(text, span, name=name)
        roles[name] = [
            moved[i] for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a
        ]
        if not roles[name]:
            raise PromptError(f"span {name!r}: no token covers {text[start:stop]!r}.")
    before = image[0] if image else len(ids)
    return Row(ids, roles, text, [stop for _, stop in offsets[:before]], extras, len(images))


def common_prefix(rows: Sequence[Row], text: str | None) -> int:
    """Number of leading tokens that all rows share, before any image, named span or last token.

    With ``text``, no more tokens than end within it.
    """
    kept = [
        position
        for row in rows
        for role, found in row.roles.items()
        if role not in ("question", "last")
        for position in found
    ]
    limit = min([len(row.ids) - 1 for row in rows] + [len(row.ends) for row in rows] + kept)
    if text is not None:
        limit = min(limit, sum(end <= len(text) for end in rows[0].ends))
    first = rows[0].ids
    for i in range(limit):
        if any(row.ids[i] != first[i] for row in rows):
            return i
    return limit


def collate(rows: Sequence[Row], *, pad_id: int, share_prefix: bool | str) -> Prompt:
    """Pad rows on the left into one :class:`Prompt`; take a shared prefix off first if asked."""
    text = share_prefix if isinstance(share_prefix, str) else None
    prefix = common_prefix(rows, text) if share_prefix else 0
    width = max(len(row.ids) for row in rows) - prefix
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    roles: list[dict[str, list[int]]] = []
    for i, row in enumerate(rows):
        kept = row.ids[prefix:]
        pad = width - len(kept)
        input_ids[i, pad:] = torch.tensor(kept)
        mask[i, pad:] = 1
        shifted = {
            name: [position - prefix + pad for position in found if position >= prefix]
            for name, found in row.roles.items()
        }
        roles.append({name: found for name, found in shifted.items() if found})
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0) + prefix
    full_mask = torch.cat([torch.ones(len(rows), prefix, dtype=torch.long), mask], dim=1)
    inputs = {"input_ids": input_ids, "attention_mask": full_mask, "position_ids": position_ids}
    for key in {key for row in rows for key in row.extras}:
        inputs[key] = torch.cat([row.extras[key] for row in rows if key in row.extras])
    return Prompt(
        inputs=inputs,
        roles=roles,
        texts=[row.text for row in rows],
        prefix_ids=torch.tensor(rows[0].ids[:prefix], dtype=torch.long),
        images_per_row=[row.n_images for row in rows],
    )
