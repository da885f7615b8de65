"""What an answer asserts in the end: of all names in it, those it stands by."""

from collections.abc import Callable, Sequence

from twohop.scoring.clauses import Clauses, clauses_of, ends, is_soft
from twohop.scoring.denials import (
    asked,
    beside,
    bounding,
    denied,
    joined_by,
    text_between,
)
from twohop.scoring.mentions import Mention
from twohop.scoring.vocabulary import (
    AFTER_NO,
    ANSWERING,
    CHOOSING,
    CONTRASTING,
    CORRECTIONS,
    FINAL,
    JOINING_TEXTS,
    NOT_NEGATING,
    NOW,
    OPENING_QUESTIONS,
    TURNS,
)
from twohop.scoring.words import Words, said_at

_HEDGES = ANSWERING - {"in", "on", "at", "of", "to", "from", "with", "by", "into"}


class _Reading:
    """One answer, read from left to right."""

    def __init__(
        self, words: Words, every: Sequence[Mention], *, is_answer: Callable[[Mention], bool]
    ) -> None:
        self.words = words
        self.clauses: Clauses = clauses_of(words)
        self.answers = [mention for mention in every if is_answer(mention)]
        self.named = {
            i
            for mention in every
            if not is_answer(mention)
            for i in range(mention.start, mention.stop)
        }
        self.taken = {i for mention in every for i in range(mention.start, mention.stop)}
        self.turns = self._turns()
        self.resets = self._corrections()
        self.finals = (self._finals(), self._labels())

    def content(self, start: int, stop: int) -> set[str]:
        """Words that say something of their own."""
        forms = {i: self.words.words[i].form for i in range(start, stop) if i not in self.taken}
        return {form for form in forms.values() if form not in ANSWERING and len(form) > 1}

    def content_of(self, mention: Mention) -> set[str]:
        """What else is said in the part of a mention, and in the label before it ("Capital:")."""
        start, stop = self.clauses.spans[self.clauses.of[mention.start]]
        while start and ":" in self.words.gap(start):
            start = self.clauses.first(start - 1)
        return self.content(start, stop)

    def names_entity(self, mention: Mention) -> bool:
        """Whether the part of a mention names what was asked about."""
        start, stop = self.clauses.spans[self.clauses.of[mention.start]]
        return any(i in self.named for i in range(start, stop))

    def opens(self, place: int) -> bool:
        """Whether a word is the first of a part, or stands behind a comma."""
        return (
            place == 0
            or ends(self.words, place)
            or is_soft(self.words, place)
            or self.clauses.of[place] != self.clauses.of[place - 1]
            or "." in self.words.gap(place)
        )

    def _turns(self) -> list[int]:
        """Where another question begins, on a line of its own."""
        words = self.words
        places = []
        for place in range(1, len(words.words)):
            form = words.words[place].form
            label = form in TURNS and words.gap(place + 1).lstrip("*_ ").startswith(":")
            asks = self.clauses.sentence[place] in self.clauses.asking
            if "\n" in words.gap(place) and (label or (asks and form in OPENING_QUESTIONS)):
                places.append(place)
        return places

    def _corrections(self) -> list[int]:
        places = []
        for place in range(len(self.words.words)):
            if place in self.taken or said_at(self.words, place, NOT_NEGATING):
                continue
            corrects = said_at(self.words, place, CORRECTIONS) or self._is_no(place)
            said_but = (
                place > 0 and self.words.words[place - 1].form in CONTRASTING and self._is_no(place)
            )
            if corrects and (self.opens(place) or place - 1 in places or said_but):
                places.append(place)
        return places

    def _is_no(self, place: int) -> bool:
        """Whether a word is "no" as a sentence, not as in "no doubt" or "No. 10"."""
        words = self.words
        if words.words[place].form != "no":
            return False
        following = words.words[place + 1 : place + 2]
        if not following:
            return True
        if following[0].quantity is not None and "," not in words.gap(place + 1):
            return False
        return words.gap(place + 1).strip() != "" or following[0].form in AFTER_NO

    def _finals(self) -> list[int]:
        words = self.words
        return [
            place
            for place in range(len(words.words))
            if said_at(words, place, FINAL) or self._concludes(place)
        ]

    def _concludes(self, place: int) -> bool:
        """Whether "so" leads to an answer, and nothing but it: "so it's Paris"."""
        if self.words.words[place].form != "so" or not self.opens(place):
            return False
        mention = next((mention for mention in self.answers if mention.start > place), None)
        if mention is None:
            return False
        stop = self.clauses.spans[self.clauses.of[mention.start]][1]
        return not self.content(place + 1, stop) and not any(
            place < i < mention.start for i in self.named
        )

    def _labels(self) -> list[int]:
        words = self.words
        return [
            place
            for place, word in enumerate(words.words)
            if word.form == "answer" and ":" in words.gap(place + 1)
        ]

    def between(self, marks: Sequence[int], first: Mention, second: Mention) -> bool:
        """Whether a mark stands between two mentions."""
        return any(first.stop <= mark < second.start for mark in marks)

    def contrasts(self, head: Sequence[Mention], mention: Mention) -> bool:
        """Whether a part says what is so against what was said: "... but it is Paris"."""
        if self.clauses.of[mention.start] == self.clauses.of[head[-1].start]:
            return False
        start, stop = self.clauses.spans[self.clauses.of[mention.start]]
        opened = self.words.words[start].form in CONTRASTING or said_at(self.words, start, NOW)
        behind = self.content(mention.stop, stop) - self.content_of(head[0])
        return bool(opened) and not behind

    def answers_instead(self, head: Sequence[Mention], mention: Mention) -> bool:
        """Whether a part says of the entity what another said of something else."""
        if self.clauses.of[mention.start] == self.clauses.of[head[0].start]:
            return False
        asked_of = self.names_entity(mention) and not self.names_entity(head[0])
        return asked_of and self.content_of(mention) < self.content_of(head[0])

    def picks(self, head: Sequence[Mention], mention: Mention) -> bool:
        """Whether a later sentence says which of several it is: "A, B and C. ... is A"."""
        sentences = self.clauses.sentence
        if len(head) < 2 or all(earlier.name != mention.name for earlier in head):
            return False
        if sentences[mention.start] == sentences[head[-1].start]:
            return False
        says = mention.start and (
            self.words.words[mention.start - 1].form in ("is", "was", "ist")
            or ":" in self.words.gap(mention.start)
        )
        last = mention.stop == len(sentences) or sentences[mention.stop] != sentences[mention.start]
        return bool(says) and last

    def _counts(self, mention: Mention) -> bool:
        """Whether a mention is a number or a date."""
        return self.words.words[mention.start].quantity is not None

    def continues(self, head: Sequence[Mention], mention: Mention) -> bool:
        """Whether a mention is one more answer, and not part of a remark."""
        last = head[-1]
        between = [
            self.words.words[i].form for i in range(last.stop, mention.start) if i not in self.taken
        ]
        choice = [i for i, form in enumerate(between) if form in CHOOSING]
        if choice and _HEDGES.issuperset(between[choice[-1] :]):
            return True
        said = text_between(self.words, last, mention)
        if said in JOINING_TEXTS or (
            said.lower() == "of" and not self._counts(last)
        ):  # Dutch for "or"
            return True
        if self.clauses.of[last.start] == self.clauses.of[mention.start]:
            return _HEDGES.issuperset(between)
        return self.content_of(mention) <= self.content_of(head[0])


def asserted(
    words: Words,
    every: Sequence[Mention],
    *,
    is_answer: Callable[[Mention], bool],
    naming: bool = False,
    remarks_count: bool = True,
) -> list[Mention]:
    """Mentions of answers that a text stands by.

    Parameters
    ----------
    words : Words
    every : sequence of Mention
        All known names in the text.
    is_answer : callable
        Whether a mention would be an answer; others are what the question is about.
    naming : bool
        Names of all kinds of things are answers here. The first one counts, and others only where
        "or" or "and" puts them beside it; where something is, is no answer if anything else is.
    remarks_count : bool
        Whether what is only remarked is asserted where nothing else is.
    """
    if not every:
        return []
    reading = _Reading(words, every, is_answer=is_answer)
    clauses = reading.clauses
    refused = denied(words, clauses, every) | asked(words, clauses, every)
    refused |= bounding(words, every)
    aside = beside(words, clauses, every, located=naming)
    head: list[Mention] = []
    remarks: list[Mention] = []
    for mention in reading.answers:
        if mention in refused:
            continue
        if head and any(head[-1].stop <= turn <= mention.start for turn in reading.turns):
            break
        if mention in aside:
            remarks.append(mention)
        elif not head or _replaces(reading, head, mention):
            head = [mention]
        elif joined_by(words, head[-1], mention) if naming else True:
            head += [mention] if reading.continues(head, mention) else []
    remarks = remarks if remarks_count else []
    stood_by = head or remarks[:1] if naming else head or remarks
    if stood_by and _taken_back(reading, stood_by[-1]):
        return []
    return stood_by


def _replaces(reading: _Reading, head: Sequence[Mention], mention: Mention) -> bool:
    """Whether a mention is what is meant in place of those before it."""
    if reading.between(reading.resets, head[-1], mention):
        return True
    for marks in reading.finals:
        earlier = any(mark < head[0].start for mark in marks)
        if (len(head) > 1 or not earlier) and reading.between(marks, head[-1], mention):
            return True
    return (
        reading.contrasts(head, mention)
        or reading.answers_instead(head, mention)
        or reading.picks(head, mention)
    )


def _taken_back(reading: _Reading, last: Mention) -> bool:
    """Whether "no" follows the last of the answers, and nothing in its place."""
    place = next((i for i in reading.resets if i >= last.stop), None)
    if place is None or reading.words.words[place].form != "no":
        return False
    return not any(last.stop <= mention.start < place for mention in reading.answers)
