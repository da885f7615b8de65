"""A table that knows what it shows: every number with where it is in the summary."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twohop.report.estimates import unit_of, written

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes
    ----------
    text : str
    key : str
        Where the number is in ``summary.json``, with ``/`` between levels; empty for words.
    """

    text: str
    key: str = ""


@dataclass(frozen=True)
class Table:
    """A table that knows what it shows.

    Attributes
    ----------
    name : str
        Short key.
    title : str
    columns : tuple of str
    rows : tuple of tuple of Cell
    note : str
        What must be known to read it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def at(summary: Summary, key: str) -> Any:
    """Value of the summary at a key such as ``recovered/back_patching``; None if there is none."""
    value: Any = summary
    for part in key.split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def number(summary: Summary, key: str, *, n: bool = False) -> Cell:
    """A number of the summary with its interval, or that this architecture cannot have it."""
    if key in summary["not_available"]:
        return Cell("not available", key)
    return Cell(written(at(summary, key), unit_of(key), n=n), key)


def count(summary: Summary, key: str) -> Cell:
    """How many items are behind a number."""
    estimated = at(summary, key)
    return Cell(str(estimated.n) if estimated else "0", f"{key}/n")


def row(label: str, *cells: Cell) -> tuple[Cell, ...]:
    """A row that starts with words."""
    return (Cell(label), *cells)
