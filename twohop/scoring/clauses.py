"""Where the parts of an answer begin and end: sentences, and what stands between commas."""

import re
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

    def forms_in(self, words: Words) -> list[frozenset[str]]:
        """Forms of the words of each part."""
        return [
            frozenset(word.form for word in words.words[start:stop]) for start, stop in self.spans
        ]


def ends(words: Words, place: int, pattern: re.Pattern[str] = _ENDS) -> bool:
    """Whether something ends before a word; the point of an abbreviation ends nothing."""
    gap = words.gap(place)
    if gap == " ":  # most gaps
        return False
    if place and gap.startswith("."):
        before = words.words[place - 1].form
        if before in ABBREVIATED or (len(before) == 1 and before.isalpha()):
            gap = gap[1:]
    return pattern.search(gap) is not None


def is_soft(words: Words, place: int) -> bool:
    """Whether a comma or a bracket stands before a word."""
    gap = words.gap(place)
    return gap != " " and _SOFT.search(gap) is not None


def clauses_of(words: Words) -> Clauses:
    """Split a text into sentences and these into parts.

    A comma, or "and", divides where there is a verb on both sides or the first part concedes
    ("although ...").
    """
    count = len(words.words)
    starts = [0]
    sentences = [0]
    concedes = count > 0 and words.words[0].form in CONCEDING
    verbs_ahead = _verbs_ahead(words)
    verb_before = False
    for place in range(1, count):
        form = words.words[place].form
        verb_before = verb_before or words.words[place - 1].form in VERBS
        if ends(words, place, _SENTENCE_ENDS):
            sentences.append(place)
        wholly = form == "but" and words.words[place - 1].form in ("anything", "nothing")
        hard = ends(words, place) or (form in CLAUSES and not wholly)
        hard = hard or (is_soft(words, place) and said_at(words, place, NOW) > 0)
        soft = is_soft(words, place) or form == "and"
        opens_bracket = "(" in words.gap(place)
        ceded = concedes and not opens_bracket
        if hard or (soft and (ceded or (verb_before and verbs_ahead[place]))):
            starts.append(place)
            verb_before = False
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


def _verbs_ahead(words: Words) -> list[bool]:
    """For each word, whether a verb is it or follows it before the next comma or end."""
    ahead = [False] * (len(words.words) + 1)
    for place in range(len(words.words) - 1, -1, -1):
        goes_on = ahead[place + 1] and not (is_soft(words, place + 1) or ends(words, place + 1))
        ahead[place] = goes_on or words.words[place].form in VERBS
    return ahead
