"""Samples of items: of what a share of them is one."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twohop.ask.sampling import in_proportion, in_turns
from twohop.errors import ProtocolError
from twohop.micro.benchmark import benchmark
from twohop.protocol import LEAST_RESAMPLES, Protocol
from twohop.report.contrasts import contrast, family, smallest_shown
from twohop.stages.windows import known_items, representative_items


def test_a_share_of_a_sample_is_one_of_all() -> None:
    """One relation gives back a tenth of 1,000, another nine tenths of 100: 17 % of all."""
    groups = [[*range(1000)], [*range(1000, 1100)]]
    back = np.array([0.1] * 1000 + [0.9] * 100)
    drawn = [back[in_proportion(groups, 60, seed=seed)].mean() for seed in range(200)]
    assert np.mean(drawn) == pytest.approx(back.mean(), abs=0.003)
    assert max(drawn) - min(drawn) < 0.03, "of each sample, not on average alone"
    assert back[in_turns(groups, 60)].mean() == pytest.approx(0.5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100), st.integers(0, 9))
def test_each_group_has_its_part(sizes: list[int], limit: int, seed: int) -> None:
    ends = np.cumsum([0, *sizes])
    groups = [[*range(start, stop)] for start, stop in pairwise(ends)]
    picked = in_proportion(groups, limit, seed=seed)
    assert picked == sorted(set(picked))
    assert len(picked) == min(limit, sum(sizes))
    total = max(sum(sizes), 1)
    for group in groups:
        part = len({*picked} & {*group}) - len(group) * len(picked) / total
        assert abs(part) <= 1 + len(group) * len(groups) / total


def test_small_groups_are_as_likely_as_large_ones() -> None:
    groups = [[*range(90)], *([i] for i in range(90, 100))]
    counts = np.zeros(100)
    for seed in range(2000):
        for member in in_proportion(groups, 20, seed=seed):
            counts[member] += 1 / 2000
    assert counts[90:].mean() == pytest.approx(0.2, abs=0.02)


def test_items_are_drawn_of_the_chosen_ones() -> None:
    items = benchmark().items
    relation = np.array([item.relation for item in items])
    luck = np.random.default_rng(0).random(len(items))
    chosen = luck < np.where(relation == relation[0], 0.9, 0.3)
    share = np.mean(relation[chosen] == relation[0])
    for limit in (12, 24, 10_000):
        drawn = representative_items(items, chosen, seed=1, limit=limit)
        assert len(drawn) == min(limit, chosen.sum())
        assert {item.id for item in drawn} <= {items[i].id for i in np.flatnonzero(chosen)}
        of_first = np.mean([item.relation == relation[0] for item in drawn])
        assert of_first == pytest.approx(share, abs=2 / len(drawn))
    even = known_items(items, chosen, seed=1, limit=12)
    assert np.mean([item.relation == relation[0] for item in even]) < share


def test_the_smallest_difference_has_the_correction_in_it() -> None:
    """Of nine contrasts together, what one by itself would show is not enough."""
    rng = np.random.default_rng(0)
    entities = [f"entity {i // 3}" for i in range(120)]
    arms = {name: (rng.random(120) < 0.3).astype(float) for name in "abcd"}
    pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    compared = family([contrast(f"{pair}", arms, pair, entities, seed=0) for pair in pairs])
    for each in compared:
        alone = smallest_shown(each.difference)
        assert alone < each.smallest == smallest_shown(each.difference, together=len(pairs))
    [by_itself] = family([contrast("alone", arms, ("a", "b"), entities, seed=0)])
    assert by_itself.smallest == smallest_shown(by_itself.difference)
    assert np.isnan(family([contrast("none", arms, ("a", "z"), entities, seed=0)])[0].smallest)


@pytest.mark.parametrize("name", ["resamples", "gate_resamples", "agreement_resamples"])
def test_an_interval_takes_resamples_beyond_its_ends(name: str) -> None:
    few: dict[str, Any] = {name: LEAST_RESAMPLES - 1}
    with pytest.raises(ProtocolError, match=f"{LEAST_RESAMPLES} or more"):
        Protocol(**few)
