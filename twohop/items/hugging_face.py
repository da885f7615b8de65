"""Data sets of Hugging Face's `datasets`: of the hub, of a folder, or given as objects.

They are read as they are stored, nothing decoded: a broken picture breaks its own row only.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from interventions.errors import did_you_mean
from twohop.items.arrow import BATCH, table_rows
from twohop.items.features import NARROW, meaning
from twohop.items.rows import DataError, Row, Table, row_of, table_of

HUB = "hf:"
ONE_SPLIT, SEVERAL = "dataset_info.json", "dataset_dict.json"
FORMS = f"{HUB}NAME, {HUB}NAME:SPLIT or {HUB}NAME:CONFIG:SPLIT"
BETWEEN = re.compile(r":(?![^\[\]]*\])")  # not within a slice such as train[:100]


def is_dataset(source: Any) -> bool:
    """Whether something is a data set of the library, or several splits of one."""
    splits = list(source.values()) if isinstance(source, Mapping) else [source]
    return bool(splits) and all(
        hasattr(type(split), "features") and hasattr(split, "column_names") for split in splits
    )


def is_saved(folder: Path) -> bool:
    """Whether the library's ``save_to_disk`` wrote a folder."""
    return (folder / ONE_SPLIT).is_file() or (folder / SEVERAL).is_file()


def from_saved(folder: Path, split: str | None = None) -> Table:
    """Read a folder that ``save_to_disk`` wrote.

    Parameters
    ----------
    folder : Path
    split : str, optional
        Which, where it has several.

    Raises
    ------
    DataError
        If it cannot be read, has several splits and none was given, or has not the given one.
    """
    library = _library()
    try:
        saved = library.load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged folder leads to
        raise DataError(f"{folder} cannot be read as a saved data set: {error}") from error
    if split is None:
        return from_dataset(saved, name=folder.name, folder=folder)
    splits = list(saved) if isinstance(saved, Mapping) else []
    if splits and "[" in split:
        return from_dataset(_sliced(saved, split, folder), name=folder.name, folder=folder)
    if split not in splits:
        there = did_you_mean(split, splits) if splits else f"It has no splits: {HUB}{folder}."
        raise DataError(f"the data set {str(folder)!r} has no split {split!r}. {there}")
    return from_dataset(saved[split], name=folder.name, folder=folder)


def _sliced(splits: Mapping[str, Any], split: str, folder: Path) -> Any:
    """Rows of splits that were saved, as ``train[:100]`` or a sum of such says."""
    library = _library()
    sizes = {name: len(rows) for name, rows in splits.items()}
    try:
        parts = library.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        known = ", ".join(map(str, sizes))
        raise DataError(
            f"the data set {str(folder)!r} has no {split!r}: {error}. Its splits: {known}."
        ) from error
    return library.concatenate_datasets(
        [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    )


def from_hub(source: str) -> Table:
    """Read a data set of the hub, or of a folder that the library can load.

    Parameters
    ----------
    source : str
        ``hf:NAME``, ``hf:NAME:SPLIT`` or ``hf:NAME:CONFIG:SPLIT``. NAME may be a folder; SPLIT may
        be a slice, such as ``train[:100]``. A single word behind the name is the split, and the
        configuration only where there is no split of that name.

    Raises
    ------
    DataError
        If `datasets` is not installed, or the data set cannot be had; where a configuration or a
        split is not known, those that are.
    """
    name, words = _named(source.removeprefix(HUB))
    if not name or len(words) > 2 or not all(words):
        raise DataError(f"{source!r} does not name a data set. Expected {FORMS}.")
    folder = Path(name)
    if folder.is_dir() and is_saved(folder):
        if len(words) > 1:
            raise DataError(
                f"{name} is a saved data set, which has no configurations. Expected {HUB}{name} "
                f"or {HUB}{name}:SPLIT."
            )
        return from_saved(folder, *words)
    config, split = words if len(words) == 2 else (None, words[0] if words else None)
    return from_dataset(_loaded(name, config, split), name=folder.name, folder=Path())


def _named(text: str) -> tuple[str, list[str]]:
    """The name of a data set, and the words behind it; a folder may have a colon in its name."""
    parts = BETWEEN.split(text)
    for n in range(len(parts), 0, -1):
        if Path(":".join(parts[:n])).is_dir():
            return ":".join(parts[:n]), parts[n:]
    return parts[0], parts[1:]


def _loaded(name: str, config: str | None, split: str | None) -> Any:
    library = _library()
    try:
        return library.load_dataset(name, config, split=split)
    except Exception as error:  # the network's errors, the hub's and the library's own
        configs = _asked(library.get_dataset_config_names, name)
        if config is None and split in configs:
            return _loaded(name, split, None)
        asked = config if config in configs else configs[0] if len(configs) == 1 else None
        splits = _asked(library.get_dataset_split_names, name, asked) if configs else []
        known = [
            f"{heading}: {', '.join(names)}"
            for heading, names in (("Its configurations", configs), ("Its splits", splits))
            if names
        ]
        raise DataError(
            f"the data set {':'.join(filter(None, (name, config, split)))!r} cannot be had: "
            f"{error} {'. '.join(known)}{'. ' if known else ''}Expected {FORMS}."
        ) from error


def _asked(names: Any, *about: Any) -> list[str]:
    """Names that the library knows; none where it cannot say."""
    try:
        return [str(name) for name in names(*about)]
    except Exception:  # the error that led here is the one to be told
        return []


def from_dataset(dataset: Any, *, name: str, folder: Path) -> Table:
    """Rows of a data set of the library, also of an iterable one.

    Parameters
    ----------
    dataset
        With splits, it must have a single one.
    name : str
        What it is called.
    folder : Path
        What paths of images are relative to.

    Raises
    ------
    DataError
        If it has several splits or no rows, or breaks off.
    """
    if isinstance(dataset, Mapping):
        splits = list(dataset)
        if len(splits) != 1:
            where = f"{HUB}{folder if is_saved(folder) else 'NAME'}:{splits[0]}"
            raise DataError(
                f"the data set {name!r} has the splits {', '.join(map(str, splits))}. Give one: "
                f"{where}, or dataset[{splits[0]!r}]."
            )
        dataset = dataset[splits[0]]
    return table_of(name, _rows(dataset), folder)


def _rows(dataset: Any) -> Iterator[Row]:
    if not isinstance(dataset, _library().Dataset):
        return _streamed(dataset)
    if dataset.format["type"] == "custom":  # rows are what the user's own function makes of them
        return _transformed(dataset)
    return _stored(dataset)


def _stored(dataset: Any) -> Iterator[Row]:
    features, stored = dataset.features.to_dict(), dataset.with_format("arrow")
    for start in range(0, len(dataset), BATCH):
        table = stored[start : start + BATCH]
        yield from table_rows(table, features, start=start + 1)


def _transformed(dataset: Any) -> Iterator[Row]:
    """Rows as the user's function gives them; what it left as it is means what it meant."""
    features = dataset.features.to_dict()
    numbers = [name for name, feature in features.items() if _of_numbers(feature)]
    stored = dataset.with_format("arrow").select_columns(numbers) if numbers else None
    for i in range(len(dataset)):
        place = f"row {i + 1}"
        try:
            values = dataset[i]
        except Exception as error:  # whatever the function raises
            yield Row(place, problem=("wrong_type", f"the data set's transform fails: {error}"))
            continue
        if stored is not None and isinstance(values, Mapping):
            kept = stored[i : i + 1].to_pylist()[0]
            same = [name for name in numbers if _alike(values.get(name), kept[name])]
            values = {**values, **{name: meaning(kept[name], features[name]) for name in same}}
        yield row_of(place, values)


def _of_numbers(feature: Any) -> bool:
    """Whether what is stored is, or holds, a number that stands for something else."""
    if isinstance(feature, Mapping):
        own = feature.get("_type") == "ClassLabel" or feature.get("dtype") in NARROW
        return own or any(_of_numbers(inner) for inner in feature.values())
    return isinstance(feature, list) and any(_of_numbers(inner) for inner in feature)


def _alike(value: Any, stored: Any) -> bool:
    return type(value) is type(stored) and bool(value == stored)


def _streamed(dataset: Any) -> Iterator[Row]:
    """Rows of an iterable data set, before its features make something of them.

    Else one value that does not fit its feature, or cannot be decoded, would end the rows.
    """
    features = dataset.features.to_dict() if dataset.features else {}
    bare = copy.copy(dataset.with_format(None))
    bare._info = copy.copy(dataset.info)
    bare.info.features = None
    number, rows = 0, iter(bare)
    while True:
        try:
            values = next(rows)
        except StopIteration:
            return
        except Exception as error:  # whatever the source of the rows raises
            raise DataError(f"the data set breaks off after row {number}: {error}") from error
        number += 1
        if isinstance(values, Mapping):
            values = {key: meaning(value, features.get(key)) for key, value in values.items()}
        yield row_of(f"row {number}", values)


def _library() -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise DataError(
            "data sets of Hugging Face take the package datasets: pip install datasets."
        ) from error
