"""Means of a map over the items of each group, with intervals over their entities.

In logits, as measured: no cell is divided by anything. Beside them the span, the whole difference
between the two runs, and shares of it only where it is clearly above 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twohop.statistics import TAIL, Labels, of_entities


@dataclass(frozen=True)
class Means:
    """Means over items with the ends of their 95 % intervals, arrays of one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def entity_means(values: np.ndarray, entities: Labels) -> Means:
    """Means of numbers without bounds, with Student's interval over entities, closed form.

    An entity weighs as many items as it has; the spread is that of the entities' sums about their
    share of the mean, with one degree of freedom less than there are entities.

    Parameters
    ----------
    values : ndarray [..., item]
    entities : sequence of str
        Of each item.

    Returns
    -------
    Means
        [...]. NaN where an item is NaN or there is none; the ends are NaN for a single entity.

    Examples
    --------
    >>> mean = entity_means(np.array([1.0, 2.0, 3.0]), ["a", "b", "c"])
    >>> float(mean.value), round(float(mean.low), 2), round(float(mean.high), 2)
    (2.0, -0.48, 4.48)
    """
    # Loaded where it is used: importing the package is to stay light.
    from scipy.special import stdtrit

    shape = values.shape[:-1]
    if not values.shape[-1]:
        return Means(*(np.full(shape, np.nan) for _ in range(3)))
    totals, sizes = of_entities(values, entities)
    n, k = sizes.sum(), len(sizes)
    value = totals.sum(-1) / n
    if k < 2:
        return Means(value, np.full(shape, np.nan), np.full(shape, np.nan))
    spread = ((totals - value[..., None] * sizes) ** 2).sum(-1) * k / (k - 1)
    reach = stdtrit(k - 1, 1 - TAIL) * np.sqrt(spread) / n
    return Means(value, value - reach, value + reach)


def group_effects(
    scores: np.ndarray,
    span: np.ndarray,
    *,
    entities: Sequence[str],
    item_groups: Sequence[str],
    groups: Sequence[str],
    cell_dims: tuple[str, ...],
    least: float,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Variables of a map's Dataset that are means over the items of each group.

    Parameters
    ----------
    scores : ndarray [*cell, item]
        What each cell restores, in logits.
    span : ndarray [item]
        The whole difference between the two runs, in logits.
    entities, item_groups : sequence of str
        Of each item.
    groups : sequence of str
        Every group there may be.
    cell_dims : tuple of str
        Names of the dims of a cell.
    least : float
        Logits: shares of a span whose interval begins at or below this are not given.

    Returns
    -------
    dict
        ``effect``, ``effect_low`` and ``effect_high`` (group, *cell), in logits; ``span_mean``,
        ``span_low`` and ``span_high`` (group); ``share`` (group, *cell): the effect as a part of
        the span, a ratio of means, NaN where the span is not clearly above ``least``.
    """
    codes, belongs = np.asarray(entities, dtype=str), np.asarray(item_groups, dtype=str)
    rows = [belongs == group for group in groups]
    effects = [entity_means(scores[..., mine], codes[mine]) for mine in rows]
    spans = [entity_means(span[mine], codes[mine]) for mine in rows]
    shares = [
        effect.value / whole.value if whole.low > least else np.full_like(effect.value, np.nan)
        for effect, whole in zip(effects, spans, strict=True)
    ]
    dims = ("group", *cell_dims)
    return {
        "effect": (dims, np.array([mean.value for mean in effects])),
        "effect_low": (dims, np.array([mean.low for mean in effects])),
        "effect_high": (dims, np.array([mean.high for mean in effects])),
        "share": (dims, np.array(shares)),
        "span_mean": (("group",), np.array([mean.value for mean in spans])),
        "span_low": (("group",), np.array([mean.low for mean in spans])),
        "span_high": (("group",), np.array([mean.high for mean in spans])),
    }
