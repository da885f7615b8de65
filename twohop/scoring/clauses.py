"""Where the parts of an answer begin and end: sentences, and what stands between commas."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from twohop.scoring.vocabulary import ABBREVIATED, ASKING, CLAUSES, CONCEDING, NOW, VERBS
from twohop.scoring.words import Words, said_at

_ENDS = re.compile(r"[!?;\n:]|\.(?=[\s\"')\]}*]|$)|--|\s-\s")
_SENTENCE_ENDS = re.compile(r"[!?\n]|\.(?=[\s\"')\]}*]|$)")
_SOFT = re.compile(r"[,()]")


@dataclass(frozen=True)
class Clauses:
    """The parts of a text, by the numbers of its words.

    Attributes
    ----------
    of : tuple of int
        The part each word is in.
    sentence : tuple of int
        The sentence each word is in.
    spans : tuple of (int, int)
        First word of each part, and the one behind its last.
    questions : frozenset of int
        Sentences that end with a question mark.
    asking : frozenset of int
        Those of them that begin as a question does.
    """

    of: tuple[int, ...]
    sentence: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    questions: frozenset[int]
    asking: frozenset[int]

    def first(self, place: int) -> int:
        """First word of the part that a word is in."""
        return self.spans[self.of[place]][0]

    def words_in(self, words: Words, number: int) -> Sequence[str]:
        """Forms of the words of a part."""
        start, stop = self.spans[number]
        return [one.form for one in words.words[start:stop]]


def ends(words: Words, place: int, pattern: re.Pattern[str] = _ENDS) -> bool:
    """Whether something ends before a word; the point of an abbreviation ends nothing."""
    gap = words.gap(place)
    if place and gap.startswith("."):
        before = words.words[place - 1].form
        if before in ABBREVIATED or (len(before) == 1 and before.isalpha()):
            gap = gap[1:]
    return pattern.search(gap) is not None


def is_soft(words: Words, place: int) -> bool:
    """Whether a comma or a bracket stands before a word."""
    return _SOFT.search(words.gap(place)) is not None


def clauses_of(words: Words) -> Clauses:
    """Split a text into sentences and these into parts.

    A comma, or "and", divides where there is a verb on both sides or the first part concedes
    ("although ...").
    """
    count = len(words.words)
    starts = [0]
    sentences = [0]
    concedes = count > 0 and words.words[0].form in CONCEDING
    for place in range(1, count):
        form = words.words[place].form
        if ends(words, place, _SENTENCE_ENDS):
            sentences.append(place)
        wholly = form == "but" and words.words[place - 1].form in ("anything", "nothing")
        hard = ends(words, place) or (form in CLAUSES and not wholly)
        hard = hard or (is_soft(words, place) and said_at(words, place, NOW) > 0)
        soft = is_soft(words, place) or form == "and"
        opens_bracket = "(" in words.gap(place)
        ceded = concedes and not opens_bracket
        if hard or (soft and (ceded or _divides(words, starts[-1], place))):
            starts.append(place)
            # "although A is ... and B is ..." goes on conceding.
            concedes = form in CONCEDING or (form == "and" and concedes and not hard)
    of = [0] * count
    spans = list(zip(starts, [*starts[1:], count], strict=True))
    for number, (start, stop) in enumerate(spans):
        of[start:stop] = [number] * (stop - start)
    sentence = [0] * count
    questions, asking = set(), set()
    for number, (start, stop) in enumerate(zip(sentences, [*sentences[1:], count], strict=True)):
        sentence[start:stop] = [number] * (stop - start)
        if "?" in words.gap(stop).split("\n")[0]:
            questions.add(number)
            opening = {start} | {i for i in range(start, stop) if ":" in words.gap(i)}
            if any(words.words[i].form in ASKING for i in opening):
                asking.add(number)
    return Clauses(
        tuple(of), tuple(sentence), tuple(spans), frozenset(questions), frozenset(asking)
    )


def _divides(words: Words, start: int, place: int) -> bool:
    """Whether a comma or "and" before a word divides the part that began at ``start``."""
    before = {one.form for one in words.words[start:place]}
    if not before & VERBS:
        return False
    for following in range(place, len(words.words)):
        if following > place and (is_soft(words, following) or ends(words, following)):
            return False
        if words.words[following].form in VERBS:
            return True
    return False
