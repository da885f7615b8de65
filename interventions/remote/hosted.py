"""What a server says it hosts."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from interventions.errors import RemoteError

if TYPE_CHECKING:
    from interventions.remote.backend import Backend


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


def hosted(backend: "Backend") -> list[Hosted]:
    """Models a server knows; empty if it does not say."""
    try:
        found: dict[str, Any] = backend.http("GET", "/status").json().get("deployments", {})
    except (RemoteError, ValueError):
        return []
    return [
        Hosted(
            repo_id=one.get("repo_id") or name,
            level=one.get("deployment_level") or "",
            state=one.get("application_state") or "",
            model_key=one.get("model_key"),
        )
        for name, one in found.items()
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
    names = sorted({one.repo_id for one in known} - {wanted})
    if not names:
        return f"{wanted!r} is not hosted there, and the server names no other model."
    near = get_close_matches(wanted, names, n=3, cutoff=0.4)
    hint = f"Nearest: {', '.join(near)}. " if near else ""
    return f"{wanted!r} is not hosted there. {hint}Hosted: {', '.join(names)}."
