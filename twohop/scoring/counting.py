"""Words that together say a number, a range or a date become one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal

from twohop.scoring.quantities import (
    MONTHS,
    ORDINALS,
    SCALES,
    SCALES_BEHIND_DIGITS,
    SMALL,
    UNITS,
    Date,
    Number,
    Quantity,
    Range,
    is_unit,
    unit_of,
    written,
)
from twohop.scoring.words import Word

_SPELLED = {*SMALL, *ORDINALS, *SCALES}
_SCALES = SCALES | SCALES_BEHIND_DIGITS
_PRONOUN_AFTER = ("the", "this", "that", "which", "no", "any", "some", "each", "every", "other")
_PRONOUN_BEFORE = ("of", "can", "could", "should", "another", "day")
_OF = ("of", "de", "del", "the")


def with_quantities(words: tuple[Word, ...]) -> tuple[Word, ...]:
    """Return words with numbers, ranges and dates as one word each, and units put to numbers.

    The word of a unit stays a word of its own.
    """
    if not any(word.quantity is not None or word.form in _SPELLED for word in words):
        return words
    for step in (_spelled, _signed, _dated, _with_unit, _ranging):
        words = _everywhere(words, step)
    return words


Step = Callable[[Sequence[Word], int], tuple[int, Word] | None]


def _everywhere(words: Sequence[Word], step: Step) -> tuple[Word, ...]:
    """Apply a step from each place on; it gives how many words it takes, and what they become."""
    replaced: list[Word] = []
    place = 0
    while place < len(words):
        width, word = step(words, place) or (1, words[place])
        replaced.append(word)
        place += width
    return tuple(replaced)


def _joined(words: Sequence[Word], forms: tuple[str, ...], quantity: Quantity) -> Word:
    return Word(
        forms,
        (),
        words[0].start,
        words[-1].end,
        words[0].surface + "".join(word.gap + word.surface for word in words[1:]),
        words[0].gap,
        quantity,
    )


def _near(word: Word, marks: str = " -") -> bool:
    """Whether only spaces and some marks stand before a word."""
    return all(mark in marks or mark.isspace() for mark in word.gap) and "--" not in word.gap


def _form(words: Sequence[Word], place: int) -> str:
    return words[place].form if 0 <= place < len(words) else ""


def _spelled(words: Sequence[Word], place: int) -> tuple[int, Word] | None:
    """ "twenty-five", "1.5 million", "sixteenth"."""
    first = words[place]
    number = first.quantity
    if isinstance(number, Number) and not number.ordinal:
        value = number.value
        width = 1
        while (scale := _SCALES.get(_form(words, place + width))) and _near(words[place + width]):
            value *= scale
            width += 1
        if width == 1:
            return None
        return width, _joined(words[place : place + width], (written(value),), Number(value))
    if first.form in ("one", "1") and (
        _form(words, place - 1) in _PRONOUN_AFTER or _form(words, place + 1) in _PRONOUN_BEFORE
    ):
        return None
    width, spelled, ordinal = _read(words, place)
    if width == 0:
        return None
    value = Decimal(spelled)
    said = f"{spelled}{ordinal_ending(spelled)}" if ordinal else written(value)
    forms = (said, first.form) if width == 1 else (said,)
    return width, _joined(words[place : place + width], forms, Number(value, ordinal=ordinal))


def _read(words: Sequence[Word], place: int) -> tuple[int, int, bool]:
    """How many words a number in letters takes, its value, and whether it is an ordinal."""
    total, current, width = 0, -1, 0
    while place + width < len(words):
        word = words[place + width]
        form = word.form
        if width and not _near(word):
            break
        if width and form == "and" and _form(words, place + width - 1) in SCALES:
            following = _form(words, place + width + 1)
            if following not in SMALL and following not in ORDINALS:
                break
            width += 1
            continue
        if form in ORDINALS:
            value = ORDINALS[form]
            if current < 0 or _completes(current, value):
                return width + 1, total + max(current, 0) + value, True
            break
        if form in SMALL:
            value = SMALL[form]
            if current < 0:
                current = value
            elif _completes(current, value):
                current += value
            elif total == 0 and 10 <= current <= 99 and 10 <= value <= 99:
                current = 100 * current + value  # a year: "nineteen eighty-four"
            else:
                break
        elif form in SCALES:
            if SCALES[form] == 100:
                current = 100 * (current if current > 0 else 1)
            else:
                total += (current if current > 0 else 1) * SCALES[form]
                current = -1
        else:
            break
        width += 1
    return width, total + max(current, 0), False


def _completes(current: int, value: int) -> bool:
    """Whether a small number is the rest of a larger one: "twenty" "five", "hundred" "ten"."""
    if current % 100 == 0:
        return current >= 100
    return 20 <= current % 100 <= 90 and current % 10 == 0 and 0 < value < 10


def ordinal_ending(value: int) -> str:
    """What makes a number in digits an ordinal: "st", "nd", "rd" or "th"."""
    if value % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")


def _signed(words: Sequence[Word], place: int) -> tuple[int, Word] | None:
    if words[place].form not in ("minus", "negative") or place + 1 == len(words):
        return None
    number = words[place + 1].quantity
    if not isinstance(number, Number) or number.ordinal or not _near(words[place + 1]):
        return None
    pair = words[place : place + 2]
    return 2, _joined(pair, (written(-number.value),), replace(number, value=-number.value))


def _dated(words: Sequence[Word], place: int) -> tuple[int, Word] | None:
    """A day, a month and a year in words, as far as they are said."""
    parts: list[tuple[str, int]] = []
    width = taken = 0
    while place + width < len(words) and len(parts) < 3:
        word = words[place + width]
        if width and not _near(word, " .,-"):
            break
        if parts and word.form in _OF:
            width += 1
            continue
        part = _part(word, {kind for kind, _ in parts})
        if part is None:
            break
        parts.append(part)
        width += 1
        taken = width
    kinds = [kind for kind, _ in parts]
    if kinds[:3] not in (["day", "month", "year"], ["month", "day", "year"]):
        parts = parts[:2]
        if kinds[:2] not in (["day", "month"], ["month", "day"], ["month", "year"]):
            return None
        if len(kinds) > 2:
            return None
    known = dict(parts)
    date = Date(known.get("year"), known["month"], known.get("day"))
    return taken, _joined(words[place : place + taken], (str(date),), date)


def _part(word: Word, known: set[str]) -> tuple[str, int] | None:
    """What a word is of a date that has some parts already."""
    if word.form in MONTHS and "month" not in known:
        return "month", MONTHS[word.form]
    number = word.quantity
    if "day" not in known and len(word.form) == 2 and word.form[0] == "0" and word.form.isdigit():
        return ("day", int(word.form)) if word.form != "00" else None
    if not isinstance(number, Number) or number.value != int(number.value):
        return None
    value = int(number.value)
    if "day" not in known and 1 <= value <= 31:
        return "day", value
    if "month" in known and "year" not in known and not number.ordinal and 100 <= value <= 9999:
        return "year", value
    return None


def _with_unit(words: Sequence[Word], place: int) -> tuple[int, Word] | None:
    """Put to a number the unit that follows it, or the currency before it."""
    word = words[place]
    if not isinstance(word.quantity, Number) or word.quantity.ordinal:
        return None
    unit = None
    if place + 1 < len(words) and _near(words[place + 1]):
        unit = unit_of(words[place + 1].form)
        if unit == UNITS["degree"] and place + 2 < len(words) and _is_scale(words[place + 2]):
            unit = UNITS[f"°{words[place + 2].form[0]}"]
        if unit is None and _form(words, place + 1) == "per" and _form(words, place + 2) == "cent":
            unit = UNITS["percent"]
    if unit is None and place and words[place].gap == "" and _form(words, place - 1) in "$€£¥":
        unit = UNITS.get(_form(words, place - 1))
    if unit is None:
        return None
    return 1, replace(word, quantity=replace(word.quantity, kind=unit[0], size=unit[1]))


def _is_scale(word: Word) -> bool:
    """Whether a word behind "degrees" is Celsius or Fahrenheit."""
    return _near(word) and word.form in ("c", "celsius", "centigrade", "f", "fahrenheit")


def _ranging(words: Sequence[Word], place: int) -> tuple[int, Word] | None:
    """ "1887-1889", "from 1887 to 1889", "between 1887 and 1889"."""
    opened = words[place].form in ("from", "between")
    ends = [place + opened]
    while len(ends) < 2:
        if ends[0] + 1 >= len(words):
            return None
        following = words[ends[0] + 1]
        links = ("to", "until", "through", "till", *(("and",) if opened else ()))
        if following.gap.strip() in ("-", "--") and following.quantity is not None:
            ends.append(ends[0] + 1)
        elif following.form in links and _near(following):
            ends.append(ends[0] + 2)
        elif is_unit(following.form) and _form(words, ends[0] + 2) in links:
            ends.append(ends[0] + 3)
        else:
            return None
    if ends[1] >= len(words):
        return None
    values = [_value(words[end].quantity) for end in ends]
    first, last = values
    if first is None or last is None:
        return None
    if 1000 <= first <= 2999 and 10 <= last <= 99:
        last += 100 * (first // 100)  # "1939-45"
    if first >= last:
        return None
    taken = words[place : ends[1] + 1]
    said = f"{written(first)}-{written(last)}"
    return len(taken), _joined(taken, (said,), Range(first, last))


def _value(quantity: Quantity | None) -> Decimal | None:
    """The number at an end of a range: a date's is its year."""
    if isinstance(quantity, Date) and quantity.year is not None:
        return Decimal(quantity.year)
    return quantity.value if isinstance(quantity, Number) and not quantity.ordinal else None
