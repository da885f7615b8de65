"""What the process that stores and the workers that compute tell each other.

A *shard* is one task of a stage (:func:`twohop.ask.on_server.on_each`); the *owner* of a stage is
the worker that runs it, and posts shards that idle workers may do.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from twohop.running.loading import Role

Parcel = Any
"""Something packed: bytes, or what a transport knows them by."""


@dataclass(frozen=True)
class Shard:
    """A task, and the model that it is for.

    Attributes
    ----------
    role : {"vlm", "backbone"}
    function : callable
        ``function(model, *task, tick=...)``.
    task : tuple
    """

    role: Role
    function: Callable[..., Any]
    task: tuple[Any, ...]


# To a worker


@dataclass(frozen=True)
class Begin:
    """Run a stage.

    Attributes
    ----------
    run : bytes
        The pair, its folder and its settings, packed.
    stage : str
    needed : mapping of str to Dataset
    again : frozenset of str
        Stages that are to be computed again.
    stored : frozenset of str
        Digests of its shards that are stored already.
    """

    run: bytes
    stage: str
    needed: Mapping[str, xr.Dataset]
    again: frozenset[str]
    stored: frozenset[str]


@dataclass(frozen=True)
class Help:
    """So many workers are idle, for an owner's shards."""

    workers: int


@dataclass(frozen=True)
class Compute:
    """Do a shard that another posted."""

    run: bytes
    job: int
    number: int
    shard: Parcel


@dataclass(frozen=True)
class Yours:
    """Nobody else has a shard that was posted: its owner is to do it."""

    number: int


@dataclass(frozen=True)
class Given:
    """What came of an owner's shard, packed; or the error that it ended with."""

    number: int
    result: Parcel = None
    error: Exception | None = None

    @classmethod
    def of(cls, number: int, result: Any) -> "Given":
        """Pack a result."""
        return cls(number, pickle.dumps(result))


# From a worker


@dataclass(frozen=True)
class Ready:
    """It has started."""


@dataclass(frozen=True)
class Expected:
    """How many rows are to come in the stage that it has begun, beside those before."""

    rows: int


@dataclass(frozen=True)
class Ticked:
    """How many rows were done; of a helper, by the job that they are of."""

    rows: int
    job: int | None = None


@dataclass(frozen=True)
class Posted:
    """A shard that others may do."""

    number: int
    digest: str
    shard: Parcel
    n_bytes: int


@dataclass(frozen=True)
class Wanted:
    """A stored result that the owner needs."""

    number: int
    digest: str


@dataclass(frozen=True)
class Kept:
    """What an owner computed itself, packed, to be stored."""

    digest: str
    result: bytes

    def opened(self) -> Any:
        """The result; from a worker that this process started."""
        return pickle.loads(self.result)


@dataclass(frozen=True)
class Waiting:
    """An owner has nothing left to do but what it posted."""


@dataclass(frozen=True)
class Computed:
    """What came of another's shard, packed; or the error that it ended with."""

    job: int
    number: int
    result: bytes | None = None
    error: Exception | None = None

    def opened(self) -> Any:
        """The result; from a worker that this process started."""
        assert self.result is not None
        return pickle.loads(self.result)


@dataclass(frozen=True)
class Loaded:
    """How many models it has loaded so far."""

    models: int


@dataclass(frozen=True)
class Finished:
    """The result of a stage, or the error that it ended with."""

    result: xr.Dataset | None = None
    error: Exception | None = None
