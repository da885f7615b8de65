"""Rows of files of text: JSON Lines, a JSON list, CSV and TSV."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from twohop.entities.rows import DataError, Row, numbered, row_of, undecoded


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
    """Rows of JSON Lines, or of a file that is one JSON list."""
    text = text_of(path)
    if text.lstrip()[:1] == "[":
        try:
            yield from numbered(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} begins as a JSON list and is none: {error}.") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        if wrong := undecoded(line):
            yield Row(place, problem=("bad_encoding", wrong))
            continue
        try:
            yield row_of(place, json.loads(line))
        except (ValueError, RecursionError) as error:
            yield Row(place, problem=("not_json", str(error)))


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV file, or of one with tabs or semicolons."""
    text = text_of(path)
    first = text.split("\n", 1)[0]
    mark = "\t" if path.suffix.lower() == ".tsv" else ","
    if mark not in first and ";" in first:
        mark = ";"
    limit = csv.field_size_limit(sys.maxsize)  # images may stand in cells
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        header = [name.strip() for name in next(reader, [])]
        named = [name for name in header if name]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise DataError(f"{path}: column {twice[0]!r} occurs twice. Rename one.")
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                end = reader.line_num
                yield Row(f"line {start}", problem=("not_csv", f"{error}, up to line {end}"))
                continue
            if cells:
                yield _csv_row(f"line {start}", header, cells)
    except csv.Error as error:
        raise DataError(f"{path}: its first line cannot be read: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _csv_row(place: str, header: list[str], cells: list[str]) -> Row:
    for cell in cells:
        if wrong := undecoded(cell):
            return Row(place, problem=("bad_encoding", wrong))
    if len(cells) != len(header):
        said = f"{len(cells)} cells under {len(header)} columns; quote cells that hold commas"
        return Row(place, problem=("wrong_columns", said))
    return Row(place, {name: cell for name, cell in zip(header, cells, strict=True) if name})
