"""What a comparison says: which pairs lose recall, and whether lateness goes with it."""

from collections.abc import Sequence

from twohop.report import wording
from twohop.report.association import LEAST_PAIRS, Association
from twohop.report.comparison import by_class, runs_of
from twohop.report.estimates import bounds, hundredths, p_value
from twohop.report.replicates import Against, Pair, gap_against, pairs_of, placed
from twohop.report.table import Summary


def lead_sentence(summaries: Sequence[Summary]) -> str:
    """How many pairs lose recall from the image, by class, and whether lateness goes with it."""
    classes = by_class(summaries)
    pairs = pairs_of(classes)
    counts = ", ".join(
        f"{wording.ARCHITECTURES[kind]} {sum(pair.loses for pair in mine)} of {len(mine)}"
        for kind in classes
        if (mine := [pair for pair in pairs if pair.kind == kind])
    )
    runs = len(runs_of(classes))
    several = f", in {runs} runs," if runs > len(pairs) else ""
    tested = sum(pair.mean("gap_points").measured for pair in pairs)
    corrected = f"; corrected for {tested} tests" if tested > 1 else ""
    sentences = [
        f"{sum(pair.loses for pair in pairs)} of {_pairs(len(pairs))}{several} clearly "
        f"{'loses' if len(pairs) == 1 else 'lose'} recall from the image ({counts}{corrected})."
    ]
    sentences += [_said(pairs, against) for against in gap_against(pairs).values()]
    return " ".join(sentences)


def _pairs(n: int) -> str:
    return f"{n} pair" if n == 1 else f"{n} pairs"


def _said(pairs: list[Pair], against: Against) -> str:
    """One sentence about what the gap was held against."""
    name, n = wording.AGAINST[against.key], len(placed(pairs, against.key))
    if n < LEAST_PAIRS:
        missing = "" if n else ", where it is not measured"
        return (
            f"Whether the gap goes with the {name} is not claimed: {_pairs(n)}{missing}, and fewer "
            f"than {LEAST_PAIRS} cannot say."
        )
    overall = against.overall
    if not overall.slope.measured:
        return f"The {name}, or the gap, is the same in all of {_pairs(n)}."
    numbers = (
        f"{slope_text(overall)} points for each point of it, rank correlation "
        f"{hundredths(overall.spearman.value)} {bounds(overall.spearman, 'correlation')}, "
        f"{_p(overall)}"
    )
    if not overall.shown:
        return f"Over {_pairs(n)} the gap is not shown to go with the {name} ({numbers})."
    how = "grows" if overall.spearman.value > 0 else "shrinks"
    return f"Over {_pairs(n)} the gap {how} with the {name} ({numbers})."


def slope_text(of: Association) -> str:
    """Write a slope with its interval.

    Examples
    --------
    >>> from twohop.statistics import Estimate
    >>> slope = Estimate(0.5, -0.25, 1.25, 6)
    >>> slope_text(Association("", slope, slope, slope))
    '0.50 [−0.25, 1.25]'
    """
    return f"{hundredths(of.slope.value)} {bounds(of.slope, 'correlation')}"


def _p(of: Association) -> str:
    return f"{p_value(of.p_holm)} after correction"
