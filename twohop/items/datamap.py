"""How the columns of a table become items, and how their questions are put: a small map."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from interventions.errors import did_you_mean
from twohop.items.items import PICTURE, PLACE
from twohop.items.rows import DataError

FIELDS = (
    "id",
    "entity",
    "entity_id",
    "aliases",
    "image",
    "relation",
    "question",
    "image_question",
    "answers",
    "popularity",
)
Kind = Literal["chat", "qa", "completion"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NEEDED = ("entity", "image", "answers")
ALSO = {"answer": "answers", "alias": "aliases", "images": "image"}
"""Other spellings of a field that a column may have as its name."""

TOP = ("format", "stop", "brief", "columns", "questions", "naming", "missing")
BRIEF = "Answer the question using a single word or phrase."
"""What every question of a chat ends with, unless the map says otherwise."""
EXAMPLE = "Expected, for example, entity=name,image=file,answers=capital, or a TOML file."


@dataclass(frozen=True)
class Wording:
    """A question, as it is asked about a name and about a picture.

    Attributes
    ----------
    text : str
        With ``{entity}`` where the name goes.
    image : str, optional
        With ``{image}`` where the picture goes; without it, the picture comes first. Default: the
        picture takes the name's place in ``text``.
    examples : tuple of (str, str)
        Worked examples for the prompt: a name and its answer. They are no items.
    """

    text: str
    image: str | None = None
    examples: tuple[tuple[str, str], ...] = ()


NAMING = Wording(f"What is the name of {PLACE}?", "What is the name of what this picture shows?")


@dataclass(frozen=True)
class DataMap:
    """What is to be known of a table to make items of it.

    Attributes
    ----------
    columns : dict of str to str
        Field of an item (:data:`FIELDS`) to the column that holds it. A column that is called as
        the field need not be named.
    questions : dict of str to Wording
        By relation, for rows without a question of their own.
    naming : Wording
        Asks which entity it is.
    format : str, optional
        ``"chat"``, ``"qa"`` or ``"completion"``, see :mod:`twohop.items.formats`.
    stop : str, optional
        Text that ends an answer.
    brief : str or bool
        Of a chat, what every question ends with, asked about a name or a picture: a text; True for
        :data:`BRIEF`; False for nothing. Other formats have no such text.
    missing : tuple of str, optional
        Texts of whole cells that mean nothing. Default: :data:`twohop.items.cells.MISSING`
        where the format has no types, as CSV; none where it has, as JSON and Parquet: there a text
        is a text.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    questions: Mapping[str, Wording] = field(default_factory=dict)
    naming: Wording = NAMING
    format: Kind | None = None
    stop: str | None = None
    brief: str | bool = True
    missing: tuple[str, ...] | None = None

    def brief_in(self, kind: Kind | None) -> str | None:
        """Return what every question ends with in a format; None if nothing does.

        Raises
        ------
        DataError
            If there is a text for it, and the format is none that has one.
        """
        if isinstance(self.brief, str) and kind not in ("chat", None):
            raise DataError(
                f"'brief' is written behind the questions of a chat, and the format is {kind!r}. "
                "Leave it out, or write it into the questions."
            )
        if kind not in ("chat", None) or self.brief is False:
            return None
        return BRIEF if self.brief is True else self.brief

    def column_of(self, columns: Iterable[str]) -> dict[str, str]:
        """Field to column, for the columns that there are.

        Raises
        ------
        DataError
            If a column that was named does not exist, or a needed field has none.
        """
        there = list(columns)
        by_field: dict[str, str] = {}
        for name, column in self.columns.items():
            if column not in there:
                raise DataError(
                    f"there is no column {column!r} for {name!r}. {did_you_mean(column, there)}"
                )
            by_field[name] = column
        for column in there:
            name = ALSO.get(column, column)
            if name in FIELDS and column not in by_field.values():
                by_field.setdefault(name, column)
        for name in NEEDED:
            if name not in by_field:
                raise DataError(
                    f"no column holds the field {name!r}. {did_you_mean(name, there)} Name it: "
                    f"--map {name}=COLUMN."
                )
        if "question" not in by_field and not self.questions:
            raise DataError(
                f"no column holds the field 'question'. {did_you_mean('question', there)} Name "
                "it (--map question=COLUMN), or give each relation's question in a TOML map."
            )
        return by_field


def read_map(given: str | Path | None) -> DataMap:
    """Read a map: ``field=column`` pairs with commas between, or a TOML file.

    Raises
    ------
    DataError
        If it is neither, or names something that is not known.

    Examples
    --------
    >>> read_map("entity=name,image=file").columns
    {'entity': 'name', 'image': 'file'}
    """
    if given is None:
        return DataMap()
    path = Path(given)
    if "=" in str(given) and not path.exists():
        return DataMap(columns=_pairs(str(given)))
    if not path.is_file():
        raise DataError(f"the map {str(given)!r} is no file and has no '='. {EXAMPLE}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not TOML: {error}.") from error
    try:
        return _from_toml(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _pairs(text: str) -> dict[str, str]:
    columns: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, column = (side.strip() for side in part.partition("="))
        if not equals or not column:
            raise DataError(f"{part!r} in the map has no column. {EXAMPLE}")
        if name in columns:
            raise DataError(f"the map names {name!r} twice. Name it once.")
        columns[name] = column
    return _known(columns, FIELDS, "field")


def _known(given: dict[str, Any], names: Iterable[str], kind: str) -> dict[str, Any]:
    for name in given:
        if name not in names:
            raise DataError(f"there is no {kind} {name!r}. {did_you_mean(name, names)}")
    return given


def _from_toml(content: dict[str, Any]) -> DataMap:
    _known(content, TOP, "setting")
    columns = _known(_of_type(content, "columns", dict, {}), FIELDS, "field")
    for name in columns:
        _of_type(columns, name, str)
    asked = _of_type(content, "questions", dict, {})
    named, written = content.get("naming"), _of_type(content, "format", str)
    stop = _of_type(content, "stop", str)
    if stop == "":
        raise DataError("'stop', the text that ends an answer, is empty.")
    brief = content.get("brief", True)
    if not isinstance(brief, bool) and not (isinstance(brief, str) and brief.strip()):
        raise DataError(f"'brief' is {brief!r}, expected a text behind every question, or false.")
    if isinstance(brief, str) and (PLACE in brief or PICTURE in brief):
        raise DataError(f"'brief' is {brief!r}; it has no {PLACE} or {PICTURE}.")
    missing = _of_type(content, "missing", list)
    if missing is not None and not all(isinstance(mark, str) for mark in missing):
        raise DataError(f"'missing' is {missing!r}, expected texts that mean nothing.")
    return DataMap(
        columns=columns,
        questions={relation: _wording(relation, given) for relation, given in asked.items()},
        naming=NAMING if named is None else _wording("naming", named),
        format=None if written is None else _kind(written),
        stop=stop,
        brief=brief.strip() if isinstance(brief, str) else brief,
        missing=None if missing is None else tuple(mark.strip() for mark in missing),
    )


def _kind(written: str) -> Kind:
    for kind in KINDS:
        if written == kind:
            return kind
    raise DataError(f"no format {written!r}. {did_you_mean(written, KINDS)}")


def _of_type(content: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = content.get(name, default)
    if value is not default and not isinstance(value, kind):
        wanted = {dict: "a table", str: "a text", list: "a list"}[kind]
        raise DataError(f"{name!r} is {type(value).__name__}, expected {wanted}.")
    return value


def _wording(name: str, given: Any) -> Wording:
    """A wording from a text, or from a table with ``text``, ``image`` and ``examples``."""
    table = {"text": given} if isinstance(given, str) else given
    if not isinstance(table, dict):
        raise DataError(f"the question {name!r} is {type(given).__name__}, expected a text.")
    _known(table, ("text", "image", "examples"), "setting of a question")
    text, image = _of_type(table, "text", str), _of_type(table, "image", str)
    if text is None or text.count(PLACE) != 1:
        raise DataError(f"the question {name!r} is {text!r}; its text needs {PLACE} once.")
    if image is not None and (PLACE in image or image.count(PICTURE) > 1):
        raise DataError(
            f"the question {name!r} about a picture is {image!r}; it takes {PICTURE} once at "
            f"most, and no {PLACE}."
        )
    examples = []
    for example in _of_type(table, "examples", list, []):
        pair = [example, example] if isinstance(example, str) else example
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(part, str) for part in pair)
        ):
            raise DataError(f"an example of {name!r} is {example!r}; expected [name, answer].")
        examples.append((pair[0], pair[1]))
    return Wording(text, image, tuple(examples))
