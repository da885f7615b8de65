"""What came out: a table for people, a file for programs."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.contest import Case, Outcome
from interventions.results import provenance

CPUINFO = Path("/proc/cpuinfo")


def machine(model: Any) -> dict[str, Any]:
    """Where the numbers are from."""
    names = [
        line.partition(":")[2].strip()
        for line in (CPUINFO.read_text().splitlines() if CPUINFO.exists() else [])
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **provenance(model=model),
    }


def summary(case: Case, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One case, in JSON types."""
    ran = [one for one in outcomes if one.seconds]
    ours = [one for one in ran if one.contestant.ours]
    peers = [one for one in ran if not one.contestant.ours and one.contestant.peer]
    best = min(peers, key=lambda one: one.median, default=None)
    made: dict[str, Any] = {one.contestant.name: _numbers(case, one, best) for one in outcomes}
    headline = ours[-1].median if ours else None
    yardstick = next((one for one in ran if one.contestant.name == case.against), best)
    ratio = yardstick.median / headline if yardstick and headline else None
    made |= {
        "title": case.title,
        "best_peer": best and best.contestant.name,
        "ratio_vs_best_peer": best.median / headline if best and headline else None,
        "bound_share": case.bound() if case.bound and ours else None,
        "aim": case.aim,
        "against": yardstick and yardstick.contestant.name,
        "ratio": ratio,
        "limit": case.limit,
        "met": None,
    }
    if case.aim:
        made["met"] = ratio is not None and ratio >= case.aim
    if case.limit:
        made["met"] = headline is not None and headline <= case.limit
    return made


def _numbers(case: Case, one: Outcome, best: Outcome | None) -> dict[str, Any]:
    timed = one.contestant.sample or case.units
    if not one.seconds:
        return {"seconds": None, "reason": one.reason}
    agreement = {"compared": one.compared, "max_abs": one.difference, "share": one.share}
    return {
        "seconds": {
            "per_unit": one.median,
            "total": one.median * case.units,
            "all": one.seconds,
        },
        "unit": case.unit,
        "units": case.units,
        "timed": min(timed, case.units),
        "agreement": agreement if one.compared else None,
        "times_best_peer": best.median / one.median if best else None,
    }


def table(case: Case, made: dict[str, Any]) -> Table:
    """One case, for people."""
    left_out: list[str] = []
    shown = Table(title=f"{case.name}: {case.title}", title_justify="left", caption_justify="left")
    for column in ("", f"ms per {case.unit}", "range", "all, s", "timed", "x best peer", "differs"):
        shown.add_column(column, justify="left" if not column else "right")
    for contestant in case.contestants:
        one = made[contestant.name]
        if one["seconds"] is None:
            left_out.append(f"{contestant.name} {one['reason']}")
            continue
        every = one["seconds"]["all"]
        agreement, faster = one["agreement"], one["times_best_peer"]
        shown.add_row(
            contestant.name,
            f"{one['seconds']['per_unit'] * 1e3:.2f}",
            f"{min(every) * 1e3:.2f}-{max(every) * 1e3:.2f}",
            f"{one['seconds']['total']:.2f}",
            f"{one['timed']} of {one['units']} x {len(every)}",
            f"{faster:.2f}" if faster else "",
            f"{agreement['max_abs']:.1e} in {agreement['compared']}" if agreement else "",
        )
    shown.caption = "\n".join([verdict(made), *left_out])
    return shown


def verdict(made: dict[str, Any]) -> str:
    """Whether the aim was met."""
    parts = []
    if made["aim"] and made["ratio"]:
        aim, ratio = made["aim"], made["ratio"]
        if aim >= 1:
            parts.append(f"{ratio:.1f} times faster than {made['against']} (aim: {aim:g})")
        else:
            parts.append(f"{1 / ratio:.2f} times {made['against']} (aim: at most {1 / aim:.3g})")
    if made["limit"]:
        parts.append(f"aim: at most {made['limit']:g} s")
    if made["met"] is not None:
        parts.append("met" if made["met"] else "MISSED")
    if made["bound_share"]:
        parts.append(f"{made['bound_share']:.0%} of the tokens x layers computed are needed")
    return "; ".join(parts)
