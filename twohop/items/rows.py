"""Rows as they were read: what cannot be read of a row is said, not raised."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interventions.errors import InterventionsError
from twohop.items.cells import Unread

SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(InterventionsError):
    """Items that cannot be read, or of which nothing is usable."""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes
    ----------
    place : str
        Where it stands, such as ``line 7``.
    values : dict
        By column.
    problem : tuple of str, optional
        Why it cannot be read: a reason of :mod:`twohop.items.reasons`, and a sentence.
    """

    place: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class Table:
    """Rows with their columns.

    Attributes
    ----------
    name : str
        Of the file, without its ending.
    rows : tuple of Row
    columns : tuple of str
        In order of first appearance.
    folder : Path
        What paths of images are relative to.
    typed : bool
        Whether its format tells a text from a number and from nothing, as JSON, Parquet and data
        sets do. In CSV and TSV, ``NaN`` may be either a text or nothing.
    """

    name: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    folder: Path
    typed: bool = True


def table_of(name: str, rows: Iterable[Row], folder: Path, *, typed: bool = True) -> Table:
    """Make a table of rows, with the columns that they have.

    Raises
    ------
    DataError
        If there are no rows.
    """
    kept = tuple(rows)
    if not kept:
        raise DataError(f"{name} has no rows. Expected one row per item.")
    columns = tuple(dict.fromkeys(column for row in kept for column in row.values))
    return Table(name, kept, columns, folder, typed)


def numbered(rows: Iterable[Any], *, start: int = 1) -> Iterator[Row]:
    """Rows that are called by their number."""
    for number, values in enumerate(rows, start):
        yield row_of(f"row {number}", values)


def row_of(place: str, values: Any) -> Row:
    """Make a row of an object with columns; of anything else, one that cannot be read."""
    if isinstance(values, Mapping):
        for value in values.values():
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, str) and (wrong := undecoded(part)):
                    return Row(place, problem=("bad_encoding", wrong))
        return Row(place, {str(key): value for key, value in values.items()})
    kind = values.said if isinstance(values, Unread) else type(values).__name__
    said = f"holds {kind}, not an object with columns"
    return Row(place, problem=("not_a_row", said))


def undecoded(text: str) -> str | None:
    """Say which byte of a text is not UTF-8; None if all are."""
    match = SURROGATE.search(text)
    if match is None:
        return None
    byte = ord(match[0]) - 0xDC00
    if 0x80 <= byte <= 0xFF:
        said = bytes([byte]).decode("cp1252", errors="replace")
        return f"byte 0x{byte:02x} is not UTF-8 ({said!r} in Windows' Latin encoding)"
    return f"\\u{ord(match[0]):04x} is half a character"
