"""Arrays that users hand over, turned into tensors; and labels of rows, into classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from interventions.errors import InterventionsError, PatchError
from interventions.given import Refusal, plain, shown

SMALLEST_INT, LARGEST_INT = -(2**63), 2**63 - 1


def tensor_of(given: Any, what: str = "the value", *, error: Refusal = PatchError) -> torch.Tensor:
    """Return numbers as a tensor of the same values, whatever holds them.

    Integers of numpy become float64, in which nothing wraps around.

    Parameters
    ----------
    given : Tensor, array, DataArray, Series, list or number
        Real numbers; no bool, text, or objects, and no array with masked entries.
    what : str
        For the message.
    error : type
        What to raise.

    Raises
    ------
    InterventionsError
        Of the kind ``error``, if it holds anything else.
    """
    if isinstance(given, torch.Tensor):
        if not dense(given) or given.is_complex() or given.dtype == torch.bool:
            raise error(f"{what} is {shown(given)}. Expected real numbers, in a dense tensor.")
        return given if given.is_floating_point() else given.double()
    if isinstance(given, list | tuple) and any(isinstance(entry, torch.Tensor) for entry in given):
        parts = [tensor_of(entry, what, error=error) for entry in given]
        if len({part.shape for part in parts}) > 1:
            raise error(f"{what} is a list of tensors that differ in shape. Give one tensor.")
        wide = max((part.dtype for part in parts), key=lambda dtype: torch.finfo(dtype).bits)
        return torch.stack([part.to(device=parts[0].device, dtype=wide) for part in parts])
    if isinstance(given, str | bytes | bytearray | Mapping | set | frozenset) or given is None:
        raise error(f"{what} is {shown(given)}; give a tensor or number.")
    if isinstance(given, np.ma.MaskedArray) and np.ma.getmaskarray(given).any():
        raise error(f"{what} has masked entries, which are no numbers. Fill them in.")
    try:
        array = np.asarray(given)
    except Exception as problem:  # of whatever class of a user's
        raise error(f"{what} is {shown(given)}; give a tensor or number: {problem}") from None
    if array.dtype.kind not in "iuf":
        raise error(
            f"{what} is {shown(given)}, of type {array.dtype}; give a tensor or number. "
            "Expected real numbers."
        )
    # A copy: what is read-only, backward or of another byte order is no memory of torch's.
    kept = array.dtype.kind == "f" and array.dtype.itemsize in (2, 4, 8)
    native = array.dtype.newbyteorder("=") if kept else np.dtype(np.float64)
    return torch.from_numpy(np.array(array, dtype=native, order="C"))


def dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor has its numbers in memory, one for each entry."""
    somewhere = tensor.device.type != "meta" and not tensor.is_quantized
    return somewhere and tensor.layout == torch.strided


def check_range(
    value: torch.Tensor,
    dtype: torch.dtype,
    what: str = "the value to be written",
    *,
    infinite: bool = False,
) -> None:
    """Refuse NaN, and numbers that the model's format would make infinite.

    ``infinite``: values that are infinite already are meant.
    """
    cast = value.to(dtype)
    if bool(torch.isfinite(cast).all()):  # one question, as each waits for the device
        return
    if bool(torch.isnan(value).any()):
        raise PatchError(f"{what} holds NaN. Check the run it was read from.")
    unbounded = torch.isinf(value)
    if bool(unbounded.any()) and not infinite:
        raise PatchError(f"{what} holds infinite numbers. Check how it was made.")
    over = torch.isinf(cast) & ~unbounded
    if bool(over.any()):
        name = str(dtype).removeprefix("torch.")
        raise PatchError(
            f"{what} reaches {float(value[over].abs().max()):.3g}, which {name} cannot hold (up to "
            f"{torch.finfo(dtype).max:.3g}). Scale it down, or load the model in a wider format."
        )


def row_values(
    given: Any,
    n_rows: int,
    what: str,
    *,
    error: type[InterventionsError],
    missing: bool = False,
) -> np.ndarray:
    """Return one label per row, all of one kind: bool, int, float, text, bytes or times.

    Mixed kinds are refused, for 1, True and "1" would become the same label, or not, by accident;
    and so are labels that are missing: None, NaN or NA. ``missing``: NaN and infinite numbers are
    allowed among numbers.

    Returns
    -------
    ndarray [row]
        Texts and bytes as objects, as numpy would take zeros off their ends.
    """
    if isinstance(given, str | bytes | bytearray | Mapping | set | frozenset):
        raise error(f"{what} are {shown(given)}. Give one per row.")
    if isinstance(given, torch.Tensor) and not dense(given):
        raise error(f"{what} are {shown(given)}, which holds no numbers of its own.")
    values = given.detach().cpu() if isinstance(given, torch.Tensor) else given
    if isinstance(values, torch.Tensor) and values.dtype == torch.bfloat16:
        values = values.float()
    if not isinstance(values, list | tuple):
        try:
            values = np.ma.asarray(values) if isinstance(values, np.ma.MaskedArray) else values
            masked = isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any()
            array = np.asarray(values)
        except Exception as problem:  # of whatever class of a user's
            raise error(f"{what} are {shown(given)}, not one per row: {problem}") from None
        if masked:
            raise error(f"{what} are missing in some rows (masked). Leave those rows out.")
        if array.shape != (n_rows,):
            raise error(
                f"{what} have shape {array.shape}, but there are {n_rows} rows. Give one per row."
            )
        if array.dtype.kind in "biu" or (
            array.dtype.kind == "f" and (missing or np.isfinite(array).all())
        ):
            return array.astype(array.dtype.newbyteorder("="))
        if array.dtype.kind in "mM" and not np.isnat(array).any():
            return array
        values = array.tolist() if array.dtype.kind != "O" else list(array)
    if len(values) != n_rows:
        raise error(
            f"{what} have shape ({len(values)},), but there are {n_rows} rows. Give one per row."
        )
    labels = [plain(value) for value in values]
    kinds = {_kind(label, row, what, error, missing) for row, label in enumerate(labels)}
    if len(kinds) > 1:
        named = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise error(f"{what} are of several types ({named}). Make them one type, such as str.")
    if kinds & {str, bytes}:
        texts = np.empty(n_rows, dtype=object)
        texts[:] = labels
        return texts
    return np.array(labels)


def _kind(value: Any, row: int, what: str, error: type[InterventionsError], missing: bool) -> type:
    if missing and isinstance(value, float):
        return float
    if isinstance(value, torch.Tensor | np.ndarray | list | tuple):
        raise error(f"{what}: the one of row {row} is {shown(value)}. Give one value per row.")
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        raise error(f"{what}: the one of row {row} is missing ({value}). Leave that row out.")
    for kind in (bool, int, float, str, bytes):
        if isinstance(value, kind):
            break
    else:
        raise error(
            f"{what}: the one of row {row} is {shown(value)}. Expected numbers, texts or bools."
        )
    if isinstance(value, int) and not SMALLEST_INT <= value <= LARGEST_INT:
        raise error(f"{what}: the one of row {row} is {value}, beyond 64 bits. Make it a text.")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise error(f"{what}: the one of row {row} holds half a character. Write it in full.")
    if kind is float and not np.isfinite(value):
        raise error(f"{what}: the one of row {row} is {value}. Expected finite numbers.")
    return kind


def classes_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes in order, and the index of each row's."""
    if values.dtype != object:
        return np.unique(values, return_inverse=True)
    ordered = sorted(set(values.tolist()))
    names = np.empty(len(ordered), dtype=object)
    names[:] = ordered
    number = {name: i for i, name in enumerate(ordered)}
    return names, np.array([number[value] for value in values.tolist()], dtype=np.int64)


def class_indices(given: Any, n_rows: int, n_classes: int, *, error: Refusal) -> torch.Tensor:
    """Return class numbers [row] as int64, which indexing and one-hot codes need.

    Raises
    ------
    InterventionsError
        Of the kind ``error``, if they are no whole numbers from 0 to ``n_classes`` - 1.
    """
    values = row_values(given, n_rows, "labels", error=error)
    if values.dtype.kind not in "iu" or not ((values >= 0) & (values < n_classes)).all():
        raise error(f"labels: expected class numbers from 0 to {n_classes - 1}, as integers.")
    return torch.from_numpy(values.astype(np.int64))


def token_numbers(given: Any, vocab: int, *, error: Refusal) -> torch.Tensor:
    """Return ids of tokens as int64; no float, bool, or one that the vocabulary does not have."""
    if not isinstance(given, torch.Tensor):
        try:
            array = np.asarray(given)
        except Exception as problem:  # of whatever class of a user's
            raise error(f"tokens are {shown(given)}, not ids: {problem}") from None
        kind, ids = array.dtype.kind, array
    else:
        floating = given.is_floating_point() or given.is_complex() or given.dtype == torch.bool
        kind, ids = "f" if floating or not dense(given) else "i", given
    if kind not in "iu":
        raise error(f"tokens are {shown(given)}. Expected their ids, as integers.")
    numbers = (
        ids.long() if isinstance(ids, torch.Tensor) else torch.from_numpy(ids.astype(np.int64))
    )
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < vocab:
        raise error(
            f"tokens reach from {int(numbers.min())} to {int(numbers.max())}, but the "
            f"vocabulary has 0 to {vocab - 1}."
        )
    return numbers
