"""Workers that are actors of a Ray cluster.

Ray places each by what the models take, says when one is lost, and carries shards from worker to
worker without passing through the process that schedules.
"""

import contextlib
import os
import queue
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from interventions.errors import InterventionsError
from twohop.running.crew.messages import Ready
from twohop.running.crew.transport import Hand, Lost
from twohop.running.loading import Loading
from twohop.running.weighing import Machine

ON_A_CPU = 2
"""Workers of a machine without GPUs, if it is not said how many: each loads the models."""
MOST_ON_A_CARD = 4
ROUNDING = 1e-6
ANSWERING = 5.0
"""Seconds for a cluster of this machine to take a call."""
LEAVING = 5.0
"""Seconds for a worker to remove its files, before it is ended."""
CONTEXT = 600 * 2**20
"""Bytes of a GPU that each process takes before anything is on it."""
CARD_SPARE = 0.95
"""Part of a GPU that is there to be taken: the driver has the rest."""


class RayMissing(InterventionsError):
    """Ray is asked for and not installed, or its cluster does not answer."""


def ray_module() -> Any:
    """Return Ray.

    Raises
    ------
    RayMissing
        If it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise RayMissing(
            "--on ray: Ray is not installed here. Install it on every machine of the cluster: "
            "pip install 'twohop[ray]'. --on processes needs none."
        ) from None
    return ray


class Post:
    """The actor: a worker in a thread of its own, and its letter boxes."""

    def __init__(self, beside: int) -> None:
        from interventions.progress import quiet_libraries
        from interventions.running.budget import share_memory
        from twohop.running.crew.worker import Worker

        quiet_libraries()
        share_memory(beside)
        self.inbox: queue.Queue[Any] = queue.Queue()
        self.outbox: queue.Queue[Any] = queue.Queue()
        self.outbox.put(Ready())
        self.scratch = Path(tempfile.mkdtemp(prefix="twohop-"))
        worker = Worker(Letters(self.inbox, self.outbox), scratch=self.scratch, keep=False)
        self.due, self.early, self.lock = 0, dict[int, Any](), threading.Lock()
        threading.Thread(target=_end_with, args=(worker.loop,), daemon=True).start()

    def put(self, number: int, message: Any) -> None:
        """Say something to the worker; calls may overtake each other, letters do not."""
        with self.lock:
            self.early[number] = message
            while self.due in self.early:
                self.inbox.put(self.early.pop(self.due))
                self.due += 1

    def next(self) -> list[Any]:
        """Wait for what it says: all that it has said by then."""
        said = [self.outbox.get()]
        while not self.outbox.empty():
            said.append(self.outbox.get())
        return said

    def leave(self) -> None:
        """Leave no files behind."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def _end_with(loop: Callable[[], None]) -> None:
    """Run a worker; end its process with it, so that it is known to be lost."""
    try:
        loop()
    finally:
        os._exit(1)


class Letters:
    """How an actor's worker hears and speaks: :class:`twohop.running.crew.worker.Channel`."""

    def __init__(self, inbox: "queue.Queue[Any]", outbox: "queue.Queue[Any]") -> None:
        self.inbox = inbox
        self.outbox = outbox

    def send(self, message: Any) -> None:
        """Say something."""
        self.outbox.put(message)

    def recv(self) -> Any:
        """Wait for what is said next."""
        return self.inbox.get()

    def poll(self) -> bool:
        """Whether something was said."""
        return not self.inbox.empty()

    def pack(self, blob: bytes) -> Any:
        """Put bytes where other workers get them from."""
        return ray_module().put(blob)

    def unpack(self, parcel: Any) -> bytes:
        """Get what another put, wherever that is."""
        return parcel if isinstance(parcel, bytes) else ray_module().get(parcel)


class Actor:
    """A worker of a cluster."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.coming = actor.next.remote()
        self.sent = 0

    def send(self, message: Any) -> None:
        """See :class:`twohop.running.crew.transport.Hand`."""
        self.actor.put.remote(self.sent, message)
        self.sent += 1

    def end(self) -> None:
        """See :class:`twohop.running.crew.transport.Hand`."""
        ray = ray_module()
        with contextlib.suppress(ray.exceptions.RayError):  # one that is lost leaves nothing more
            ray.get(self.actor.leave.remote(), timeout=LEAVING)
        ray.kill(self.actor)


class OnRay:
    """Workers of a Ray cluster.

    Parameters
    ----------
    address : str, optional
        ``ray://HOST:PORT``. Default: the cluster of ``RAY_ADDRESS`` or of this machine; one of
        this machine is started if there is none.
    workers : int, optional
        Default: as many as the cluster has room for.

    Raises
    ------
    RayMissing
        If Ray is not installed, or nothing answers at the address.
    """

    keeps = False
    away = True

    def __init__(self, address: str | None = None, *, workers: int | None = None) -> None:
        self._ray = ray_module()
        if not self._ray.is_initialized():
            try:
                place = "local" if address is None and cluster_is_gone() else address
                self._ray.init(address=place, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                said = str(error).strip().split("\n")[0]
                raise RayMissing(
                    f"no Ray cluster answers at {address or 'RAY_ADDRESS or on this machine'}: "
                    f"{said}. Start one with 'ray start --head', or leave the address out."
                ) from None
        self._has: dict[str, float] = self._ray.cluster_resources()
        self._workers = workers

    @property
    def card(self) -> int | None:
        """Bytes of the smallest of its GPUs; None if it has none."""
        if not self._has.get("GPU"):
            return None
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self._ray.remote(num_gpus=1, num_cpus=0)(bytes_of_card)
        there = [
            NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            for node in self._nodes()
            if node["Resources"].get("GPU")
        ]
        asked = [remote.options(scheduling_strategy=node).remote() for node in there]
        return min(self._ray.get(asked))

    def machines(self, loading: Loading) -> list[Machine]:
        """See :class:`twohop.running.crew.transport.Crew`."""
        card = self.card
        if card is None:
            # What Ray leaves to workers of a machine, by its own count.
            free = min(int(node["Resources"].get("memory", 0)) for node in self._nodes())
            return [Machine("cpu", (free,), ("cpu",)).part(self._beside(0.0))]
        most = max(int(node["Resources"].get("GPU", 0)) for node in self._nodes())
        names = tuple(f"cuda:{i}" for i in range(most))
        room = int(card * CARD_SPARE)
        single = Machine("cuda", (room,), names[:1])
        return [single, Machine("cuda", (room,) * most, names, True)] if most > 1 else [single]

    def _beside(self, share: float) -> int:
        """How many workers are on one GPU, or on one machine without."""
        if share:
            return max(1, round(1 / share))
        return -(-self.workers(0.0) // len(self._nodes()))

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def workers(self, share: float) -> int:
        """See :class:`twohop.running.crew.transport.Crew`."""
        if share:
            gpus = [node["Resources"].get("GPU", 0.0) for node in self._nodes()]
            there = sum(int(count / share + ROUNDING) for count in gpus)
            if not there:
                raise InterventionsError(
                    f"a pair takes {share:.0f} GPUs of one machine, and the largest of the "
                    f"cluster has {max(gpus):.0f}. Pack the weights (--quantization nf4)."
                )
            return there if self._workers is None else min(there, self._workers)
        there = int(self._has.get("CPU", 1))
        return max(1, min(there, self._workers or ON_A_CPU * len(self._nodes())))

    def start(self, share: float) -> Actor:
        """See :class:`twohop.running.crew.transport.Crew`."""
        asked = {"num_cpus": 1, "num_gpus": share, "max_concurrency": 3}
        if not share:  # else they crowd on the first machine
            asked["scheduling_strategy"] = "SPREAD"
        remote = self._ray.remote(Post).options(**asked)
        return Actor(remote.remote(self._beside(share)))

    def wait(self, hands: Sequence[Actor]) -> list[tuple[Hand, Any]]:
        """See :class:`twohop.running.crew.transport.Crew`."""
        of_coming = {hand.coming: hand for hand in hands}
        done, _ = self._ray.wait([*of_coming], num_returns=1)
        said: list[tuple[Hand, Any]] = []
        for coming in done:
            hand = of_coming[coming]
            try:
                messages = self._ray.get(coming)
            except self._ray.exceptions.RayError as error:
                first = str(error).strip().split("\n")[0]
                said.append((hand, Lost(f"a worker of the cluster is lost: {first}")))
                continue
            hand.coming = hand.actor.next.remote()
            said += [(hand, message) for message in messages]
        return said

    def packed(self, blob: bytes) -> bytes:
        """See :class:`twohop.running.crew.transport.Crew`."""
        return blob


def cluster_is_gone() -> bool:
    """Whether the cluster that Ray remembers of this machine does not answer any more.

    One that was killed is remembered still, and Ray asks for it for minutes.
    """
    if os.environ.get("RAY_ADDRESS"):
        return False
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray")
    try:
        host, port = (folder / "ray_current_cluster").read_text(encoding="utf-8").rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=ANSWERING).close()
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return False


def bytes_of_card() -> int:
    """Bytes of the GPU that a task was given."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def share_of_card(needed: int, card: int | None) -> float:
    """Of a GPU, the part that so many bytes take, or the number of GPUs; 0 where there are none.

    Parts are one in two, one in three ..., so that they fill a card.

    Examples
    --------
    >>> gigabyte = 10**9
    >>> [share_of_card(size * gigabyte, 80 * gigabyte) for size in (30, 60, 200)]
    [0.5, 1.0, 3.0]
    >>> share_of_card(30 * gigabyte, None)
    0.0
    """
    if not card:
        return 0.0
    parts = min(int(card * CARD_SPARE // (needed + CONTEXT)), MOST_ON_A_CARD)
    return 1.0 / parts if parts else float(-(-needed // int(card * CARD_SPARE)))
