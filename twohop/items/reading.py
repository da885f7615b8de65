"""A table of items from wherever it is: a file, a folder, a data set, or rows in memory.

JSON Lines, a JSON list, CSV, TSV, Parquet, data sets of Hugging Face's `datasets`, or dicts in
memory. Formats that run code when they are opened (pickles) are not read.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from interventions.errors import did_you_mean
from twohop.items import arrow, hugging_face, popvqa, popvqa_hub
from twohop.items.rows import DataError, Table, numbered, table_of
from twohop.items.text_files import csv_rows, json_rows

READ = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
RUN_CODE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib")


def open_table(source: Any) -> Table:
    """Read every row of a source.

    Parameters
    ----------
    source : str, Path, data set, Table or iterable of dicts
        A file by its ending; a folder that `datasets` saved, or that holds PopVQA's two tables;
        ``hf:NAME``, ``hf:NAME:SPLIT`` or ``hf:NAME:CONFIG:SPLIT`` for a data set of the Hugging
        Face hub or a folder, see :func:`twohop.items.hugging_face.from_hub`; a data set of
        `datasets`, also an iterable one; or rows in memory.

    Raises
    ------
    DataError
        If there is no such file, it is of another format, or it is damaged as a whole.

    Examples
    --------
    >>> open_table([{"entity": "France", "answers": "Paris"}]).columns
    ('entity', 'answers')
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, str) and source.startswith(hugging_face.HUB):
        return hugging_face.from_hub(source)
    if popvqa_hub.is_asked(source):
        return popvqa_hub.sampled(source)
    if isinstance(source, str | Path):
        return _from_path(Path(source))
    if hugging_face.is_dataset(source):
        return hugging_face.from_dataset(source, name="items", folder=Path())
    if isinstance(source, Mapping):
        keys = ", ".join(map(str, list(source)[:5])) or "nothing in it"
        raise DataError(f"a mapping with {keys} was given. Expected rows, each a mapping.")
    if hasattr(source, "to_pylist") or hasattr(source, "iterrows"):
        call = "to_pylist()" if hasattr(source, "to_pylist") else 'to_dict("records")'
        raise DataError(f"{type(source).__name__} was given. Give its rows: .{call}.")
    if not isinstance(source, Iterable) or isinstance(source, bytes | bytearray | memoryview):
        raise DataError(
            f"{type(source).__name__} was given. Expected a file, a folder, a data set or rows."
        )
    return table_of("items", numbered(source), Path())


def _from_path(path: Path) -> Table:
    if path.is_dir():
        if popvqa.is_popvqa(path):
            return popvqa.table(path)
        if hugging_face.is_saved(path):
            return hugging_face.from_saved(path)
        raise DataError(
            f"{path} is a folder, but not one that `datasets` saved, nor PopVQA's (entities.csv "
            f"and questions.csv). Give a file: {', '.join(READ)}; or hf:{path} for a folder that "
            "`datasets` can load."
        )
    if not path.exists():
        there = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, [name for name in there if name.endswith(READ)])
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
        rows = arrow.parquet_rows(path)
    elif kind in (".csv", ".tsv"):
        rows = csv_rows(path)
    else:
        rows = json_rows(path)
    return table_of(path.stem, rows, path.parent, typed=kind not in (".csv", ".tsv"))
