"""What came of the shards of a stage that is not done: kept as they come, until it is stored."""

import contextlib
import shutil
from pathlib import Path
from pickle import UnpicklingError

from interventions.remote.jobs import as_stored, stored
from interventions.storable import write_atomically

FOLDER = "shards"


class ShardStore:
    """The shards of one stage, by their digests; nothing is unpickled when they are read.

    Parameters
    ----------
    folder : Path
        Of the store that the stage goes to.
    stage : str
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder = folder / FOLDER / stage

    def digests(self) -> frozenset[str]:
        """Of those that are there."""
        return frozenset(path.stem for path in self.folder.glob("*.pt"))

    def put(self, digest: str, result: object) -> None:
        """Store one, if there is room and it can be read safely; else it is computed again."""
        with contextlib.suppress(UnpicklingError, OSError):
            write_atomically(self.folder / f"{digest}.pt", as_stored(result))

    def get(self, digest: str) -> object | None:
        """Return one; None if it cannot be read."""
        try:
            return stored(self.folder / f"{digest}.pt")
        except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError):
            return None

    def drop(self) -> None:
        """Remove all."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other stages have theirs there
            self.folder.parent.rmdir()
