"""How a number of the summary is written: the same on the page and on the console."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from twohop.statistics import Estimate

Unit = Literal["share", "points", "layers", "correlation"]

NOT_MEASURED = "not measured"


def read(number: Mapping[str, Any] | None) -> Estimate:
    """Turn a number of ``summary.json`` back into an estimate; None becomes NaN.

    Examples
    --------
    >>> read({"value": None, "low": None, "high": None, "n": 0}).n
    0
    """
    if number is None:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value, low, high = (
        math.nan if number[key] is None else float(number[key]) for key in ("value", "low", "high")
    )
    return Estimate(value, low, high, int(number["n"]))


def measured(number: Mapping[str, Any] | None) -> bool:
    """Whether there is a value."""
    return not math.isnan(read(number).value)


def whole(value: float) -> str:
    """Round to a whole number, with a true minus sign and no minus zero.

    Examples
    --------
    >>> whole(-0.2), whole(-2.0)
    ('0', '−2')
    """
    rounded = round(value)
    return f"−{-rounded}" if rounded < 0 else str(rounded)


def hundredths(value: float) -> str:
    """Write a number with two decimals, with a true minus sign and no minus zero.

    Examples
    --------
    >>> hundredths(-0.004), hundredths(-0.7)
    ('0.00', '−0.70')
    """
    text = f"{abs(value):.2f}"
    return f"−{text}" if value < 0 and float(text) else text


def written(number: Mapping[str, Any] | None, unit: Unit = "share", *, n: bool = False) -> str:
    """Write a number with its interval, e.g. ``92 % [86, 97]``.

    Parameters
    ----------
    number : mapping or None
        With ``value``, ``low``, ``high`` and ``n``.
    unit : str
        Shares are written in per cent, correlations with two decimals; points and layers as they
        are.
    n : bool
        Add the number of items.

    Examples
    --------
    >>> written({"value": 0.92, "low": 0.86, "high": 0.97, "n": 71}).replace("\\u00a0", " ")
    '92 % [86, 97]'
    """
    found = read(number)
    if math.isnan(found.value):
        return NOT_MEASURED
    if unit == "correlation":
        value, low, high = (hundredths(one) for one in (found.value, found.low, found.high))
        return f"{value} [{low}, {high}]"
    scale, sign = (100, "\u00a0%") if unit == "share" else (1, "")
    if math.isnan(found.low):
        return f"{whole(found.value * scale)}{sign} [no interval]"
    low, high = whole(found.low * scale), whole(found.high * scale)
    text = f"{whole(found.value * scale)}{sign} [{low}, {high}]"
    return f"{text} (n\u00a0{found.n})" if n else text


def short(number: Mapping[str, Any] | None, unit: Unit = "share") -> str:
    """Write a number without its interval."""
    return written(number, unit).split(" [")[0]


def p_value(p: float) -> str:
    """Write a p-value.

    Examples
    --------
    >>> p_value(2.6e-12), p_value(0.031)
    ('p < 0.001', 'p = 0.031')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.995 else "p = 1"
