"""Every operation on a real server, trusted and sandboxed, against its local result."""

from collections.abc import Callable

import pytest
from deployed import pair_of
from families import Case
from remote_operations import (
    OPERATIONS,
    a_shared_prefix,
    other_placements,
    streams_beside_weights,
    sweeps_from_another_deployment,
    transplants,
    transplants_around_cross_attention,
)

import interventions as iv
from interventions.errors import JobError


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", ["llama", "llava", "mllama"])
def test_operations(name: str, operation: Callable[[iv.Model, Case], None], path: str) -> None:
    operation(*pair_of(name))


@pytest.mark.parametrize("name", ["llama", "llava", "mllama"])
def test_streams_beside_weights(name: str, path: str) -> None:
    if path == "sandboxed":
        with pytest.raises(JobError, match="run in a process of their own on this server"):
            streams_beside_weights(*pair_of(name))
    else:
        streams_beside_weights(*pair_of(name))


def test_a_shared_prefix(path: str) -> None:
    a_shared_prefix(pair_of)


@pytest.mark.parametrize("how", ["one-to-one", "last-to-all", "mean-to-all"])
def test_transplant_between_two_deployments(path: str, how: str) -> None:
    transplants(pair_of, how)


def test_transplants_around_cross_attention(path: str) -> None:
    transplants_around_cross_attention(pair_of)


def test_other_placements(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other_placements(pair_of, monkeypatch)


def test_sweeps_from_another_deployment(path: str) -> None:
    before = {name: pair_of(name)[0].requests for name in ("llama", "llava")}
    sweeps_from_another_deployment(pair_of)
    assert {name: pair_of(name)[0].requests - n for name, n in before.items()} == {
        "llama": 1,
        "llava": 1,
    }
