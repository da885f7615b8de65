"""Rows become one padded prompt."""

from collections.abc import Sequence

import torch

from interventions.prompt.prompt import Prompt
from interventions.prompt.rows import Row


def common_prefix(rows: Sequence[Row], text: str | None) -> int:
    """Number of leading tokens that all rows share, before any image, named span or last token.

    With ``text``, no more tokens than end within it.
    """
    kept = [
        position
        for row in rows
        for role, positions in row.roles.items()
        if role not in ("question", "last")
        for position in positions
    ]
    limit = min([len(row.ids) - 1 for row in rows] + [len(row.ends) for row in rows] + kept)
    if text is not None:
        limit = min(limit, sum(end <= len(text) for end in rows[0].ends))
    first = rows[0].ids
    for i in range(limit):
        if any(row.ids[i] != first[i] for row in rows):
            return i
    return limit


def collate(
    rows: Sequence[Row],
    *,
    pad_id: int,
    share_prefix: bool | str,
    per_row: bool = False,
    cross_attention: bool = False,
    first_position: int = 0,
) -> Prompt:
    """Pad rows on the left into one :class:`Prompt`; take a shared prefix off first if asked.

    ``per_row``: image tensors have one entry per row along their first axis. ``first_position``:
    the position id of a row's first token.
    """
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
            name: [position - prefix + pad for position in positions if position >= prefix]
            for name, positions in row.roles.items()
        }
        roles.append({name: positions for name, positions in shifted.items() if positions})
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0) + prefix + first_position
    full_mask = torch.cat([torch.ones(len(rows), prefix, dtype=torch.long), mask], dim=1)
    inputs = {"input_ids": input_ids, "attention_mask": full_mask, "position_ids": position_ids}
    for key in sorted({key for row in rows for key in row.aligned}):
        parts = [row.aligned[key][prefix:] if key in row.aligned else None for row in rows]
        like = next(part for part in parts if part is not None)
        shape = (width, *_widest([part for part in parts if part is not None])[1:])
        inputs[key] = torch.stack(
            [_padded(part if part is not None else like[:0], shape, left=True) for part in parts]
        )
    entries: dict[str, list[int]] = {}
    for key in sorted({key for row in rows for key in row.images}):
        given = [row.images[key] for row in rows if key in row.images]
        shape = _widest(given)[1:]
        blank = given[0][:0].new_zeros((1 if per_row else 0, *shape))
        parts = [
            _padded(row.images[key], (len(row.images[key]), *shape)) if key in row.images else blank
            for row in rows
        ]
        inputs[key] = torch.cat(parts)
        entries[key] = [len(part) for part in parts]
    return Prompt(
        inputs=inputs,
        roles=roles,
        texts=[row.text for row in rows],
        prefix_ids=torch.tensor(rows[0].ids[:prefix], dtype=torch.long),
        entries=entries,
        cross_attention=cross_attention,
    )


def _widest(tensors: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """Largest size along every axis."""
    return tuple(max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True))


def _padded(tensor: torch.Tensor, shape: Sequence[int], *, left: bool = False) -> torch.Tensor:
    """Zeros of a shape with a tensor at the start of every axis, or at the end of the first."""
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    padded = tensor.new_zeros(tuple(shape))
    place = [slice(0, n) for n in tensor.shape]
    if left:
        place[0] = slice(shape[0] - tensor.shape[0], shape[0])
    padded[tuple(place)] = tensor
    return padded
