"""Samples that have as many of each group as can be."""

from collections.abc import Sequence


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
