"""What a server says before any work is sent to it: ``interventions remote MODEL``."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from interventions.architectures.wrapped import Wrapped, about_weights
from interventions.errors import JobError, RemoteError
from interventions.remote.backend import Backend, Hosted, hosted, where_else
from interventions.remote.sending import backend_of, send

MATTERING = {
    "nnsight": "requests are read by it",
    "transformers": "it decides where a model's parts are",
    "torch": "numbers may differ in their last digits",
}
"""Packages whose version must be the same on both sides, or nearly so, and why."""


@dataclass(frozen=True)
class Difference:
    """A version that differs.

    Attributes
    ----------
    package, here, there : str
    why : str
        Why it matters.
    """

    package: str
    here: str
    there: str
    why: str


@dataclass
class Preflight:
    """What was found out about a model on a server.

    Attributes
    ----------
    host : str
    model : str
    round_trip_ms : float
        Of a call that does nothing.
    level, state : str
        ``"HOT"``, ``"WARM"`` or ``"COLD"``, or ``"not loaded"``; and what its deployment is doing.
    differences : list of Difference
        Versions that differ in ways that matter; empty if they do not, or are not told.
    dtype : str or None
        Of the weights there. None, as what follows, if the model did not answer.
    gradients : bool or None
        Whether requests can compute gradients. Without them, attribution has to be replaced by the
        exact sweep.
    request_ms : float or None
        Of the smallest request.
    problem : str or None
        Why the model did not answer.
    """

    host: str
    model: str
    round_trip_ms: float
    level: str
    state: str
    differences: list[Difference] = field(default_factory=list)
    dtype: str | None = None
    gradients: bool | None = None
    request_ms: float | None = None
    problem: str | None = None

    def record(self) -> dict[str, Any]:
        """The same, of JSON types."""
        return asdict(self)


def preflight(model: Wrapped) -> Preflight:
    """Ask a server about a model that was loaded with ``remote=``.

    Raises
    ------
    RemoteError
        If the server cannot be reached.
    """
    if model.remote in (False, "local"):
        raise RemoteError(f"{model.name} runs here. Load it with remote=True or a URL.")
    backend = backend_of(model, remote=model.remote)
    ping = _timed(lambda: backend.http("GET", "/ping"))
    known = hosted(backend)
    mine = next((deployment for deployment in known if _is(deployment, backend, model)), None)
    report = Preflight(
        host=backend.host,
        model=model.name,
        round_trip_ms=ping,
        level=mine.level if mine else "not loaded",
        state=mine.state if mine else "",
        differences=differences(backend),
    )
    try:
        send(model, backend, about_weights, (), {})  # the first request may have to load the model
        report.dtype, has_weights = backend.saved["returned"][0]
        report.request_ms = _timed(lambda: send(model, backend, about_weights, (), {}))
        report.gradients = has_weights
    except JobError as error:
        report.problem = str(error)
    except RemoteError as error:
        report.problem = str(error) if known else f"{error} {where_else(known, backend.model_key)}"
    return report


def differences(backend: Backend) -> list[Difference]:
    """Versions that differ between here and the server, where that matters."""
    try:
        told = backend.http("GET", "/env").json()
    except (RemoteError, ValueError):
        return []
    there, differing = told.get("packages", {}), []
    for package, why in MATTERING.items():
        try:
            here = version(package).split("+")[0]
        except PackageNotFoundError:
            continue
        served = str(there.get(package, "none")).split("+")[0]
        if served != here:
            differing.append(Difference(package, here, served, why))
    ours = ".".join(map(str, sys.version_info[:2]))
    theirs = ".".join(str(told.get("python_version", "")).split(" ")[0].split(".")[:2])
    if theirs and theirs != ours:
        why = "dataclasses and functions made on the fly in your own code cannot be sent"
        differing.append(Difference("python", ours, theirs, why))
    return differing


def _is(deployment: Hosted, backend: Backend, model: Wrapped) -> bool:
    if deployment.model_key is not None:
        return deployment.model_key == backend.model_key
    return deployment.repo_id == model.name


def _timed(act: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    start = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - start)
