"""The flags of the United Nations' members, what is known of each country, and views of its flag.

Two files and two folders of pictures lie beside this module, written by
:mod:`twohop.flags.sources`; nothing is downloaded and nothing is rendered at run time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image

from interventions.errors import InterventionsError
from twohop.flags.augmentation import augment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Relation = Literal["capital", "continent", "language"]
Style = Literal["flag-icons", "iso-flags"]

RELATIONS: tuple[Relation, ...] = get_args(Relation)
STYLES: tuple[Style, ...] = get_args(Style)
FIRST_HELD_OUT_VIEW = 10_000
"""Views below this index may be trained on; views from it on are for measuring only."""

_HERE = Path(__file__).parent


class UnknownEntity(InterventionsError):
    """A country code that is not in the table."""


@dataclass(frozen=True)
class Entity:
    """A country, by its two-letter code and the name the prompts use.

    ``aliases`` are other names that count as having named it; the prompts' name is not repeated.
    """

    code: str
    name: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """What one relation says of one country; the first answer is the canonical one."""

    code: str
    relation: Relation
    answers: tuple[str, ...]


@cache
def _table() -> dict[str, tuple[Entity, dict[Relation, Fact]]]:
    rows = json.loads((_HERE / "facts.json").read_text(encoding="utf-8"))
    return {
        row["code"]: (
            Entity(row["code"], row["name"], tuple(row["aliases"])),
            {relation: Fact(row["code"], relation, tuple(row[relation])) for relation in RELATIONS},
        )
        for row in rows
    }


def _row(code: str) -> tuple[Entity, dict[Relation, Fact]]:
    try:
        return _table()[code.upper()]
    except KeyError:
        dropped = json.loads((_HERE / "corrections.json").read_text(encoding="utf-8"))["dropped"]
        reason = dropped.get(code.upper(), "it is not the ISO 3166 code of a UN member")
        raise UnknownEntity(
            f"no flag of {code!r}: {reason}. Expected one of the {len(_table())} codes in "
            "twohop.flags.data.entities()."
        ) from None


def entities() -> tuple[Entity, ...]:
    """All countries, in the order of their codes.

    Examples
    --------
    >>> entities()[0]
    Entity(code='AD', name='Andorra', aliases=())
    """
    return tuple(entity for entity, _ in _table().values())


def entity(code: str) -> Entity:
    """The country of a two-letter code.

    Raises
    ------
    UnknownEntity
        If the code is none of :func:`entities`.

    Examples
    --------
    >>> entity("FR").name
    'France'
    """
    return _row(code)[0]


def fact(code: str, relation: Relation) -> Fact:
    """What a relation says of a country.

    Raises
    ------
    UnknownEntity
        If the code is none of :func:`entities`.

    Examples
    --------
    >>> fact("FR", "capital").answers
    ('Paris',)
    """
    return _row(code)[1][relation]


def facts() -> tuple[Fact, ...]:
    """All facts, country by country, in the order of :data:`RELATIONS`."""
    return tuple(fact for _, of_relation in _table().values() for fact in of_relation.values())


def is_surface(fact: Fact, *, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether an accepted answer begins with the token the country's name begins with.

    Such an answer ("Guatemala City", "Icelandic") can be had from the name's spelling without
    recalling anything, so it is flagged and left out of the main figures.
    """

    def first(text: str) -> int:
        return tokenizer(f" {text}", add_special_tokens=False)["input_ids"][0]

    return first(entity(fact.code).name) in {first(answer) for answer in fact.answers}


@cache
def _picture(code: str, style: Style) -> Image.Image:
    with Image.open(_HERE / "images" / style / f"{_row(code)[0].code.lower()}.png") as file:
        return file.convert("RGB")


def view(code: str, index: int | None, *, style: Style = "flag-icons") -> Image.Image:
    """A picture of a country's flag: 128 x 96 pixels, RGB, the same on every call.

    Parameters
    ----------
    code
        Two-letter code of the country.
    index
        Which view. Placement, colours, background and noise follow from the code and the index
        alone. Below :data:`FIRST_HELD_OUT_VIEW` for training, from it on for measuring;
        ``None`` or -1 is the plain picture.
    style
        The drawing. The pairs are trained on ``"flag-icons"`` only.

    Raises
    ------
    UnknownEntity
        If the code is none of :func:`entities`.

    Examples
    --------
    >>> view("FR", 10_000).size
    (128, 96)
    """
    picture = _picture(code.upper(), style)
    if index is None or index == -1:
        return picture.copy()
    if index < 0:
        raise InterventionsError(f"a view's index is 0 or more, or -1 or None; got {index}")
    return augment(picture, seed=(index, *code.upper().encode()))
