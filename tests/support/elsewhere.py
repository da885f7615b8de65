"""Models whose requests another process runs, which has our packages from the request only."""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from worker import read, write

import interventions as iv
from interventions.errors import RemoteError
from interventions.remote.backend import Backend

WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """The process in ``worker.py``."""

    def __init__(self, names: Sequence[str]) -> None:
        command = [sys.executable, "-W", "ignore", str(WORKER), *names]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe)

    def run(self, key: str, blob: bytes) -> dict[str, Any]:
        """Run a request; return what it saved."""
        into, out = self.process.stdin, self.process.stdout
        assert into is not None
        assert out is not None
        write(into, key.encode() + b"\n" + blob)
        saved = torch.load(io.BytesIO(read(out)), weights_only=False)
        if "error" in saved:
            raise RemoteError(saved["error"])
        return saved

    def stop(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


def sends_to(worker: Worker, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    """Let the worker run all requests, and note how large each is."""

    def request(self: Backend, _request: object, tracer: Any) -> dict[str, Any]:
        saved = worker.run(self.model_key, self._serialize(tracer))
        self._push(saved, tracer)
        sizes.append(self.request_bytes)
        return saved

    monkeypatch.setattr(Backend, "request", request)


def without_weights(model: iv.Model, name: str) -> iv.Model:
    """Take a model's weights away: what the worker calls so runs in its place."""
    torch.nn.Module.to(model.module, "meta")
    model.remote = "http://in-a-worker"
    setattr(model.nn, "to_model_key", lambda: name)  # noqa: B010 - nnsight's own is a method
    return model
