"""Where a published pair could run: on this machine's GPUs, or on NDIF.

A hosted NDIF model is found by its hub id, so a checkpoint in another layout has to be converted
and deployed before NDIF can serve it.
"""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.request import urlopen

from twohop.published.registry import PublishedPair

# Weights are not all: activations, the cache of keys and values, and what is saved come on top.
HEADROOM = 1.2
PATIENCE = 4.0  # seconds in all, name look-up included
NDIF_VARIABLES = ("NDIF_API_KEY", "NDIF_HOST")


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine, and its memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True)
class Ndif:
    """What an NDIF service answered when it was asked which models it runs.

    Attributes
    ----------
    host : str
        Who was asked.
    reached : bool
        Whether there was an answer.
    running : frozenset of str
        Hub ids of the models that run, in lower case.
    statement : str
        The same in a sentence.
    """

    host: str
    reached: bool
    running: frozenset[str]
    statement: str


def local_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that torch sees here; none if it sees none."""
    import torch

    if not torch.cuda.is_available():
        return ()
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(Gpu(device.name, device.total_memory) for device in devices)


def ndif_is_configured() -> bool:
    """Whether the environment names an NDIF key or host."""
    return any(os.environ.get(name) for name in NDIF_VARIABLES)


def ask_ndif() -> Ndif:
    """Ask the configured NDIF service which models it runs.

    This is the question of ``nnsight.status()``, which waits for up to half a minute, and says on
    stderr, rather than to its caller, that nobody answered.

    Returns
    -------
    Ndif
        A service that cannot be reached is an answer, not an error.
    """
    from nnsight.schema.config import CONFIG

    host = (os.environ.get("NDIF_HOST") or CONFIG.API.HOST).rstrip("/")
    answers: list[dict[str, Any] | Exception] = []

    def ask() -> None:
        try:
            with urlopen(f"{host}/status", timeout=PATIENCE) as response:
                status = json.load(response)
            if not isinstance(status, dict) or not isinstance(status.get("deployments"), dict):
                raise ValueError("what answers there is no NDIF")
            answers.append(status)
        except (OSError, HTTPException, ValueError) as error:
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    answer = answers[0] if answers else None
    if not isinstance(answer, dict):
        why = getattr(answer, "reason", answer) or f"no answer in {PATIENCE:g} s"
        return Ndif(host, False, frozenset(), f"NDIF at {host} could not be reached: {why}.")
    running = frozenset(
        str(deployment.get("repo_id", "")).lower()
        for deployment in answer["deployments"].values()
        if deployment.get("application_state") == "RUNNING"
    )
    return Ndif(host, True, running, f"NDIF at {host} runs {len(running)} models.")


def where_it_could_run(
    pair: PublishedPair, gpus: Sequence[Gpu], ndif: Ndif | None = None
) -> tuple[str, ...]:
    """Say where a pair could run, the nearest place first.

    Parameters
    ----------
    pair : PublishedPair
    gpus : sequence of Gpu
        Those of this machine. A fifth of a model's size at bfloat16 is to be free beside it.
    ndif : Ndif or None
        What NDIF answered; None if it was not asked.

    Returns
    -------
    tuple of str
        `one GPU here, one model at a time`, if the larger of the two fits on one GPU, and both do
        not: a study lets the other wait on the CPU. `one GPU here` or `N GPUs here`, if they are
        enough for both at once. Then `NDIF`, followed in brackets by what is known of it.

    Examples
    --------
    >>> from twohop.published import PUBLISHED
    >>> where_it_could_run(PUBLISHED["gemma-3-27b"], [Gpu("H100", 85 * 10**9)])
    ('one GPU here', 'NDIF')
    >>> where_it_could_run(PUBLISHED["llava-1.5-13b"], [Gpu("A40", 48 * 10**9)])
    ('one GPU here, one model at a time', 'NDIF')
    >>> where_it_could_run(PUBLISHED["llama-3.2-vision-90b"], [Gpu("H100", 85 * 10**9)] * 8)
    ('5 GPUs here', 'NDIF')
    """
    places = []
    needed, held = HEADROOM * pair.total_bytes, 0
    largest = max((gpu.memory for gpu in gpus), default=0)
    if HEADROOM * max(pair.vlm_bytes, pair.backbone_bytes) <= largest < needed:
        places.append("one GPU here, one model at a time")
    for n, gpu in enumerate(sorted(gpus, key=lambda gpu: -gpu.memory), 1):
        held += gpu.memory
        if held >= needed:
            places.append("one GPU here" if n == 1 else f"{n} GPUs here")
            break
    notes = [] if pair.layout == "transformers" else ["once converted"]
    if ndif is not None and not ndif.reached:
        notes.append("not reached")
    elif ndif is not None:
        up = [repo.lower() in ndif.running for repo in (pair.vlm, pair.backbone)]
        states = {(True, True): "running", (True, False): "VLM running"}
        states |= {(False, True): "backbone running", (False, False): "not running"}
        notes.append(states[up[0], up[1]])
    places.append(f"NDIF ({', '.join(notes)})" if notes else "NDIF")
    return tuple(places)
