"""Who does the tasks of a stage: this process, or several that share them.

A stage makes its tasks of at most :data:`SHARD_ROWS` items each, however many processes there are,
so that every number is the same bits whoever computed it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from interventions import Model

SHARD_ROWS = 64
"""Items in one task: rows of like length, so that little padding is run; a request of that many
pictures can be sent."""


class Hands(Protocol):
    """What does the tasks of a stage."""

    def on_each(
        self,
        model: Model,
        function: Callable[..., Any],
        tasks: Iterable[tuple[Any, ...]],
        *,
        tick: Callable[[int], None],
    ) -> list[Any]:
        """As :func:`twohop.ask.on_server.on_each`, of a model that is here."""
        ...


HANDS: ContextVar[Hands | None] = ContextVar("hands", default=None)
"""Those that share the tasks of the stage that is running; None: this process does them."""


@contextmanager
def shared_with(hands: Hands) -> Iterator[None]:
    """Let others have a part of the tasks of a stage while it runs."""
    token = HANDS.set(hands)
    try:
        yield
    finally:
        HANDS.reset(token)
