"""Is this answer right, and if not, what is it?"""

from collections.abc import Iterable, Sequence
from typing import Literal

from twohop.scoring.assertions import asserted
from twohop.scoring.cleaning import LINK
from twohop.scoring.mentions import mentions
from twohop.scoring.normal import words_of
from twohop.scoring.vocabulary import REFUSING, REFUSING_TEXTS
from twohop.scoring.words import Words, said_at

Outcome = Literal["right", "same_type", "echo", "other", "empty"]
OUTCOMES: tuple[Outcome, ...] = ("right", "same_type", "echo", "other", "empty")


def first_mention(text: str, groups: Sequence[tuple[str, Iterable[str]]]) -> str | None:
    """Label of the first known name in a text, as words of its own, the longest name at a place.

    So "Nigeria" does not mention "Niger", and "Guinea-Bissau" does not mention "Guinea".

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
    found = mentions(words_of(text), [(label, tuple(names)) for label, names in groups])
    return found[0].label if found else None


def outcome(
    text: str,
    *,
    answers: Sequence[str],
    names: Sequence[str],
    answer_set: Sequence[str],
) -> Outcome:
    """Class of a free answer: what it asserts.

    The rules are written in ``docs/scoring.md``, with how often they agree with people.

    Parameters
    ----------
    text : str
        What was generated, up to the stop string.
    answers : sequence of str
        Accepted answers.
    names : sequence of str
        The entity's names: saying one of these and no answer is an echo.
    answer_set : sequence of str
        Answers of the relation: saying another of these is wrong, but of the right type.

    Returns
    -------
    str
        ``"right"``: an accepted answer is asserted, and no other one of the relation.
        ``"same_type"``: another answer of the relation is. ``"echo"``: the entity is named and
        no answer is asserted. ``"empty"``: there is no letter and no digit. Else ``"other"``,
        refusals included.

    Examples
    --------
    >>> known = {"answers": ["Paris"], "names": ["France"], "answer_set": ["Paris", "Rome"]}
    >>> outcome("France", **known), outcome("The capital of France is Paris.", **known)
    ('echo', 'right')
    >>> outcome("It is not Rome, it is Paris", **known), outcome("Paris or Rome", **known)
    ('right', 'same_type')
    """
    words = words_of(text)
    if not words.words:
        return "other" if LINK.search(text) else "empty"
    every = mentions(words, [("right", answers), ("echo", names), ("same_type", answer_set)])
    found = {one.label for one in asserted(words, every, is_answer=lambda one: one.label != "echo")}
    if found:
        return "same_type" if "same_type" in found else "right"
    named = any(one.label == "echo" for one in every)
    return "echo" if named and not _refuses(words) else "other"


def _refuses(words: Words) -> bool:
    """Whether a text says that there is no answer."""
    if any(one in words.text for one in REFUSING_TEXTS):
        return True
    return any(said_at(words, place, REFUSING) for place in range(len(words.words)))


def names_it(text: str, *, names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the entity that a text names is the right one.

    The first one named counts, unless it is denied or only says where the picture is from
    ("In France, the Eiffel Tower"); naming several to choose from is naming none.

    Examples
    --------
    >>> names_it("The Eiffel Tower in Paris", names=["Eiffel Tower"], others=["Paris"])
    True
    """
    words = words_of(text)
    every = mentions(words, [("right", names), ("other", others)])
    found = asserted(words, every, is_answer=lambda one: True, naming=True)
    return bool(found) and {one.label for one in found} == {"right"}
