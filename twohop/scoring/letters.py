"""Letters as they are compared: without case, width, ligatures or accents; scripts stay apart."""

import unicodedata
from functools import lru_cache

from anyascii import anyascii

# Scripts in which marks are accents, points or vowel signs that writers may leave out. In others,
# such as Devanagari or Thai, marks are vowels, and a word is another one without them.
_MARKS_ARE_OPTIONAL = ("LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC")
_ALIKE = str.maketrans({"ى": "ي", "ی": "ي", "ک": "ك", "ـ": None})
_IN_FULL = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0]


def fold(word: str) -> str:
    """Return a word as it is compared.

    Compatibility forms are resolved (NFKC), case is folded, accents go where writers may leave
    them out, and Latin letters that are no letter with an accent become what AnyAscii's table says
    ("ł" is "l", "þ" is "th"). Letters of other scripts stay what they are: "巴黎" is not "bali".

    Examples
    --------
    >>> fold("Łódź"), fold("STRASSE"), fold("Straße"), fold("ΑΘΉΝΑ")
    ('lodz', 'strasse', 'strasse', 'αθηνα')
    """
    if word.isascii():
        return word.lower()
    kept: list[str] = []
    script = ""
    folded = unicodedata.normalize("NFKC", word).casefold()
    for letter in unicodedata.normalize("NFD", folded):
        if unicodedata.category(letter) == "Mn":
            if script not in _MARKS_ARE_OPTIONAL:
                kept.append(letter)
            continue
        script = _script(letter)
        if script == "LATIN" and not letter.isascii():
            kept.append(anyascii(letter).lower() or letter)
        else:
            kept.append(letter)
    return unicodedata.normalize("NFC", "".join(kept).translate(_ALIKE))


def in_full(word: str) -> str | None:
    """Return a word with its umlauts written as two letters, or None where it has none.

    Examples
    --------
    >>> in_full("München"), in_full("København"), in_full("Paris")
    ('muenchen', 'koebenhavn', None)
    """
    if word.isascii():
        return None
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", word).casefold())
    written = folded.translate(_IN_FULL)
    return None if written == folded else fold(written)
