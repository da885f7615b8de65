"""A word of a text, in every form under which it may be known."""

import re
from dataclasses import dataclass

from twohop.scoring.quantities import Quantity
from twohop.scoring.vocabulary import Phrases

# Scripts that put no spaces between words: each letter is a word here, with the marks on it.
HAN = "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
HIRAGANA = "\u3041-\u309f"
SPACELESS = "\u0e00-\u0e4f\u0e80-\u0ecf\u0edc-\u0eff\u1000-\u103f\u1780-\u17d3"
KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff"
# A word of these may be followed by another, or by a particle, without a space.
GLUED = f"{HAN}{HIRAGANA}{KATAKANA}{SPACELESS}\uac00-\ud7a3"
_HAN_LETTER = re.compile(f"[{HAN}]")
_ALONE = re.compile(rf"[{HAN}{HIRAGANA}{SPACELESS}]")


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes
    ----------
    forms : tuple of str
        How it may be spelled, compared letter by letter; the first is the usual one.
    loose : tuple of str
        What else it may be where it stands in a sentence: without "'s", "l'", or a particle.
    start, end : int
        Where it stands in the plain text.
    surface : str
        As it is written there.
    gap : str
        What stands between the word before and it.
    quantity : Number, Range or Date, optional
        What it says as a value.
    """

    forms: tuple[str, ...]
    loose: tuple[str, ...]
    start: int
    end: int
    surface: str
    gap: str
    quantity: Quantity | None = None

    @property
    def form(self) -> str:
        """The usual form."""
        return self.forms[0]

    def is_spaceless(self) -> bool:
        """Whether it is one letter of a script that puts no spaces between words."""
        return _ALONE.match(self.surface) is not None

    def is_han(self) -> bool:
        """Whether it begins with a Chinese character."""
        return _HAN_LETTER.match(self.surface) is not None


@dataclass(frozen=True)
class Words:
    """A text and its words.

    Attributes
    ----------
    text : str
        The plain text.
    words : tuple of Word
    tail : str
        What stands behind the last word.
    """

    text: str
    words: tuple[Word, ...]
    tail: str

    def gap(self, number: int) -> str:
        """What stands before a word, given its number; behind the last one: the rest."""
        return self.words[number].gap if number < len(self.words) else self.tail


def said_at(words: Words, place: int, phrases: Phrases) -> int:
    """Return how many words the longest of some phrases takes at a place; 0 where none stands."""
    if not 0 <= place < len(words.words):
        return 0
    rests = phrases.get(words.words[place].form)
    if rests is None:  # most words open no phrase
        return 0
    longest = 0
    for rest in rests:
        forms = tuple(word.form for word in words.words[place + 1 : place + 1 + len(rest)])
        if forms == rest:
            longest = max(longest, 1 + len(rest))
    return longest
