"""Sending traces and whole operations to where a model runs."""

from typing import Any, TypeVar

import nnsight

from interventions.architectures.wrapped import Wrapped
from interventions.remote.backend import Backend
from interventions.remote.shippable import check_travels, functions_in

AnyBackend = TypeVar("AnyBackend", bound=Backend)
ABOUT_WAITING = ("blocking", "job_id", "verbose")


def backend_of(
    model: Wrapped, *, kind: type[AnyBackend] = Backend, remote: bool | str = True, **settings: Any
) -> AnyBackend:
    """nnsight's way to a server, for one request."""
    nn = model.nn
    host = remote if isinstance(remote, str) else None
    return kind(nn.to_model_key(), host=host, env=nn._remoteable_get_env(), **settings)


def send(model: Wrapped, backend: Any, function: Any, args: Any, kwargs: Any) -> None:
    """Hand a backend the request to run ``function(model, *args, **kwargs)``.

    What the function returns is ``returned`` among what the request saves, in a list.
    """
    for sent in (function, *functions_in((args, kwargs))):
        check_travels(sent)
    with model.nn.session(backend=backend):
        returned = nnsight.save([function(model, *args, **kwargs)])  # noqa: F841


def placed(model: Wrapped, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a trace, with those that say where it runs."""
    settings = dict(settings)
    if settings.get("backend") is not None:
        return settings
    remote = settings.pop("remote", model.remote)
    if remote in (False, "local"):
        return {**settings, "remote": remote}
    model.requests += 1
    about = {key: settings.pop(key) for key in ABOUT_WAITING if key in settings}
    return {**settings, "backend": backend_of(model, remote=remote, **about)}


def call(model: Wrapped, function: Any, args: Any, kwargs: Any) -> Any:
    """Run ``function(model, *args, **kwargs)`` as one request; return what it returns."""
    model.requests += 1
    if model.jobs is not None:
        return model.jobs.call(model, function, *args, **kwargs)
    backend = backend_of(model, remote=model.remote)
    send(model, backend, function, args, kwargs)
    return backend.saved["returned"][0]
