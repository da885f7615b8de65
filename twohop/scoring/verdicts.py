"""Is this answer right, and if not, what is it?"""

from collections.abc import Iterable, Sequence
from typing import Literal

from twohop.scoring.assertions import asserted
from twohop.scoring.cleaning import LINK
from twohop.scoring.mentions import Mention, mentions
from twohop.scoring.normal import normalise, words_of
from twohop.scoring.vocabulary import (
    ANSWERING,
    HARDLY,
    KNOWING,
    NEGATORS,
    PLACES_OF,
    REFUSING,
    REFUSING_TEXTS,
    SHOWN,
)
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
    named = mentions(words_of(text), [(label, tuple(names)) for label, names in groups])
    return named[0].label if named else None


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
    known = {normalise(name) for name in names}
    ambiguous = [
        mention
        for mention in every
        if mention.label == "right" and normalise(mention.name) in known
    ]
    owner = {mention for mention in ambiguous if _is_owner(words, mention)}
    shown = owner | {mention for mention in ambiguous if _is_shown(words, mention)}
    stood_by = shown and asserted(
        words,
        every,
        is_answer=lambda mention: mention.label != "echo" and mention not in shown,
        remarks_count=False,
    )
    stood_by = stood_by or asserted(
        words, every, is_answer=lambda mention: mention.label != "echo" and mention not in owner
    )
    labels = {mention.label for mention in stood_by}
    if labels:
        return "same_type" if "same_type" in labels else "right"
    named = bool(owner) or any(mention.label == "echo" for mention in every)
    return "echo" if named and not _refuses(words) else "other"


def _ahead(words: Words, mention: Mention) -> list[str]:
    """The words right before a mention, without "the"."""
    ahead = [word.form for word in words.words[max(0, mention.start - 4) : mention.start]]
    return [form for form in ahead if form != "the"]


def _is_owner(words: Words, mention: Mention) -> bool:
    """Whether something of what is mentioned is said: "the capital of X", "X's capital"."""
    ahead = _ahead(words, mention)
    behind = words.words[mention.stop].form if mention.stop < len(words.words) else ""
    owns = words.words[mention.stop - 1].surface.lower().endswith("'s") and behind not in ANSWERING
    belongs = ahead[-1:] == ["of"] and not {*ahead[-2:]} & PLACES_OF
    return belongs or behind in ("has", "whose") or bool(behind and owns)


def _is_shown(words: Words, mention: Mention) -> bool:
    """Whether a mention may say what is asked about: "this is X", "the country is X", "in X"."""
    ahead = _ahead(words, mention)
    return ahead[-1:] in (["in"], ["to"], ["for"]) or bool({*ahead} & SHOWN)


def _refuses(words: Words) -> bool:
    """Whether a text says that there is no answer."""
    if any(refusal in words.text for refusal in REFUSING_TEXTS):
        return True
    for place, word in enumerate(words.words):
        if said_at(words, place, REFUSING):
            return True
        near = {word.form for word in words.words[place + 1 : place + 5]}
        if word.form in NEGATORS | HARDLY and near & KNOWING:
            return True
    return False


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
    stood_by = asserted(words, every, is_answer=lambda mention: True, naming=True)
    return bool(stood_by) and {mention.label for mention in stood_by} == {"right"}
