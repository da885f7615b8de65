"""Which names in an answer are denied, only asked about, or said of something else."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from twohop.scoring.clauses import Clauses, ends, is_soft
from twohop.scoring.mentions import Mention
from twohop.scoring.quantities import Number, is_unit
from twohop.scoring.vocabulary import (
    AFFIRMING,
    ANSWERING,
    BESIDE,
    BESIDE_PHRASES,
    BOUNDING,
    CHOOSING,
    CONCEDING,
    DENIED,
    DENIED_BEFORE,
    DENIED_BEHIND,
    DIRECTION_OF,
    JOINING,
    JOINING_TEXTS,
    LOCATING,
    NEGATING_PHRASES,
    NEGATORS,
    NO,
    NOT_NEGATING,
    ON_THE_WAY,
    RELATIVE,
    REPORTERS,
    REPORTING,
    SAYING,
    SPANISH,
    SPANISH_ARTICLES,
    VERBS,
)
from twohop.scoring.words import Words, said_at
from twohop.scoring.wrongness import called_wrong, is_not, is_that_wrong, said_to_be_wrong

_REACH = 14  # words over which a denial reaches
_ARTICLES = frozenset(("the", "a", "an", "that", "of", "or", "nor", "and", "either"))


def _negates(words: Words, place: int, taken: frozenset[int]) -> int:
    """Number of words of the denial that begins at a word; 0 where none does."""
    form = words.words[place].form
    if place in taken or not (form in NEGATORS or form == "no" or form in NEGATING_PHRASES):
        return 0
    if any(said_at(words, place - back, NOT_NEGATING) > back for back in range(3)):
        return 0
    if form == "than":  # "no other city than"
        ahead = [word.form for word in words.words[max(0, place - 4) : place]]
        if ("no", "other") in pairwise(ahead):
            return 0
    if form == "no" and words.gap(place + 1).strip():
        return 0  # "No, es Paris"
    if form == "no" and not said_at(words, place, NEGATING_PHRASES):
        return _is_spanish_not(words, place, taken)
    phrase = said_at(words, place, NEGATING_PHRASES)
    return phrase or int(form in NEGATORS)


def _is_spanish_not(words: Words, place: int, taken: frozenset[int]) -> int:
    """Whether "no" is the Spanish "not": in a Spanish text, between a comma or "y" and a name."""
    after = place + 1
    while after < len(words.words) and words.words[after].form in SPANISH_ARTICLES:
        after += 1
    joined = is_soft(words, place) or (place > 0 and words.words[place - 1].form == "y")
    spanish = any(word.form in SPANISH for word in words.words)
    return int(joined and after in taken and not words.gap(place + 1).strip() and spanish)


def denied(words: Words, clauses: Clauses, known: Sequence[Mention]) -> set[Mention]:
    """Mentions that are denied: "not Paris", "rather than Paris", "Paris is not the capital".

    They are given, as always, from left to right.
    """
    taken = frozenset(i for mention in known for i in range(mention.start, mention.stop))
    starts = [mention.start for mention in known]
    negated: set[Mention] = set()
    for place in range(len(words.words)):
        width = _negates(words, place, taken)
        if width:
            part = clauses.of[place]
            near = known[bisect_right(starts, place) : bisect_right(starts, place + _REACH)]
            reached = [mention for mention in near if clauses.of[mention.start] == part]
            negated.update(_reached(words, place + width, reached))
    for mention in known:
        behind = mention.stop
        goes_on = not is_soft(words, behind) and not ends(words, behind)
        after = words.text[words.words[mention.stop - 1].end :].lstrip()
        before = words.text[: words.words[mention.start].start].rstrip(' "')
        if (
            (goes_on and said_at(words, behind, DENIED))
            or (goes_on and is_not(words, mention))
            or called_wrong(words, mention)
            or said_to_be_wrong(words, mention, taken)
            or after.startswith(DENIED_BEHIND)
            or before.endswith(DENIED_BEFORE)
            or (
                mention.start
                and words.words[mention.start].gap == "-"
                and _is_non(words, mention.start)
            )
        ):
            negated.add(mention)
    return negated


def _is_non(words: Words, start: int) -> bool:
    return words.words[start - 1].form == "non"


def _reached(words: Words, place: int, reached: Sequence[Mention]) -> list[Mention]:
    """Of the mentions behind a denial in its part: the first, and those joined to it.

    A comma ends it, unless it opens a remark ("not, as many think, Paris") or what it divides is
    joined further on by "or" ("not Paris, Lyon or Rome").
    """
    if not reached:
        return []
    first = reached[0]
    commas = sum(is_soft(words, i) for i in range(place, first.start + 1))
    if commas and not (commas >= 2 and is_soft(words, place)):
        return []
    chain = [first]
    chosen = words.words[place - 1].form == "neither"
    for mention in reached[1:]:
        between = [word.form for word in words.words[chain[-1].stop : mention.start]]
        if not _ARTICLES.issuperset(between) or not (between or is_soft(words, mention.start)):
            break
        chosen = chosen or bool({"or", "nor", "and"} & {*between})
        chain.append(mention)
    following = words.words[chain[-1].stop : chain[-1].stop + 1]
    chosen = chosen or bool(following and following[0].form in ("or", "nor"))
    return chain if chosen else chain[:1]


def asked(words: Words, clauses: Clauses, known: Sequence[Mention]) -> set[Mention]:
    """Mentions in a question that is not affirmed ("Is it Paris?") or is denied ("Paris? No.")."""
    questioned = set()
    for mention in known:
        sentence = clauses.sentence[mention.start]
        if sentence not in clauses.questions:
            continue
        reply = _reply(words, clauses, mention)
        if reply in NO or (sentence in clauses.asking and reply not in AFFIRMING):
            questioned.add(mention)
    return questioned


def _reply(words: Words, clauses: Clauses, mention: Mention) -> str:
    """The word behind a question, if it affirms or denies; not the "no" of "no idea"."""
    sentence = clauses.sentence[mention.start]
    place = mention.stop
    while place < len(words.words) and clauses.sentence[place] == sentence:
        place += 1
    if place == len(words.words):
        return ""
    alone = place + 1 == len(words.words) or words.gap(place + 1).strip() != ""
    form = words.words[place].form
    if is_that_wrong(words, clauses, place):
        return "no"
    return form if alone or form in AFFIRMING else ""


def bounding(words: Words, known: Sequence[Mention]) -> set[Mention]:
    """Numbers and dates that bound what is meant: "before 1889", "more than 300"."""
    bounded = set()
    taken = {i for mention in known for i in range(mention.start, mention.stop)}
    for mention in known:
        if _is_choice(words, mention, taken):
            bounded.add(mention)
        before = mention.start - 1
        while before >= 0 and words.words[before].form in ("the", "year"):
            before -= 1
        if words.words[mention.start].quantity is not None and before >= 0:
            near = not any(ends(words, i) for i in range(before + 1, mention.start + 1))
            if near and words.words[before].form in BOUNDING:
                bounded.add(mention)
    return bounded


def _is_choice(words: Words, mention: Mention, taken: set[int]) -> bool:
    """Whether "or" joins a number to one that is in no list: "1888 or 1889" says neither.

    The same in another unit, as in "330 metres or 1,083 feet", is no choice.
    """
    said = words.words[mention.start].quantity
    if not isinstance(said, Number):
        return False
    for joint, other in (
        (mention.start - 1, mention.start - 2),
        (mention.stop, mention.stop + 1),
    ):
        if joint < len(words.words) and words.gap(max(joint, mention.start)).strip() == "/":
            other = joint  # "1889/1890"
        elif not 0 <= other < len(words.words) or words.words[joint].form not in CHOOSING:
            continue
        if other < joint and other not in taken and is_unit(words.words[other].form):
            other -= 1
        rival = words.words[other].quantity
        alike = isinstance(rival, Number) and (
            said.kind == rival.kind or None in (said.kind, rival.kind)
        )
        if other not in taken and alike:
            return True
    return False


def beside(
    words: Words, clauses: Clauses, known: Sequence[Mention], *, located: bool
) -> set[Mention]:
    """Mentions that something else is said of, and that count where nothing else is said.

    Parameters
    ----------
    words : Words
    clauses : Clauses
    known : sequence of Mention
    located : bool
        Whether a place where something is ("in Paris") is such a mention.
    """
    aside: set[Mention] = set()
    previous: Mention | None = None
    supposes = any(word.form == "if" for word in words.words)
    parts = clauses.forms_in(words)
    for mention in known:
        listed = previous in aside and previous is not None and previous.stop == mention.start
        if (
            (
                clauses.sentence[mention.start] in clauses.questions
                and _reply(words, clauses, mention) not in AFFIRMING
            )
            or (supposes and _supposed(words, mention.start))
            or _remarked(words, clauses, mention, parts[clauses.of[mention.start]])
            or (located and _is_place(words, clauses.first(mention.start), mention.start))
            or (located and listed and is_soft(words, mention.start))
            or (located and _owns(words, mention))
            or _has_something(words, mention)
        ):
            aside.add(mention)
        previous = mention
    return aside


def _supposed(words: Words, start: int) -> bool:
    """Whether a sentence says what would be so if something else were."""
    first, stop = start, start + 1
    while first and not ends(words, first):
        first -= 1
    while stop < len(words.words) and not ends(words, stop):
        stop += 1
    forms = {word.form for word in words.words[first:stop]}
    if {"if", "were"} <= forms:
        return True
    condition = next((i for i in range(first, stop - 1) if words.words[i].form == "if"), None)
    mine = condition is not None and words.words[condition + 1].form == "i"  # "if I had to guess"
    return {"if", "was"} <= forms and bool(forms & {"would", "id"}) and not mine


def _left(words: Words, mention: Mention) -> bool:
    """Whether a mention is what was before: "Bonn until 1990", "from Bonn to Berlin"."""
    behind = words.words[mention.stop].form if mention.stop < len(words.words) else ""
    before = words.words[mention.start - 1].form if mention.start else ""
    return behind in ("until", "till") or (before == "from" and behind == "to")


def _remarked(words: Words, clauses: Clauses, mention: Mention, part: frozenset[str]) -> bool:
    """Whether what stands before a mention, or in its part, says that it is beside the point."""
    start = mention.start
    first = clauses.first(start)
    if _concedes(words, first, start) or ("i" not in part and _reported(part)):
        return True
    if words.words[first].form == "and" and _goes_on_conceding(words, clauses, first):
        return True
    if first and words.words[first].form in RELATIVE and not ends(words, first):
        earlier = clauses.first(first - 1)
        if _concedes(words, earlier, first):
            return True
    before = start - 1
    while before >= first and words.words[before].form in ("the", "a", "an", "from", "to"):
        before -= 1
    ahead = [word.form for word in words.words[max(first, before - 1) : before + 1]]
    return (
        (bool(ahead) and ahead[-1] in BESIDE)
        or _left(words, mention)
        or (ahead[-1:] == ["of"] and bool({*ahead[:-1]} & DIRECTION_OF))
        or any(said_at(words, start - width, BESIDE_PHRASES) == width for width in (2, 3))
    )


def _reported(part: frozenset[str]) -> bool:
    """Whether a part says what others say: "many think it is Rome"."""
    return bool(part & REPORTING) or bool(part & REPORTERS and part & SAYING)


def _goes_on_conceding(words: Words, clauses: Clauses, first: int) -> bool:
    """Whether a part that "and" opens goes on with "although A is ... and B is ..."."""
    while first and words.words[first].form == "and" and not ends(words, first):
        first = clauses.first(first - 1)
    return words.words[first].form in CONCEDING


def _concedes(words: Words, first: int, start: int) -> bool:
    """Whether the part of a mention, or "and" in it, opens with "although" or the like."""
    opening = [word.form for word in words.words[first : min(start, first + 2)]]
    if opening[:1] and opening[0] in ("and", "but"):
        opening = opening[1:]
    return bool(opening) and opening[0] in CONCEDING


def _owns(words: Words, mention: Mention) -> bool:
    """Whether a mention is the owner of what follows: "Paris's", "パリの"."""
    glued = mention.stop < len(words.words) and words.gap(mention.stop) == ""
    if glued and words.words[mention.stop].form in ("の", "的"):
        return True
    return words.words[mention.stop - 1].surface.lower().endswith("'s")


def _has_something(words: Words, mention: Mention) -> bool:
    """Whether something of a mention is said, not that it is something: "Rome's rival"."""
    following = words.words[mention.stop : mention.stop + 1]
    owns = words.words[mention.stop - 1].surface.lower().endswith("'s") and bool(following)
    return owns and following[0].gap == " " and following[0].form not in ANSWERING | VERBS


def _is_place(words: Words, first: int, start: int) -> bool:
    """Whether "in", or "in the capital city of", leads to a mention."""
    before = start - 1
    while before >= first and words.words[before].form in ON_THE_WAY:
        before -= 1
    return before >= first and words.words[before].form in LOCATING


def joined_by(words: Words, first: Mention, second: Mention) -> bool:
    """Whether "or", "and" or a slash stands between two mentions, or each has a line."""
    between = {word.form for word in words.words[first.stop : second.start]}
    gaps = [words.gap(i) for i in range(first.stop, second.start + 1)]
    return (
        bool(between & JOINING)
        or any("/" in gap or "\n" in gap for gap in gaps)
        or text_between(words, first, second) in JOINING_TEXTS
    )


def text_between(words: Words, first: Mention, second: Mention) -> str:
    """What stands between two mentions."""
    return words.text[words.words[first.stop - 1].end : words.words[second.start].start].strip()
