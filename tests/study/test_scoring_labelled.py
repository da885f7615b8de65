"""Answers that were judged by hand, before the scorer was run on them."""

import json
from pathlib import Path

import pytest

from twohop.flags import data
from twohop.scoring import OUTCOMES, names_it, normalise, outcome
from twohop.scoring.confusion import Labelled, read_labelled, tables

FOLDER = Path(__file__).parents[1] / "scoring"
DOCS = Path(__file__).parents[2] / "docs" / "scoring.md"
LABELLED = read_labelled(FOLDER / "answers.jsonl")
KNOWN_MISSES = {
    # What only the question could tell: 1865 is a year, and "1865 years" is none; a capital is no
    # largest city.
    "1865 years",
    "Sydney's the biggest, Canberra's the capital.",
    # What refers back, and a word that belongs to two.
    "Sydney? Canberra? Probably the latter.",
    "in the late 19th or early 20th century",
    "It's less likely to be Rome than Paris.",
    # Whose answer is meant, words within a name, and "no" in a language that English has too.
    "Correct answer: Paris. Your answer: Rome.",
    "Queen Elizabeth the Second",
    "Madrid, no Barcelona",
    # Again only the question could tell.
    "Sydney is the largest city, however Canberra is the capital.",
    "It was started in 1886 and completed in 1889.",
    "The capital was Bonn before; since 1990 it has been Berlin.",
    # A short accepted name beside a word that makes it another person or thing: in no list.
    "George Washington",
    "Michelle Obama",
    "Leonardo DiCaprio",
    "Washington State",
    "Paris Hilton",
    "Disneyland Paris",
    "University of Paris",
    "The Paris of the East",
    # The surname first: "Bissau, Guinea" is no name turned round.
    "Obama, Barack",
    "Austen, Jane",
    "Saint-Exupéry, Antoine de",
    # Halves in words, two denials in one, signs, and two names of which one describes the other.
    "five and a half million",
    "I can't think of anything other than Paris.",
    "Rome ❌ Paris ✅",
    "a student of Rembrandt named Johannes Vermeer",
    "The successor of George W. Bush: Barack Obama",
    # Denials that come late, reach far, or are no word of denial.
    "Rome is a capital, but not of France.",
    "It would be wrong to say that the capital of the country whose flag is shown in this picture "
    "is Paris.",
    "Hardly Paris.",
}


def test_the_labelled_answers_are_many_and_of_every_verdict() -> None:
    assert len(LABELLED) >= 1000
    assert {one.verdict for one in LABELLED} == set(OUTCOMES)
    assert len({(one.answer, one.accepted, one.names) for one in LABELLED}) == len(LABELLED)


@pytest.mark.parametrize("kind", sorted({one.kind for one in LABELLED}))
def test_the_scorer_agrees_with_people(kind: str) -> None:
    some = [one for one in LABELLED if one.kind == kind]
    missed = [(one, one.scored()) for one in some if one.scored() != one.verdict]
    assert [pair for pair in missed if pair[0].answer not in KNOWN_MISSES] == []


def test_known_misses_are_still_missed() -> None:
    assert {one.answer for one in LABELLED if one.scored() != one.verdict} == KNOWN_MISSES


NAMED = [json.loads(line) for line in (FOLDER / "names.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in NAMED}))
def test_what_a_picture_shows_is_named(kind: str) -> None:
    for row in NAMED:
        if row["kind"] == kind:
            found = names_it(row["answer"], names=row["names"], others=row["others"])
            assert found == row["named"], row


def test_the_tables_in_the_documentation_are_those_of_the_scorer() -> None:
    _, _, behind = DOCS.read_text(encoding="utf-8").partition("<!-- tables -->\n")
    assert behind.partition("\n<!-- /tables -->")[0] == tables(LABELLED)


def test_tables_count_what_is_wrong_too() -> None:
    missed = Labelled("Paris", ("Paris",), (), (), "other", "echo", "made up")
    assert "| other | 1 | 0 | 0 | 0 | 0 |" in tables([missed])
    assert "| made up | 1 | 0 | 0 |" in tables([missed])


RIGHT = (
    "{answer}",
    "The {relation} of {name} is {answer}.",
    "{name}'s {relation} is {answer}.",
    "{answer} is the {relation} of {name}.",
    "It is not {other}, it is {answer}.",
    "{other}? No, {answer}.",
    "The {relation} of this country is {answer}. It is lovely.",
    "**{answer}**",
    "I'm not sure, but I think it's {answer}.",
    "This is the flag of {name}. Its {relation} is {answer}.",
    "{answer}, {name}",
    "It is {answer}, not {other}.",
    "In {name}, the {relation} is {answer}.",
)
SAME_TYPE = (
    "The {relation} of {name} is {other}.",
    "It is not {answer}, it is {other}.",
    "{answer} or {other}",
    "{other}, {answer}",
    "{answer}? No, {other}.",
    "{other}, not {answer}",
)
OTHER = ("It is not {answer}.", "I don't think it is {answer}.", "I don't know if it is {answer}.")


@pytest.mark.parametrize("relation", data.RELATIONS)
def test_every_embedded_fact_is_scored_in_every_sentence(relation: data.Relation) -> None:
    answer_set = sorted({data.fact(one.code, relation).answers[0] for one in data.entities()})
    for number, entity in enumerate(data.entities()):
        answers = data.fact(entity.code, relation).answers
        rivals = [one for one in answer_set if one not in answers]
        other = rivals[number % len(rivals)]
        for answer in answers:
            for verdict, sentences in (
                ("right", RIGHT),
                ("same_type", SAME_TYPE),
                ("other", OTHER),
            ):
                for sentence in sentences:
                    text = sentence.format(
                        relation=relation, name=entity.name, answer=answer, other=other
                    )
                    found = outcome(
                        text,
                        answers=answers,
                        names=(entity.name, *entity.aliases),
                        answer_set=answer_set,
                    )
                    assert found == verdict, text


def test_every_country_is_named_by_its_own_names_alone() -> None:
    everyone = [name for one in data.entities() for name in (one.name, *one.aliases)]
    for entity in data.entities():
        own = (entity.name, *entity.aliases)
        for name in own:
            assert names_it(f"This is the flag of {name}.", names=own, others=everyone), name
            assert not names_it(f"This is not {name}.", names=own, others=everyone), name
        for other in data.entities()[::7]:
            if other != entity:
                assert not names_it(other.name, names=own, others=everyone), (own, other)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("København", "Kobenhavn"),
        ("Łódź", "LODZ"),
        ("Washington, D.C.", "Washington DC"),
        ("St. John’s", "Saint John's"),
        ("the U.S.A.", "USA"),
        ("1,000", "1000"),
        ("１０００", "1000"),
        ("Port–au–Prince", "Port-au-Prince"),
        ("14 July 1789", "July 14th, 1789"),
        ("三国", "三国"),
        ("Ａthens", "athens"),
        ("Straße", "STRASSE"),
        ("ΑΘΗΝΑ", "Αθήνα"),
    ],
)
def test_names_that_are_one(first: str, second: str) -> None:
    assert normalise(first) == normalise(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Tromsø", "Troms"),
        ("巴黎", "Bali"),
        ("1889", "1,8890"),
        ("C++", "C#"),
        ("Niger", "Nigeria"),
        ("Москва", "Moskva"),
        ("दिल्ली", "दिल्ला"),
        ("-3", "3"),
        ("10", "10.5"),
        ("京", "東京"),
    ],
)
def test_names_that_are_two(first: str, second: str) -> None:
    assert normalise(first) != normalise(second)
