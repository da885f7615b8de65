"""Whether one number of several pairs goes with another: slope, rank correlation, and a test.

Pairs of models are few. So the test is by permutation, of all orders where there are few enough;
the slope's interval is Student's, and that of the rank correlation the one of Bonett and Wright
(2000) on Fisher's scale with Student's reach: both hold what they promise on six pairs and more
(``tests/study/test_association.py`` measures it). Uncertainty of the number that is read off along
the axis flattens a slope; it is not taken out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import factorial, prod
from typing import Any

import numpy as np

from twohop.report.contrasts import LEVEL, holm
from twohop.statistics import NOT_MEASURED, TAIL, Estimate

LEAST_PAIRS = 5
"""Fewer do not support a claim: of four, the least p of a two-sided test is .083."""
LEAST_SHOWN = 3
EXACT_UP_TO = 40_320  # orders: those of eight pairs
DRAWS = 9_999
TOO_FEW = f"not claimed: fewer than {LEAST_PAIRS} pairs"


@dataclass(frozen=True)
class Association:
    """How one number of several pairs goes with another.

    Attributes
    ----------
    name : str
    slope : Estimate
        Of the second on the first, in their units; ``n`` counts pairs of models.
    spearman, kendall : Estimate
        Rank correlations; Kendall's tau-b without an interval.
    p : float
        Two-sided, by permutation, of Spearman's; NaN of fewer than three pairs.
    p_holm : float
        Corrected for the associations that are looked at together.
    """

    name: str
    slope: Estimate
    spearman: Estimate
    kendall: Estimate
    p: float = np.nan
    p_holm: float = np.nan

    @property
    def n(self) -> int:
        """Pairs of models behind it."""
        return self.slope.n

    @property
    def claimable(self) -> bool:
        """Whether there are enough pairs for a claim, whatever it is."""
        return self.n >= LEAST_PAIRS

    @property
    def shown(self) -> bool:
        """Whether there is an association, after the correction."""
        return bool(self.claimable and self.p_holm < LEVEL)

    def as_dict(self) -> dict[str, Any]:
        """As ``compare.json`` has it, with None for what was not measured."""
        return {
            "slope": self.slope.as_dict(),
            "spearman": self.spearman.as_dict(),
            "kendall": self.kendall.as_dict(),
            "p": None if np.isnan(self.p) else self.p,
            "p_holm": None if np.isnan(self.p_holm) else self.p_holm,
            "claimable": self.claimable,
            "shown": self.shown,
        }


def association(
    name: str,
    first: Sequence[float],
    second: Sequence[float],
    *,
    families: Sequence[str] | None = None,
    seed: int = 0,
) -> Association:
    """Measure how the second number goes with the first, over pairs of models.

    Parameters
    ----------
    name : str
    first, second : sequence of float
        One of each pair of models.
    families : sequence of str, optional
        Of each: then only differences within a family count. Numbers, and for the rank correlation
        their ranks within the family, are taken about the family's mean, and permuted within it.
        Families of one add nothing and are left out.
    seed : int
        Of the permutations, where not all are tried.
    """
    x, y = np.asarray(first, float), np.asarray(second, float)
    family = np.zeros(len(x), int) if families is None else _numbered(families)
    kept = np.isin(family, [f for f in np.unique(family) if (family == f).sum() > 1])
    x, y, family = x[kept], y[kept], family[kept]
    n, n_families = len(x), len(np.unique(family))
    nothing = replace(NOT_MEASURED, n=n)
    if n - n_families < LEAST_SHOWN - 1:
        return Association(name, nothing, nothing, nothing)
    x, y = _about_means(x, family), _about_means(y, family)
    of_x, of_y = (_about_means(_ranks(values, family), family) for values in (x, y))
    if min(np.abs(values).max() for values in (x, y)) < 1e-12:
        return Association(name, nothing, nothing, nothing)
    rho = _cosine(of_x, of_y)
    tau = _kendall(x, y, family)
    return Association(
        name,
        _slope(x, y, freedom=n - n_families - 1),
        _ranked(rho, n=n, freedom=n - n_families - 1),
        Estimate(tau, np.nan, np.nan, n),
        p=_permuted(of_x, of_y, family, seed=seed),
    )


def together(associations: Sequence[Association]) -> list[Association]:
    """Associations that are looked at together: p-values of those that may be claimed, corrected.

    Of the others there is none.
    """
    of_claimable = [each.p if each.claimable else np.nan for each in associations]
    corrected = holm(of_claimable)
    return [replace(each, p_holm=p) for each, p in zip(associations, corrected, strict=True)]


def _numbered(names: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1]


def _about_means(values: np.ndarray, family: np.ndarray) -> np.ndarray:
    sizes = np.bincount(family)
    means = np.bincount(family, weights=values) / np.maximum(sizes, 1)
    return values - means[family]


def _ranks(values: np.ndarray, family: np.ndarray) -> np.ndarray:
    """Ranks within each family; those of equal values are the mean of theirs."""
    same = family[:, None] == family
    below = (values[:, None] > values) & same
    equal = (values[:, None] == values) & same
    return below.sum(1) + (equal.sum(1) + 1) / 2


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def _slope(x: np.ndarray, y: np.ndarray, *, freedom: int) -> Estimate:
    # Loaded where it is used: importing the package is to stay light.
    from scipy.special import stdtrit

    slope = float(x @ y / (x @ x))
    if freedom < 1:
        return Estimate(slope, np.nan, np.nan, len(x))
    left = y - slope * x
    reach = float(stdtrit(freedom, 1 - TAIL) * np.sqrt(left @ left / freedom / (x @ x)))
    return Estimate(slope, slope - reach, slope + reach, len(x))


def _ranked(rho: float, *, n: int, freedom: int) -> Estimate:
    from scipy.special import stdtrit

    if freedom < LEAST_PAIRS - 2:
        return Estimate(rho, np.nan, np.nan, n)
    most = 1 - 6 / (n * (n**2 - 1))  # halfway to what two neighbours in the other order give
    middle = np.arctanh(np.clip(rho, -most, most))
    reach = stdtrit(freedom, 1 - TAIL) * np.sqrt((1 + rho**2 / 2) / (freedom - 1))
    low, high = np.tanh(middle - reach), np.tanh(middle + reach)
    return Estimate(rho, float(min(low, rho)), float(max(high, rho)), n)


def _kendall(x: np.ndarray, y: np.ndarray, family: np.ndarray) -> float:
    """Kendall's tau-b, of twos of one family; NaN where either number is the same in all."""
    first, other = np.triu_indices(len(x), 1)
    same = family[first] == family[other]
    signs = [np.sign(values[first] - values[other])[same] for values in (x, y)]
    differ = [np.abs(sign).sum() for sign in signs]
    return float((signs[0] * signs[1]).sum() / np.sqrt(differ[0] * differ[1]))


def _permuted(first: np.ndarray, second: np.ndarray, family: np.ndarray, *, seed: int) -> float:
    """Two-sided p-value: how often an order within families goes as well with the first."""
    rows = [np.nonzero(family == f)[0] for f in np.unique(family)]
    exact = prod(factorial(len(mine)) for mine in rows) <= EXACT_UP_TO
    generator = np.random.default_rng(seed)
    products = np.zeros(1 if exact else DRAWS)
    for mine in rows:
        if exact:  # every order of this family with every one of those before
            orders = second[mine][np.array([*permutations(range(len(mine)))])]
            products = (products[:, None] + orders @ first[mine]).ravel()
        else:
            drawn = np.tile(second[mine], (DRAWS, 1))
            products += generator.permuted(drawn, axis=1) @ first[mine]
    as_much = (np.abs(products) >= abs(first @ second) - 1e-9).sum()
    return float(as_much / len(products) if exact else (1 + as_much) / (1 + len(products)))
