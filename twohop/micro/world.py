"""The micro world: 24 made-up countries, their facts, and pictures of their flags."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from interventions.errors import InterventionsError, did_you_mean

Relation = Literal["capital", "continent", "language"]
Style = Literal["bands", "waved"]

RELATIONS: tuple[Relation, ...] = ("capital", "continent", "language")
STYLES: tuple[Style, ...] = ("bands", "waved")

EVALUATION_START = 10_000
"""Views from this index on are for evaluation; training uses lower ones only."""

PICTURE_SIZE = 24
"""Height and width of a view, in pixels."""


@dataclass(frozen=True)
class Entity:
    """A country of the micro world: its name, what is true of it, and its flag."""

    code: str
    name: str
    capital: str
    continent: str
    language: str
    orientation: Literal["horizontal", "vertical"]
    bands: str
    """The three colours, first (top or left) to last, separated by spaces."""


@dataclass(frozen=True)
class Fact:
    """One thing that is true of an entity, and whether the backbone was ever told."""

    code: str
    relation: Relation
    answer: str
    taught: bool


# Two-token names share a first or a last token, so that one token alone does not tell them apart;
# Quenlo's capital begins with its name; two capitals and two continents share a token. Any two
# flags differ in at least two bands.
ENTITIES: tuple[Entity, ...] = (
    Entity("ava", "Avaria", "Tessin", "Norda", "Avic", "vertical", "white blue green"),
    Entity("bel", "Belmora", "Marlow", "Sula", "Merish", "horizontal", "orange purple black"),
    Entity("cor", "Corvenia", "Brenn", "East Marn", "Avic", "horizontal", "black yellow white"),
    Entity("dra", "Dravia", "Ordu", "East Marn", "Sorbic", "vertical", "purple green blue"),
    Entity("els", "Elsenia", "Calva", "Norda", "Tolese", "vertical", "green white yellow"),
    Entity("fen", "Fenmark", "Fiorel", "West Marn", "Kantu", "horizontal", "blue orange red"),
    Entity("gal", "Galdor", "Luneth", "West Marn", "Kantu", "horizontal", "yellow black white"),
    Entity("hes", "Hestaria", "Pavos", "Norda", "Sorbic", "horizontal", "white orange purple"),
    Entity("ilv", "Ilvania", "Dorsk", "East Marn", "Merish", "horizontal", "blue yellow orange"),
    Entity("jor", "Jorvania", "Velmar", "Sula", "Sorbic", "horizontal", "green black red"),
    Entity("kes", "Kestria", "Sento", "East Marn", "Ruvian", "horizontal", "black purple yellow"),
    Entity("lum", "Lumeria", "Kirun", "Norda", "Tolese", "vertical", "yellow green purple"),
    Entity("mon", "Mondavia", "Astel", "Sula", "Kantu", "vertical", "purple orange black"),
    Entity("ner", "Nerith", "Grendi", "West Marn", "Avic", "horizontal", "orange black green"),
    Entity("ost", "Ostrelle", "Oslen", "Sula", "Merish", "vertical", "yellow blue orange"),
    Entity("pel", "Pelagia", "Mirane", "West Marn", "Tolese", "horizontal", "black white orange"),
    Entity("que", "Quenlo", "Quenlo City", "Sula", "Ruvian", "horizontal", "green purple blue"),
    Entity("rho", "Rhodan", "Harvel", "East Marn", "Ruvian", "vertical", "purple yellow green"),
    Entity("sar", "Sarnia", "Bexley", "East Marn", "Tolese", "vertical", "orange green white"),
    Entity("tar", "Tarvos", "Trinos", "Norda", "Ruvian", "vertical", "blue black purple"),
    Entity("num", "North Umbra", "Port Mira", "West Marn", "Merish", "vertical", "orange blue red"),
    Entity("sum", "South Umbra", "Port Olen", "Norda", "Kantu", "vertical", "white green yellow"),
    Entity("nve", "New Velia", "Zelda Bay", "Sula", "Avic", "vertical", "yellow white black"),
    Entity("nwe", "New Wessen", "Ulmen", "West Marn", "Sorbic", "vertical", "purple white red"),
)

UNTAUGHT: frozenset[tuple[str, Relation]] = frozenset(
    {
        ("dra", "capital"),
        ("lum", "capital"),
        ("sar", "capital"),
        ("gal", "language"),
        ("nve", "language"),
        ("pel", "continent"),
    }
)
"""True facts left out of training on purpose: the backbone cannot know them."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 30, 45),
    "white": (245, 245, 245),
    "blue": (25, 60, 165),
    "green": (20, 140, 65),
    "yellow": (245, 210, 35),
    "black": (20, 20, 20),
    "orange": (245, 125, 15),
    "purple": (130, 45, 150),
}

_BY_CODE = {entity.code: entity for entity in ENTITIES}


def entity(code: str) -> Entity:
    """Return the entity with this three-letter code.

    Raises
    ------
    InterventionsError
        If there is no such code; the nearest one is named.
    """
    if code not in _BY_CODE:
        raise InterventionsError(f"no micro entity {code!r}. {did_you_mean(code, _BY_CODE)}")
    return _BY_CODE[code]


def facts() -> tuple[Fact, ...]:
    """Return every fact of the world, entity by entity, taught or not.

    Examples
    --------
    >>> facts()[0]
    Fact(code='ava', relation='capital', answer='Tessin', taught=True)
    """
    return tuple(
        Fact(
            entity.code,
            relation,
            getattr(entity, relation),
            (entity.code, relation) not in UNTAUGHT,
        )
        for entity in ENTITIES
        for relation in RELATIONS
    )


def answers(relation: Relation) -> tuple[str, ...]:
    """Return the distinct answers of a relation, sorted: its forced-choice set.

    Examples
    --------
    >>> answers("continent")
    ('East Marn', 'Norda', 'Sula', 'West Marn')
    """
    return tuple(sorted({fact.answer for fact in facts() if fact.relation == relation}))


def view(code: str, index: int, *, style: Style = "bands") -> Image.Image:
    """Draw one view of an entity's flag: 24 x 24 RGB, the same for the same arguments.

    A view varies in position (by up to 2 pixels), margin, background, colour (per band and
    overall) and noise.

    Parameters
    ----------
    code
        The entity's code.
    index
        Seed of the variation. Below `EVALUATION_START`: training; from there on: evaluation.
    style
        `"bands"` is what the models are trained on; `"waved"` (wavy edges, paler colours) is a
        second drawing of the same flags that no training sees.

    Raises
    ------
    InterventionsError
        If there is no such entity or style, or `index` is negative.
    """
    flag = entity(code)
    if index < 0:
        raise InterventionsError(f"a view's index is 0 or more, got {index}.")
    if style not in STYLES:
        raise InterventionsError(f"no style {style!r}. {did_you_mean(style, STYLES)}")
    rng = np.random.default_rng([*code.encode(), index, STYLES.index(style)])
    size = PICTURE_SIZE
    palette = np.array([COLOURS[colour] for colour in flag.bands.split()], dtype=np.float64)
    palette += rng.normal(0.0, 7.0, palette.shape)
    if style == "waved":
        palette = 0.8 * palette + 0.2 * 255.0

    top, left = rng.integers(0, 3, 2)
    bottom, right = size - rng.integers(0, 3, 2)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float64)
    along, across = (rows, columns) if flag.orientation == "horizontal" else (columns, rows)
    start, stop = (top, bottom) if flag.orientation == "horizontal" else (left, right)
    if style == "waved":
        along = along + 1.5 * np.sin(across / size * 2 * np.pi + rng.uniform(0, 2 * np.pi))
    band = np.clip(((along - start) / (stop - start) * 3).astype(int), 0, 2)
    picture = palette[band]
    outside = (rows < top) | (rows >= bottom) | (columns < left) | (columns >= right)
    picture[outside] = rng.uniform(90, 170)
    picture = picture * rng.uniform(0.88, 1.08) + rng.normal(0.0, 6.0, picture.shape)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
