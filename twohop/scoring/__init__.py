"""Is this answer right, and if not, what is it? The rules are written in ``docs/scoring.md``."""

from twohop.scoring.normal import normalise
from twohop.scoring.verdicts import OUTCOMES, Outcome, first_mention, names_it, outcome

__all__ = ["OUTCOMES", "Outcome", "first_mention", "names_it", "normalise", "outcome"]
