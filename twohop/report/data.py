"""What `twohop data check` shows: the report on a table of items."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from twohop.items.reasons import FLAGS, REASONS
from twohop.items.validation import Report

SHOWN = 5  # rows named for a reason, or places for a flag


def print_data(report: Report, console: Console, *, everything: bool = False) -> None:
    """Print what is usable, what was set aside and why, and what to be wary of.

    Parameters
    ----------
    report : Report
    console : Console
    everything : bool
        Name every row, not the first few of each reason.
    """
    few, most = report.pictures
    spread = f"{most}" if few == most else f"{few} to {most}"
    console.print(
        f"[bold]{escape(report.source)}[/]: {report.usable} of {report.rows} rows are usable: "
        f"{report.items} items, {report.entities} entities, {spread} picture(s) of each",
        highlight=False,
    )
    limit = None if everything else SHOWN
    if report.relations:
        console.print(_relations(report))
    if report.set_aside:
        console.print(_set_aside(report, limit))
    if report.flags:
        console.print(_flags(report, limit))
    if report.brief is not None:
        console.print(
            f"in a chat, every question ends with: {escape(report.brief)}",
            highlight=False,
            soft_wrap=True,
        )
    for column, said in report.read_as_missing.items():
        counts = ", ".join(f"{text!r} x {n}" for text, n in said.items())
        console.print(
            f"column {escape(column)}: {sum(said.values())} cells were read as nothing: "
            f"{escape(counts)}. If these are texts, write missing = \\[] in the map",
            highlight=False,
        )


def _relations(report: Report) -> Table:
    table = Table("relation", box=None, title="usable", title_justify="left")
    for name in ("items", "entities", "answers", "best constant"):
        table.add_column(name, justify="right")
    for counts in report.relations:
        numbers = (counts.items, counts.entities, counts.answers)
        table.add_row(
            escape(counts.relation), *map(str, numbers), f"{100 * counts.best_constant:.0f} %"
        )
    return table


def _set_aside(report: Report, limit: int | None) -> Table:
    table = Table("rows", "why", "such as", box=None, title="set aside", title_justify="left")
    for reason, n in report.reasons().items():
        rows = [row for row in report.set_aside if row.reason == reason]
        such = [f"{row.place}: {row.said}" for row in rows[:limit]]
        table.add_row(str(n), f"{reason}: {REASONS[reason]}", _listed(such, n))
    return table


def _flags(report: Report, limit: int | None) -> Table:
    table = Table("flag", "what", "where", box=None, title="to be wary of", title_justify="left")
    for kind, meaning in FLAGS.items():
        flags = [flag for flag in report.flags if flag.kind == kind]
        if flags:
            such = [f"{flag.where}: {flag.said}" for flag in flags[:limit]]
            table.add_row(kind, meaning, _listed(such, len(flags)))
    return table


def _listed(such: list[str], n: int) -> str:
    more = [f"and {n - len(such)} more"] if n > len(such) else []
    return escape("\n".join([*such, *more]))
