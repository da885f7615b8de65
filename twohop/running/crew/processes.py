"""Workers that are processes of this machine.

A small model's many short steps leave cores waiting for each other; two processes with half of the
cores each do not. On a machine with several GPUs each worker has one of its own.
"""

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from interventions.architectures.blueprints import default_device
from interventions.progress import quiet_libraries
from interventions.running.budget import share_memory
from twohop.running.crew.messages import Ready
from twohop.running.crew.transport import Hand, Lost
from twohop.running.crew.worker import Worker
from twohop.running.loading import Loading
from twohop.running.weighing import Machine


class Process:
    """A worker of this machine.

    Letters to it are posted by a thread: a worker may be saying something itself that is larger
    than its pipe holds, and would not listen before that is heard.
    """

    def __init__(self, threads: int, gpu: str | None, *, beside: int, keep: bool = True) -> None:
        self.gpu = gpu
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        told = (theirs, threads, gpu, beside, keep)
        self.process = context.Process(target=work, args=told, daemon=True)
        self.process.start()
        theirs.close()
        self.letters: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.post = threading.Thread(target=self._deliver, daemon=True)
        self.post.start()

    def send(self, message: Any) -> None:
        """See :class:`twohop.running.crew.transport.Hand`."""
        self.letters.put(pickle.dumps(message))

    def _deliver(self) -> None:
        while (letter := self.letters.get()) is not None:
            with contextlib.suppress(OSError):  # one that is gone is heard to be
                self.pipe.send_bytes(letter)

    def heard(self) -> Any:
        """What it says next."""
        try:
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):  # also in the middle of a message
            self.process.join()
            return Lost(
                f"a worker ended with status {self.process.exitcode}, perhaps for lack of memory"
            )

    def end(self) -> None:
        """See :class:`twohop.running.crew.transport.Hand`."""
        self.process.kill()
        self.process.join()
        self.letters.put(None)
        self.post.join()
        self.pipe.close()


class Processes:
    """Workers of this machine.

    Parameters
    ----------
    workers : int
    gpus : sequence of str
        Of the machine, by the names that CUDA_VISIBLE_DEVICES has for them: each worker is on
        one. Empty: models go where their settings say.
    keep : bool
        Whether workers keep the models of one pair when they go on with another.
    """

    away = False

    def __init__(self, workers: int, *, gpus: Sequence[str] = (), keep: bool = True) -> None:
        self.keeps = keep
        self._workers = workers
        self._threads = max(1, torch.get_num_threads() // workers)
        self._gpus = [*gpus]
        self._beside = -(-workers // max(1, len(self._gpus)))  # of a GPU, or of the machine
        self._there: list[Process] = []

    def machines(self, loading: Loading) -> list[Machine]:
        """See :class:`twohop.running.crew.transport.Crew`."""
        here = Machine.here(replace(loading, device=(default_device(),)) if self._gpus else loading)
        return [here.part(self._beside)]

    def workers(self, share: float) -> int:
        """See :class:`twohop.running.crew.transport.Crew`."""
        return self._workers

    def start(self, share: float) -> Process:
        """See :class:`twohop.running.crew.transport.Crew`."""
        self._there = [hand for hand in self._there if hand.process.is_alive()]
        on = [hand.gpu for hand in self._there]
        gpu = min(self._gpus, key=on.count) if self._gpus else None
        hand = Process(self._threads, gpu, beside=self._beside, keep=self.keeps)
        self._there.append(hand)
        return hand

    def wait(self, hands: Sequence[Process]) -> list[tuple[Hand, Any]]:
        """See :class:`twohop.running.crew.transport.Crew`."""
        of_pipe = {hand.pipe: hand for hand in hands}
        return [(of_pipe[pipe], of_pipe[pipe].heard()) for pipe in wait([*of_pipe])]  # type: ignore[index]

    def packed(self, blob: bytes) -> bytes:
        """See :class:`twohop.running.crew.transport.Crew`."""
        return blob


class Pipe:
    """A :class:`twohop.running.crew.worker.Channel` to the process that started this one."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, message: Any) -> None:
        """Say something."""
        self.connection.send_bytes(pickle.dumps(message))

    def recv(self) -> Any:
        """Wait for what is said next."""
        return pickle.loads(self.connection.recv_bytes())

    def poll(self) -> bool:
        """Whether something was said."""
        return self.connection.poll()

    def pack(self, blob: bytes) -> bytes:
        """Make bytes ready to be handed on."""
        return blob

    def unpack(self, parcel: bytes) -> bytes:
        """Return what was made ready."""
        return parcel


def work(connection: Connection, threads: int, gpu: str | None, beside: int, keep: bool) -> None:
    """Be a worker until killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    quiet_libraries()
    torch.set_num_threads(threads)
    share_memory(beside)
    pipe = Pipe(connection)
    pipe.send(Ready())
    Worker(pipe, keep=keep).loop()


def end_with_parent() -> None:
    """Leave nothing running when the parent is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
