"""What a cell says: one text, or a list of texts, whatever the format wrote it as."""

import ast
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any
from uuid import UUID

import numpy as np

MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>", "N/A")
"""What CSV and TSV write for nothing. Each may also be a text: a name, a code, a bread."""
BETWEEN = "|"
MARK = "\ufeff"
"""Begins files of some programs, and stands within those that were put together of several."""
UNSEEN = "\u200b\u2060"
"""Characters of no width, at the ends of texts copied from pages; within a text they divide."""


class CellError(Exception):
    """A cell that holds something else than was expected."""


@dataclass(frozen=True)
class Unread:
    """A value that is there and cannot be used, as text or as a picture; ``said`` is why."""

    said: str


@dataclass(frozen=True)
class Nothing:
    """A cell whose text was read as a table's mark for nothing."""

    text: str


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: empty, not a number, or a mark that was read as nothing.

    A text is a text, whatever it says. What a format without types writes for nothing becomes
    :class:`Nothing` before.

    Examples
    --------
    >>> [is_missing(one) for one in (None, float("nan"), " ", [], Nothing("NaN"), "NaN", 0)]
    [True, True, True, True, True, False, False]
    """
    if value is None or isinstance(value, Nothing):
        return True
    if isinstance(value, str):
        return not value.replace(MARK, "").strip().strip(UNSEEN)
    if isinstance(value, list | tuple):
        return not value
    if isinstance(value, np.ndarray):
        return value.size == 0
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, float | np.generic | datetime):  # NaN and NaT, of each kind
        return bool(value != value)
    return type(value).__name__ == "NAType"  # what pandas has for nothing


def text_of(value: Any) -> str | None:
    """Text of a cell, in one line of single spaces; None if it holds nothing.

    Numbers are written as people write them: 1889, not 1889.0 or 1.889e3; dates as 1789-07-14.

    Raises
    ------
    CellError
        If it is no text, number or date.

    Examples
    --------
    >>> text_of(1e23), text_of(np.float32(0.1)), text_of(Decimal("1889.00")), text_of(date(1, 2, 3))
    ('100000000000000000000000', '0.1', '1889', '0001-02-03')
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if is_missing(value):
        return None
    if isinstance(value, str):
        return " ".join(value.replace(MARK, "").split()).strip(UNSEEN)
    if isinstance(value, bool | np.bool_):
        raise CellError(f"expected a text, got {value!s}; write the answer as text, such as yes")
    if isinstance(value, Integral | Real | Decimal) and not isinstance(value, np.timedelta64):
        return _number(value)
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, date | time):
        return _date(value)
    if isinstance(value, UUID):
        return str(value)
    raise CellError(f"expected a text, got {_kind(value)}")


def number_of(value: Any) -> float | None:
    """Number of a cell, as it is or written out; None if it holds nothing.

    Raises
    ------
    CellError
        If it is no number.

    Examples
    --------
    >>> number_of("12.5"), number_of(""), number_of(3)
    (12.5, None, 3.0)
    """
    text = text_of(value)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise CellError(f"expected a number, got {text[:40]!r}")
    return number


def _number(value: Any) -> str:
    try:
        if isinstance(value, Integral):
            return str(int(value))
        if not (value.is_finite() if isinstance(value, Decimal) else np.isfinite(value)):
            raise CellError(f"expected a text, got the number {value}")
        if isinstance(value, Decimal):
            said = f"{value:f}"
            said = said.rstrip("0").rstrip(".") if "." in said else said
        else:
            # As few digits as tell it from its neighbours, of its own precision.
            said = np.format_float_positional(value, trim="-")
    except (ValueError, OverflowError, TypeError) as error:  # thousands of digits; fractions
        raise CellError(f"expected a text, got a number that cannot be written: {error}") from error
    return "0" if said in ("-0", "") else said


def _date(value: date | time) -> str:
    if isinstance(value, datetime):
        if value.tzinfo is None and value.time() == time() and not getattr(value, "nanosecond", 0):
            return value.date().isoformat()
        return value.isoformat(sep=" ")
    return value.isoformat()


def _kind(value: Any) -> str:
    """What a value that is no text is, in words."""
    if isinstance(value, Unread):
        return value.said
    if isinstance(value, timedelta | np.timedelta64):
        return "a span of time; write it as text, with its unit"
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes; store them as text"
    if isinstance(value, Mapping):
        fields = ", ".join(map(str, value)) or "no fields"
        return f"an object ({fields}); make a column of the one that is meant"
    if isinstance(value, list | tuple | np.ndarray):
        return f"a list ({type(value).__name__}) of {len(value)}"
    return type(value).__name__


def texts_of(value: Any) -> list[str]:
    """Texts of a cell, without what is missing or occurs twice.

    A list; or a text that is one, as JSON or Python writes it, or with ``|`` between.

    Raises
    ------
    CellError
        If some of it is no text, number or date.

    Examples
    --------
    >>> texts_of("['UK', 'Great Britain']"), texts_of("UK | Great Britain"), texts_of(1889.0)
    (['UK', 'Great Britain'], ['UK', 'Great Britain'], ['1889'])
    """
    if is_missing(value):
        return []
    if isinstance(value, str):
        value = _list_in(value.strip())
    is_list = isinstance(value, np.ndarray) and value.ndim == 1
    is_list = is_list or isinstance(value, list) or type(value) is tuple  # not one with names
    parts = value if is_list else [value]
    return list(dict.fromkeys(text for text in map(text_of, parts) if text is not None))


def _list_in(text: str) -> list[Any]:
    if text.startswith("[") and text.endswith("]"):
        for read in (json.loads, ast.literal_eval):  # neither runs code
            try:
                with warnings.catch_warnings(action="ignore"):  # of escapes that Python has not
                    parsed = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(parsed, list):
                return parsed
    return text.split(BETWEEN)


def question_of(value: Any) -> str | None:
    """Text of a question as it is, white space included; None if it holds nothing."""
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise CellError(f"expected a text, got {_kind(value)}")
    return value
