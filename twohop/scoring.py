"""Is this answer right, and if not, what is it?"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

Outcome = Literal["right", "same_type", "echo", "other", "empty"]
OUTCOMES: tuple[Outcome, ...] = ("right", "same_type", "echo", "other", "empty")


@lru_cache(maxsize=16384)
def normalise(text: str) -> tuple[str, ...]:
    """Words of a text, lower-cased, without accents or punctuation.

    Short words count: nothing is dropped but a leading "the".

    Examples
    --------
    >>> normalise("  The São Tomé. ")
    ('sao', 'tome')
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = tuple(re.findall(r"[a-z0-9]+", plain.lower()))
    return words[1:] if words[:1] == ("the",) else words


def first_mention(text: str, groups: Sequence[tuple[str, Iterable[str]]]) -> str | None:
    """Label of the first known name in a text, on word boundaries, the longest name at a place.

    So "Nigeria" does not mention "Niger", and "Guinea-Bissau" does not mention "Guinea" where
    both are known.

    Parameters
    ----------
    text : str
    groups : sequence of (label, names)
        Where a name is in several groups, the first group has it.

    Examples
    --------
    >>> first_mention("It is Kuwait City", [("right", ["Kuwait City"]), ("echo", ["Kuwait"])])
    'right'
    """
    known: dict[tuple[str, ...], str] = {}
    for label, names in groups:
        for name in names:
            known.setdefault(normalise(name), label)
    known.pop((), None)
    words = normalise(text)
    longest = max((len(name) for name in known), default=0)
    for start in range(len(words)):
        for width in range(min(longest, len(words) - start), 0, -1):
            label = known.get(words[start : start + width])
            if label is not None:
                return label
    return None


def outcome(
    text: str,
    *,
    answers: Sequence[str],
    names: Sequence[str],
    answer_set: Sequence[str],
) -> Outcome:
    """Class of a free answer: what the first known name in it is.

    Parameters
    ----------
    text : str
        What was generated, up to the stop string.
    answers : sequence of str
        Accepted answers.
    names : sequence of str
        The entity's names: saying one of these instead of the answer is an echo.
    answer_set : sequence of str
        Answers of the relation: saying another of these is wrong, but of the right type.

    Returns
    -------
    str
        ``"right"``, ``"same_type"`` (another answer of the relation), ``"echo"``, ``"other"`` or
        ``"empty"``.

    Examples
    --------
    >>> outcome("France", answers=["Paris"], names=["France"], answer_set=["Paris", "Rome"])
    'echo'
    """
    if not normalise(text):
        return "empty"
    groups = [("right", answers), ("echo", names), ("same_type", answer_set)]
    found = first_mention(text, groups)
    for known in OUTCOMES:
        if found == known:
            return known
    return "other"


def names_it(text: str, *, names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the first entity a text names is the right one."""
    return first_mention(text, [("right", names), ("other", others)]) == "right"
