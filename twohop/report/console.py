"""The same numbers on the console: compact tables, the verdict last."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from twohop.report.comparison import by_class, differing
from twohop.report.comparison_tables import short_table
from twohop.report.comparison_words import lead_sentence
from twohop.report.sentence import verdict_sentence
from twohop.report.summary import AT_IMAGE_TOKENS
from twohop.report.table import Table
from twohop.report.tables import all_tables

SHOWN = (
    "gates",
    "gap",
    "relations",
    "windows",
    "lateness",
    "prediction",
    "outcomes",
    "diagnosis",
    "evidence",
    "recovery",
    "contrasts",
    "net",
)
WIDTH = 80
WORDY = ("meaning",)


def as_rich(table: Table) -> RichTable:
    """Turn a table into one for the console; columns of explanations are left out."""
    kept = [i for i, name in enumerate(table.columns) if name not in WORDY]
    rich_table = RichTable(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        show_edge=False,
    )
    for i in kept:
        rich_table.add_column(table.columns[i], overflow="fold", justify="left")
    for row in table.rows:
        group = not any(cell.text for cell in row[1:])
        rich_table.add_row(
            *(escape(row[i].text) for i in kept), style="dim italic" if group else None
        )
    return rich_table


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print a run's tables, and its verdict last.

    Parameters
    ----------
    summary : mapping
        From :func:`twohop.report.summary.summarise`; or as it was stored.
    console : Console
        Tables take at most 80 columns.
    """
    tables = all_tables(summary)
    for name in SHOWN:
        if tables[name].rows:
            console.print(as_rich(tables[name]), width=min(WIDTH, console.width))
            console.print()
    for reason in sorted({*summary["not_available"].values()} - {AT_IMAGE_TOKENS}):
        line = f"Not available: {reason}."
        console.print(escape(line), width=min(WIDTH, console.width), highlight=False)
    verdict = summary.get("verdict") or verdict_sentence(dict(summary))
    console.print(escape(verdict), style="bold", width=min(WIDTH, console.width), highlight=False)


def print_comparison(summaries: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print runs side by side by class, a verdict for each, and what they have in common last."""
    width = min(WIDTH, console.width)
    classes = by_class(summaries)
    console.print(as_rich(short_table(classes)), width=width)
    console.print()
    for run in (run for runs in classes.values() for run in runs):
        verdict = run.summary.get("verdict") or verdict_sentence(dict(run.summary))
        console.print(escape(verdict), width=width, highlight=False)
    for line in differing(summaries):
        console.print(escape(line), style="yellow", width=width, highlight=False)
    console.print(escape(lead_sentence(summaries)), style="bold", width=width, highlight=False)
