"""Rows of files of text: JSON Lines, a JSON list, CSV and TSV."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twohop.items.cells import Unread
from twohop.items.rows import DataError, Row, numbered, row_of, undecoded

COMMA_FIRST, TAB_FIRST = ",;\t|", "\t,;|"
"""What may stand between cells: the first of them that the first line holds."""


def text_of(path: Path) -> str:
    """Text of a file in UTF-8; bytes that are none become lone surrogates, see `undecoded`.

    Raises
    ------
    DataError
        If the file is in UTF-16 or UTF-32, of which no row could be read.
    """
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is in UTF-16. Save it as UTF-8.")
    if b"\x00" in data[:4096]:
        raise DataError(f"{path} holds zero bytes, so it is no text in UTF-8. Save it as UTF-8.")
    return data.decode("utf-8-sig", errors="surrogateescape")


def json_rows(path: Path) -> Iterator[Row]:
    """Rows of JSON Lines, or of a file that is one JSON list, or one object over several lines."""
    text = text_of(path)
    if text.lstrip()[:1] == "[":
        try:
            yield from numbered(_json(text))
            return
        except (ValueError, RecursionError) as error:
            if not _is_json(text.strip().split("\n", 1)[0]):  # else it is the first of lines
                raise DataError(f"{path} begins as a JSON list and is none: {error}.") from error
    if text.strip().split("\n", 1)[0].strip() == "{":
        try:
            value = _json(text)
        except (ValueError, RecursionError):
            pass  # the lines will say what is wrong with each
        else:
            yield row_of("row 1", value)
            return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        if wrong := undecoded(line):
            yield Row(place, problem=("bad_encoding", wrong))
            continue
        try:
            yield row_of(place, _json(line))
        except (ValueError, RecursionError) as error:
            yield Row(place, problem=("not_json", str(error)))


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _is_json(text: str) -> bool:
    try:
        _json(text)
    except (ValueError, RecursionError):
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Unread:
    """An object; Python would keep the last of two values of a key, and say nothing."""
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    return Unread(f"an object in which {twice!r} occurs twice")


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV file, or of one with tabs, semicolons or bars."""
    lines = list(io.StringIO(text_of(path), newline=""))
    top = next((i for i, line in enumerate(lines) if line.strip()), 0)
    marks = TAB_FIRST if path.suffix.lower() == ".tsv" else COMMA_FIRST
    mark = next((mark for mark in marks if lines[top:] and mark in lines[top]), marks[0])
    limit = csv.field_size_limit(sys.maxsize)  # images may stand in cells
    try:
        reader = csv.reader(lines[top:], delimiter=mark, strict=True)
        header = [name.strip() for name in next(reader, [])]
        named = [name for name in header if name]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise DataError(f"{path}: column {twice[0]!r} occurs twice. Rename one.")
        yield from _csv_cells(lines, header, start=top + reader.line_num, mark=mark)
    except csv.Error as error:
        raise DataError(f"{path}: its first line cannot be read: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _csv_cells(lines: list[str], header: list[str], *, start: int, mark: str) -> Iterator[Row]:
    """Rows of the lines from number ``start`` on, counted from 0."""
    reader, behind = csv.reader(lines[start:], delimiter=mark, strict=True), start
    while True:
        place = behind + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = behind + reader.line_num
            said = f"{error}, up to line {end}"
            if end == len(lines) and end > place + 1:  # a quote that never closes is one row's
                said = f"{error}: a quote in it is not closed; read on at the next line"
                behind = place + 1
                reader = csv.reader(lines[behind:], delimiter=mark, strict=True)
            yield Row(f"line {place + 1}", problem=("not_csv", said))
            continue
        if cells:
            yield _csv_row(f"line {place + 1}", header, cells)


def _csv_row(place: str, header: list[str], cells: list[str]) -> Row:
    for cell in cells:
        if wrong := undecoded(cell):
            return Row(place, problem=("bad_encoding", wrong))
    if len(cells) != len(header):
        said = f"{len(cells)} cells under {len(header)} columns; quote cells that hold commas"
        return Row(place, problem=("wrong_columns", said))
    return Row(place, {name: cell for name, cell in zip(header, cells, strict=True) if name})
