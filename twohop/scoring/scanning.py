"""A plain text is split into words."""

import re
import unicodedata

from twohop.scoring.counting import ordinal_ending, with_quantities
from twohop.scoring.letters import fold, in_full
from twohop.scoring.quantities import Number, date_at, number_at, written
from twohop.scoring.words import HAN, HIRAGANA, KATAKANA, SPACELESS, Word, Words


def _ranges(codes: list[int]) -> str:
    """Code points as the inside of a character class."""
    ranges = []
    start = last = codes[0]
    for code in [*codes[1:], -1]:
        if code != last + 1:
            ranges.append(f"\\U{start:08x}-\\U{last:08x}")
            start = code
        last = code
    return "".join(ranges)


_MARK = _ranges([i for i in range(0x300, 0x1F000) if unicodedata.category(chr(i))[0] == "M"])
_LETTER = rf"(?:(?![{HAN}{HIRAGANA}{KATAKANA}{SPACELESS}])[^\W_]|[{_MARK}])"
_WORD = re.compile(
    r"(?P<initials>(?<!\w)(?:(?:[^\W\d_]\.\s?){1,8}[^\W\d_]\.(?!\w)"
    r"|(?:[^\W\d_]\.){1,8}[^\W\d_](?![\w'])))"
    rf"|(?P<kana>[{KATAKANA}]+)"
    rf"|(?P<letter>(?=[^\W_])(?:[{HAN}{HIRAGANA}]|[{SPACELESS}][{_MARK}]*))"
    rf"|(?P<word>(?=[^\W_]){_LETTER}+(?:'{_LETTER}+)*(?:[+#]+(?!\w))?)"
    r"|(?P<and>&)"
)
_UNIT = re.compile(
    r"(?:(?i:km2|m2|bn|mn|mm|cm|km|kg|mg|ft)|[mg])(?![\w'])|[°%](?:\s?[CcFf]\b)?|[$€£¥]"
)
# Written onto digits; a small "m" is metres.
_SCALE = re.compile(r"(?:M|[Bb])(?![\w'])")
_SCALE_LETTERS = {"M": 10**6, "B": 10**9}
_BEHIND_NUMBER = re.compile(r"(st|nd|rd|th)(?!\w)", re.IGNORECASE)
_ELIDED = re.compile(r"(?:l|d|qu|dell|nell|all|un)'(?=\w\w)")
_HANGUL_ENDINGS = "입니다 이다 다 예요 이에요 이야 야 이라고 라고 은 는 이 가 을 를 의 에 에서 로"
_HANGUL_ENDINGS += " 으로 와 과 도 만 시 인 특별시 광역시"
_HANGUL_ENDINGS += " 일 인데 이지만 이었습니다 였습니다 이고 이라는 라는"
# What Turkish puts behind the apostrophe of a name: "Ankara'dır", "Türkiye'nin".
_TURKISH_ENDING = re.compile(
    r"(?<=\w\w\w)'(?:[dt][iu]r|n?[iu]n|[ny]?[iu]|[ny]?[ae]|[dt][ae]n?|y?l[ae]|s[iu])$"
)
_ROMAN_NUMERAL = re.compile(r"(m{0,3})(cm|cd|d?c{0,3})(xc|xl|l?x{0,3})(ix|iv|v?i{0,3})")
_ROMAN_DIGITS = {"m": 1000, "d": 500, "c": 100, "l": 50, "x": 10, "v": 5, "i": 1}
ROMAN = {"ii": 2, "iii": 3, "iv": 4, "vi": 6, "vii": 7, "viii": 8, "ix": 9, "xi": 11, "xii": 12}
ROMAN |= {"xiii": 13, "xiv": 14, "xv": 15, "xvi": 16, "xvii": 17, "xviii": 18, "xx": 20}
SHORTENED = {"st": "saint", "ste": "saint", "mt": "mount", "ft": "fort"}


def _word(surface: str, start: int, kind: str | None) -> Word:
    """One word that is no number."""
    forms: list[str] = []
    loose: list[str] = []
    if kind == "initials":
        forms.append(fold(re.sub(r"[.\s]", "", surface)))
    elif kind == "and":
        forms.append("and")
    else:
        folded = fold(surface)
        forms.append(folded.replace("'", "") or surface.casefold())
        if "'" in folded:
            if folded.endswith("'s"):
                loose.append(folded[:-2].replace("'", ""))
            if _TURKISH_ENDING.search(folded):
                loose.append(_TURKISH_ENDING.sub("", folded).replace("'", ""))
            if _ELIDED.match(folded):
                loose.append(_ELIDED.sub("", folded, count=1).replace("'", ""))
        if (full := in_full(surface)) is not None:
            forms.append(full.replace("'", ""))
        if "\uac00" <= surface[-1] <= "\ud7a3":
            loose += [
                folded[: -len(ending)]
                for ending in _HANGUL_ENDINGS.split(" ")
                if folded.endswith(unicodedata.normalize("NFC", ending))
                and len(folded) > len(ending)
            ]
    if (roman := _roman(forms[0])) is not None:
        forms.append(str(roman))
        loose.append(f"{roman}{ordinal_ending(roman)}")
    if forms[0] in SHORTENED:
        forms[0] = SHORTENED[forms[0]]
    return Word(tuple(forms), tuple(loose), start, start + len(surface), surface, "")


def _roman(word: str) -> int | None:
    """Value of a Roman numeral, unless it is short enough to be another word ("mix", "di")."""
    if word in ROMAN:
        return ROMAN[word]
    long = len(word) > 3 or (len(word) > 2 and word[0] == "x")
    if not long or _ROMAN_NUMERAL.fullmatch(word) is None:
        return None
    digits = [_ROMAN_DIGITS[letter] for letter in word]
    return sum(
        -digit if digit < after else digit
        for digit, after in zip(digits, [*digits[1:], 0], strict=True)
    )


def _digits(text: str, start: int) -> tuple[list[Word], int] | None:
    """The words that digits at a place give: a date, or a number and a unit written onto it."""
    if dated := date_at(text, start):
        date, end = dated
        return [Word((str(date),), (), start, end, text[start:end], "", date)], end
    numeral = number_at(text, start)
    if numeral is None:
        return None
    value, end = numeral
    surface = text[start:end]
    if ordinal := _BEHIND_NUMBER.match(text, end):
        end = ordinal.end()
        forms = (text[start:end].lower(),)
        quantity = None if value is None else Number(value, ordinal=True)
        return [Word(forms, (), start, end, text[start:end], "", quantity)], end
    if value is not None and (scaled := _SCALE.match(text, end)):
        value *= _SCALE_LETTERS[scaled[0].upper()]
        end = scaled.end()
        return [Word((written(value),), (), start, end, text[start:end], "", Number(value))], end
    attached = _UNIT.match(text, end)
    joined = text[end : end + 1]
    counted = "\uac00" <= joined <= "\ud7a3"  # Korean writes on what is counted: "1945년"
    if attached is None and not counted and re.match(_LETTER, joined):
        return None  # "3D", "1880s": a word of its own
    if value is None:
        return [Word((surface,), (), start, end, surface, "")], end
    negative = re.search(r"(?<![\w)])(?<!\d\s)-$", text[max(0, start - 3) : start]) is not None
    value = -value if negative else value
    return [Word((written(value),), (), start, end, surface, "", Number(value))], end


def scan(text: str) -> Words:
    """Words of a plain text, in order."""
    words: list[Word] = []
    place = behind = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        fresh: list[Word] = []
        end = place
        if text[place].isdecimal() and (read := _digits(text, place)):
            fresh, end = read
        elif unit := _UNIT.match(text, place):
            near_number = bool(words and words[-1].quantity) and text[behind:place].strip() == ""
            before_number = text[unit.end() : unit.end() + 1].isdecimal()
            symbol = not unit.group()[0].isalnum()
            if near_number or (symbol and before_number):
                surface, end = unit.group(), unit.end()
                form = re.sub(r"\s", "", surface.lower())
                fresh = [Word(("percent" if form == "%" else form,), (), place, end, surface, "")]
        if not fresh and (match := _WORD.match(text, place)):
            fresh, end = [_word(match.group(), place, match.lastgroup)], match.end()
        for word in fresh:
            gap = text[behind : word.start]
            words.append(
                Word(word.forms, word.loose, word.start, word.end, word.surface, gap, word.quantity)
            )
        if fresh:
            place = behind = end
        else:
            place += 1
    return Words(text, with_quantities(tuple(words)), text[behind:])
