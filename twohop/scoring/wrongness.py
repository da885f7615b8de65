"""Which names an answer itself calls wrong: "Rome (incorrect)", "that it is Rome is false"."""

from twohop.scoring.clauses import Clauses, ends, is_soft
from twohop.scoring.mentions import Mention
from twohop.scoring.vocabulary import DENIED_ASIDE, GUESSES, IS_NOT, OTHERS, WRONG
from twohop.scoring.words import Words, said_at

_REACH = 14  # words between a name and what is said of it


def is_not(words: Words, mention: Mention) -> bool:
    """Whether "'s not" or only "is not" is said: "Rome's not the capital", "Rome isn't"."""
    if words.words[mention.stop - 1].surface.lower().endswith("'s"):
        return [word.form for word in words.words[mention.stop : mention.stop + 1]] == ["not"]
    over = mention.stop + said_at(words, mention.stop, IS_NOT)
    alone = over == len(words.words) or is_soft(words, over) or ends(words, over)
    return over > mention.stop and alone


def said_to_be_wrong(words: Words, mention: Mention, taken: frozenset[int]) -> bool:
    """Whether a statement about a mention ends with "wrong": "that Paris is it is false"."""
    place = mention.stop
    while place < len(words.words) and words.words[place].form not in WRONG:
        between = words.words[place].form in OTHERS or place in taken
        if between or ends(words, place) or place >= mention.stop + _REACH:
            return False
        place += 1
    if place == len(words.words) or ends(words, place) or place == mention.stop:
        return False
    place += 1
    while place < len(words.words) and words.words[place].form in GUESSES:
        place += 1
    return place == len(words.words) or ends(words, place) or is_soft(words, place)


def called_wrong(words: Words, mention: Mention) -> bool:
    """Whether a bracket or a part behind a mention says so, or a label: "Wrong: Rome"."""
    behind = mention.stop
    width = said_at(words, behind, DENIED_ASIDE) if is_soft(words, behind) else 0
    over = behind + width
    if width and (over == len(words.words) or is_soft(words, over) or ends(words, over)):
        return True
    label = words.words[mention.start - 1].form if mention.start else ""
    return label in WRONG and words.gap(mention.start).strip(" *").startswith(":")


def is_that_wrong(words: Words, clauses: Clauses, place: int) -> bool:
    """Whether a sentence says no more than "that's wrong"."""
    sentence = clauses.sentence[place]
    said = []
    while place < len(words.words) and clauses.sentence[place] == sentence and len(said) < 4:
        said.append(words.words[place].form)
        place += 1
    return said[-1] in WRONG and {*said[:-1]} <= {"that", "thats", "is", "this", "it", "its"}
