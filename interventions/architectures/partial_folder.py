"""A folder that is written beside where it is to be, by one process at a time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interventions.errors import LoadError

try:
    import fcntl
except ImportError:  # not on Windows, where an open folder is not to be had
    fcntl = None


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside a target, which is gone afterwards unless it was renamed.

    What a process that was killed has left of it is removed first.

    Parameters
    ----------
    target : Path

    Raises
    ------
    LoadError
        If another process is writing it.
    """
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(exist_ok=True)
    with _alone(partial, target):
        try:
            for path in partial.iterdir():
                path.unlink() if path.is_file() else shutil.rmtree(path)
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _alone(partial: Path, target: Path) -> Iterator[None]:
    """Hold the folder's lock, which goes with the process however that ends."""
    if fcntl is None:
        yield
        return
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(handle), partial.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:  # or it was, and has been renamed meanwhile
            raise LoadError(
                f"{str(target)!r} is being written by another process. Wait for it, or name "
                "another folder."
            )
        yield
    finally:
        os.close(handle)
