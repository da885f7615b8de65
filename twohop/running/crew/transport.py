"""What the scheduler asks of workers, however they are reached."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twohop.running.loading import Loading
from twohop.running.weighing import Machine


@dataclass(frozen=True)
class Lost:
    """A worker is gone.

    Attributes
    ----------
    why : str
    """

    why: str


class Hand(Protocol):
    """A worker, as the scheduler sees it."""

    def send(self, message: Any) -> None:
        """Say something to it."""
        ...

    def end(self) -> None:
        """End it, whatever it is doing."""
        ...


class Crew(Protocol):
    """Where workers come from.

    Attributes
    ----------
    keeps : bool
        Whether a worker keeps the models of one pair when it goes on with another.
    away : bool
        Whether workers may be on other machines.
    """

    keeps: bool
    away: bool

    def machines(self, loading: Loading) -> Sequence[Machine]:
        """What a worker may have, that a study is planned for: the smallest first.

        More than one where it has more of a machine when what it runs does not fit on less.
        """
        ...

    def workers(self, share: float) -> int:
        """How many there may be, of those that take this share of a GPU, or so many GPUs."""
        ...

    def start(self, share: float) -> Hand:
        """Start one; its first message says that it has started."""
        ...

    def wait(self, hands: Sequence[Any]) -> list[tuple[Hand, Any]]:
        """Wait until any says something; what each says next, or that it is lost."""
        ...

    def packed(self, blob: bytes) -> Any:
        """Make bytes ready to be sent to a worker."""
        ...
