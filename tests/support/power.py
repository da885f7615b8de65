"""How often so many items show a difference: ``python tests/support/power.py``.

Draws lost items, three to an entity, and what two arms give back of them, and judges them by the
study's own contrasts. Prints the tables of ``docs/study/verdicts.md``.
"""

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from twohop.report.contrasts import EXACT_UP_TO, contrast
from twohop.stages.evidence import Measured

say = Console(highlight=False, soft_wrap=True).print
SIZES = (12, 24, 60, 120, 200, 400)
DRAWS = 300
ALIKE = 0.3
"""Correlation of the items of one entity, and of one item's answers under the two arms."""
FAMILY = 9
"""Contrasts that Holm corrects for, at worst."""


def answers(
    shares: Sequence[float], n: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Right or wrong under each arm, [item] each, and the entity of each item."""
    entities = np.arange(n) // 3
    of_entity, of_item = rng.normal(size=entities.max() + 1), rng.normal(size=n)
    arms = []
    for share in shares:
        own = rng.normal(size=n)
        latent = (
            ALIKE**0.5 * of_entity[entities] + ALIKE**0.5 * of_item + (1 - 2 * ALIKE) ** 0.5 * own
        )
        arms.append((latent < _normal_quantile(share)).astype(float))
    return arms, entities.astype(str)


def _normal_quantile(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))


def power(shares: tuple[float, float], n: int, *, seed: int = 0) -> tuple[float, float]:
    """How often the difference is shown: alone, and as the weakest of a family under Holm."""
    rng, alone, together = np.random.default_rng([seed, n]), 0, 0
    for _ in range(DRAWS):
        (first, second), entities = answers(shares, n, rng)
        made = contrast(
            "", {"first": first, "second": second}, ("first", "second"), entities, seed=seed
        )
        above = made.difference.low > 0
        alone += above and made.p < 0.05
        together += above and made.p * FAMILY < 0.05
    return alone / DRAWS, together / DRAWS


def absence(shares: tuple[float, float], n: int, *, seed: int = 0) -> float:
    """How often it is shown that the first does no more than the second, by 5 points."""
    rng, shown = np.random.default_rng([seed, n]), 0
    for _ in range(DRAWS):
        (first, second), entities = answers(shares, n, rng)
        shown += Measured.of(first, second, entities).judged().state == "absent"
    return shown / DRAWS


def main() -> None:
    """Print both tables."""
    assert EXACT_UP_TO < 20, "more patterns of signs than can be tried so often"
    head = f"| | {' | '.join(f'n {n}' for n in SIZES)} |"
    line = f"|---|{'---|' * len(SIZES)}"
    say("Shown, in per cent of samples: alone / under Holm as the weakest of nine\n")
    say(f"{head}\n{line}")
    for shares in ((0.35, 0.16), (0.35, 0.13), (0.16, 0.13), (0.13, 0.03), (0.40, 0.05)):
        cells = [" / ".join(f"{100 * part:.0f}" for part in power(shares, n)) for n in SIZES]
        say(f"| {100 * shares[0]:.0f} % against {100 * shares[1]:.0f} % | {' | '.join(cells)} |")
    say("\nShown not to matter, in per cent of samples\n")
    say(f"{head}\n{line}")
    for shares in ((0.02, 0.02), (0.05, 0.05), (0.10, 0.10), (0.06, 0.03)):
        cells = [f"{100 * absence(shares, n):.0f}" for n in SIZES]
        say(f"| {100 * shares[0]:.0f} % against {100 * shares[1]:.0f} % | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
