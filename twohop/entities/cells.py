"""What a cell says: one text, or a list of texts, whatever the format wrote it as."""

import ast
import json
from typing import Any

MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>", "N/A")
BETWEEN = "|"


class CellError(Exception):
    """A cell that holds something else than was expected."""


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: empty, NaN, or what tables write for it.

    Examples
    --------
    >>> [is_missing(one) for one in (None, float("nan"), " ", "NaN", [], "Nan", 0)]
    [True, True, True, True, True, False, False]
    """
    if value is None or (isinstance(value, float) and value != value):
        return True
    if isinstance(value, str):
        return not value.strip() or value.strip() in MISSING
    return isinstance(value, list | tuple) and not value


def text_of(value: Any) -> str | None:
    """Text of a cell, in one line of single spaces; None if it holds nothing.

    Numbers are written as people write them: 1889, not 1889.0.

    Raises
    ------
    CellError
        If it is neither text nor a number.
    """
    if is_missing(value):
        return None
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, int | float) and not isinstance(value, bool):
        whole = isinstance(value, float) and value.is_integer()
        return str(int(value)) if whole else str(value)
    raise CellError(f"expected a text, got {type(value).__name__}")


def texts_of(value: Any) -> list[str]:
    """Texts of a cell, without what is missing or occurs twice.

    A list; or a text that is one, as JSON or Python writes it, or with ``|`` between.

    Raises
    ------
    CellError
        If some of it is neither text nor a number.

    Examples
    --------
    >>> texts_of("['UK', 'Great Britain']"), texts_of("UK | Great Britain"), texts_of(1889.0)
    (['UK', 'Great Britain'], ['UK', 'Great Britain'], ['1889'])
    """
    if is_missing(value):
        return []
    if isinstance(value, str):
        value = _list_in(value.strip())
    parts = value if isinstance(value, list | tuple) else [value]
    return list(dict.fromkeys(one for one in map(text_of, parts) if one is not None))


def _list_in(text: str) -> list[Any]:
    if text.startswith("[") and text.endswith("]"):
        for read in (json.loads, ast.literal_eval):  # neither runs code
            try:
                found = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
    return text.split(BETWEEN)


def question_of(value: Any) -> str | None:
    """Text of a question as it is, white space included; None if it holds nothing."""
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise CellError(f"expected a text, got {type(value).__name__}")
    return value
