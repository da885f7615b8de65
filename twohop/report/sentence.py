"""The verdict in sentences: what was found, what was shown, and what so few items cannot show."""

from collections.abc import Mapping
from typing import Any

from twohop.report.effects import says
from twohop.report.estimates import written
from twohop.report.summary import whole_arm
from twohop.report.wording import VERDICTS
from twohop.stages.recovery.arms import KNOWN
from twohop.statistics import NOT_MEASURED, Estimate, estimates

LOST = ("echo_or_format", "late", "never_in_circuit", "in_time", "unexplained", "not_tested")
NOT_RIGHT = ("knowledge_missing", "not_recognised", *LOST)
"""Verdicts on items that are not right, in the order in which they are named."""
UNCLEAR = {
    "between": "read at about the deadline",
    "unknown": "read in a form of which no deadline is known",
}
BY_CHANCE = 0.5
"""The AUC of a forecast that knows nothing."""


def verdict_sentence(summary: Mapping[str, Any]) -> str:
    """Say what was found, with its numbers; claim only what a contrast showed.

    Parameters
    ----------
    summary : mapping
        From :func:`twohop.report.summary.summarise`, or as it was stored.
    """
    summary = estimates(summary)
    if not summary["gap_points"].measured:
        return f"{summary['pair']}: the gap could not be measured, as no item was recognised."
    parts = [_gap(summary), _why_lost(summary), _when(summary), _given_back(summary)]
    return " ".join(part for part in (*parts, _not_claimed(summary)) if part)


def _gap(summary: Mapping[str, Any]) -> str:
    pair, gap = summary["pair"], summary["gap_points"]
    if gap.low <= 0 <= gap.high:
        lead = f"{pair} shows no clear gap ({gap.low:.0f} to {gap.high:.0f} points"
    elif gap.value > 0:
        lead = f"{pair} loses {gap.value:.0f} points of factual recall from the image"
        lead += f" ({gap.low:.0f} to {gap.high:.0f}"
    else:
        lead = f"{pair} gains {-gap.value:.0f} points from the image"
        lead += f" ({-gap.high:.0f} to {-gap.low:.0f}"
    return f"{lead}, {gap.n} recognised items)."


def _why_lost(summary: Mapping[str, Any]) -> str:
    shares = [
        f"{_per_cent(share)} {VERDICTS[name][0]}"
        for name in NOT_RIGHT
        if (share := summary["diagnosis"].get(name, NOT_MEASURED)).value > 0
    ]
    return f"Of {summary['n_items']} items: {', '.join(shares)}." if shares else ""


def _when(summary: Mapping[str, Any]) -> str:
    """When the entity comes, and whether that tells what is lost."""
    came = summary["lateness"]
    if not came["late"].measured:
        return ""
    said = (
        f"Entities are readable in time in {_per_cent(came['early'])}, only too late in "
        f"{_per_cent(came['late'])}, and never in {_per_cent(came['never'])} of "
        f"{came['late'].n}"
    )
    unclear = [
        f"{_per_cent(share)} {what}"
        for state, what in UNCLEAR.items()
        if (share := came.get(state, NOT_MEASURED)).value > 0
    ]
    said += f"; it cannot be told of {' and '.join(unclear)}." if unclear else "."
    area = summary["prediction"].get("auc", NOT_MEASURED)
    if area.low > BY_CHANCE or area.high < BY_CHANCE:
        whose = "The backbone's" if summary["windows_vlm"]["same_as_backbone"] else "Its own text's"
        said += f" {whose} recall timetable, fitted to no answer from an image, "
        said += "tells" if area.low > BY_CHANCE else "has it the wrong way round: it tells"
        said += f" lost items from the others with an AUC of {written(area, 'correlation')}."
    return said


def _given_back(summary: Mapping[str, Any]) -> str:
    """What the contrasts show, and what the whole transplant does net of its harm."""
    shown = [
        f"{says(name)} ({written(apart, 'points')} points)"
        for name, each in summary["contrasts"].items()
        if each["shown"] and (apart := each["difference"].scaled(100)).value > 0
    ]
    told = [each["difference"].n for each in summary["contrasts"].values() if each["shown"]]
    n = f"{min(told)} to {max(told)}" if len({*told}) > 1 else f"{max(told, default=0)}"
    parts = [f"On {n} lost items it is shown that {'; that '.join(shown)}."] if shown else []
    refuted = [
        f"{says(name)} ({written(apart, 'points')} points)"
        for name, each in summary["contrasts"].items()
        if each["shown"] and (apart := each["difference"].scaled(100)).value < 0
    ]
    if refuted:
        parts.append(f"The contrary is shown of this: {'; '.join(refuted)}.")
    arm = whole_arm(summary)
    closed = summary["net"][arm]["closed"] if arm in summary["net"] else NOT_MEASURED
    if closed.measured:
        parts.append(
            f"The whole transplant ({KNOWN[arm].label}) gives back "
            f"{_per_cent(summary['recovered'][arm])} of them; net of what it spoils it closes "
            f"{_per_cent(closed)} of the gap."
        )
    return " ".join(parts)


def _not_claimed(summary: Mapping[str, Any]) -> str:
    """The contrasts that were not shown, each with what its n would have shown."""
    unclear = [
        f"{says(name)} ({written(each['difference'].scaled(100), 'points')}; it takes "
        f"{100 * each['smallest']:.0f} points)"
        for name, each in summary["contrasts"].items()
        if each["difference"].measured and not each["shown"]
    ]
    return f"Not claimed from so many items: that {'; that '.join(unclear)}." if unclear else ""


def _per_cent(share: Estimate) -> str:
    return written(share).replace("\u00a0", " ")
