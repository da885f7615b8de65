"""One row becomes a record that can be asked about, or the reason why it cannot."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interventions.errors import PictureError
from interventions.prompt.picture_sources import pictures_in
from twohop.items.cells import (
    CellError,
    Nothing,
    is_missing,
    number_of,
    question_of,
    text_of,
    texts_of,
)
from twohop.items.datamap import DataMap
from twohop.items.items import PICTURE, PLACE
from twohop.items.pictures import Picture, picture_of
from twohop.items.rows import Row
from twohop.scoring import normalise
from twohop.scoring.words import GLUED

_GLUED = re.compile(f"[{GLUED}]")


class Unusable(Exception):
    """Why a row is set aside: a reason of :mod:`twohop.items.reasons`, and a sentence."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """A usable row.

    Attributes
    ----------
    place : str
        Where the row stands.
    id : str or None
        As given.
    code : str
        Key of the entity: as given, else from its name.
    name : str
    aliases, answers : tuple of str
    relation : str
        As given, else from the question's wording.
    question : str
        With ``{entity}`` where the name goes.
    image_question : str or None
        With ``{image}`` where the picture goes, if that was said.
    pictures : tuple of Picture
    popularity : float or None
        Of the entity, in any unit.
    dropped : tuple of (str, str)
        What was left out of the row: a flag, and a sentence.
    """

    place: str
    id: str | None
    code: str
    name: str
    aliases: tuple[str, ...]
    relation: str
    question: str
    image_question: str | None
    answers: tuple[str, ...]
    pictures: tuple[Picture, ...]
    popularity: float | None = None
    dropped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RowCheck:
    """Checks rows one by one.

    Attributes
    ----------
    columns : dict of str to str
        Field to column.
    map : DataMap
        For the questions of relations.
    folder : Path
        What paths are relative to.
    """

    columns: Mapping[str, str]
    map: DataMap
    folder: Path
    _seen: dict[str, Picture | PictureError] = field(default_factory=dict, repr=False)

    def record(self, row: Row) -> Record:
        """Return the row's record.

        Raises
        ------
        Unusable
            With the first reason that there is.
        """
        if row.problem:
            raise Unusable(*row.problem)
        dropped: list[tuple[str, str]] = []
        name = self._cell(row, "entity", text_of)
        if name is None:
            raise Unusable("no_entity", self._empty(row, "entity"))
        name = unicodedata.normalize("NFC", name)
        if not normalise(name):
            raise Unusable("no_letters", f"the name {name!r}; write it out")
        given = [
            unicodedata.normalize("NFC", alias) for alias in self._cell(row, "aliases", texts_of)
        ]
        aliases = tuple(alias for alias in given if normalise(alias) and alias != name)
        dropped += [("dropped_alias", repr(alias)) for alias in given if not normalise(alias)]
        answers = self._answers(row, name, dropped)
        relation = self._cell(row, "relation", text_of)
        question, image_question = self._questions(row, relation, (name, *aliases))
        pictures = self._pictures(row, dropped)
        return Record(
            place=row.place,
            id=self._cell(row, "id", text_of),
            code=self._cell(row, "entity_id", text_of) or " ".join(normalise(name)),
            name=name,
            aliases=aliases,
            relation=relation or self._relation_of(question),
            question=question,
            image_question=image_question,
            answers=answers,
            pictures=pictures,
            popularity=self._cell(row, "popularity", number_of),
            dropped=tuple(dropped),
        )

    def _cell(self, row: Row, name: str, read: Any) -> Any:
        value = row.values.get(self.columns[name]) if name in self.columns else None
        try:
            return read(value)
        except CellError as error:
            raise Unusable("wrong_type", f"column {self.columns[name]!r}: {error}") from error

    def _empty(self, row: Row, name: str) -> str:
        column = self.columns[name]
        value = row.values.get(column)
        if isinstance(value, Nothing):
            return f"column {column!r} says {value.text!r}, which was read as nothing"
        return f"column {column!r} is empty"

    def _answers(self, row: Row, name: str, dropped: list[tuple[str, str]]) -> tuple[str, ...]:
        given = self._cell(row, "answers", texts_of)
        if not given:
            raise Unusable("no_answer", self._empty(row, "answers"))
        legible = [answer for answer in given if normalise(answer)]
        if not legible:
            raise Unusable("no_letters", f"the answers {', '.join(given)}; write them out")
        kept = [answer for answer in legible if normalise(answer) != normalise(name)]
        if not kept:
            raise Unusable("answer_is_entity", f"{legible[0]!r} is the name of the entity")
        dropped += [("dropped_answer", repr(answer)) for answer in given if answer not in kept]
        return tuple(kept)

    def _questions(
        self, row: Row, relation: str | None, names: Sequence[str]
    ) -> tuple[str, str | None]:
        """Questions about the name and the picture, the name and its aliases taken out."""
        text = self._cell(row, "question", question_of)
        image = self._cell(row, "image_question", question_of)
        if text is None:
            asked = self.map.questions
            key = next(iter(asked)) if relation is None and len(asked) == 1 else relation
            if key is None or key not in asked:
                said = f"and there is none for the relation {relation!r} in the map"
                raise Unusable("no_question", f"the row has no question, {said}")
            return asked[key].text, image or asked[key].image
        text = unicodedata.normalize("NFC", text)
        if PLACE not in text:
            text = without_name(text, names)
        if text.count(PLACE) != 1:
            raise Unusable("entity_repeated", f"{text!r} has {text.count(PLACE)} places for it")
        if image is None:
            return text, None
        image = unicodedata.normalize("NFC", image).replace(PLACE, PICTURE)
        if image.count(PICTURE) > 1:
            raise Unusable("image_marks", repr(image))
        if told := next((name for name in names if places(image, name)), None):
            raise Unusable("entity_in_image_question", f"{image!r} says {told!r}")
        return text, image

    def _relation_of(self, question: str) -> str:
        asked = self.map.questions
        for relation, wording in asked.items():
            if wording.text == question:
                return relation
        return " ".join(question.replace(PLACE, "_").strip(" ?.:").split())

    def _pictures(self, row: Row, dropped: list[tuple[str, str]]) -> tuple[Picture, ...]:
        column = self.columns["image"]
        cell = row.values.get(column)
        try:
            several = pictures_in(cell)
        except PictureError as error:
            raise Unusable(error.reason, str(error)) from error
        given = [
            value for value in ([cell] if several is None else several) if not is_missing(value)
        ]
        if not given:
            raise Unusable("no_image", self._empty(row, "image"))
        pictures: list[Picture] = []
        wrong: list[PictureError] = []
        for value in given:
            try:
                pictures.append(self._picture(value))
            except PictureError as error:
                wrong.append(error)
        if not pictures:
            raise Unusable(wrong[0].reason, str(wrong[0]))
        dropped += [("dropped_image", f"{error.reason}: {error}") for error in wrong]
        return tuple(pictures)

    def _picture(self, cell: Any) -> Picture:
        """The same file in many rows is opened once."""
        if not isinstance(cell, str):
            return picture_of(cell, self.folder)
        if cell not in self._seen:
            try:
                self._seen[cell] = picture_of(cell, self.folder)
            except PictureError as error:
                self._seen[cell] = error
        opened = self._seen[cell]
        if isinstance(opened, PictureError):
            raise opened
        return opened


def places(text: str, name: str) -> list[tuple[int, int]]:
    """Where a name stands in a text as words of its own, whatever its case.

    Next to letters of scripts without spaces, such as Chinese, or with particles, such as Korean,
    a name is a word of its own.

    Examples
    --------
    >>> places("In which year was Big Ben built?", "Big Ben"), places("法国的首都", "法国")
    ([(18, 25)], [(0, 2)])
    """
    if name.casefold() not in text.casefold():  # most texts; a pattern for each name is slow
        return []
    before = "" if _GLUED.match(name[0]) else rf"(?<![^\W{GLUED}])"
    behind = "" if _GLUED.match(name[-1]) else rf"(?![^\W{GLUED}])"
    matches = re.finditer(before + re.escape(name) + behind, text, flags=re.IGNORECASE)
    return [match.span() for match in matches]


def without_name(text: str, names: Sequence[str]) -> str:
    """Put ``{entity}`` in place of the name, or the longest alias, that a question holds.

    Raises
    ------
    Unusable
        If it holds none of them, or one more than once.

    Examples
    --------
    >>> without_name("In which year was Big Ben built?", ["Big Ben", "Elizabeth Tower"])
    'In which year was {entity} built?'
    """
    for name in (names[0], *sorted(names[1:], key=len, reverse=True)):
        spans = places(text, name)
        if len(spans) > 1:
            raise Unusable("entity_repeated", f"{text!r} names {name!r} {len(spans)} times")
        if spans:
            [(start, stop)] = spans
            return text[:start] + PLACE + text[stop:]
    raise Unusable("entity_not_in_question", f"{text!r} does not name {names[0]!r}")
