"""Items of several relations, in any order: what comes back is each item's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import interventions as iv
from twohop.ask.on_server import Progress, Tick
from twohop.ask.questions import Questions, draw_rivals, side_by_side
from twohop.ask.study import Study
from twohop.micro.benchmark import benchmark

ITEMS = benchmark().items


@pytest.fixture(scope="module")
def study(llm: iv.Model) -> Study:
    return Study(llm, llm, benchmark())


def spoken(model: iv.Model, prompt: iv.Prompt, sizes: list[int], *, tick: Tick) -> list[str]:
    """What stands in each row of a prompt."""
    tick(sum(sizes))
    return list(prompt.texts)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, len(ITEMS) - 1), max_size=9, unique=True),
    st.integers(0, 4),
    st.sampled_from([None, 1, 2]),
)
def test_results_are_in_the_order_of_the_items(
    study: Study, rows: list[int], passes: int, most: int | None
) -> None:
    expected: list[int] = []
    ticks: list[int] = []
    told = Study(
        study.vlm, study.backbone, study.benchmark, progress=Progress(expected.append, ticks.append)
    )
    questions = Questions(told, [ITEMS[i] for i in rows])
    texts = questions.map(
        spoken,
        lambda part: (questions.named(study.vlm, part), [passes] * len(part)),
        model=study.vlm,
        passes=passes,
        most=most,
    )
    templates = study.benchmark.templates
    assert texts == [templates[item.relation].fill(item.entity.name) for item in questions.items]
    assert sum(ticks) == sum(expected) == passes * len(rows)
    for part in questions.parts(most):
        assert len({questions.items[i].relation for i in part}) == 1
        assert most is None or len(part) <= most
    assert sorted(i for part in questions.parts(most) for i in part) == [*range(len(rows))]


def test_pictures_of_other_views_are_asked_apart(study: Study) -> None:
    questions = Questions(study, ITEMS[:4] * 2, [0] * 4 + [2] * 4)
    assert all(i < 4 for part in questions.parts()[: len(questions.parts()) // 2] for i in part)
    assert len({*map(tuple, questions.parts())}) == 2 * len({item.relation for item in ITEMS[:4]})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(ITEMS) - 1), max_size=9, unique=True))
def test_rivals_are_drawn_once_and_can_be_told_apart(study: Study, rows: list[int]) -> None:
    questions = Questions(study, [ITEMS[i] for i in rows])
    assert questions.rivals is questions.rivals
    assert questions.rivals == draw_rivals(study, questions.items)
    for item, rival, other, told in zip(
        questions.items,
        questions.rivals,
        questions.others.items,
        questions.has_rival,
        strict=True,
    ):
        assert told == (rival is not None)
        assert other == (rival or item)
        if rival is not None:
            assert rival.relation == item.relation
            assert rival.entity != item.entity
            assert {*rival.answers}.isdisjoint(item.answers)


def test_an_answer_follows_the_rival_whose_answer_it_is(study: Study) -> None:
    questions = Questions(study, ITEMS[:6])
    theirs = questions.follows([item.answers[0] for item in questions.others.items])
    assert np.array_equal(theirs, np.where(questions.has_rival, 1.0, np.nan), equal_nan=True)
    own = questions.score([item.answers[0] for item in questions.items])
    assert own.right.all()
    assert not own.choice_right.any(), "no choice was made"
    assert not np.nansum(questions.follows(own.texts))


def test_nothing_is_an_array_of_no_items() -> None:
    assert side_by_side([], (3, 2), dtype=bool).shape == (3, 2, 0)
    assert side_by_side([], (3,), dtype=bool).dtype == bool
    found = side_by_side([np.arange(2), np.arange(2) + 5], (2,))
    assert found.tolist() == [[0, 5], [1, 6]]
    assert found.flags["C_CONTIGUOUS"]
