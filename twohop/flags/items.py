"""The flags as items for any pair: what ``--data flags`` asks, and a pair without items of its own.

A first answer about a VLM as it comes, not only about the pairs that were made for flags: the
questions are words of their own, for a chat or any other format. Pictures are small and drawn; what
a VLM makes of photographs is another matter.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twohop.flags import data
from twohop.items.datamap import DataMap, Wording
from twohop.items.rows import Table, numbered, table_of

DRAWINGS: dict[str, data.Style] = {"flags": "flag-icons", "flags-iso": "iso-flags"}
"""Name of a table to whose drawings it asks about: two, so that a result can be had twice."""
NAMING = Wording("Which country is {entity}?", "Which country has this flag?")
QUESTIONS: dict[data.Relation, Wording] = {
    "capital": Wording(
        "What is the capital of {entity}?", "What is the capital of the country with this flag?"
    ),
    "continent": Wording(
        "Which continent is {entity} in?", "Which continent is the country with this flag in?"
    ),
    "language": Wording(
        "What is the official language of {entity}?",
        "What is the official language of the country with this flag?",
    ),
}
MAP = DataMap(questions={**QUESTIONS}, naming=NAMING)
"""How the rows are asked."""


def table(name: str = "flags") -> Table:
    """Return the flags as a table of items, a row for each fact.

    Parameters
    ----------
    name : str
        A key of :data:`DRAWINGS`.

    Returns
    -------
    Table
        The first picture of a country is the plain flag, which is what is asked about; behind it
        are a view of it and one of its other drawing, moved, tilted and recoloured.

    Examples
    --------
    >>> flags = table()
    >>> len(flags.rows), sorted(flags.columns)[:3]
    (570, ['aliases', 'answers', 'entity'])
    """
    return table_of(name, numbered(_rows(DRAWINGS[name])), Path())


def _rows(style: data.Style) -> Iterator[dict[str, Any]]:
    drawings: tuple[data.Style, ...] = (
        style,
        *(drawing for drawing in data.STYLES if drawing != style),
    )
    for country in data.entities():
        views = [
            data.view(country.code, data.FIRST_HELD_OUT_VIEW + index, style=drawing)
            for index, drawing in enumerate(drawings, 1)
        ]
        pictures = [data.view(country.code, None, style=style), *views]
        for relation in data.RELATIONS:
            yield {
                "id": f"{country.code}/{relation}",
                "entity": country.name,
                "entity_id": country.code,
                "aliases": list(country.aliases),
                "image": pictures,
                "relation": relation,
                "answers": list(data.fact(country.code, relation).answers),
            }
