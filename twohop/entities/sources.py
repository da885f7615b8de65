"""Rows of a file or a data set, as they are: what cannot be read of a row is said, not raised.

JSON Lines, a JSON list, CSV, TSV, Parquet, data sets of Hugging Face's `datasets`, or dicts in
memory. Formats that run code when they are opened (pickles) are not read.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from interventions.errors import InterventionsError, did_you_mean

READ = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
RUN_CODE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib")
HUB = "hf:"
BATCH = 256  # rows of a Parquet file in memory beside those kept
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
        Why it cannot be read: a reason of :mod:`twohop.entities.reasons`, and a sentence.
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
    """

    name: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    folder: Path


def open_table(source: Any) -> Table:
    """Read every row of a source.

    Parameters
    ----------
    source : str, Path, data set or iterable of dicts
        A file by its ending; a folder that `datasets` saved, or that holds PopVQA's two tables;
        ``hf:NAME`` or ``hf:NAME:SPLIT`` for a data set of the Hugging Face hub; or rows in memory.

    Raises
    ------
    DataError
        If there is no such file, it is of another format, or it is damaged as a whole.

    Examples
    --------
    >>> open_table([{"entity": "France", "answers": "Paris"}]).columns
    ('entity', 'answers')
    """
    if isinstance(source, str) and source.startswith(HUB):
        return _from_hub(source)
    if isinstance(source, str | Path):
        return _from_path(Path(source))
    splits = list(source.values()) if isinstance(source, Mapping) else [source]
    if splits and all(hasattr(one, "features") for one in splits):
        return _from_dataset(source, name="items", folder=Path())
    if isinstance(source, Mapping):
        keys = ", ".join(map(str, list(source)[:5]))
        raise DataError(f"a mapping with {keys} was given. Expected rows, each a mapping.")
    return _table("items", _numbered(source), Path())


def _from_path(path: Path) -> Table:
    from twohop.entities import popvqa

    if path.is_dir():
        if popvqa.is_popvqa(path):
            return popvqa.table(path)
        if (path / "dataset_info.json").exists():
            return _from_dataset(_datasets().load_from_disk(str(path)), name=path.name, folder=path)
        raise DataError(
            f"{path} is a folder, but not one that `datasets` saved, nor PopVQA's (entities.csv "
            f"and questions.csv). Give a file: {', '.join(READ)}."
        )
    if not path.exists():
        there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, [one for one in there if one.endswith(READ)])
        raise DataError(f"there is no file {path}. {hint}")
    kind = path.suffix.lower()
    if kind in RUN_CODE:
        raise DataError(
            f"{path}: files that end in {kind} can run code when they are opened, so they are not "
            "read. Export the items to JSON Lines, CSV or Parquet."
        )
    if kind not in READ:
        raise DataError(
            f"{path}: {kind or 'no ending'} is not a format known here. Known: {', '.join(READ)}."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty. Expected one row per item.")
    if kind == ".parquet":
        rows = parquet_rows(path)
    elif kind in (".csv", ".tsv"):
        rows = csv_rows(path)
    else:
        rows = json_rows(path)
    table = _table(path.stem, rows, path.parent)
    if not table.rows:
        raise DataError(f"{path} has no rows. Expected one row per item.")
    return table


def _table(name: str, rows: Iterable[Row], folder: Path) -> Table:
    kept = tuple(rows)
    return Table(name, kept, tuple(dict.fromkeys(c for row in kept for c in row.values)), folder)


def _numbered(rows: Iterable[Any]) -> Iterator[Row]:
    for number, values in enumerate(rows, 1):
        yield _object(f"row {number}", values)


def _object(place: str, values: Any) -> Row:
    if isinstance(values, Mapping):
        for value in values.values():
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, str) and (wrong := undecoded(part)):
                    return Row(place, problem=("bad_encoding", wrong))
        return Row(place, {str(key): value for key, value in values.items()})
    said = f"holds {type(values).__name__}, not an object with columns"
    return Row(place, problem=("not_a_row", said))


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


def undecoded(text: str) -> str | None:
    """Say which byte of a text is not UTF-8; None if all are."""
    found = SURROGATE.search(text)
    if found is None:
        return None
    byte = ord(found[0]) - 0xDC00
    if 0x80 <= byte <= 0xFF:
        said = bytes([byte]).decode("cp1252", errors="replace")
        return f"byte 0x{byte:02x} is not UTF-8 ({said!r} in Windows' Latin encoding)"
    return f"\\u{ord(found[0]):04x} is half a character"


def json_rows(path: Path) -> Iterator[Row]:
    """Rows of JSON Lines, or of a file that is one JSON list."""
    text = text_of(path)
    if text.lstrip()[:1] == "[":
        try:
            yield from _numbered(json.loads(text))
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
            yield _object(place, json.loads(line))
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


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file, as Python values."""
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            f'{path}: reading Parquet takes pyarrow: pip install "twohop[parquet]". Or export the '
            "items to JSON Lines."
        ) from error
    number = 0
    try:
        with path.open("rb") as file:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield _object(f"row {number}", values)
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's derive from these
        raise DataError(f"{path} cannot be read as Parquet after row {number}: {error}") from error


def _datasets() -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise DataError(
            "data sets of Hugging Face take the package datasets: pip install datasets."
        ) from error


def _from_hub(source: str) -> Table:
    name, _, split = source.removeprefix(HUB).partition(":")
    library = _datasets()
    try:
        found = library.load_dataset(name, split=split or None)
    except Exception as error:  # the network's errors, the hub's and the library's own
        raise DataError(f"the data set {name!r} cannot be had: {error}") from error
    return _from_dataset(found, name=Path(name).name, folder=Path())


def _from_dataset(dataset: Any, *, name: str, folder: Path) -> Table:
    """Rows of a data set, with images as they are stored, so that a broken one breaks only its row.

    A data set with splits must have a single one.
    """
    library = _datasets()
    if isinstance(dataset, Mapping):
        splits = list(dataset)
        if len(splits) != 1:
            raise DataError(
                f"the data set {name!r} has the splits {', '.join(map(str, splits))}. Give one: "
                f"{HUB}NAME:{splits[0]}, or dataset[{splits[0]!r}]."
            )
        dataset = dataset[splits[0]]
    for column, kind in dataset.features.items():
        if isinstance(kind, library.Image):
            dataset = dataset.cast_column(column, library.Image(decode=False))
    return _table(name, _numbered(dataset), folder)
