"""PopVQA as it is published: a table of entities with images, and one of questions.

*Performance Gap in Entity Knowledge Extraction Across Modalities in Vision Language Models*; data
set ``idoco/PopVQA`` on the Hugging Face hub, MIT. ``entities.csv`` has ``type``, ``s_uri`` (a
Wikidata id), ``subject``, ``aliases`` (a list, written as Python writes it) and the path of an
image; ``questions.csv`` has ``s_uri``, ``subject``, ``question``, ``question_for_image`` and
``possible_answers`` (a list). A question may stand there several times with different answers. How
well known the entities are is not said; a column ``popularity`` added to ``entities.csv`` is read.
"""

from pathlib import Path
from typing import Any

from interventions.errors import did_you_mean
from twohop.items.cells import CellError, texts_of
from twohop.items.rows import DataError, Row, Table
from twohop.items.text_files import csv_rows

ENTITIES, QUESTIONS = "entities.csv", "questions.csv"
IMAGES = ("resized_path", "path", "image")
RELATIONS = ("relation", "r_uri", "prop")
NEEDED = {
    ENTITIES: ("s_uri", "subject", "aliases"),
    QUESTIONS: ("s_uri", "question", "question_for_image", "possible_answers"),
}


def is_popvqa(folder: Path) -> bool:
    """Whether a folder holds the two tables."""
    return all((folder / name).is_file() for name in NEEDED)


def table(folder: Path) -> Table:
    """Join the two tables: one row per question, with the columns of an item.

    Raises
    ------
    DataError
        If a table has not the columns of PopVQA.

    Examples
    --------
    >>> table(Path("PopVQA")).columns[:3]
    ('entity_id', 'entity', 'aliases')
    """
    entities, broken = _read(folder / ENTITIES)
    questions, unread = _read(folder / QUESTIONS)
    known = {row.values["s_uri"]: row.values for row in reversed(entities)}
    by_question: dict[tuple[str, str, str], Row] = {}
    for row in questions:
        asked = row.values
        place, who = f"{QUESTIONS} {row.place}", known.get(asked["s_uri"])
        key = (asked["s_uri"], asked["question"], asked["question_for_image"])
        try:
            answers = texts_of(asked["possible_answers"])
        except CellError as error:
            broken.append(Row(place, problem=("wrong_type", f"'possible_answers': {error}")))
            continue
        if key in by_question:
            by_question[key].values["answers"].extend(answers)
            continue
        values: dict[str, Any] = {
            "entity_id": asked["s_uri"],
            "entity": who["subject"] if who else asked.get("subject"),
            "aliases": who["aliases"] if who else None,
            "image": _first(who, IMAGES) if who else None,
            "relation": _first(asked, RELATIONS),
            "question": asked["question"],
            "image_question": asked["question_for_image"],
            "answers": answers,
        }
        if who and who.get("popularity"):
            values["popularity"] = who["popularity"]
        gone = ("no_image", f"{asked['s_uri']} is not in {ENTITIES}")
        by_question[key] = Row(place, values, None if who else gone)
    rows = (*broken, *unread, *by_question.values())
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))
    return Table("popvqa", rows, columns, folder, typed=False)


def entities(folder: Path) -> dict[str, str]:
    """The type of every entity that has a picture, by its id; "" where none is said."""
    rows, _ = _read(folder / ENTITIES)
    return {
        row.values["s_uri"]: str(row.values.get("type") or "")
        for row in reversed(rows)
        if _first(row.values, IMAGES)
    }


def _first(values: dict[str, Any], columns: tuple[str, ...]) -> Any:
    return next((values[name] for name in columns if values.get(name)), None)


def _read(path: Path) -> tuple[list[Row], list[Row]]:
    """Rows that can be read, and those that cannot."""
    rows = list(csv_rows(path))
    good = [row for row in rows if row.problem is None]
    columns = list(good[0].values) if good else []
    needed = [*NEEDED[path.name]]
    if path.name == ENTITIES and not set(columns) & set(IMAGES):
        needed.append(IMAGES[0])
    for name in needed:
        if name not in columns:
            hint = did_you_mean(name, columns)
            raise DataError(f"{path} has no column {name!r}, so it is not PopVQA's. {hint}")
    bad = [Row(f"{path.name} {row.place}", problem=row.problem) for row in rows if row.problem]
    return good, bad
