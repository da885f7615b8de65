"""A plan as people read it: a table, or a line."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from twohop.pairs import PUBLISHED
from twohop.protocol import Protocol
from twohop.running.plan import Plan, StagePlan
from twohop.running.published_plans import CARDS, Fit, fit_on, published_plan
from twohop.running.weighing import GB, Machine

MB = 10**6
MINUTE, HOUR, DAY = 60, 3600, 86_400


def print_plan(plan: Plan, console: Console) -> None:
    """Print what every stage takes, and all of it."""
    table = Table(title=f"{plan.pair}: what it takes", box=None, title_justify="left")
    for name in ("stage", "model", "passes", "tokens x blocks", "time", "memory", "on"):
        right = name not in ("stage", "model", "on")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    remote = any(stage.requests for stage in plan.stages) and plan.remote
    if remote:
        table.add_column("requests", justify="right")
        table.add_column("sent", justify="right")
    for stage in plan.stages:
        table.add_row(*_cells(stage), *(_sent(stage) if remote else ()))
    console.print(table, highlight=False)
    console.print(f"\n{said(plan)}", highlight=False, markup=False, soft_wrap=True)


def _cells(stage: StagePlan) -> Sequence[str]:
    if not stage.roles:
        return (stage.stage, "-", "", "", "", "", "")
    return (
        stage.stage,
        stage.roles[0] if len(stage.roles) == 1 else "both",
        f"{stage.passes:,}",
        counted(sum(stage.tokens.values())),
        duration(stage.seconds),
        size(stage.height.peak),
        stage.where,
    )


def _sent(stage: StagePlan) -> Sequence[str]:
    return (f"{stage.requests:,}", size(stage.sent))


def said(plan: Plan) -> str:
    """What a plan comes to, in a line or two.

    The time, and how it was had; the height of memory, of what is free; what is fetched.
    """
    tokens = sum(sum(stage.tokens.values()) for stage in plan.stages)
    by = "a forward pass of each model was timed" if plan.timed else "by tokens x parameters"
    most = "" if plan.exact else "at most "
    parts = [f"{most}{counted(tokens)} tokens x blocks, about {duration(plan.seconds)} ({by})"]
    if plan.remote:
        requests = sum(stage.requests for stage in plan.stages)
        sent = sum(stage.sent for stage in plan.stages)
        parts.append(f"about {requests} requests, {size(sent)} of prompts")
    else:
        free = " + ".join(map(size, plan.machine.free))
        both = any(stage.height.both for stage in plan.stages)
        held = "both models" if both else "one model"
        parts.append(
            f"{size(plan.peak)} at the height with {held} on {', '.join(plan.machine.names)} "
            f"({free} free)"
        )
    if plan.downloads:
        fetched = ", ".join(f"{repo} {size(of)}" for repo, of in plan.downloads.items())
        parts.append(f"to be downloaded: {fetched}")
    return "; ".join([*parts, *plan.notes])


def print_fits(console: Console) -> None:
    """Print how every published pair fits on GPUs of several sizes, as a table of Markdown."""
    protocol = Protocol()
    names = ("pair", *(f"{card} GB" for card in CARDS), "tokens x blocks", "time")
    lines = [names, ("---",) * len(names)]
    for key in PUBLISHED:
        fits = [fit_on(key, card, protocol=protocol) for card in CARDS]
        plan = published_plan(key, Machine.of(CARDS[-1]), protocol=protocol)
        tokens = counted(sum(sum(stage.tokens.values()) for stage in plan.stages))
        lines.append((f"`{key}`", *map(_fits, fits), tokens, duration(plan.seconds)))
    for line in lines:
        console.print(f"| {' | '.join(line)} |", highlight=False, markup=False, soft_wrap=True)


def _fits(fits: Sequence[Fit]) -> str:
    """The cards that a pair needs, and what it needs at the least."""
    ways = []
    for fit in fits:
        cards = f"{fit.count} x " if fit.count > 1 else ""
        ways.append(f"{cards}{fit.packing or '16 bit'}, {size(fit.least)}")
    return " or ".join(ways) or "NDIF"


def counted(number: int) -> str:
    """A large number.

    Examples
    --------
    >>> counted(950), counted(1_234_000), counted(5_600_000_000)
    ('950', '1.2 M', '5.6 G')
    """
    for value, letter in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= value:
            return f"{number / value:.1f}{letter}"
    return str(number)


def size(n_bytes: float) -> str:
    """Bytes.

    Examples
    --------
    >>> size(14_126_854_144), size(2_000_000)
    ('14.1 GB', '2 MB')
    """
    return f"{n_bytes / GB:.1f} GB" if n_bytes >= GB / 10 else f"{n_bytes / MB:.0f} MB"


def duration(seconds: float) -> str:
    """A time.

    Examples
    --------
    >>> duration(12), duration(600), duration(9000)
    ('12 s', '10 min', '2.5 h')
    """
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h" if seconds < 2 * DAY else f"{seconds / DAY:.0f} days"
