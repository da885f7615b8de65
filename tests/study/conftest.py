"""Studies that several files look at: each is run once, by whichever process needs it first."""

import fcntl
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from twohop.protocol import Protocol
from twohop.running.pair_run import Settings
from twohop.running.reporter import Reporter
from twohop.running.study import run_study


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of runs in which a built-in pair's study of so many entities is; to be read only.

    Processes that test side by side share it, and wait for each other.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def of(pair: str, *, limit: int | None = None) -> Path:
        out = shared / f"studies-of-{limit or 'all'}"
        with Path(f"{out}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            if not (out / pair / "report.html").exists():
                quiet = Reporter(Console(file=io.StringIO()))
                settings = Settings(limit=limit, protocol=Protocol.preset("quick"))
                run_study(pair, out=out, settings=settings, reporter=quiet)
        return out

    return of
