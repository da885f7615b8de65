"""Sending traces and whole operations to where a model runs."""

from typing import TYPE_CHECKING, Any

import nnsight

from interventions.remote.backend import Backend

if TYPE_CHECKING:
    from interventions.model import Model

ABOUT_WAITING = ("blocking", "job_id", "verbose")


def backend_of(model: "Model", remote: bool | str, **settings: Any) -> Backend:
    """nnsight's way to a server, for one request."""
    nn = model.nn
    host = remote if isinstance(remote, str) else None
    return Backend(nn.to_model_key(), host=host, env=nn._remoteable_get_env(), **settings)


def placed(model: "Model", settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a trace, with those that say where it runs."""
    settings = dict(settings)
    if settings.get("backend") is not None:
        return settings
    remote = settings.pop("remote", model.remote)
    if remote in (False, "local"):
        return {**settings, "remote": remote}
    about = {key: settings.pop(key) for key in ABOUT_WAITING if key in settings}
    return {**settings, "backend": backend_of(model, remote, **about)}


def send(model: "Model", backend: Any, function: Any, args: Any, kwargs: Any) -> Any:
    """Run ``function(model, *args, **kwargs)`` where the backend says; return what it returns."""
    with model.nn.session(backend=backend):
        returned = nnsight.save([function(model, *args, **kwargs)])
    return returned[0]
