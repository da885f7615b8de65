"""What a schedule knows of its workers, of the stages that are being run, and of what was moved."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twohop.running.crew.shard_store import ShardStore
from twohop.running.crew.transport import Hand

MB = 10**6
Task = tuple[Path, str]  # a store's folder, and a stage


@dataclass
class Seat:
    """A worker, and what it is doing.

    Attributes
    ----------
    hand : Hand
    share : float
        Of a GPU, or so many GPUs; 0: it has none.
    ready : bool
        Whether it has started.
    job : Job or None
        The stage that it owns.
    helps : (Job, int) or None
        The shard of another's stage that it does.
    run : bytes
        The run whose models it has.
    stages : set of str
        What it has run: it keeps models and states that the next pair's will ask for again.
    loads : int
        Models that it has loaded.
    """

    hand: Hand
    share: float
    ready: bool = False
    job: "Job | None" = None
    helps: "tuple[Job, int] | None" = None
    run: bytes = b""
    stages: set[str] = field(default_factory=set)
    loads: int = 0

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return self.ready and self.job is None and self.helps is None


@dataclass
class Job:
    """A stage that is being run.

    Attributes
    ----------
    number : int
    task : (Path, str)
    run : bytes
        Of the pair that it is run for.
    owner : Seat
    bar : int
    shards : ShardStore
    started : float
    posted : dict of int to (str, Parcel)
        Digests of shards that others may do, and what they are given.
    queue : deque of int
        Those of them that nobody does yet.
    helpers : int
        How many workers the owner was told of.
    waiting : bool
        Whether the owner has nothing left to do but what it posted.
    """

    number: int
    task: Task
    run: bytes
    owner: Seat
    bar: Any
    shards: ShardStore
    started: float
    posted: dict[int, tuple[str, Any]] = field(default_factory=dict)
    queue: deque[int] = field(default_factory=deque)
    helpers: int = 0
    waiting: bool = False


@dataclass
class Traffic:
    """What sharing took.

    Attributes
    ----------
    workers, lost, loads : int
        Workers started and lost, and models that they loaded.
    own, helped, stored : int
        Shards that owners did, that others did for them, and that were stored before.
    n_bytes : int
        Of shards that were handed on, and of what came back.
    """

    workers: int = 0
    lost: int = 0
    loads: int = 0
    own: int = 0
    helped: int = 0
    stored: int = 0
    n_bytes: int = 0

    def said(self) -> str:
        """Say it in a line.

        Examples
        --------
        >>> Traffic(workers=2, loads=4, own=30, helped=10, n_bytes=2_500_000).said()
        '2 workers, 4 models loaded; of 40 shards 10 done by helpers, 2.5 MB moved'
        """
        shards = self.own + self.helped + self.stored
        parts = [f"{self.workers} workers, {self.loads} models loaded"]
        if self.lost:
            parts[0] += f", {self.lost} lost"
        moved = (
            f"of {shards} shards {self.helped} done by helpers, {self.n_bytes / MB:.1f} MB moved"
        )
        if self.stored:
            moved += f", {self.stored} stored before"
        return "; ".join([*parts, moved])
