"""How a number of the summary is written: the same on the page and on the console."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from twohop.statistics import NOT_MEASURED as NONE
from twohop.statistics import Estimate, estimates

Unit = Literal["share", "points", "layers", "correlation"]

NOT_MEASURED = "not measured"


Number = Estimate | Mapping[str, Any] | None
"""A number with its interval: as an estimate, as ``summary.json`` has it, or none at all."""


def unit_of(key: str) -> Unit:
    """What a number of the summary is measured in, by where it is.

    Examples
    --------
    >>> unit_of("gap_points"), unit_of("recovered/cot_gold")
    ('points', 'share')
    """
    if key.startswith("attribution_agreement/"):
        return "share" if key.endswith("/top") else "correlation"
    if key == "lateness/blocks":
        return "layers"
    if key.startswith(("map_similarity/", "prediction/auc")):
        return "correlation"
    points = key.startswith("gap_points") or key == "prediction/calibration"
    return "points" if points else "share"


def estimate(number: Number) -> Estimate:
    """Return a number as an estimate; what is none was not measured."""
    return NONE if number is None else estimates(number)


def measured(number: Number) -> bool:
    """Whether there is a value."""
    return estimate(number).measured


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


def written(number: Number, unit: Unit = "share", *, n: bool = False) -> str:
    """Write a number with its interval, e.g. ``92 % [86, 97]``.

    Parameters
    ----------
    number : Estimate, mapping or None
        A mapping has ``value``, ``low``, ``high`` and ``n``.
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
    estimated = estimate(number)
    if not estimated.measured:
        return NOT_MEASURED
    text = f"{short(estimated, unit)} {bounds(estimated, unit)}"
    return f"{text} (n\u00a0{estimated.n})" if n else text


def short(number: Number, unit: Unit = "share") -> str:
    """Write a number without its interval."""
    estimated = estimate(number)
    if not estimated.measured:
        return NOT_MEASURED
    return rounded(estimated.value, unit) + ("\u00a0%" if unit == "share" else "")


def bounds(number: Number, unit: Unit = "share") -> str:
    """Write the interval of a number, in brackets."""
    estimated = estimate(number)
    if not (math.isfinite(estimated.low) and math.isfinite(estimated.high)):
        return "[no interval]"
    return f"[{rounded(estimated.low, unit)}, {rounded(estimated.high, unit)}]"


def rounded(value: float, unit: Unit) -> str:
    """Write one value as far as it is told."""
    if unit == "correlation":
        return hundredths(value)
    return whole(value * (100 if unit == "share" else 1))


def p_value(p: float) -> str:
    """Write a p-value.

    Examples
    --------
    >>> p_value(2.6e-12), p_value(0.031)
    ('p < 0.001', 'p = 0.031')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.995 else "p = 1"
