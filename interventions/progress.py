"""What is seen while something runs: a bar, once it takes long, and no notices of libraries."""

import logging
import time
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import Progress

SHOW_AFTER_S = 2.0


class LateBar:
    """A bar on stderr that is shown once two seconds have passed; a context manager.

    Parameters
    ----------
    what : str
    total : float
    shown : bool
        False: never.
    transient : bool
        Leave nothing behind.
    """

    def __init__(self, what: str, total: float, *, shown: bool, transient: bool) -> None:
        self._begun = time.monotonic()
        self._what, self._total = what, total
        console = Console(stderr=True)
        # In a notebook without ipywidgets, rich has nothing to draw on and only warns.
        self._shown = shown and not (console.is_jupyter and find_spec("ipywidgets") is None)
        self._bar = Progress(console=console, transient=transient)

    def update(self, completed: float) -> None:
        """Say how much is done."""
        if not self._shown or time.monotonic() - self._begun <= SHOW_AFTER_S:
            return
        if not self._bar.tasks:
            self._bar.start()
            self._bar.add_task(self._what, total=self._total)
        self._bar.update(self._bar.task_ids[0], completed=completed)

    def __enter__(self) -> "LateBar":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar.tasks:
            self._bar.stop()


def quiet_libraries() -> None:
    """Keep the bars and notices of transformers and bitsandbytes out of the way of ours."""
    from transformers.utils import logging as notices

    notices.disable_progress_bar()
    notices.set_verbosity_error()
    # It says at every layer of every pass that it computes in float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
