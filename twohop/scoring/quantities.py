"""Numbers, ranges and dates as values: what is written, and when two of them agree."""

import re
from dataclasses import dataclass
from decimal import Decimal

_LONGEST = 20  # digits: what is longer is compared as it is written

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_ONES += " fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh"
_ORDINALS += " twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"

SMALL = {word: i for i, word in enumerate(_ONES.split())}
SMALL |= {word: 10 * i for i, word in enumerate(_TENS.split(), start=2)}
ORDINALS = {word: i for i, word in enumerate(_ORDINALS.split())}
ORDINALS |= {f"{word[:-1]}ieth": 10 * i for i, word in enumerate(_TENS.split(), start=2)}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
SCALES |= {"trillion": 10**12, "lakh": 10**5, "crore": 10**7}
_SCALES_BEHIND_DIGITS = (
    ("thousands tausend mille mila mil tys тыс тысяч 千", 10**3),
    ("万 萬 만", 10**4),
    ("lakhs", 10**5),
    (
        "millions millionen millones milhoes milioni miljoen miljoner millioner milyon milionow",
        10**6,
    ),
    ("mn mio mln млн миллионов миллиона", 10**6),
    ("crores", 10**7),
    ("亿 億 억", 10**8),
    ("billions milliarden milliards miliardi miljard miljarder milliarder milyar miliardow", 10**9),
    ("bn mrd mld млрд миллиардов миллиарда", 10**9),
    ("trillions", 10**12),
)
SCALES_BEHIND_DIGITS = {
    name: scale for names, scale in _SCALES_BEHIND_DIGITS for name in names.split()
}

# Names of a unit, its kind, and how many of the kind's base it is. Only factors that are exact:
# feet and miles are kinds of their own, for "29,029 ft" is "8,848 m" only after rounding.
_UNITS = (
    ("mm millimetre millimeter", "length", "0.001"),
    ("cm centimetre centimeter", "length", "0.01"),
    ("m metre meter", "length", "1"),
    ("km kilometre kilometer", "length", "1000"),
    ("mg milligram milligramme", "mass", "0.001"),
    ("g gram gramme", "mass", "1"),
    ("kg kilo kilogram kilogramme", "mass", "1000"),
    ("tonne", "mass", "1000000"),
    ("ton", "ton", "1"),
    ("ft foot feet", "foot", "1"),
    ("mi mile", "mile", "1"),
    ("inch inche", "inch", "1"),
    ("lb lbs pound", "pound", "1"),
    ("km2 sqkm", "area", "1"),
    ("m2 sqm", "small area", "1"),
    ("% percent", "percent", "1"),
    ("°c celsius", "celsius", "1"),
    ("°f fahrenheit", "fahrenheit", "1"),
    ("° degree", "degree", "1"),
    ("$ dollar usd", "dollar", "1"),
    ("€ euro eur", "euro", "1"),
    ("£ gbp", "sterling", "1"),
    ("¥ yen jpy", "yen", "1"),
    ("second", "time", "1"),
    ("minute", "time", "60"),
    ("hour", "time", "3600"),
    ("day", "time", "86400"),
    ("week", "time", "604800"),
    ("month", "months", "1"),
    ("year", "months", "12"),
    ("people inhabitant resident person", "people", "1"),
    ("bc bce", "before the era", "1"),
)
UNITS = {name: (kind, Decimal(size)) for names, kind, size in _UNITS for name in names.split()}

_MONTHS = (
    "january jan januar janvier enero gennaio janeiro januari ocak stycznia января январь",
    "february feb februar fevrier febrero febbraio fevereiro februari subat lutego февраля февраль",
    "march mar marz maerz mars marzo marco maart mart marca марта март",
    "april apr avril abril aprile nisan kwietnia апреля апрель",
    "may mai mayo maggio maio mei mayis maja мая маи",
    "june jun juni juin junio giugno junho haziran czerwca июня июнь",
    "july jul juli juillet julio luglio julho temmuz lipca июля июль",
    "august aug aout agosto augustus agustos sierpnia августа август",
    "september sep sept septembre septiembre settembre setembro eylul wrzesnia сентября сентябрь",
    "october oct oktober octobre octubre ottobre outubro ekim pazdziernika октября октябрь",
    "november nov novembre noviembre novembro kasim listopada ноября ноябрь",
    "december dec dezember decembre diciembre dicembre dezembro aralik grudnia декабря декабрь",
)
MONTHS = {name: i for i, names in enumerate(_MONTHS, start=1) for name in names.split()}


@dataclass(frozen=True)
class Number:
    """A number, with its unit if one was said.

    Attributes
    ----------
    value : Decimal
    kind : str or None
        What the unit measures; None where none was said.
    size : Decimal
        How many of the kind's base the unit is.
    ordinal : bool
        "16th", not "16".
    """

    value: Decimal
    kind: str | None = None
    size: Decimal = Decimal(1)
    ordinal: bool = False

    def meant_by(self, said: "Quantity") -> bool:
        """Whether ``said`` says this number.

        A unit that only one of both gives is taken as understood, an era is not. A date says its
        year.
        """
        if isinstance(said, Date):
            plain = self.kind is None and not self.ordinal
            return plain and said.year is not None and self.value == said.year
        if isinstance(said, Range) or self.ordinal != said.ordinal:
            return False
        if self.kind == said.kind:
            return self.value * self.size == said.value * said.size
        if "before the era" in (self.kind, said.kind):
            return False
        return None in (self.kind, said.kind) and self.value == said.value


@dataclass(frozen=True)
class Range:
    """From one number to another: it says neither."""

    first: Decimal
    last: Decimal

    def meant_by(self, said: "Quantity") -> bool:
        """Whether ``said`` is the same range."""
        return self == said


@dataclass(frozen=True)
class Date:
    """A date, as far as it is given."""

    year: int | None
    month: int | None
    day: int | None

    def meant_by(self, said: "Quantity") -> bool:
        """Whether ``said`` is a date that gives all this one gives, and the same."""
        if not isinstance(said, Date):
            return False
        wanted = (self.year, self.month, self.day)
        given = (said.year, said.month, said.day)
        return all(mine in (None, theirs) for mine, theirs in zip(wanted, given, strict=True))

    def __str__(self) -> str:
        year = "----" if self.year is None else f"{self.year:04d}"
        parts = [f"{part:02d}" for part in (self.month, self.day) if part is not None]
        return "-".join([year, *parts])


Quantity = Number | Range | Date

# In the order they are tried. A comma before exactly three digits groups thousands, any other is
# a decimal comma; a point is a decimal point unless it groups twice.
_NUMBER = re.compile(
    r"""
    (?P<groups>[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?
      |[1-9]\d{0,1}(?:,\d{2})+,\d{3}(?!\d)
      |[1-9]\d{0,2}(?:['\s]\d{3})+(?![\d']))
    |(?P<points>[1-9]\d{0,2}(?:\.\d{3}){2,}(?!\d))
    |(?P<dotted>\d+(?:\.\d+){2,})
    |(?P<decimal>(?<!\d[.,])\d+[.,]\d+(?![.,]\d))
    |(?P<whole>\d+)
    """,
    re.VERBOSE,
)
_POWER = re.compile(r"10\^(\d{1,2})(?!\w)")
_SCIENTIFIC = re.compile(r"(?:e\+?(?P<e>-?\d{1,2})|\s?[x×*]\s?10\^(?P<x>-?\d{1,2}))(?!\w)", re.I)
_DAY_FIRST = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})")
_ISO = re.compile(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?![\w-])")
_SLASHED = re.compile(r"(\d{1,2})[-/](\d{1,2})[-/](\d{4})(?![\w-])")
_EASTERN = re.compile(r"(\d{3,4})[年년]\s?(\d{1,2})[月월](?:\s?(\d{1,2})[日일])?")


def number_at(text: str, start: int) -> tuple[Decimal | None, int] | None:
    """Read the number written in digits at a place of a plain text.

    Returns
    -------
    tuple of (Decimal or None, int) or None
        Its value, and where it ends; the value is None where digits are no number to compare by
        value ("007", "1.2.3"). None where there are no digits.

    Examples
    --------
    >>> number_at("1,889", 0), number_at("8,5", 0), number_at("1.5e6", 0)
    ((Decimal('1889'), 5), (Decimal('8.5'), 3), (Decimal('1.5E+6'), 5))
    """
    if power := _POWER.match(text, start):
        return Decimal(1).scaleb(int(power[1])), power.end()
    match = _NUMBER.match(text, start)
    if match is None:
        return None
    said, end = match.group(), match.end()
    if match["dotted"] or (match["whole"] and len(said) > 1 and said[0] == "0"):
        return None, end
    if match["groups"]:
        said = re.sub(r"[,'\s]", "", said)
    elif match["points"]:
        said = said.replace(".", "")
    said = said.replace(",", ".")
    if len(said) > _LONGEST:
        return None, end
    value = Decimal(said)
    if power := _SCIENTIFIC.match(text, end):
        value, end = value.scaleb(int(power["e"] or power["x"])), power.end()
    return value, end


def date_at(text: str, start: int) -> tuple[Date, int] | None:
    """Read the date written in digits alone at a place of a plain text.

    With slashes the day comes first or second; where both can be a month it is no date that could
    be told, and None.

    Examples
    --------
    >>> date_at("1789-07-14", 0), date_at("7/4/1776", 0)
    ((Date(year=1789, month=7, day=14), 10), None)
    """
    for pattern, order in ((_ISO, "ymd"), (_EASTERN, "ymd"), (_DAY_FIRST, "dmy"), (_SLASHED, "")):
        match = pattern.match(text, start)
        if match is None:
            continue
        given = [int(digits) if digits else None for digits in match.groups()]
        if not order:
            first, second = int(match[1]), int(match[2])
            if first <= 12 and second <= 12 and first != second:
                return None
            order = "mdy" if second > 12 else "dmy"
        part = dict(zip(order, given, strict=True))
        month, day = part["m"], part["d"]
        if month is not None and 1 <= month <= 12 and (day is None or 1 <= day <= 31):
            return Date(part["y"], month, day), match.end()
    return None


def unit_of(word: str) -> tuple[str, Decimal] | None:
    """Return what a unit measures and how large it is, given its name; None for other words."""
    return UNITS.get(word) or UNITS.get(word.removesuffix("s"))


def is_unit(word: str) -> bool:
    """Whether a word, in the form in which words are compared, is a unit's name."""
    return unit_of(word) is not None


def written(value: Decimal) -> str:
    """Return a number as it is compared with words: digits, no zeros that say nothing."""
    said = f"{value:f}"
    return (said.rstrip("0").rstrip(".") if "." in said else said) or "0"
