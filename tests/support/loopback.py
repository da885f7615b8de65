"""The doors of an NDIF server on loopback, for an unmodified client; ``worker.py`` is behind them.

It speaks as much of the server's protocol as a client needs: a websocket for requests that are
waited for, and polling for jobs. The real server is started by ``make test-ndif``.
"""

import asyncio
import io
import json
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
import zstandard
from elsewhere import Worker
from nnsight.schema.response import ResponseModel, Status
from tornado.httpserver import HTTPServer  # comes with ipykernel
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler
from tornado.websocket import WebSocketHandler

from interventions.errors import RemoteError
from interventions.remote.backend import repo_of
from interventions.remote.preflight import MATTERING


class Server:
    """What the doors share: the process that runs requests, and what came of them."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.listeners: dict[str, WebSocketHandler] = {}
        self.answers: dict[str, ResponseModel] = {}
        self.results: dict[str, bytes] = {}

    def run(self, asked: dict[str, Any], blob: bytes) -> ResponseModel:
        """Run a request; the answer says that it is done, or why it failed."""
        made = str(asked.get("id") or uuid.uuid4().hex)
        family = repo_of(asked["model_key"]).split("/")[-1]
        try:
            saved = self.worker.run(family, blob)
        except RemoteError as error:
            return ResponseModel(id=made, status=Status.ERROR, description=str(error))
        written = io.BytesIO()
        torch.save(saved, written)
        self.results[made] = zstandard.compress(written.getvalue())
        return ResponseModel(id=made, status=Status.COMPLETED)


class Door(RequestHandler):
    """A path of the API."""

    def initialize(self, server: Server) -> None:
        """Take what all paths share."""
        self.server = server


class Nothing(Door):
    """``/ping`` and ``/status``: it is there, and hosts what the worker holds."""

    def get(self) -> None:
        """Answer."""
        self.write({"deployments": {}})


class Env(Door):
    """``/env``: the worker has the versions that are here."""

    def get(self) -> None:
        """Answer."""
        self.write(
            {
                "packages": {name: version(name) for name in MATTERING},
                "python_version": sys.version,
            }
        )


class Subscribe(WebSocketHandler):
    """``/subscribe``: a socket on which a client waits."""

    def initialize(self, server: Server) -> None:
        """Take what all paths share."""
        self.server = server

    def open(self, *_: str, **__: str) -> None:
        """Name the session."""
        session = uuid.uuid4().hex
        self.server.listeners[session] = self
        self.write_message(json.dumps({"session_id": session}))


class Request(Door):
    """``/request``: run it, then tell who waits."""

    async def post(self) -> None:
        """Take a request."""
        asked = json.loads(self.get_body_argument("data"))
        blob = self.request.files["blob"][0]["body"]
        answer = await asyncio.to_thread(self.server.run, asked, blob)
        self.server.answers[answer.id] = answer
        self.write(ResponseModel(id=answer.id, status=Status.RECEIVED).model_dump_json())
        if listener := self.server.listeners.pop(asked.get("session_id", ""), None):
            result = self.server.results.get(answer.id)
            told = answer.model_copy(update={"data": result} if result else {})
            listener.write_message(told.pickle(), binary=True)


class Response(Door):
    """``/response/ID``: what became of a request."""

    def get(self, request_id: str) -> None:
        """Look it up."""
        if request_id not in self.server.answers:
            raise HTTPError(404)
        where = f"http://{self.request.host}/result/{request_id}"
        answer = self.server.answers[request_id].model_copy(update={"data": where})
        self.write(answer.model_dump_json())


class Result(Door):
    """``/result/ID``: what a request saved."""

    def get(self, request_id: str) -> None:
        """Hand it over."""
        self.write(self.server.results[request_id])


@contextmanager
def doors(worker: Worker) -> Iterator[str]:
    """Serve on a free port, in a thread; yields the address."""
    given = {"server": Server(worker)}
    application = Application(
        [
            (r"/(?:ping|status)", Nothing, given),
            (r"/env", Env, given),
            (r"/subscribe", Subscribe, given),
            (r"/request", Request, given),
            (r"/response/(\w+)", Response, given),
            (r"/result/(\w+)", Result, given),
        ]
    )
    [listening] = bind_sockets(0, "127.0.0.1")
    loop = asyncio.new_event_loop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        http = HTTPServer(application)
        http.add_socket(listening)
        loop.run_forever()
        http.stop()
        loop.run_until_complete(http.close_all_connections())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
