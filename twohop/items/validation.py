"""Validation first: which rows are usable, which are set aside and why, what to be wary of."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from twohop.items.cells import MISSING, Nothing
from twohop.items.checking import Record, RowCheck, Unusable
from twohop.items.datamap import FIELDS, DataMap, Wording
from twohop.items.flagging import Flag, flags_of
from twohop.items.gathering import Gathered, gather
from twohop.items.items import Item
from twohop.items.pictures import Picture
from twohop.items.reading import open_table
from twohop.items.reasons import REASONS
from twohop.items.rows import DataError, Row, Table


@dataclass(frozen=True)
class SetAside:
    """A row that is not used, and why (a key of :data:`twohop.items.reasons.REASONS`)."""

    place: str
    reason: str
    said: str


@dataclass(frozen=True)
class RelationCount:
    """How much there is of a relation; ``best_constant`` is the share of its commonest answer."""

    relation: str
    items: int
    entities: int
    answers: int
    best_constant: float


@dataclass(frozen=True)
class Report:
    """What was found in a table of items.

    Attributes
    ----------
    source : str
    rows : int
    usable : int
        Rows that are used: as an item, or as another picture of one.
    items, entities : int
    pictures : tuple of int
        Fewest and most pictures of an entity.
    set_aside : tuple of SetAside
        Every row that is not used.
    flags : tuple of Flag
    relations : tuple of RelationCount
    read_as_missing : dict of str to dict of str to int
        By column, the texts of cells that were read as nothing, and how often each stands there.
        A format without types, as CSV, cannot tell them from texts.
    brief : str or None
        What every question ends with where it is asked in a chat; None if nothing does, or the map
        says that it is asked otherwise.
    """

    source: str
    rows: int
    usable: int
    items: int
    entities: int
    pictures: tuple[int, int]
    set_aside: tuple[SetAside, ...]
    flags: tuple[Flag, ...]
    relations: tuple[RelationCount, ...]
    read_as_missing: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    brief: str | None = None

    def reasons(self) -> dict[str, int]:
        """Rows set aside for each reason, most frequent first."""
        return dict(Counter(row.reason for row in self.set_aside).most_common())

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with the attributes' names as keys and ``reasons`` beside them."""
        return {**asdict(self), "reasons": self.reasons()}


@dataclass(frozen=True)
class Checked:
    """The usable items of a table, and the report on the whole of it.

    Attributes
    ----------
    items : tuple of Item
    wordings : dict of str to Wording
        The question of every relation that items have.
    pictures : dict of str to tuple of Picture
        By the entity's code.
    answer_sets : dict of str to tuple of str
        Candidates of relations that are asked in several wordings.
    map : DataMap
    report : Report
    """

    items: tuple[Item, ...]
    wordings: Mapping[str, Wording]
    pictures: Mapping[str, tuple[Picture, ...]]
    answer_sets: Mapping[str, tuple[str, ...]]
    map: DataMap
    report: Report

    def needed(self) -> "Checked":
        """Return it, if anything is usable.

        Raises
        ------
        DataError
            If not, with the reasons.
        """
        if self.items:
            return self
        report = self.report
        first = report.set_aside[0] if report.set_aside else None
        why = "; ".join(f"{n} x {REASONS[reason]}" for reason, n in report.reasons().items())
        where = f" First, {first.place}: {first.said}." if first else ""
        raise DataError(
            f"{report.source}: none of {report.rows} rows is usable: {why}.{where} "
            "See: twohop data check."
        )


def check(source: Any, mapping: DataMap | None = None) -> Checked:
    """Read items and say of every row whether it is usable.

    Parameters
    ----------
    source
        As :func:`twohop.items.reading.open_table` takes it.
    mapping : DataMap, optional
        Where the fields of an item are.

    Returns
    -------
    Checked
        Also where nothing is usable; see :meth:`Checked.needed`.

    Raises
    ------
    DataError
        If the source cannot be read at all, or has not the needed columns.

    Examples
    --------
    >>> row = {"entity": "France", "image": "no.png", "answers": "Paris", "question": "{entity}?"}
    >>> check([row]).report.reasons()
    {'image_missing': 1}
    """
    mapping = mapping or DataMap()
    table = open_table(source)
    aside: list[SetAside] = []
    kept: list[Record] = []
    legible = any(row.problem is None for row in table.rows)
    columns = mapping.column_of(table.columns) if legible else {}
    rows, nothing = _blanked(table, columns, mapping)
    one_row = RowCheck(columns, mapping, table.folder)
    for row in rows:
        try:
            kept.append(one_row.record(row))
        except Unusable as error:
            aside.append(SetAside(row.place, error.reason, str(error)))
    gathered = gather(kept)
    aside += [SetAside(place, reason, said) for place, reason, said in gathered.set_aside]
    order = {row.place: i for i, row in enumerate(table.rows)}
    aside.sort(key=lambda row: order[row.place])
    items = gathered.items
    counts = [len(pictures) for pictures in gathered.pictures.values()]
    report = Report(
        source=table.name,
        rows=len(table.rows),
        usable=len(table.rows) - len(aside),
        items=len(items),
        entities=len(gathered.pictures),
        pictures=(min(counts, default=0), max(counts, default=0)),
        set_aside=tuple(aside),
        flags=(*_unused(table.columns, columns), *_dropped(kept), *flags_of(gathered)),
        relations=tuple(_counts(gathered)),
        read_as_missing=nothing,
        brief=mapping.brief_in(mapping.format),
    )
    return Checked(
        items=items,
        wordings={
            label: replace(wording, examples=_examples(mapping, gathered.base[label]))
            for label, wording in gathered.wordings.items()
        },
        pictures=gathered.pictures,
        answer_sets=gathered.answer_sets,
        map=mapping,
        report=report,
    )


def _blanked(
    table: Table, columns: Mapping[str, str], mapping: DataMap
) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """Rows in which the marks for nothing are read as such, and how often, by column."""
    marks = (() if table.typed else MISSING) if mapping.missing is None else mapping.missing
    counts: dict[str, Counter[str]] = {}
    rows = []
    for row in table.rows:
        values = dict(row.values)
        for column in columns.values():
            value = values.get(column)
            if isinstance(value, str) and (text := value.strip()) and text in marks:
                counts.setdefault(column, Counter())[text] += 1
                values[column] = Nothing(text)
        rows.append(replace(row, values=values))
    return rows, {column: dict(said.most_common()) for column, said in counts.items()}


def _examples(mapping: DataMap, relation: str) -> tuple[tuple[str, str], ...]:
    return mapping.questions[relation].examples if relation in mapping.questions else ()


def _unused(there: Sequence[str], used: Mapping[str, str]) -> Iterator[Flag]:
    for column in there:
        if column not in used.values():
            free = [name for name in FIELDS if name not in used]
            close = get_close_matches(column.lower(), free, n=1)
            said = f"did you mean {close[0]!r}?" if close else "not a field of an item"
            yield Flag("unused_column", column, said)


def _dropped(kept: Sequence[Record]) -> Iterator[Flag]:
    for record in kept:
        for kind, said in record.dropped:
            yield Flag(kind, record.place, said)


def _counts(gathered: Gathered) -> Iterator[RelationCount]:
    for label, items in gathered.by_relation().items():
        commonest = Counter(item.answers[0] for item in items).most_common()
        yield RelationCount(
            relation=label,
            items=len(items),
            entities=len({item.entity.code for item in items}),
            answers=len(commonest),
            best_constant=commonest[0][1] / len(items),
        )
