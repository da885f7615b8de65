"""Runs side by side, by the class of their architecture, and in what else they differ."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from typing import Any

from twohop.report import wording
from twohop.report.estimates import estimate
from twohop.report.table import Summary, at
from twohop.stages.recovery.arms import WITHOUT_IMAGE_TOKENS
from twohop.statistics import Estimate, estimates

LOADED = ("dtype", "attention", "quantization")
"""How models were loaded, where it was not the usual way."""
SAME = ("benchmark", "limit", "seed", "twohop", *LOADED)
TELLING = ("limit", "seed", "benchmark", "twohop", *LOADED)
PROTOCOL = "protocol."


@dataclass(frozen=True)
class Run:
    """One of the runs that are compared.

    Attributes
    ----------
    index : int
        Its place in the order given, as in ``compare.json``.
    number : int
        What it is called in figures: counted from 1, by class, the largest gap first.
    label : str
        Its pair; told from another run of the same pair.
    summary : mapping
    """

    index: int
    number: int
    label: str
    summary: Summary

    @property
    def name(self) -> str:
        """Number and label."""
        return f"{self.number}  {self.label}"

    def at(self, key: str) -> Estimate:
        """A number of its summary, such as that at ``lateness/late``; not measured if absent."""
        return estimate(at(self.summary, key))

    def arm(self, at_image: str) -> str:
        """An arm, or the one that takes its place where an image has no tokens."""
        other = WITHOUT_IMAGE_TOKENS.get(at_image)
        gone = f"recovered/{at_image}" in self.summary["not_available"]
        return other if other and gone else at_image


Classes = dict[str, list[Run]]


def labels(summaries: Sequence[Summary]) -> list[str]:
    """Name of each run: its pair, and for runs of one pair what tells them apart.

    Examples
    --------
    >>> labels([{"pair": "a", "settings": {"seed": 0}}, {"pair": "a", "settings": {"seed": 1}}])
    ['a, seed 0', 'a, seed 1']
    """
    pairs = Counter(str(summary["pair"]) for summary in summaries)
    names = []
    for summary in summaries:
        parts, settings = [str(summary["pair"])], summary.get("settings", {})
        others = [run.get("settings", {}) for run in summaries if run["pair"] == summary["pair"]]
        for key in (*TELLING, *_numbers(others)) if pairs[parts[0]] > 1 else ():
            if len({str(_value(other, key)) for other in others}) > 1:
                parts.append(f"{key.removeprefix(PROTOCOL)} {_said(settings, key)}")
        names.append(", ".join(parts))
    totals, seen = Counter(names), Counter[str]()
    for i, label in enumerate(names):
        if totals[label] > 1:
            seen[label] += 1
            names[i] = f"{label} ({seen[label]})"
    return names


def _numbers(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the numbers in which protocols differ, where they are recorded, in order."""
    known = [settings["protocol"] for settings in several if "protocol" in settings]
    names = dict.fromkeys(name for protocol in known for name in protocol)
    return [
        f"{PROTOCOL}{name}"
        for name in names
        if any(protocol.get(name) != known[0].get(name) for protocol in known)
    ]


def _value(settings: Mapping[str, Any], key: str) -> Any:
    if key.startswith(PROTOCOL):
        return settings.get("protocol", {}).get(key.removeprefix(PROTOCOL))
    return settings.get(key)


def _said(settings: Mapping[str, Any], key: str) -> str:
    value = _value(settings, key)
    if value is None and key in LOADED:
        return "as usual"
    if value is None:
        return "all" if key == "limit" and key in settings else "not recorded"
    return str(value)


def by_class(summaries: Sequence[Summary]) -> Classes:
    """Runs by the class of their architecture, the largest gap first, those without one last."""
    summaries = [estimates(summary) for summary in summaries]
    names = labels(summaries)
    kinds = [str(summary.get("architecture")) for summary in summaries]
    kinds = [kind if kind in wording.ARCHITECTURES else "other" for kind in kinds]

    def gap(i: int) -> float:
        value = estimate(summaries[i]["gap_points"]).value
        return -math.inf if math.isnan(value) else value

    classes: Classes = {}
    numbers = count_from(1)
    for kind in wording.ARCHITECTURES:
        mine = [i for i in range(len(kinds)) if kinds[i] == kind]
        if mine:
            order = sorted(mine, key=gap, reverse=True)
            classes[kind] = [Run(i, next(numbers), names[i], summaries[i]) for i in order]
    return classes


def runs_of(classes: Classes) -> list[Run]:
    """All runs, in the order in which they are shown."""
    return [run for several in classes.values() for run in several]


def differing(summaries: Sequence[Summary]) -> list[str]:
    """Sentences about runs that do not answer the same question.

    Looks at ``settings`` where a summary carries them, and at the number of items.
    """
    sentences = []
    named = list(zip(labels(summaries), summaries, strict=True))
    for key in (*SAME, *_numbers([summary.get("settings", {}) for summary in summaries])):
        runs: dict[str, list[str]] = {}
        for label, summary in named:
            if "settings" in summary:
                runs.setdefault(_said(summary["settings"], key), []).append(label)
        if len(runs) > 1:
            said = "; ".join(f"{value}: {', '.join(who)}" for value, who in runs.items())
            sentences.append(f"The runs differ in {key} ({said}), so compare them with care.")
    silent = [label for label, summary in named if "protocol" not in summary.get("settings", {})]
    if silent and len(silent) < len(named):
        sentences.append(
            f"By which protocol {', '.join(silent)} was measured is not recorded, so compare it "
            "with care."
        )
    sizes: dict[int, list[str]] = {}
    for label, summary in named:
        sizes.setdefault(summary["n_items"], []).append(label)
    if len(sizes) > 1 and not sentences:
        said = "; ".join(f"{n}: {', '.join(who)}" for n, who in sizes.items())
        sentences.append(f"The runs differ in the number of items ({said}), so compare with care.")
    return sentences
