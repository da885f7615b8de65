"""Where known names stand in a text: the longest one at a place, as words of their own."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache

from twohop.scoring.cleaning import plain
from twohop.scoring.normal import words_of_name
from twohop.scoring.quantities import Date, Number, Quantity, is_unit
from twohop.scoring.vocabulary import (
    BEHIND_HYPHEN,
    BOUNDS,
    DIRECTIONS,
    LONGER_NAMES,
    ORDINARY,
    PARTS,
)
from twohop.scoring.words import Word, Words

_JOINED = 7  # letters from which a name is known also where it is divided otherwise
_JOINED_IF_DIVIDED = 4  # those of a name with a hyphen or an apostrophe in it
_DIVIDED = re.compile(r"\w['-]\w")
_SHORT = 2  # letters up to which a name in a script without spaces needs an end on both sides


@dataclass(frozen=True)
class Mention:
    """A known name in a text.

    Attributes
    ----------
    start, stop : int
        Its words, by number.
    label : str
        Of the group of names it is from.
    name : str
        As it is known.
    """

    start: int
    stop: int
    label: str
    name: str


@dataclass
class _Node:
    """A place in the tree of known names, word by word."""

    after: dict[str, "_Node"] = field(default_factory=dict)
    name: str | None = None


class Names:
    """Names, found by how they begin."""

    def __init__(self, names: Sequence[str]) -> None:
        self._root = _Node()
        self._joined: dict[str, str] = {}
        self._beginnings: set[str] = set()
        self._numbers: dict[Decimal, list[tuple[Quantity, str]]] = {}
        self._others: list[tuple[Quantity, str]] = []
        for name in names:
            words = words_of_name(name)
            quantity = value_of(words)
            if quantity is not None:
                self._add_quantity(quantity, name)
            for spelling in _spellings(words):
                node = self._root
                for form in spelling:
                    node = node.after.setdefault(form, _Node())
                node.name = node.name or name
                joined = "".join(spelling)
                divided = _DIVIDED.search(plain(name)) is not None
                if quantity is None and len(joined) >= (_JOINED_IF_DIVIDED if divided else _JOINED):
                    self._joined.setdefault(joined, name)
                    self._beginnings.update(joined[:end] for end in range(1, len(joined) + 1))

    def _add_quantity(self, quantity: Quantity, name: str) -> None:
        if isinstance(quantity, Number):
            for key in {quantity.value, quantity.value * quantity.size}:
                self._numbers.setdefault(key, []).append((quantity, name))
        else:
            self._others.append((quantity, name))

    def may_begin(self, word: Word) -> bool:
        """Whether any name could begin with a word; most words begin none."""
        after = self._root.after
        return (
            word.quantity is not None
            or word.form in self._beginnings
            or any(form in after for form in (*word.forms, *word.loose))
        )

    def at(self, words: Sequence[Word], start: int) -> Iterator[tuple[int, bool, str]]:
        """Names that begin at a word: where each ends, if it is spelled as usual, and which."""
        quantity = words[start].quantity
        if quantity is not None and (name := self._meant(quantity)) is not None:
            unit = isinstance(quantity, Number) and quantity.kind is not None
            unit = unit and start + 1 < len(words) and is_unit(words[start + 1].form)
            yield start + 1 + unit, True, name
        reached = [(self._root, True)]
        for place in range(start, len(words)):
            exact = set(words[place].forms)
            forms = {*words[place].forms, *words[place].loose}
            reached = [
                (node.after[form], usual and form in exact)
                for node, usual in reached
                for form in forms
                if form in node.after
            ]
            for node, usual in reached:
                # A quantity by itself is compared by its value alone, not as a word.
                if node.name is not None and (place > start or quantity is None):
                    yield place + 1, usual, node.name
            if not reached:
                break
        said = ""
        for place in range(start, len(words)):
            said += words[place].form
            if place > start and words[place].gap.strip(" -"):
                break
            if said not in self._beginnings:
                break
            if (name := self._joined.get(said)) is not None:
                yield place + 1, False, name

    def _meant(self, said: Quantity) -> str | None:
        near: list[tuple[Quantity, str]] = []
        if isinstance(said, Number):
            near = self._numbers.get(said.value, []) + self._numbers.get(said.value * said.size, [])
        elif isinstance(said, Date) and said.year is not None:
            near = self._numbers.get(Decimal(said.year), [])
        for known, name in (*near, *self._others):
            if known.meant_by(said):
                return name
        return None


def value_of(words: Sequence[Word]) -> Quantity | None:
    """Return the quantity that a name is, with or without a unit; None where it is another name."""
    known = [word for word in words if word.quantity is not None]
    rest = [word.form for word in words if word.quantity is None]
    bare = all(is_unit(form) for form in rest) or rest == ["per", "cent"]
    if len(known) == 1 and bare and len(rest) <= 2:
        return known[0].quantity
    return None


def _spellings(words: Sequence[Word]) -> Iterator[tuple[str, ...]]:
    """A name in its usual form and, where its words have others, in those."""
    usual = tuple(word.form for word in words)
    if usual:
        yield usual
    others = tuple(word.forms[-1] for word in words)
    if others != usual:
        yield others


@lru_cache(maxsize=256)
def names_index(names: tuple[str, ...]) -> Names:
    """Names ready to be found; kept, for the same ones are looked for in many texts."""
    return Names(names)


_LONGER = names_index(LONGER_NAMES)


def mentions(words: Words, groups: Sequence[tuple[str, Sequence[str]]]) -> list[Mention]:
    """Known names in a text, from left to right.

    At each place the longest name counts; of equally long ones the one spelled as usual, then the
    one of the first group. A name that goes on in the text is another name ("New York" is not
    "York", nor "Guinea-Bissau" "Guinea"), whether or not the longer one is known.

    Parameters
    ----------
    words : Words
    groups : sequence of (label, names)
    """
    indices = [(label, names_index(tuple(names))) for label, names in groups]
    indices.append(("", _LONGER))
    named: list[Mention] = []
    place = 0
    while place < len(words.words):
        best: tuple[int, bool, int] | None = None
        mention = None
        word = words.words[place]
        for rank, (label, index) in enumerate(indices):
            if not index.may_begin(word):
                continue
            for stop, usual, name in index.at(words.words, place):
                key = (stop, usual, -rank)
                if (best is None or key > best) and _stands_alone(
                    words, place, stop, name, [index for _, index in indices]
                ):
                    best, mention = key, Mention(place, stop, label, name)
        if mention is None:
            place += 1
            continue
        if mention.label:
            named.append(mention)
        place = mention.stop
    return named


def _stands_alone(words: Words, start: int, stop: int, name: str, indices: Sequence[Names]) -> bool:
    """Whether words that spell a name are that name, and not part of another or of speech."""
    here = words.words[start:stop]
    if stop - start == 1 and here[0].quantity is not None:
        return True
    if all(word.is_spaceless() for word in here):
        return _ends_between_letters(words, start, stop)
    before = words.words[start - 1] if start else None
    if before is not None and here[0].gap in (" ", "-") and before.form in DIRECTIONS:
        return stop - start == 1 and before.form in PARTS.get(here[0].form, ())
    if before is not None and here[0].gap == "-":
        known = any(True for index in indices for _ in index.at(words.words, start - 1))
        apart = known or len(before.form) == 1 or before.form in BEHIND_HYPHEN | {"non"}
        if not apart:
            return False
    if words.gap(stop) == "-" and stop < len(words.words):
        after = words.words[stop]
        known = any(True for index in indices for _ in index.at(words.words, stop))
        if not known and after.form not in BEHIND_HYPHEN:
            return False
    return stop - start > 1 or here[0].form not in ORDINARY or _written_as_name(words, start, name)


def _written_as_name(words: Words, start: int, name: str) -> bool:
    """Whether a word that is also an ordinary one is written as the name is."""
    word = words.words[start]
    if len(words.words) == 1 or (len(words.words) == 2 and words.words[0].form == "the"):
        return True
    ahead = words.words[start - 1].form if start else ""
    mixed = any(letter.isupper() for letter in words.text) and any(
        letter.islower() for letter in words.text
    )
    short = name.isupper() or "." in name
    if len(word.form) == 1:
        return word.surface.isupper() and words.gap(start + 1).strip() != ""
    if mixed and short:
        return sum(letter.isupper() for letter in word.surface) > 1
    if mixed:
        return word.surface[0].isupper()
    return ahead == "the" or (ahead not in ("a", "an", "very", "so", "such") and not short)


def _ends_between_letters(words: Words, start: int, stop: int) -> bool:
    """Whether a name in a script without spaces begins and ends where words may."""
    if stop - start > _SHORT:
        return True
    before = words.words[start - 1] if start else None
    after = words.words[stop] if stop < len(words.words) else None
    return _divides(words.words[start], before, words.words[start].gap) and _divides(
        words.words[stop - 1], after, words.gap(stop)
    )


def _divides(letter: Word, other: Word | None, gap: str) -> bool:
    """Whether a word may end between two letters that stand side by side."""
    if other is None or gap or not other.is_spaceless() or other.surface[0] in BOUNDS:
        return True
    return letter.is_han() != other.is_han()
