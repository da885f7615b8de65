"""What a number of the protocol is and may be: how it is checked, and how that is said."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class Allowed:
    """A kind of value.

    Attributes
    ----------
    expected : str
        What is allowed, in words.
    read : callable
        ``read(value)`` gives the value in plain Python types, or raises TypeError or ValueError.
    unit : str
        What it counts, or is measured in; empty for a share or a name.
    """

    expected: str
    read: Callable[[Any], Any]
    unit: str = ""


@dataclass(frozen=True)
class Documented:
    """What a number of the protocol is.

    Attributes
    ----------
    name : str
    default : int, float, or a tuple of numbers or words
    quick : same type
        Its value in the preset "quick".
    says : str
        What it decides.
    allowed : Allowed
        What it may be.
    flag : str
        Its option on the command line, of the sample sizes; empty for the others.
    """

    name: str
    default: Any
    quick: Any
    says: str
    allowed: Allowed
    flag: str

    @property
    def unit(self) -> str:
        """What it counts, or is measured in; empty for a share or a name."""
        return self.allowed.unit


def numbered(
    default: Any, allowed: Allowed, says: str, *, flag: str = "", quick: Any = None
) -> Any:
    """A field of the protocol: its value, what it may be and says, its name on the command line.

    ``quick`` is its value in the preset of that name; None for the same.
    """
    metadata = {"allowed": allowed, "says": says, "flag": flag}
    return field(
        default=default, metadata=metadata | {"quick": default if quick is None else quick}
    )


def whole(unit: str, *, least: int = 1) -> Allowed:
    """A whole number, from ``least`` on."""

    def read(value: Any) -> int:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
        if number < least:
            raise ValueError
        return number

    of = f" of {unit}" if unit else ""
    return Allowed(f"a whole number{of}, {least} or more", read, unit)


def number(unit: str, *, least: float, most: float = math.inf) -> Allowed:
    """A finite number from ``least`` to ``most``."""

    def read(value: Any) -> float:
        finite = _finite(value)
        if not least <= finite <= most:
            raise ValueError
        return finite

    bounds = f"from {least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
    return Allowed(f"a number ({unit}), {bounds}", read, unit)


def positive(unit: str) -> Allowed:
    """A finite number above 0."""

    def read(value: Any) -> float:
        finite = _finite(value)
        if finite <= 0:
            raise ValueError
        return finite

    return Allowed(f"a number ({unit}) above 0", read, unit)


def share(*, above: float | None = None, below: float | None = None) -> Allowed:
    """A number from 0 to 1; above or below a bound, if one is given."""

    def read(value: Any) -> float:
        finite = _finite(value)
        outside = not 0 <= finite <= 1
        if outside or (above is not None and finite <= above):
            raise ValueError
        if below is not None and finite >= below:
            raise ValueError
        return finite

    low = "from 0" if above is None else f"above {above:g}"
    high = "to 1" if below is None else f"below {below:g}"
    between = " and " if above is not None and below is not None else " "
    return Allowed(f"a share {low}{between}{high}", read)


def several(kind: Allowed, *, distinct: bool = False) -> Allowed:
    """One or more values of a kind, given as any sequence."""

    def read(values: Any) -> tuple[Any, ...]:
        if isinstance(values, str | bytes):
            raise TypeError
        checked = tuple(kind.read(value) for value in values)
        if not checked or (distinct and len({*checked}) < len(checked)):
            raise ValueError
        return checked

    return Allowed(
        f"one or more{' different' if distinct else ''} values, each {kind.expected}",
        read,
        kind.unit,
    )


def words(known: Sequence[str]) -> Allowed:
    """One or more of the known words, none of them twice."""

    def read(values: Any) -> tuple[str, ...]:
        if isinstance(values, str | bytes):
            raise TypeError
        chosen = tuple(values)
        if not chosen or len({*chosen}) < len(chosen) or not {*chosen} <= {*known}:
            raise ValueError
        return chosen

    return Allowed(f"one or more of {', '.join(map(repr, known))}, none of them twice", read)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    finite = float(value)
    if not math.isfinite(finite):
        raise ValueError
    return finite
