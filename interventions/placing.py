"""Taking values from, and putting values at, positions of a hidden state."""

from typing import Any, Literal

import torch

from interventions.errors import PatchError, SiteError
from interventions.positions import Positions

Mode = Literal["set", "add", "scale"]
Where = Positions | int | slice | None


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


def place_of(hidden: torch.Tensor, positions: int | slice | None) -> int | slice:
    """Positions that are the same in every row, as an index that ``hidden`` has."""
    n = hidden.shape[1]
    if isinstance(positions, int) and not -n <= positions < n:
        raise SiteError(f"no position {positions}: the running rows have positions 0 to {n - 1}.")
    return slice(None) if positions is None else positions


def check_rows(hidden: torch.Tensor, positions: Positions) -> None:
    """Refuse positions of one prompt in a trace that runs another."""
    if tuple(hidden.shape[:2]) != (positions.n_rows, positions.length):
        raise SiteError(
            f"these positions ({positions.role!r}) belong to a prompt of {positions.n_rows} rows x "
            f"{positions.length} tokens, but the forward pass has {hidden.shape[0]} x "
            f"{hidden.shape[1]}. Use positions of the prompt that is traced; while generating, "
            "they hold for the prefill step only."
        )


def _merged(old: torch.Tensor, value: torch.Tensor, mode: Mode) -> torch.Tensor:
    if mode == "add":
        return old + value
    return old * value if mode == "scale" else value


def written(hidden: torch.Tensor, positions: Where, value: Any, mode: Mode = "set") -> torch.Tensor:
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

    Raises
    ------
    PatchError
        If the value's shape does not fit, or it holds a NaN.
    """
    try:
        value = torch.as_tensor(value).to(device=hidden.device, dtype=hidden.dtype)
    except (TypeError, ValueError) as error:
        raise PatchError(f"{value!r} cannot be written; give a tensor or number: {error}") from None
    if bool(torch.isnan(value).any()):
        raise PatchError("the value to be written holds NaN. Check the run it was read from.")
    result = hidden.clone()
    if not isinstance(positions, Positions):
        place = place_of(hidden, positions)
        if value.ndim == 2 and isinstance(place, slice):
            value = value[:, None]  # one value per row, spread over its positions
        try:
            result[:, place] = _merged(hidden[:, place], value, mode)
        except RuntimeError as error:
            raise PatchError(f"the value does not fit where it is to go: {error}") from None
        return result
    check_rows(hidden, positions)
    n_rows, n = positions.index.shape
    width = hidden.shape[-1]
    if value.ndim == 2:
        value = value[:, None]  # one value per row
    try:
        value = value.expand(n_rows, n, width)
    except RuntimeError:
        raise PatchError(
            f"a value of shape {tuple(value.shape)} does not fit {n_rows} rows x {n} positions x "
            f"{width} at role {positions.role!r}. Expected [{n_rows}, {n}, {width}], or "
            f"[{n_rows}, {width}] to spread one value per row over its positions."
        ) from None
    mask = positions.mask.to(hidden.device)
    rows = torch.arange(n_rows, device=hidden.device)[:, None].expand(n_rows, n)[mask]
    index = positions.index.to(hidden.device)[mask]
    result[rows, index] = _merged(hidden[rows, index], value[mask], mode)
    return result
