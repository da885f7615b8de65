"""Answers and names as words, and the form in which two names are the same."""

from functools import lru_cache

from twohop.scoring.cleaning import plain, undressed
from twohop.scoring.scanning import scan
from twohop.scoring.words import Word, Words


@lru_cache(maxsize=8192)
def words_of(text: str) -> Words:
    """Words of an answer, markup taken off."""
    return scan(undressed(text))


@lru_cache(maxsize=32768)
def words_of_name(name: str) -> tuple[Word, ...]:
    """Words of a name as it is given; never none where it has letters or digits."""
    words = scan(plain(name)).words
    if len(words) > 1 and words[0].form == "the":
        words = words[1:]
    if not words and any(letter.isalnum() for letter in name):
        bare = "".join(letter for letter in name.casefold() if letter.isalnum())
        words = (Word((bare,), (), 0, len(name), name, ""),)
    return words


@lru_cache(maxsize=32768)
def normalise(text: str) -> tuple[str, ...]:
    """Words of a name or an answer in the form in which names are the same.

    Without case, accents and punctuation, and with numbers and dates as values; a leading "the"
    goes. It is empty only where there is no letter and no digit, of any script.

    Examples
    --------
    >>> normalise("  The São Tomé. "), normalise("Łódź"), normalise("1,889")
    (('sao', 'tome'), ('lodz',), ('1889',))
    >>> normalise("St. John’s"), normalise("the U.S.A."), normalise("巴黎")
    (('saint', 'johns'), ('usa',), ('巴黎',))
    """
    joined: list[str] = []
    glue = False
    for word in words_of_name(text):
        if glue and word.is_spaceless() and not word.gap:
            joined[-1] += word.form
        else:
            joined.append(word.form)
        glue = word.is_spaceless()
    return tuple(joined)
