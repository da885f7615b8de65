"""What a study says while it runs: bars on a terminal, and a line for each stage."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import progress as bars
from rich.console import Console
from rich.markup import escape

from twohop.ask.on_server import Progress


@dataclass
class Reporter:
    """Says what is going on: a bar per stage, and a line when it is done."""

    console: Console = field(default_factory=lambda: Console(stderr=True))

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Show a stage while it runs."""
        started = time.monotonic()
        with self.bars() as shown:
            bar = shown.add_task(name, total=None)
            yield Progress(
                lambda rows: expect_more(shown, bar, rows),
                lambda rows: shown.update(bar, advance=rows),
            )
        self.finished(name, time.monotonic() - started)

    def bars(self) -> bars.Progress:
        """Bars to be shown while stages run, and gone afterwards; none but on a terminal."""
        columns = (
            bars.TextColumn("  {task.description:<24}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("prompts"),
            bars.TimeRemainingColumn(),
        )
        quiet = not self.console.is_terminal
        return bars.Progress(*columns, console=self.console, transient=True, disable=quiet)

    def finished(self, name: str, seconds: float) -> None:
        """Say that a stage is done."""
        self.console.print(f"  {name:<24} done in {seconds:.1f} s")

    def reused(self, name: str) -> None:
        """Say that a stage was there already."""
        self.console.print(f"  {name:<24} [dim]reused[/dim]")

    def gave_up(self, names: Sequence[str], because: str) -> None:
        """Say which results went because they were derived from older ones."""
        if names:
            self.console.print(
                f"  {', '.join(names)}: given up, as derived from the {because} that was there",
                soft_wrap=True,
            )

    def stopped(self, why: Exception) -> None:
        """Say that a pair's study ends early, and why."""
        self.say(f"  [red]stopped[/red]: {escape(str(why))}")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True)


def expect_more(shown: bars.Progress, bar: bars.TaskID, rows: int) -> None:
    """Let a bar end that many rows later; one that had no end has one from now on."""
    [total] = [task.total for task in shown.tasks if task.id == bar]
    shown.update(bar, total=(total or 0) + rows)
