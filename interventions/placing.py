"""Taking values from, and putting values at, positions of a hidden state."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from interventions.errors import PatchError, SiteError
from interventions.given import index_of, one_of
from interventions.given_arrays import check_range, tensor_of
from interventions.positions import Positions

Mode = Literal["set", "add", "scale"]
MODES: tuple[Mode, ...] = ("set", "add", "scale")
Where = Positions | int | slice | Sequence[int] | None


def index_list(asked: int | slice | Sequence[int], n: int, what: str = "layer") -> list[int]:
    """Indices named by an int, slice or list, counted from the end where negative.

    Raises
    ------
    SiteError
        If one does not exist, or none is named.
    """
    found = index_of(asked, what)
    if isinstance(found, slice):
        backward = found.step is not None and found.step < 0
        low, high = (-n - 1, n - 1) if backward else (-n, n)
        if any(end is not None and not low <= end <= high for end in (found.start, found.stop)):
            raise SiteError(f"{what}s {found.start}:{found.stop} reach outside 0:{n}.")
        found = list(range(n))[found]
    found = [found] if isinstance(found, int) else found
    if not found:
        raise SiteError(f"no {what} is named by {asked!r}; there are {what}s 0 to {n - 1}.")
    for one in found:
        if not -n <= one < n:
            raise SiteError(f"no {what} {one}: the model has {what}s 0 to {n - 1}.")
    return [one % n for one in found]


def gather(hidden: torch.Tensor, positions: Where) -> torch.Tensor:
    """Copy positions out of ``hidden`` [row, position, width]."""
    if not isinstance(positions, Positions):
        # A copy, for "stream[3] += v" changes what was read in place, and with it earlier reads.
        return hidden[:, place_of(hidden, positions)].clone()
    check_rows(hidden, positions)
    if positions.ragged:
        raise SiteError(
            f"role {positions.role!r} has between {int(positions.counts.min())} and "
            f"{int(positions.counts.max())} tokens per row, so it cannot be read as one tensor. "
            "Ask for one token per row, such as at(role, -1), or select() rows of equal length. To "
            'add or scale there, use stream.write(layers, positions, value, mode="add" or "scale").'
        )
    found = gather_padded(hidden, positions)
    return found[:, 0] if positions.single else found


def gather_padded(
    hidden: torch.Tensor, positions: Positions, *, layer_axis: bool = False
) -> torch.Tensor:
    """Copy positions out of ``hidden`` [row, position, ...], however many a row has.

    ``layer_axis``: ``hidden`` has one in front.

    Returns
    -------
    Tensor [row, n, ...]
        What ``positions.mask`` leaves out is meaningless.
    """
    rows = torch.arange(positions.n_rows, device=hidden.device)[:, None]
    index = positions.index.to(hidden.device)
    return hidden[:, rows, index] if layer_axis else hidden[rows, index]


def place_of(hidden: torch.Tensor, positions: Any) -> int | slice | list[int]:
    """Positions that are the same in every row, as an index that ``hidden`` has."""
    n = hidden.shape[1]
    if positions is None:
        return slice(None)
    place = index_of(positions, "position")
    if isinstance(place, int) and not -n <= place < n:
        raise SiteError(f"no position {place}: the running rows have positions 0 to {n - 1}.")
    if isinstance(place, slice) and place == slice(None):
        return place
    return place if isinstance(place, int) else index_list(place, n, "position")


def check_rows(hidden: torch.Tensor, positions: Positions) -> None:
    """Refuse positions of one prompt in a trace that runs another."""
    if tuple(hidden.shape[:2]) != (positions.n_rows, positions.length):
        raise SiteError(
            f"these positions ({positions.role!r}) belong to a prompt of {positions.n_rows} rows x "
            f"{positions.length} tokens, but the forward pass has {hidden.shape[0]} x "
            f"{hidden.shape[1]}. Use positions of the prompt that is traced; while generating, "
            "they hold for the prefill step only."
        )


def fits(value: torch.Tensor, shape: Sequence[int]) -> bool:
    """Whether a value is a number, or one vector or as many as there are along every axis.

    A vector of one number would be spread over the width, which is nobody's wish.
    """
    if value.ndim and value.shape[-1] != shape[-1]:
        return False
    pairs = zip(reversed(value.shape), reversed(shape), strict=False)
    return value.ndim <= len(shape) and all(mine in (1, there) for mine, there in pairs)


def _merged(old: torch.Tensor, value: torch.Tensor, mode: Mode) -> torch.Tensor:
    if mode == "add":
        return old + value
    return old * value if mode == "scale" else value


def written(
    hidden: torch.Tensor,
    positions: Where,
    value: Any,
    mode: Mode = "set",
    *,
    infinite: bool = False,
) -> torch.Tensor:
    """Return a copy of ``hidden`` [row, position, width] changed at ``positions``.

    A value of one axis less than the place it goes to is spread over the positions of its row; a
    number, or one vector [width], over all.

    Parameters
    ----------
    hidden : Tensor
    positions : Positions, int, slice or None
    value : Tensor or number
    mode : {"set", "add", "scale"}
        Overwrite with the value, add it, or multiply by it.
    infinite : bool
        The value may hold infinite numbers.

    Raises
    ------
    PatchError
        If the value's shape does not fit, it holds a NaN, or a number that the format of
        ``hidden`` would make infinite.
    """
    mode = one_of(mode, "mode", MODES, error=PatchError)
    value = tensor_of(value)
    check_range(value, hidden.dtype, infinite=infinite)
    value = value.to(device=hidden.device, dtype=hidden.dtype)
    result = hidden.clone()
    if not isinstance(positions, Positions):
        place = place_of(hidden, positions)
        old = hidden[:, place]
        if value.ndim == 2 and not isinstance(place, int):
            value = value[:, None]  # one value per row, spread over its positions
        if isinstance(place, list) and len(set(place)) < len(place):
            raise PatchError(f"positions {place} name one twice, so a value would be written over.")
        if not fits(value, old.shape):
            raise PatchError(
                f"the value does not fit where it is to go: its shape is {tuple(value.shape)}. "
                f"Expected {list(old.shape)}."
            )
        result[:, place] = _merged(old, value, mode)
        return result
    check_rows(hidden, positions)
    n_rows, n = positions.index.shape
    width = hidden.shape[-1]
    if value.ndim == 2:
        value = value[:, None]  # one value per row
    if not fits(value, (n_rows, n, width)):
        raise PatchError(
            f"a value of shape {tuple(value.shape)} does not fit {n_rows} rows x {n} positions x "
            f"{width} at role {positions.role!r}. Expected [{n_rows}, {n}, {width}], or "
            f"[{n_rows}, {width}] to spread one value per row over its positions."
        )
    value = value.expand(n_rows, n, width)
    mask = positions.mask.to(hidden.device)
    rows = torch.arange(n_rows, device=hidden.device)[:, None].expand(n_rows, n)[mask]
    index = positions.index.to(hidden.device)[mask]
    result[rows, index] = _merged(hidden[rows, index], value[mask], mode)
    return result
