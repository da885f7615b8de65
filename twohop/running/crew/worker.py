"""A worker: it runs stages, and does shards of stages that others run."""

import contextlib
import inspect
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from interventions import Model
from interventions.digests import digest_of
from interventions.errors import InterventionsError, ResultsError
from twohop.ask.on_server import Progress
from twohop.ask.residence import at_home, home_of
from twohop.ask.shards import shared_with
from twohop.pairs import Pair
from twohop.running.crew.messages import (
    Begin,
    Compute,
    Computed,
    Expected,
    Finished,
    Given,
    Help,
    Kept,
    Loaded,
    Parcel,
    Posted,
    Shard,
    Ticked,
    Waiting,
    Wanted,
    Yours,
)
from twohop.running.devices import DeviceFailed, explained, failed
from twohop.running.loading import Models, Role
from twohop.running.pair_run import PairRun, Settings, open_run

ROLES: tuple[Role, Role] = ("backbone", "vlm")
AHEAD = 2
"""Shards posted for each idle worker: one that it does, and one for when it is done."""
POSTED_BYTES = 2**32
"""Of shards that wait for others: an owner holds them until they are done."""


class Channel(Protocol):
    """How a worker hears and speaks."""

    def send(self, message: Any) -> None:
        """Say something."""
        ...

    def recv(self) -> Any:
        """Wait for what is said next."""
        ...

    def poll(self) -> bool:
        """Whether something was said."""
        ...

    def pack(self, blob: bytes) -> Parcel:
        """Make bytes ready to be handed on to another worker."""
        ...

    def unpack(self, parcel: Parcel) -> bytes:
        """Return the bytes that another worker made ready."""
        ...


@dataclass(frozen=True)
class RunAsked:
    """What a worker opens to compute a run's stages.

    Attributes
    ----------
    pair : Pair
    out : Path
        Folder of runs.
    settings : Settings
    within : str
        The folder that relative paths start from.
    expected : mapping
        The settings of the run's folder, which those of a worker have to equal.
    """

    pair: Pair
    out: Path
    settings: Settings
    within: str = field(default_factory=os.getcwd)
    expected: Mapping[str, Any] = field(default_factory=dict)

    def opened(self) -> PairRun:
        """Open the run, here.

        Raises
        ------
        ResultsError
            If what is here is not what was asked for: other weights, items or versions.
        """
        run = open_run(self.pair, out=self.out, settings=self.settings)
        there = run.own.settings
        if other := [key for key in self.expected if self.expected[key] != there.get(key)]:
            raise ResultsError(
                f"a worker has another {', '.join(other)} than the process that started it. "
                "Install the same versions everywhere, and give every machine the same files."
            )
        return run

    @classmethod
    def of(cls, run: PairRun) -> "RunAsked":
        """Return what opens this run."""
        expected = run.own.settings
        return cls(run.pair, run.own.folder.parent, run.settings, expected=expected)

    def spread(self, share: float) -> "RunAsked":
        """Return the same with each model's blocks over all GPUs, where there are several."""
        loading = self.settings.loading
        if share <= 1 or loading.device or loading.device_map is not None:
            return self
        loading = replace(loading, device_map="auto")
        return replace(self, settings=replace(self.settings, loading=loading))

    def packed(self) -> bytes:
        """As bytes; functions of a user's own script go by value."""
        import cloudpickle

        return cloudpickle.dumps(self)


class Worker:
    """Computes what it is sent, until it is ended.

    Parameters
    ----------
    channel : Channel
    scratch : Path, optional
        Folder of runs in place of the one that is named, where that one is not on this machine.
    keep : bool
        Whether models of a pair stay when the next one's are loaded.
    """

    def __init__(self, channel: Channel, *, scratch: Path | None = None, keep: bool = True) -> None:
        self.channel = channel
        self.scratch = scratch
        self.keep = keep
        self.models = Models()
        self.runs: dict[bytes, PairRun] = {}

    def loop(self) -> None:
        """Do what is said."""
        while True:
            message = self.channel.recv()
            if isinstance(message, Begin):
                self._begin(message)
            elif isinstance(message, Compute):
                self._compute(message)

    def _run(self, packed: bytes) -> PairRun:
        if packed not in self.runs:
            asked: RunAsked = pickle.loads(packed)  # from the process that started this one
            if self.scratch is not None:
                asked = replace(asked, out=self.scratch)
                with contextlib.suppress(OSError):  # it may be another machine's
                    os.chdir(asked.within)
            self.runs[packed] = asked.opened()
        run = self.runs[packed]
        if not self.keep:
            here = {*run.folders.values()}
            for other in self.runs.values():
                for folder in {*other.folders.values()} - here:
                    self.models.drop(folder)
        return run

    def _begin(self, begin: Begin) -> None:
        try:
            run = self._run(begin.run)
            hands = Sharing(self.channel, run, self.models, begin.stored)
            progress = Progress(
                lambda rows: self.channel.send(Expected(rows)),
                lambda rows: self.channel.send(Ticked(rows)),
            )
            with shared_with(hands):
                result = run.compute(
                    begin.stage,
                    dict(begin.needed),
                    models=self.models,
                    progress=progress,
                    again=begin.again,
                )
            message = Finished(result)
        except Exception as error:
            message = Finished(error=sendable(error))
        self._say(message)

    def _compute(self, asked: Compute) -> None:
        try:
            run = self._run(asked.run)
            shard: Shard = pickle.loads(self.channel.unpack(asked.shard))
            model = run.model(shard.role, self.models)
            at_home(model)

            def tick(rows: int) -> None:
                self.channel.send(Ticked(rows, asked.job))

            result = shard.function(model, *shard.task, tick=tick)
            message = Computed(asked.job, asked.number, pickle.dumps(result))
        except Exception as error:
            own = DeviceFailed(explained(error, ())) if failed(error) else sendable(error)
            message = Computed(asked.job, asked.number, error=own)
        self._say(message)

    def _say(self, message: Any) -> None:
        self.channel.send(Loaded(self.models.loads))
        self.channel.send(message)


def sendable(error: Exception) -> Exception:
    """The error, if it can be sent; else one that says the same, a user's mistake as such.

    Where it arose goes along as a note.
    """
    where = "".join(traceback.format_exception(error))
    mistake = isinstance(error, InterventionsError)
    again = InterventionsError(str(error)) if mistake else RuntimeError(f"{error!r}")
    with contextlib.suppress(Exception):  # a class of its own may pickle as it likes
        same = pickle.loads(pickle.dumps(error))
        again = same if type(same) is type(error) else again
    again.add_note(f"In a worker:\n{where}")
    return again


def code_of(function: Callable[..., Any]) -> str:
    """Source of the module that a function is in, if it can be had: other code, other shards."""
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(sys.modules[function.__module__])
    return ""


class Sharing:
    """An owner's shards: those that others do meanwhile, and its own.

    Parameters
    ----------
    channel : Channel
    run : PairRun
    models : Models
    stored : set of str
        Digests of shards that are stored.
    """

    def __init__(
        self, channel: Channel, run: PairRun, models: Models, stored: frozenset[str]
    ) -> None:
        self.channel = channel
        self.run = run
        self.models = models
        self.stored = stored
        self.helpers = 0
        self.numbers = 0
        self.posted: dict[int, tuple[Shard, str]] = {}
        self.held: dict[int, int] = {}
        self.results: dict[int, Any] = {}

    def on_each(
        self,
        model: Model,
        function: Callable[..., Any],
        tasks: Iterable[tuple[Any, ...]],
        *,
        tick: Callable[[int], None],
    ) -> list[Any]:
        """See :class:`twohop.ask.shards.Hands`."""
        role: Role | None = next(
            (of for of in ROLES if self.run.model(of, self.models) is model), None
        )
        if role is None:  # a model that the run does not know is nobody else's
            at_home(model)
            return [function(model, *task, tick=tick) for task in tasks]
        self.results, first = {}, self.numbers
        coming = self._numbered(role, function, tasks)
        more = True
        while more or len(self.results) < self.numbers - first:
            while self.channel.poll():
                self._hear(model, self.channel.recv(), tick)
            if not more:
                if len(self.results) < self.numbers - first:
                    self.channel.send(Waiting())
                    self._hear(model, self.channel.recv(), tick)
                continue
            following = next(coming, None)
            if following is None:
                more = False
                continue
            number, shard, digest = following
            if digest in self.stored:
                self.posted[number] = shard, digest
                self.channel.send(Wanted(number, digest))
            elif len(self.posted) < AHEAD * self.helpers and self._has_room():
                self.posted[number] = shard, digest
                blob = pickle.dumps(shard)
                self.held[number] = len(blob)
                self.channel.send(Posted(number, digest, self.channel.pack(blob), len(blob)))
            else:
                self._do(model, number, shard, digest, tick)
        return [self.results[number] for number in range(first, self.numbers)]

    def _has_room(self) -> bool:
        held = sum(size for number, size in self.held.items() if number in self.posted)
        return held < POSTED_BYTES

    def _numbered(
        self, role: Role, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Shard, str]]:
        model = self.run.model(role, self.models)
        name = f"{function.__module__}.{function.__qualname__}"
        of = digest_of(role, name, code_of(function), str(model.dtype), home_of(model).type)
        for task in tasks:
            number, self.numbers = self.numbers, self.numbers + 1
            yield number, Shard(role, function, task), digest_of(of, task)

    def _hear(self, model: Model, message: Any, tick: Callable[[int], None]) -> None:
        if isinstance(message, Help):
            self.helpers = message.workers
        elif isinstance(message, Yours) and message.number in self.posted:
            shard, digest = self.posted.pop(message.number)
            self._do(model, message.number, shard, digest, tick)
        elif isinstance(message, Given) and message.number in self.posted:
            self.posted.pop(message.number)
            if message.error is not None:
                raise message.error
            self.results[message.number] = pickle.loads(self.channel.unpack(message.result))

    def _do(
        self,
        model: Model,
        number: int,
        shard: Shard,
        digest: str,
        tick: Callable[[int], None],
    ) -> None:
        at_home(model)
        result = shard.function(model, *shard.task, tick=tick)
        self.results[number] = result
        self.channel.send(Kept(digest, pickle.dumps(result)))
