"""What no verdict depends on, for any of the labelled answers and any text."""

import re
import unicodedata
from datetime import date
from pathlib import Path

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from twohop.scoring import OUTCOMES, names_it, normalise, outcome
from twohop.scoring.confusion import Labelled, read_labelled

LABELLED = read_labelled(Path(__file__).parents[1] / "scoring" / "answers.jsonl")
# Where an answer is spelled with code or markup, and where case tells a name from a word, to
# change letters or what stands around them changes what is said.
_CODED = ("\\", "&", "<", "`", "[", "{", "|", "#", "~", "http", "\n", "¹")
_BY_CASE = {"Nice", "US", "Au", "C++"}
PROSE = [
    one
    for one in LABELLED
    if one.answer.strip()
    and not any(mark in one.answer for mark in _CODED)
    and not _BY_CASE & {*one.accepted, *one.names}
]
ASSERTED = [one for one in PROSE if one.verdict in ("right", "same_type")]

labelled = st.sampled_from(PROSE)
some = settings(max_examples=400, deadline=None)


def verdict(one: Labelled, answer: str) -> str:
    return outcome(answer, answers=one.accepted, names=one.names, answer_set=one.others)


@some
@given(labelled, st.sampled_from([str.upper, str.lower, str.casefold]))
def test_case(one: Labelled, change) -> None:
    changed = change(one.answer)
    # Not of dotted and dotless i, which upper case confuses.
    assume("ı" not in one.answer and "İ" not in one.answer)
    # Nor of metres: "5M" is five million to many.
    assume(not re.search(r"\d[mg]\b", one.answer))
    assert verdict(one, changed) == one.scored()


@some
@given(labelled, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_composition(one: Labelled, form) -> None:
    assert verdict(one, unicodedata.normalize(form, one.answer)) == one.scored()
    accepted = tuple(unicodedata.normalize(form, name) for name in one.accepted)
    again = outcome(one.answer, answers=accepted, names=one.names, answer_set=one.others)
    assert again == one.scored()


def stripped(text: str) -> str:
    """Without the accents of Latin letters."""
    letters = unicodedata.normalize("NFD", text)
    kept = "".join(one for one in letters if not "\u0300" <= one <= "\u036f")
    return unicodedata.normalize("NFC", kept)


@some
@given(labelled)
def test_accents(one: Labelled) -> None:
    assert verdict(one, stripped(one.answer)) == one.scored()


@some
@given(labelled, st.sampled_from("’‘ʼ＇´"), st.sampled_from("“”„«»"))
def test_typography(one: Labelled, apostrophe: str, quote: str) -> None:
    changed = one.answer.replace("'", apostrophe).replace('"', quote)
    assert verdict(one, changed) == one.scored()


@some
@given(labelled, st.sampled_from("\u2010\u2011\ufe63\uff0d"))
def test_hyphens(one: Labelled, hyphen: str) -> None:
    assert verdict(one, one.answer.replace("-", hyphen)) == one.scored()


@some
@given(
    labelled,
    st.sampled_from(["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u200f"]),
    st.integers(0, 200),
)
def test_what_is_not_seen(one: Labelled, hidden: str, place: int) -> None:
    at = place % (len(one.answer) + 1)
    assert verdict(one, one.answer[:at] + hidden + one.answer[at:]) == one.scored()


WRAPPED = ("**{}**", "*{}*", "_{}_", '"{}"', "“{}”", " {} ", "\n{}\n", "\t{}", "> {}", "- {}")
WRAPPED += ("({})", "<b>{}</b>", "{}</s>", "{}<|im_end|>", "<answer>{}</answer>", "\\text{{{}}}")
WRAPPED += ("Answer: {}", "### {}", "```\n{}\n```", "{} ", "{}\n\n")


@some
@given(labelled, st.sampled_from(WRAPPED))
def test_what_dresses_an_answer(one: Labelled, around: str) -> None:
    assume(one.verdict != "empty")
    assert verdict(one, around.format(one.answer)) == one.scored()


@some
@given(labelled, st.sampled_from([".", "!", " .", "...", " 🙂", "。"]))
def test_what_ends_an_answer(one: Labelled, end: str) -> None:
    assume(one.answer[-1] not in "?.!")
    assert verdict(one, one.answer + end) == one.scored()


UNRELATED = (
    "I hope this helps!",
    "Let me know if you have any other questions.",
    "It lies on a river and is known for its museums.",
    "Its population is large.",
    "The weather there is mild, and the food is good.",
    "This is well documented.",
    "Thank you for asking.",
)


@some
@given(st.sampled_from(ASSERTED), st.sampled_from(UNRELATED))
def test_a_further_sentence_takes_no_answer_back(one: Labelled, sentence: str) -> None:
    end = "" if one.answer.rstrip()[-1] in ".?!。" else "."
    assert verdict(one, f"{one.answer}{end} {sentence}") == one.scored()


names = st.text(min_size=1, max_size=20)


@settings(max_examples=1000, deadline=None)
@given(names)
@example("ـ")
@example("ʻ")
@example("[1]")
@example("<s>")
@example("\\alpha")
@example("The")
@example("٣")
@example("ﷺ")
@example("㊊")
@example("\u037a")
@example("﹠")
def test_a_name_is_empty_only_without_letters_and_digits(name: str) -> None:
    # As it is written, or as its compatibility form says it: "㊊" is "月", "ͺ" a letter alone.
    written = name + unicodedata.normalize("NFKC", name)
    assert bool(normalise(name)) == any(one.isalnum() for one in written) or "&" in written


@settings(max_examples=1000, deadline=None)
@given(st.text(max_size=60), st.lists(names, max_size=4), st.lists(names, max_size=4))
def test_any_text_has_a_verdict(text: str, answers: list[str], others: list[str]) -> None:
    assert outcome(text, answers=answers, names=others, answer_set=answers + others) in OUTCOMES
    assert names_it(text, names=answers, others=others) in (True, False)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=st.characters(categories=["L", "Nd"]), min_size=1, max_size=12))
def test_a_name_is_right_as_its_own_answer(name: str) -> None:
    assert outcome(name, answers=[name], names=[], answer_set=[]) == "right"


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_number_is_right_where_it_is_that_number(wanted: int, said: int) -> None:
    for written in (f"{said}", f"{said:,}", f"It is {said:,}.", f"about {said} m"):
        found = outcome(written, answers=[f"{wanted}"], names=[], answer_set=[])
        assert found == ("right" if wanted == said else "other")
    assert outcome(f"{wanted:,}", answers=[f"{wanted}"], names=[], answer_set=[]) == "right"


@settings(max_examples=300, deadline=None)
@given(st.dates(min_value=date(1000, 1, 1)))
def test_a_date_is_right_however_it_is_written(day: date) -> None:
    for written in (
        f"{day:%d %B} {day.year}",
        f"{day:%B} {day.day}, {day.year}",
        f"On the {day.day}th of {day:%B}, {day.year}",
        f"{day.year}-{day:%m-%d}",
        f"{day:%d.%m.}{day.year}",
    ):
        wanted = f"{day.day} {day:%b} {day.year}"
        assert outcome(written, answers=[wanted], names=[], answer_set=[]) == "right"
        assert outcome(f"{day.year}", answers=[wanted], names=[], answer_set=[]) == "other"
        assert outcome(written, answers=[f"{day.year}"], names=[], answer_set=[]) == "right"
