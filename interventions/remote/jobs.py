"""Requests that outlive the process that made them.

Each is kept in a folder: what is asked (``.request``), what is known of it (``.json``), and what
came back (``.result``). Its id is chosen here, and written before the request is sent, so that a
process killed at any moment finds it again. Asking the same of the same model a second time gives
the result that is there, or goes on waiting.
"""

import importlib
import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from nnsight.schema.response import ResponseModel, Status

from interventions.architectures.wrapped import Wrapped
from interventions.digests import UnknownContent, digest_of
from interventions.errors import JobError, JobTimeout, RemoteError
from interventions.remote.backend import Backend, Unanswered
from interventions.remote.sending import backend_of, send
from interventions.remote.shipping import LUGGAGE
from interventions.returnable import RETURNABLE
from interventions.storable import write_atomically

SERVER_FAULTS = ("Sorry for the inconvenience", "was evicted", "cancelled or preempted by")
"""Words of NDIF's messages about failures that are not those of the request's code."""
UNHEARD = 30.0  # seconds without a word of a request that was sent, after which it is sent again
PAUSES = (0.1, 30.0)  # seconds between two looks: at first, and at most


@dataclass
class Record:
    """What is known of a job, as it lies on the disk.

    Attributes
    ----------
    name : str
        Of the function that runs.
    model_key, host : str
        What it runs on, and where.
    ids : list of str
        Ids under which it was sent; the last one counts. More than one: the server failed.
    state : {"packed", "sent", "done", "failed", "cancelled"}
    sent : int
        How many times it was sent.
    request_bytes : int
    message : str
        The server's last word.
    """

    name: str
    model_key: str
    host: str
    ids: list[str] = field(default_factory=list)
    state: str = "packed"
    sent: int = 0
    request_bytes: int = 0
    message: str = ""


class Packing(Backend):
    """Keeps the request instead of sending it."""

    packed = b""

    def __call__(self, tracer: Any = None) -> None:
        """Serialise the request."""
        self.packed = self._serialize(tracer)


class Jobs:
    """A folder of jobs.

    Parameters
    ----------
    folder : Path
        Made if need be. It holds what was sent and what came back, and no keys.
    time_limit : float, optional
        Seconds to wait for one job; then :class:`JobTimeout`, and the job goes on.
    attempts : int
        How often a job is sent if the server fails. Errors in the job's own code are never tried
        again.

    Examples
    --------
    >>> far = iv.load("llava-hf/llava-1.5-7b-hf")
    >>> far.jobs = Jobs("runs/jobs")  # used by every operation of a model on a server
    """

    def __init__(
        self, folder: Path | str, *, time_limit: float | None = None, attempts: int = 3
    ) -> None:
        self.folder = Path(folder)
        self.time_limit = time_limit
        self.attempts = attempts

    def call(self, model: Wrapped, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Return ``function(model, *args, **kwargs)``, run on the server; see :meth:`submit`."""
        return self.wait(model, self.submit(model, function, *args, **kwargs))

    def submit(self, model: Wrapped, function: Any, *args: Any, **kwargs: Any) -> str:
        """Send a job unless it was sent before; return its name in the folder at once."""
        backend = backend_of(model, remote=model.remote)
        try:
            key = digest_of(backend.model_key, backend.host, function, args, kwargs)
        except UnknownContent as error:
            raise RemoteError(f"this cannot be part of a job that is kept: {error}") from error
        if not self._path(key, "json").exists():
            packing = backend_of(model, remote=model.remote, kind=Packing)
            send(model, packing, function, args, kwargs)
            write_atomically(self._path(key, "request"), packing.packed)
            record = Record(function.__name__, backend.model_key, backend.host)
            record.request_bytes = len(packing.packed)
            self._write(key, record)
        record = self.record(key)
        if record.state == "cancelled":
            raise RemoteError(f"the job {key} was cancelled. forget({key!r}) lets it be sent anew.")
        if record.state == "packed":
            self._send(backend, key, record)
        return key

    def wait(self, model: Wrapped, key: str) -> Any:
        """Wait for a job and return what its function returned.

        Raises
        ------
        JobError
            If its code failed on the server.
        JobTimeout
            If the time limit is over. The job goes on, and waiting can be taken up again.
        RemoteError
            If the server failed as often as there are attempts.
        """
        backend = backend_of(model, remote=model.remote)
        until = time.monotonic() + (self.time_limit or float("inf"))
        pause, heard = PAUSES[0], time.monotonic()
        while True:
            record = self.record(key)
            if record.state == "done":
                return stored(self._path(key, "result"))["returned"][0]
            if record.state in ("failed", "cancelled"):
                raise JobError(f"job {key} {record.state}. {record.message}")
            if record.state == "packed":
                self._send(backend, key, record)
            try:
                response = self._look(backend, record)
                if response is not None:
                    heard = time.monotonic()
                    self._take(backend, key, record, response)
                elif time.monotonic() - heard > UNHEARD:
                    record.message = "the server does not know of it"
                    self._again(backend, key, record)
                    heard = time.monotonic()
            except Unanswered as error:
                record.message = str(error)  # the job goes on without us
            if self.record(key).state in ("done", "failed"):
                continue
            if time.monotonic() > until:
                raise JobTimeout(
                    f"job {key} ({record.name}) is not done after {self.time_limit} s; its server "
                    f"said: {record.message or 'nothing'}. It goes on there; ask again to wait on."
                )
            time.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause = min(2 * pause, PAUSES[1])

    def records(self) -> dict[str, Record]:
        """All jobs of the folder."""
        return {path.stem: self.record(path.stem) for path in sorted(self.folder.glob("*.json"))}

    def record(self, key: str) -> Record:
        """What is known of one job."""
        return Record(**json.loads(self._path(key, "json").read_text(encoding="utf-8")))

    def cancel(self, key: str) -> None:
        """Give a job up: it is not waited for or sent again, and its result is not fetched.

        NDIF lets only its operators stop what runs already (``ndif kill ID``).
        """
        record = self.record(key)
        record.state = "cancelled"
        self._write(key, record)

    def forget(self, key: str) -> None:
        """Remove a job from the folder."""
        for kind in ("result", "request", "json"):
            self._path(key, kind).unlink(missing_ok=True)

    def _path(self, key: str, kind: str) -> Path:
        return self.folder / f"{key}.{kind}"

    def _write(self, key: str, record: Record) -> None:
        write_atomically(self._path(key, "json"), json.dumps(asdict(record), indent=2).encode())

    def _send(self, backend: Backend, key: str, record: Record) -> None:
        """Send a request under an id that is on the disk before."""
        began = bool(record.ids)
        if not began:
            record.ids.append(uuid.uuid4().hex)
        blob = self._path(key, "request").read_bytes()
        pause = PAUSES[0]
        until = time.monotonic() + (self.time_limit or 60.0)
        while True:
            try:
                # Whoever wrote the id may have died after sending, before noting it.
                if not (began and backend.status_of(record.ids[-1])):
                    record.sent += 1
                    self._write(key, record)
                    backend.post(blob, record.ids[-1])
                break
            except Unanswered as error:
                began = True  # it may have arrived all the same
                if time.monotonic() + pause > until:
                    raise RemoteError(
                        f"{error}. The job is kept in {self.folder}; ask again later."
                    ) from None
                time.sleep(pause)
                pause = min(2 * pause, PAUSES[1])
        record.state = "sent"
        self._write(key, record)

    def _again(self, backend: Backend, key: str, record: Record) -> None:
        """Send a job once more, under a new id, or give up."""
        if len(record.ids) >= self.attempts:
            record.state = "failed"
            record.message = f"The server failed {len(record.ids)} times: {record.message}"
            self._write(key, record)
            return
        record.ids.append(uuid.uuid4().hex)
        record.state = "packed"
        self._write(key, record)
        self._send(backend, key, record)

    def _look(self, backend: Backend, record: Record) -> ResponseModel | None:
        response = backend.status_of(record.ids[-1])
        if response is not None:
            record.message = backend.hidden(response.description)
        return response

    def _take(self, backend: Backend, key: str, record: Record, response: ResponseModel) -> None:
        """Store a result or an error."""
        if response.status == Status.COMPLETED:
            saved = backend.fetch(response)
            try:
                blob = as_stored(saved)
            except UnpicklingError as error:
                record.state = "failed"
                record.message = (
                    f"What {record.name} returns cannot be kept safely: {error}. Return tensors, "
                    "arrays, numbers, text, or lists and dicts of them."
                )
                self._write(key, record)
                return
            write_atomically(self._path(key, "result"), blob)
            record.state = "done"
            self._write(key, record)
            self._path(key, "request").unlink(missing_ok=True)
        elif response.status == Status.ERROR:
            if any(words in record.message for words in SERVER_FAULTS):
                self._again(backend, key, record)
                return
            record.state = "failed"
            record.message = str(backend.explained(Exception(response.description)))
            self._write(key, record)


def as_stored(returned: Any) -> bytes:
    """What a job returned as the content of a file that :func:`stored` opens.

    Raises
    ------
    UnpicklingError
        If it holds anything but tensors, arrays, plain values and results of this package.
    """
    file = BytesIO()
    torch.save(returned, file)
    stored(file)
    return file.getvalue()


def stored(file: Path | BytesIO) -> Any:
    """Open what a job returned; a file that would run code is refused.

    Raises
    ------
    UnpicklingError
        If it holds anything but tensors, arrays, plain values and results of this package.
    """
    if isinstance(file, BytesIO):
        file.seek(0)
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(file):
        module = name.rpartition(".")[0]
        if module.startswith("interventions.") and LUGGAGE.path_of(module) is not None:
            importlib.import_module(module)  # where what may be stored says so
    array = np.zeros(1, dtype=np.float32)
    rebuilt = [array.__reduce__()[0], np.ndarray, np.dtype]
    kinds = [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "?")]
    if isinstance(file, BytesIO):
        file.seek(0)  # looking for names has moved it
    with torch.serialization.safe_globals([*RETURNABLE, *rebuilt, *kinds]):
        return torch.load(file, weights_only=True)
