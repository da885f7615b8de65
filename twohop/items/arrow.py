"""Rows of Arrow tables: of Parquet files, and of data sets, which are kept in Arrow.

A value that Python cannot hold (a date in the year 20000, a text that is not UTF-8) is one value
that cannot be used, not the end of the table.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from twohop.items.cells import Unread
from twohop.items.features import Feature, meaning
from twohop.items.rows import DataError, Row, numbered

BATCH = 256  # rows in memory beside those kept
NARROW = {"halffloat": "float16", "float": "float32"}
METADATA = b"huggingface"


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file.

    Raises
    ------
    DataError
        If pyarrow is not there, or the file is damaged or has two columns of one name.
    """
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
            opened = parquet.ParquetFile(file)
            names = Counter(opened.schema_arrow.names)
            if twice := [name for name, count in names.items() if count > 1]:
                raise DataError(f"{path}: column {twice[0]!r} occurs twice. Rename one.")
            declared = declared_features(opened.schema_arrow.metadata)
            for batch in opened.iter_batches(batch_size=BATCH):
                yield from table_rows(batch, declared, start=number + 1)
                number += batch.num_rows
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's derive from these
        raise DataError(f"{path} cannot be read as Parquet after row {number}: {error}") from error


def declared_features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Feature]:
    """Features that `datasets` wrote down in a schema, by column; empty if there are none."""
    try:
        features = json.loads((metadata or {})[METADATA])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def table_rows(table: Any, declared: Mapping[str, Feature], *, start: int) -> Iterator[Row]:
    """Rows of an Arrow table or batch.

    Parameters
    ----------
    table : pyarrow.Table or pyarrow.RecordBatch
    declared : dict
        Features by column, as far as they are known; see :func:`twohop.items.features.meaning`.
    start : int
        Number of the first row.
    """
    columns = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        feature = _feature_of(field.type, declared.get(field.name))
        columns[field.name] = [meaning(value, feature) for value in _values(column)]
    rows = ({name: column[i] for name, column in columns.items()} for i in range(table.num_rows))
    return numbered(rows, start=start)


def _feature_of(kind: Any, declared: Feature) -> Feature:
    """The declared feature, if there is one; else what the Arrow type alone says."""
    types = import_module("pyarrow.types")
    if isinstance(declared, Mapping) and declared.get("_type") not in (None, "Value"):
        return declared
    if str(kind) in NARROW:
        return {"_type": "Value", "dtype": NARROW[str(kind)]}
    if getattr(kind, "extension_name", "") == "arrow.json":
        return {"_type": "Json"}
    if types.is_struct(kind):
        fields = declared if isinstance(declared, Mapping) else {}
        return {field.name: _feature_of(field.type, fields.get(field.name)) for field in kind}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = declared[0] if isinstance(declared, list) and declared else None
        return {"_type": "List", "feature": _feature_of(kind.value_type, inner)}
    return declared


def _values(column: Any) -> list[Any]:
    if hasattr(column.type, "shape"):  # pictures as arrays: as Python's lists, they fill memory
        return [_array(scalar) for scalar in column]
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, ArithmeticError, NotImplementedError):
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    """One value in Python; what of it cannot be had is why, in its place."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, ArithmeticError, NotImplementedError) as error:
        if hasattr(scalar, "items"):  # a struct
            return {name: _value(part) for name, part in scalar.items()}
        if getattr(scalar, "values", None) is not None:  # a list
            return [_value(part) for part in scalar.values]
        if isinstance(error, UnicodeDecodeError):
            # Half characters stand for the bytes, and set the row aside for what it is.
            return scalar.as_buffer().to_pybytes().decode("utf-8", errors="surrogateescape")
        return Unread(f"a value of type {scalar.type} that cannot be read: {error}")


def _array(scalar: Any) -> Any:
    if not scalar.is_valid:
        return None
    values, shape = getattr(scalar, "value", scalar), scalar.type.shape
    try:
        flat = values.values
        while hasattr(flat, "flatten") and hasattr(flat.type, "value_type"):
            flat = flat.flatten()
        sides = [-1 if side is None else side for side in shape]
        return flat.to_numpy(zero_copy_only=False).reshape(sides)
    except (ValueError, AttributeError) as error:
        return Unread(f"an array that is none: {error}")
