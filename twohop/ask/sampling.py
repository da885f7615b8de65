"""Samples of groups: as many of each as can be, or of each in proportion to its size."""

from collections.abc import Sequence

import numpy as np


def in_turns(groups: Sequence[Sequence[int]], limit: int) -> list[int]:
    """At most ``limit`` members, taken from the groups in turn, the first of each first; sorted.

    Examples
    --------
    >>> in_turns([[5, 1, 3], [2]], 3)
    [1, 2, 5]
    """
    longest = max(map(len, groups), default=0)
    order = [group[turn] for turn in range(longest) for group in groups if turn < len(group)]
    return sorted(order[:limit])


def in_proportion(groups: Sequence[Sequence[int]], limit: int, *, seed: int) -> list[int]:
    """At most ``limit`` members, of each group its part of them, the first of each first; sorted.

    Each member is as likely to be in as any other, whatever its group, if the order within the
    groups is random: a mean over the sample is one over all members. Where in a group the counting
    begins is drawn (systematic sampling), so that small groups have their part too.

    Examples
    --------
    >>> in_proportion([[0, 1, 2, 3, 4, 5], [6, 7]], 4, seed=0)
    [0, 1, 2, 6]
    """
    generator = np.random.default_rng(seed)
    order = sorted(
        ((turn + start) / len(group), member)
        for group, start in zip(groups, generator.random(len(groups)), strict=True)
        for turn, member in enumerate(group)
    )
    return sorted(member for _, member in order[:limit])
