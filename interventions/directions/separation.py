"""Whether a direction tells two classes of prompts apart; intervals by bootstrap over prompts."""

import numpy as np

from interventions.errors import PromptError

LEAST = 4
"""Prompts of a class, of which a direction is fitted, or that are held out."""
RESAMPLES = 1000
INTERVAL = (0.025, 0.975)


def split(n_positive: int, n_negative: int, *, share: float, seed: int) -> list[np.ndarray]:
    """Which rows of each class are held out, [row] of bool.

    Where both have as many rows, those that stand side by side are held out together, as they may
    be two versions of one prompt.

    Raises
    ------
    PromptError
        If too few are left to fit on, or to test on.
    """
    drawn: list[np.ndarray] = []
    for which, n in enumerate((n_positive, n_negative)):
        out = round(share * n)
        if min(out, n - out) < LEAST:
            least = next(m for m in range(1, 10_000) if min(k := round(share * m), m - k) >= LEAST)
            raise PromptError(
                f"{n} {('positive', 'negative')[which]} prompts leave {n - out} to fit on and "
                f"{out} held out. Expected {LEAST} of each at the least: {least} prompts, with "
                f"held_out={share:g}."
            )
        own_seed = seed if n_positive == n_negative else [seed, which]
        held = np.zeros(n, dtype=bool)
        held[np.random.default_rng(own_seed).permutation(n)[:out]] = True
        drawn.append(held)
    return drawn


def auc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of scores [..., positive] and [..., negative]; ties count half.

    Examples
    --------
    >>> float(auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])))
    0.875
    """
    over = positive[..., :, None] - negative[..., None, :]
    return ((over > 0) + 0.5 * (over == 0)).mean((-1, -2))


def auc_interval(positive: np.ndarray, negative: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Interval of the AUC of scores [row], bootstrap over prompts of each class."""
    rng = np.random.default_rng(seed)
    drawn = [
        scores[rng.integers(len(scores), size=(RESAMPLES, len(scores)))]
        for scores in (positive, negative)
    ]
    low, high = np.quantile(auc(*drawn), INTERVAL)
    return float(low), float(high)


def mean_interval(values: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Interval of the mean of values [row], bootstrap over prompts."""
    rng = np.random.default_rng(seed)
    again = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(-1)
    low, high = np.quantile(again, INTERVAL)
    return float(low), float(high)
