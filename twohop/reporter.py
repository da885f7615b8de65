"""What a study says while it runs: bars on a terminal, and a line for each stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twohop.asking import Tick


@dataclass
class Reporter:
    """Says what is going on: a bar per stage, and a line when it is done."""

    console: Console = field(default_factory=lambda: Console(stderr=True))

    @contextmanager
    def stage(self, name: str, rows: int) -> Iterator[Tick]:
        """Show a stage of about so many rows; give the function that advances its bar."""
        started = time.monotonic()
        with self.bars() as bars:
            task = bars.add_task(name, total=rows)
            yield lambda done: bars.update(task, advance=done)
        self.finished(name, time.monotonic() - started)

    def bars(self) -> Progress:
        """Bars to be shown while stages run, and gone afterwards; none but on a terminal."""
        columns = (
            TextColumn("  {task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts"),
            TimeRemainingColumn(),
        )
        quiet = not self.console.is_terminal
        return Progress(*columns, console=self.console, transient=True, disable=quiet)

    def finished(self, name: str, seconds: float) -> None:
        """Say that a stage is done."""
        self.console.print(f"  {name:<24} done in {seconds:.1f} s")

    def reused(self, name: str) -> None:
        """Say that a stage was there already."""
        self.console.print(f"  {name:<24} [dim]reused[/dim]")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text)
