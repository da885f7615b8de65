"""Scoring of answers, and the statistics behind every interval."""

import numpy as np
import pytest

from twohop.scoring import names_it, outcome
from twohop.statistics import difference, mcnemar, mean

CAPITALS = ["Paris", "Rome", "Kuwait City", "Niamey", "Lima"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris", "right"),
        ("It is Paris, of course", "right"),
        ("PARIS.", "right"),
        ("Parish", "other"),
        ("Rome", "same_type"),
        ("Rome or Paris", "same_type"),
        ("France", "echo"),
        ("the French Republic", "echo"),
        ("I do not know", "other"),
        ("", "empty"),
        (" ?! ", "empty"),
        ("The capital of France is Paris.", "right"),
        ("It is not Rome, it is Paris", "right"),
        ("It is not Paris.", "other"),
        ("Paris or Rome", "same_type"),
        ("Paris. Actually, no, it is Rome.", "same_type"),
        ("I don't know the capital of France.", "other"),
    ],
)
def test_outcomes(text: str, expected: str) -> None:
    names = ["France", "French Republic"]
    assert outcome(text, answers=["Paris"], names=names, answer_set=CAPITALS) == expected


def test_the_longest_name_at_a_place_counts() -> None:
    found = outcome("Kuwait City", answers=["Kuwait City"], names=["Kuwait"], answer_set=CAPITALS)
    assert found == "right"
    known = ["Niger", "Nigeria", "Guinea", "Guinea-Bissau", "Papua New Guinea"]
    assert not names_it("Nigeria", names=["Niger"], others=known)
    assert not names_it("Guinea Bissau", names=["Guinea"], others=known)
    assert not names_it("Papua New Guinea", names=["Guinea"], others=known)
    assert names_it("Guinea.", names=["Guinea"], others=known)


def test_short_answers_and_accents_count() -> None:
    assert outcome("Malé", answers=["Male"], names=["Maldives"], answer_set=[]) == "right"
    assert outcome("Lao", answers=["Lao"], names=["Laos"], answer_set=[]) == "right"


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("Nuku’alofa", "Nuku'alofa"),
        ("Port‑au‑Prince", "Port-au-Prince"),
        ("Kobenhavn", "København"),
        ("København", "Kobenhavn"),
        ("Lodz", "Łódź"),
        ("Washington, D.C.", "Washington DC"),
        ("St. John's", "Saint John's"),
        ("the U.S.A.", "USA"),
        ("1000", "1,000"),
        ("巴黎", "巴黎"),
    ],
)
def test_spellings_of_one_name_are_right(said: str, accepted: str) -> None:
    assert outcome(said, answers=[accepted], names=[], answer_set=[]) == "right"
    assert outcome(accepted, answers=[said], names=[], answer_set=[]) == "right"


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("6.7 × 10⁷", "67 million"),
        ("about 1.4×10⁹ people", "1.4 billion"),
        ("10⁹", "1 billion"),
        ("2.5 × 10⁻³", "0.0025"),
        ("67M", "67 million"),
        ("$1.4B", "1.4 billion"),
        ("643 801 KM²", "643,801 km²"),
        ("Na⁺", "Na"),
        ("Fe³⁺", "Fe"),
    ],
)
def test_raised_and_written_on_scales_are_read(said: str, accepted: str) -> None:
    assert outcome(said, answers=[accepted], names=[], answer_set=["1"]) == "right"


def test_a_small_m_behind_a_number_is_metres() -> None:
    assert outcome("67m", answers=["67 million"], names=[], answer_set=[]) == "other"
    assert outcome("67m", answers=["67 m"], names=[], answer_set=[]) == "right"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("Paris ", "right"),
        ("Paris and ", "right"),
        ("not Paris ", "other"),
        ("Paris's ", "right"),
        ("is Paris, ", "right"),
        ("<think>", "empty"),
        ("巴", "other"),
        ("1-", "other"),
    ],
)
def test_an_answer_of_20_000_characters_is_read_to_its_end(said: str, verdict: str) -> None:
    text = (said * 20_000)[:20_000]
    assert outcome(text, answers=["Paris"], names=["France"], answer_set=CAPITALS) == verdict


def test_intervals_count_entities_not_items() -> None:
    rng = np.random.default_rng(0)
    per_entity = rng.random(20) < 0.5
    values = np.repeat(per_entity, 10).astype(float)
    entities = [str(i) for i in range(20) for _ in range(10)]
    clustered = mean(values, entities)
    naive = mean(values, [str(i) for i in range(200)])
    assert clustered.value == naive.value == values.mean()
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)


def test_a_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(2)
    first = (rng.random(100) < 0.6).astype(float)
    second = first.copy()
    second[:10] = 0
    names = [str(i) for i in range(100)]
    paired = difference(first, second, names)
    assert paired.value == pytest.approx(first.mean() - second.mean())
    assert paired.low > 0
    relative = difference(first, second, names, relative=True)
    assert relative.value == pytest.approx(paired.value / first.mean())


def test_few_entities_never_give_a_narrow_interval() -> None:
    one = difference([1.0], [0.0], ["a"])
    assert one.low < 0.1 < 1 <= one.high
    assert mean([1.0, 1.0], ["a", "a"]).low < 0.1


def test_nothing_measured_is_none_not_zero() -> None:
    assert mean([], []).as_dict() == {"value": None, "low": None, "high": None, "n": 0}
    assert difference([0.0, 0.0], [0.0, 0.0], ["a", "b"], relative=True).as_dict()["value"] is None


def test_mcnemar_agrees_with_scipy() -> None:
    from scipy.stats import binomtest

    first = [True] * 12 + [False] * 3 + [True] * 5
    second = [False] * 12 + [True] * 3 + [True] * 5
    only_first, only_second, p = mcnemar(first, second)
    assert (only_first, only_second) == (12, 3)
    assert p == pytest.approx(binomtest(3, 15, 0.5).pvalue)


def test_the_interval_of_a_few_entities_stays_among_what_a_difference_of_shares_can_be() -> None:
    found = difference([1.0, 1.0, 0.0], [0.0, 0.0, 0.0], ["a", "b", "c"])
    assert -1.0 <= found.low < found.value < found.high <= 1.0
    found = difference([0.0, 0.0, 0.0], [1.0, 1.0, 0.0], ["a", "b", "c"])
    assert -1.0 <= found.low < found.value < found.high <= 1.0
