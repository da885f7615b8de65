"""nnsight's remote backend, with our packages packed in and errors that say what to do."""

import json
import sys
import time
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

import httpx
from nnsight.intervention.backends import remote as nnsight_remote
from nnsight.intervention.serialization import dumps, reduce_block
from nnsight.ndif import pull_env
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel

from interventions.errors import InterventionsError, JobError, RemoteError
from interventions.remote.shipping import by_reference, with_luggage

NOT_READY = (429, 500, 502, 503, 504)
KEY = "Set NDIF_API_KEY, or run 'nnsight login' once; keys are from https://login.ndif.us."


class Unanswered(RemoteError):
    """A server that does not answer or is not ready: the same may work later."""


class NamedRequest(RequestModel):
    """A request whose id the client has chosen."""

    id: str


class Backend(nnsight_remote.RemoteBackend):
    """Runs a trace or a session on an NDIF server.

    Attributes
    ----------
    request_bytes : int
        Size of the last request's payload, as sent.
    saved : dict
        What the last request saved, by the name of its variable.
    """

    request_bytes = 0
    saved: Any = None

    def _serialize(self, tracer: Any) -> bytes:
        pull_env()  # a user's own modules travel by value
        frame = tracer.info.frame
        block = reduce_block(tracer.node, frame.f_globals, dict(frame.f_locals))
        try:
            body = by_reference(lambda: dumps((tracer, block)))
        except InterventionsError:
            raise
        except Exception as error:  # what cannot be packed raises what it likes
            raise RemoteError(
                f"the request cannot be sent: something in it cannot be packed "
                f"({type(error).__name__}: {error}). What is asked, and what a function of yours "
                "uses, must be tensors, arrays, numbers, text, functions, or containers of them: "
                "no open files, locks, generators or connections."
            ) from error
        blob = with_luggage(body)
        if self.compress:
            blob = compressed(blob, len(blob) - len(body))
        self.request_bytes = len(blob)
        self._log(f"request: {len(blob):,} bytes")
        return blob

    def __call__(self, tracer: Any = None) -> Any:
        """Send the request and wait, or only send it (``blocking=False``)."""
        import websocket

        try:
            self.saved = super().__call__(tracer)
        except nnsight_remote.RemoteError as error:
            raise self.explained(error) from None
        except (OSError, websocket.WebSocketException) as error:
            raise Unanswered(
                f"{self.host} cannot be reached, or dropped the connection "
                f"({self.hidden(str(error)) or type(error).__name__}). Check the address (remote=, "
                "or NDIF_HOST) and that the server runs. Requests that outlive a connection: "
                "model.jobs = interventions.remote.Jobs(folder)."
            ) from None
        return self.saved

    def _post(self, request: RequestModel, blob: bytes) -> ResponseModel:
        headers = {
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": version("nnsight"),
            "python-version": sys.version,
        }
        answer = self.http(
            "POST",
            "/request",
            data={"data": request.metadata()},
            files={"blob": ("request", blob, "application/octet-stream")},
            headers=headers,
        )
        return ResponseModel.model_validate_json(answer.text)

    def post(self, blob: bytes, request_id: str) -> ResponseModel:
        """Send a request that was packed before, under an id of our own, without waiting."""
        request = NamedRequest(
            model_key=self.model_key, compress=self.compress, env=self.env, id=request_id
        )
        return self._post(request, blob)

    def status_of(self, request_id: str) -> ResponseModel | None:
        """Look what became of a request; None if the server has not said anything about it."""
        answer = self.http("GET", f"/response/{request_id}", missing=True)
        return None if answer is None else ResponseModel.model_validate_json(answer.text)

    def fetch(self, response: ResponseModel) -> Any:
        """What a finished request saved."""
        try:
            return self.download_result(response.data)
        except httpx.HTTPError as error:
            raise Unanswered(f"the result could not be fetched: {error}") from None

    def http(self, method: str, path: str, *, missing: bool = False, **given: Any) -> Any:
        """Make a call to the server's API.

        Raises
        ------
        Unanswered
            If it does not answer or is not ready.
        RemoteError
            If it refuses.
        """
        headers = given.pop("headers", {})
        if self.api_key:
            headers["ndif-api-key"] = self.api_key
        try:
            with httpx.Client(timeout=httpx.Timeout(10.0, read=600.0)) as client:
                answer = client.request(method, f"{self.host}{path}", headers=headers, **given)
        except httpx.TransportError as error:
            raise Unanswered(
                f"{self.host} cannot be reached ({self.hidden(str(error)) or type(error).__name__})"
                ". Check the address (remote=, or NDIF_HOST) and that the server runs"
            ) from None
        if answer.status_code == 404 and missing:
            return None
        if answer.is_success:
            return answer
        detail = self.hidden(_detail(answer))
        if answer.status_code in NOT_READY:
            raise Unanswered(f"{self.host} is not ready: {detail}")
        if "key" in detail.lower():
            raise RemoteError(f"{self.host} did not accept the key: {detail} {KEY}")
        raise RemoteError(f"{self.host} did not take the request: {detail}")

    def hidden(self, text: str) -> str:
        """Return a text without the key."""
        return text.replace(self.api_key, "<key>") if self.api_key else text

    def explained(self, error: Exception) -> RemoteError:
        """Turn nnsight's error into one of ours."""
        text = self.hidden(str(error))
        if "deploy this model" in text or "Error starting model" in text:
            return RemoteError(f"{text} {where_else(hosted(self), self.model_key)}")
        if "execution timeout" in text:
            return JobError(f"{text} Ask for less in one request: fewer rows, layers or positions.")
        return JobError(f"the request failed on {self.host}:\n{text}")


def compressed(blob: bytes, packed: int) -> bytes:
    """A request compressed, of which the first ``packed`` bytes, our modules, are so already.

    They are a block of their own: in one with them the rest would often be left as it is.
    """
    import zstandard

    frame = zstandard.ZstdCompressor(level=3).compressobj(size=len(blob))
    first = frame.compress(blob[:packed]) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return first + frame.compress(blob[packed:]) + frame.flush()


def _detail(answer: httpx.Response) -> str:
    """The server's own words about a refusal."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text or answer.reason_phrase
    return str(body.get("detail", body) if isinstance(body, dict) else body)


@dataclass(frozen=True)
class Hosted:
    """A model on a server.

    Attributes
    ----------
    repo_id : str
    level : {"HOT", "WARM", "COLD"}
        On its device, in memory, or on disk.
    state : str
        ``"RUNNING"``, ``"DEPLOYING"``, ``"UNHEALTHY"``, or empty for a cold one.
    model_key : str or None
        As nnsight names it, class and task included.
    """

    repo_id: str
    level: str
    state: str
    model_key: str | None


def hosted(backend: Backend) -> list[Hosted]:
    """Models a server knows; empty if it does not say."""
    try:
        deployments: dict[str, Any] = backend.http("GET", "/status").json().get("deployments", {})
    except (RemoteError, ValueError):
        return []
    return [
        Hosted(
            repo_id=deployment.get("repo_id") or name,
            level=deployment.get("deployment_level") or "",
            state=deployment.get("application_state") or "",
            model_key=deployment.get("model_key"),
        )
        for name, deployment in deployments.items()
    ]


def repo_of(model_key: str) -> str:
    """The repo id in nnsight's name of a model."""
    try:
        return json.loads(model_key.split(":", 1)[1])["repo_id"]
    except (ValueError, KeyError, IndexError):
        return model_key


def where_else(known: list[Hosted], model_key: str) -> str:
    """A sentence about a model that is not to be had, and what is hosted, nearest names first."""
    wanted = repo_of(model_key)
    names = sorted({model.repo_id for model in known} - {wanted})
    if not names:
        return f"{wanted!r} is not hosted there, and the server names no other model."
    near = get_close_matches(wanted, names, n=3, cutoff=0.4)
    hint = f"Nearest: {', '.join(near)}. " if near else ""
    return f"{wanted!r} is not hosted there. {hint}Hosted: {', '.join(names)}."
