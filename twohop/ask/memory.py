"""Batches that are halved where memory runs out, so that a stage ends all the same.

Rows do not see each other, so the size of a batch changes numbers by rounding alone.
"""

import gc
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from weakref import WeakKeyDictionary

import torch

from interventions import Model, Prompt, Site
from interventions import read as read_at_once
from interventions.errors import BudgetTooSmall, InterventionsError
from twohop.ask.room import Kind, rows_at_once

LOG = logging.getLogger(__name__)
SAYING = (
    *("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory"),  # on a CPU
    *("CUDA error: out of memory", "HIP error: out of memory"),  # of kernels, and of a context
)
"""What is in the messages of errors that are of no class of their own."""


class MemoryTooSmall(InterventionsError):
    """Memory ran out where there was nothing left to halve."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, or that there would not be enough."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | MemoryTooSmall | BudgetTooSmall):
        return True
    # Elsewhere torch tells it from other errors by the message only.
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in SAYING)


@dataclass
class Limit:
    """What memory has room for, as far as it has run out.

    Attributes
    ----------
    tokens : float
        Of rows that run together; infinite until memory runs out.
    rows : dict of (int, int) to int
        How many rows of so many tokens, behind so many shared ones, were begun with.
    """

    tokens: float = inf
    rows: dict[tuple[int, int], int] = field(default_factory=dict)


LIMITS: WeakKeyDictionary[Model, dict[str, Limit]] = WeakKeyDictionary()
"""Of every model, by what it was asked to do: backward passes have room for fewer rows."""


def limit_of(model: Model, task: str) -> Limit:
    """What has been learnt of a task, so that the next call need not learn it again."""
    return LIMITS.setdefault(model, {}).setdefault(task, Limit())


def rows_for(model: Model, limit: Limit, kind: Kind, most: int, prompt: Prompt) -> int:
    """At most ``most`` rows of a prompt, as many as there was room for when it was first asked.

    How many were asked for then is another matter: the same call gives the same batches whatever
    came before it.

    Parameters
    ----------
    model : Model
    limit : Limit
        Of the task: later calls begin with as many rows.
    kind : {"read", "answers", "cells", "backward"}
        As in :func:`twohop.ask.room.row_needs`.
    most : int
    prompt : Prompt
    """
    width, before = prompt.length, len(prompt.prefix_ids)
    if (width, before) not in limit.rows:
        limit.rows[width, before] = rows_at_once(
            model, kind, sys.maxsize, width=width, before=before
        )
    return min(most, limit.rows[width, before])


class Batches:
    """Rows in batches; one for which memory ran out is cut in half, and so are those after it.

    Parameters
    ----------
    rows : Tensor
        Row numbers.
    size : int
        Of a batch, at first.
    limit : Limit, optional
        What was learnt before, and is added to here.
    width : int
        Tokens of a row.

    Examples
    --------
    >>> batches = Batches(torch.arange(5), size=4)
    >>> for batch in batches:
    ...     with batches.attempt(batch):
    ...         if len(batch) > 2:
    ...             raise torch.OutOfMemoryError
    ...         batch.tolist()
    [0, 1]
    [2, 3]
    [4]
    """

    def __init__(
        self, rows: torch.Tensor, size: int, *, limit: Limit | None = None, width: int = 1
    ) -> None:
        self.left = rows
        self.limit = limit or Limit()
        self.width = width
        self.size = int(max(1, min(size, self.limit.tokens // width)))
        self._failed = False

    def __iter__(self) -> Iterator[torch.Tensor]:
        while len(self.left):
            if self._failed:
                # Only now is the error gone, and with it what its frames kept alive.
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                self._failed = False
            batch, self.left = self.left[: self.size], self.left[self.size :]
            yield batch

    @contextmanager
    def attempt(self, batch: torch.Tensor) -> Iterator[None]:
        """Do a batch; should memory run out, its rows come again, half as many at a time.

        Nothing that counts may be stored before the last step that can run out.

        Raises
        ------
        MemoryTooSmall
            If batches have one row.
        """
        try:
            yield
        except Exception as error:
            if not ran_out(error):
                raise
            if self.size == 1:
                raise MemoryTooSmall(
                    f"a single row needs too much memory. {remedy(error)}"
                ) from error
            self.left = torch.cat([batch, self.left])
            # A single row may have been run as several: forced choices are tried side by side.
            self.size = (len(batch) + 1) // 2 if len(batch) > 1 else self.size // 2
            self.limit.tokens = self.size * self.width
            self._failed = True
            LOG.warning("memory ran out on %d rows; going on with %d", len(batch), self.size)


def remedy(error: BaseException) -> str:
    """What was said, and what a user can do about it."""
    said = str(error).strip().split("\n")[0] or type(error).__name__
    return (
        f"It was said: {said[:200]}\nFree memory (other processes, a smaller dtype), use a device "
        "with more, or ask shorter questions about smaller pictures."
    )


def read(model: Model, prompt: Prompt, sites: Sequence[Site]) -> list[torch.Tensor]:
    """Read sites as :func:`interventions.read` does, in several passes if memory runs out.

    What was read waits on the CPU, whatever the model is on: a device has room for what is running.
    """
    parts: list[list[torch.Tensor]] = []
    limit = limit_of(model, "read")
    most = rows_for(model, limit, "read", len(prompt), prompt)
    batches = Batches(torch.arange(len(prompt)), most, limit=limit, width=prompt.length)
    for rows in batches:
        with batches.attempt(rows):
            if len(rows) == len(prompt):
                return [value.cpu() for value in read_at_once(model, prompt, sites)]
            part_sites = [
                site
                if site.positions is None
                else replace(site, positions=site.positions.rows(rows))
                for site in sites
            ]
            values = read_at_once(model, prompt.select(rows), part_sites)
            parts.append([value.cpu() for value in values])
    return [
        torch.cat(of_site, dim=0 if isinstance(site.layers, int) else 1)
        for site, *of_site in zip(sites, *parts, strict=True)
    ]
