"""What users hand over, turned into what is used: numbers, indices, names and things.

Python is lenient where a result must not be: True is 1, a text is a sequence of letters, a mask is
a list of numbers, and a generator is empty the second time. Every public call passes what it is
given through here before anything runs; what comes out is plain, and what cannot be meant is
refused with what was got and what was expected.
"""

import operator
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interventions.errors import (
    InterventionsError,
    PromptError,
    ResultsError,
    SiteError,
    did_you_mean,
)

LONGEST = 60
MOST_TOKENS = 2**20
"""More are not generated: no model has been made for as long a text."""
MOST_EPOCHS, MOST_CONTROLS = 10_000, 10_000
"""More would be a slip: none would live to see them done."""
HIGHEST_RATE = 1e3
"""Of learning and of weight decay. Higher ones leave the range of a number format."""
HIGHEST_SEED = 2**62
"""Leaves room for the numbers that are counted up from a seed."""
Refusal = type[InterventionsError]


def shown(value: Any) -> str:
    """Write a value for a message: short, whatever it is."""
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim:
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{type(value).__name__} of shape {tuple(value.shape)} and type {dtype}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a user's own class
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def plain(value: Any) -> Any:
    """Return a number or text of numpy or torch as Python's own; anything else as it is.

    A text of a class of its own is its letters, while ``str()`` of an Enum's member is its name.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, torch.Tensor):
        return value if value.ndim or value.device.type == "meta" else value.item()
    if isinstance(value, np.generic | np.ndarray) and not value.ndim:
        return value.item() if value.dtype.kind in "biufcSU" else value
    return value


def whole(
    value: Any,
    what: str,
    *,
    least: int | None = None,
    most: int | None = None,
    error: Refusal = PromptError,
) -> int:
    """Return a whole number; no bool, and no 3.0.

    Parameters
    ----------
    value : int, or one of numpy or torch
    what : str
        What it is, for the message.
    least, most : int, optional
        Bounds, included.
    error : type
        What to raise.
    """
    integer = _integer(plain(value))
    above = integer is not None and (least is None or integer >= least)
    if integer is not None and above and (most is None or integer <= most):
        return integer
    raise error(f"{what} is {shown(value)}. Expected a whole number{_bounds(least, most)}.")


def number(
    value: Any,
    what: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    error: Refusal = PromptError,
) -> float:
    """Return a finite number as a float; no bool, text or complex number.

    Parameters
    ----------
    value : float or int, or one of numpy or torch
    what : str
        What it is, for the message.
    least, most : float, optional
        Bounds, included.
    above, below : float, optional
        Bounds, not included.
    error : type
        What to raise.
    """
    bare = plain(value)
    if isinstance(bare, int | float | np.floating) and not isinstance(bare, bool):
        try:
            real = float(bare)
        except OverflowError:
            real = float("inf")
        high_enough = (least is None or real >= least) and (above is None or real > above)
        low_enough = (most is None or real <= most) and (below is None or real < below)
        if np.isfinite(real) and high_enough and low_enough:
            return real
    limits = [f"above {above}"] if above is not None else []
    limits += [bounds.strip()] if (bounds := _bounds(least, most)) else []
    limits += [f"below {below}"] if below is not None else []
    text = f" {' and '.join(limits)}" if limits else ""
    raise error(f"{what} is {shown(value)}. Expected a finite number{text}.")


def batch_size(value: Any, what: str = "batch_rows", *, error: Refusal = PromptError) -> int:
    """Return how many rows run together; however many are allowed, no more are made."""
    return min(whole(value, what, least=1, error=error), MOST_TOKENS)


def _integer(value: Any) -> int | None:
    """A plain whole number as an int, or None where it is none; True and arrays are none."""
    if isinstance(value, bool | torch.Tensor | np.ndarray):
        return None
    try:
        return operator.index(value)
    except Exception:  # whatever a class of the user's own raises
        return None


def _bounds(least: float | None, most: float | None) -> str:
    if least is None:
        return "" if most is None else f" up to {most}"
    return f" of at least {least}" if most is None else f" from {least} to {most}"


def seed_of(value: Any, what: str = "seed", *, error: Refusal = PromptError) -> int:
    """Return a seed: a whole number from 0 to 2**62."""
    return whole(value, what, least=0, most=HIGHEST_SEED, error=error)


def flag(value: Any, what: str, *, error: Refusal = PromptError) -> bool:
    """Return True or False, given as such: "no" and [0] count as true elsewhere."""
    bare = plain(value)
    if isinstance(bare, bool):
        return bare
    raise error(f"{what} is {shown(value)}. Expected True or False.")


def one_of(value: Any, what: str, known: Collection[str], *, error: Refusal = PromptError) -> Any:
    """Return a name that is known; the nearest ones are named where it is not."""
    name = plain(value)
    if isinstance(name, str) and name in known:
        return str(name)
    asked = name if isinstance(name, str) else shown(name)
    raise error(f"no {what} {shown(value)}. {did_you_mean(asked, known)}")


def text_of(value: Any, what: str, *, error: Refusal = PromptError) -> str:
    """Return a text; no bytes, and nothing else."""
    text = plain(value)
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise error(f"{what} is {shown(value)}, which holds half a character.") from None
        return text
    raise error(f"{what} is {shown(value)}. Expected a text (str).")


def several(
    given: Any, what: str, *, error: Refusal = PromptError, expected: str = "a list of them"
) -> list[Any]:
    """Return the items of something that has an order; what a generator gives is kept.

    Parameters
    ----------
    given : list, tuple, array, Series, range or generator
        No text, bytes, mapping or set, and no table.
    what : str
        What they are, for the message.
    error : type
        What to raise.
    expected : str
        For the message.
    """
    unordered = isinstance(given, str | bytes | bytearray | Mapping | set | frozenset)
    if unordered or not _in_a_row(given):
        raise error(f"{what}: got {shown(given)}. Expected {expected}, in order.")
    return _gone_through(given, what, error)


def _gone_through(given: Iterable[Any], what: str, error: Refusal) -> list[Any]:
    try:
        return list(given)
    except Exception as problem:  # of a generator or a class of the user's own
        said = f"{type(problem).__name__}: {problem}"
        raise error(f"{what}: {shown(given)} cannot be gone through to its end ({said}).") from (
            problem
        )


def _in_a_row(given: Any) -> bool:
    """Whether items can be taken one by one: no table, and no tensor without numbers of its own."""
    if isinstance(given, type) or not isinstance(given, Iterable):
        return False
    if isinstance(given, torch.Tensor):
        dense = given.layout == torch.strided and given.device.type != "meta"
        return dense and not given.is_quantized and given.ndim == 1
    return getattr(given, "ndim", 1) == 1


def one_or_several(given: Any, what: str) -> Any:
    """Return one text as a str, or several things as a list, whatever they are."""
    text = plain(given)
    return text if isinstance(text, str) else [plain(entry) for entry in several(given, what)]


def names(given: Any, what: str, *, error: Refusal = PromptError, once: bool = False) -> list[str]:
    """Return one text, or several, as a list of str.

    Parameters
    ----------
    given : str, or several as in :func:`several`
    what : str
        The parameter, for the message.
    error : type
        What to raise.
    once : bool
        Refuse a name that is given twice.
    """
    text = plain(given)
    if isinstance(text, str):
        return [text]
    texts = [plain(entry) for entry in several(given, what, error=error, expected="texts")]
    for i, entry in enumerate(texts):
        if not isinstance(entry, str):
            raise error(f"{what}: entry {i} is {shown(entry)}, not a text.")
        if once and entry in texts[:i]:
            raise error(f"{what} names {entry!r} twice.")
    return [str(entry) for entry in texts]


def of_kind(value: Any, kind: type | tuple[type, ...], what: str, *, error: Refusal) -> Any:
    """Return a thing of a class of ours, or say which was expected."""
    if isinstance(value, kind):
        return value
    kinds = kind if isinstance(kind, tuple) else (kind,)
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise error(f"{what} is {shown(value)}. Expected a {expected}.")


def named(value: Any, what: str) -> dict[str, Any]:
    """Return settings by their names, as a dict; none for None."""
    settings = dict(of_kind({} if value is None else value, Mapping, what, error=PromptError))
    for name in settings:
        of_kind(name, str, f"a name in {what}", error=PromptError)
    return settings


def all_of_kind(
    given: Any, kind: type | tuple[type, ...], what: str, *, error: Refusal
) -> list[Any]:
    """Return things of classes of ours as a list; one that stands alone is refused."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    expected = f"a list of {' or '.join(known.__name__ for known in kinds)}"
    entries = several(given, what, error=error, expected=expected)
    return [
        of_kind(entry, kind, f"{what}: entry {i}", error=error) for i, entry in enumerate(entries)
    ]


def callback(given: Any, what: str, *, error: Refusal = PromptError) -> Any:
    """Return a function, or None where none is wanted."""
    if given is None or callable(given):
        return given
    raise error(f"{what} is {shown(given)}. Expected a function, or None.")


def index_of(asked: Any, what: str, *, error: Refusal = SiteError) -> int | slice | list[int]:
    """Return an int, a slice or a list of int, of Python's own.

    Parameters
    ----------
    asked : int, slice, or several int as in :func:`several`
        No mask of bool, which is a list of 0 and 1 elsewhere.
    what : str
        One of them, for the message: "layer".
    error : type
        What to raise.

    Examples
    --------
    >>> index_of(np.arange(3), "layer")
    [0, 1, 2]
    """
    if type(asked) is int:
        return asked
    wrong = f"{what}s are an int, a slice or a list of int, not {shown(asked)}."
    bare = plain(asked)
    if isinstance(bare, slice):
        ends = (bare.start, bare.stop, bare.step)
        checked = [None if end is None else _number_of(end, wrong, error) for end in ends]
        if checked[2] == 0:
            raise error(f"{wrong} Its step is 0.")
        return slice(*checked)
    if isinstance(bare, bool) or _integer(bare) is not None:
        return _number_of(bare, wrong, error)
    if isinstance(bare, str | bytes | bytearray | Mapping | set | frozenset):
        raise error(wrong)
    if not _in_a_row(bare):
        raise error(wrong)
    items = _gone_through(_listed(bare), f"{what}s", error)
    return [_number_of(item, wrong, error) for item in items]


def _listed(given: Any) -> Any:
    """An array of one axis as a list, which is many times faster to go through."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "mM":
        return given  # whose list is one of numbers
    array = isinstance(given, torch.Tensor | np.ndarray) and _in_a_row(given)
    return given.tolist() if array else given


def _number_of(value: Any, wrong: str, error: Refusal) -> int:
    bare = plain(value)
    if isinstance(bare, bool):
        raise error(f"{wrong} For a mask of bool, give the numbers where it is True.")
    number = _integer(bare)
    if number is None:
        raise error(wrong)
    return number


def rows_of(given: Any, n: int, *, error: Refusal) -> list[int]:
    """Return row numbers from 0 on, given as numbers (negative ones from the end) or as a mask.

    Parameters
    ----------
    given : several int, or several bool
        In the order given, repeats allowed; or True for each row that is meant.
    n : int
        Rows there are.
    error : type
        What to raise.
    """
    entries = [plain(entry) for entry in several(_listed(given), "rows", error=error)]
    masks = [isinstance(entry, bool) for entry in entries]
    if entries and all(masks):
        if len(entries) != n:
            raise error(f"a mask of {len(entries)} rows; there are {n}. Give one bool for each.")
        return [row for row, chosen in enumerate(entries) if chosen]
    numbers = [whole(entry, "a row", error=error) for entry in entries]
    for row in numbers:
        if not -n <= row < n:
            raise error(f"no row {row}: there are rows 0 to {n - 1}.")
    return [row % n for row in numbers]


def folder_of(given: Any, what: str = "out") -> Path:
    """Return the path of a folder that is there, or can be made.

    Raises
    ------
    ResultsError
        If it is no path, or something else is there.
    """
    if not isinstance(given, str | os.PathLike) or not str(given) or "\0" in str(given):
        raise ResultsError(f"{what} is {shown(given)}. Expected the path of a folder.")
    try:
        os.fsencode(given)
        folder = Path(given)
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
    except (TypeError, ValueError, OSError) as error:
        raise ResultsError(f"{what} is {shown(given)}, which is no path: {error}.") from None
    if not nearest.is_dir():
        raise ResultsError(f"{nearest} is a file. Expected {what} to be a folder.")
    return folder
