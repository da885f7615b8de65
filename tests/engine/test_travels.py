"""What goes to a server runs there: in a process that has our package from the request only."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from elsewhere import Worker, sends_to, without_weights
from families import Case, case_of
from remote_operations import (
    OPERATIONS,
    PairOf,
    a_shared_prefix,
    other_placements,
    streams_beside_weights,
    sweeps_from_another_deployment,
    transplants,
    transplants_around_cross_attention,
)

import interventions as iv
from interventions.errors import RemoteError
from interventions.remote.shippable import check_travels
from interventions.remote.shipping import LUGGAGE, imports, named_in, with_luggage

ROOT = Path(__file__).resolve().parents[2]
ON_A_SERVER = {"torch", "transformers", "nnsight", "numpy", "accelerate", "safetensors", "PIL"}
"""Libraries that every NDIF server has."""

MODULES = sorted(LUGGAGE.closure({"interventions.running.lens", "interventions.running.complete"}))


def test_the_closure_is_what_an_operation_needs() -> None:
    needed = {"model.model", "running.run", "model.prefix_cache"}
    assert {f"interventions.{module}" for module in needed} <= {*MODULES}
    left_out = {"interventions.cli", "interventions.model.loading", "interventions.remote.jobs"}
    assert not left_out & {*MODULES}


@pytest.mark.parametrize("module", [one for one in MODULES if one != "interventions"])
def test_modules_need_only_what_a_server_has(module: str) -> None:
    path = LUGGAGE.path_of(module)
    assert path is not None
    libraries = {
        name.split(".")[0] for name, at_once in imports(path.read_text(), module) if at_once
    }
    assert libraries <= ON_A_SERVER | {*sys.stdlib_module_names, "interventions"}


NAMES = ("llama", "llava", "mllama")
sizes: list[int] = []


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker(NAMES)
    yield made
    made.stop()


@pytest.fixture
def pair_of(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> PairOf:
    """Models without weights, whose requests the worker runs, and the same models here."""
    sends_to(worker, monkeypatch, sizes)

    def made(name: str) -> tuple[iv.Model, Case]:
        return there(name), case_of(name, attn="sdpa")

    return made


@cache
def there(name: str) -> iv.Model:
    module, given = tiny.build(name, attn_implementation="sdpa")
    kind = "processor" if name in tiny.VLMS else "tokenizer"
    return without_weights(iv.load(module, **{kind: given}), name)


@pytest.mark.parametrize(
    "operation", [*OPERATIONS, streams_beside_weights], ids=lambda one: one.__name__
)
@pytest.mark.parametrize("name", NAMES)
def test_operations(
    name: str, operation: Callable[[iv.Model, Case], None], pair_of: PairOf
) -> None:
    operation(*pair_of(name))


def test_a_shared_prefix(pair_of: PairOf) -> None:
    a_shared_prefix(pair_of)


@pytest.mark.parametrize("how", ["one-to-one", "last-to-all", "mean-to-all"])
def test_transplants(pair_of: PairOf, how: str) -> None:
    transplants(pair_of, how)


def test_transplants_around_cross_attention(pair_of: PairOf) -> None:
    transplants_around_cross_attention(pair_of)


def test_other_placements(pair_of: PairOf, monkeypatch: pytest.MonkeyPatch) -> None:
    other_placements(pair_of, monkeypatch)


def test_a_request_is_small(pair_of: PairOf, monkeypatch: pytest.MonkeyPatch) -> None:
    there, case = pair_of("llava")
    sizes.clear()
    bodies: list[bytes] = []

    def packed(body: bytes) -> bytes:
        bodies.append(body)
        return with_luggage(body)

    monkeypatch.setattr("interventions.remote.backend.with_luggage", packed)
    value = torch.zeros(2, case.model.d_model)
    iv.run(there, case.prompt, patches=[iv.Patch("resid_post", 1, case.place, value)])
    tensors = sum(one.numel() * one.element_size() for one in case.prompt.inputs.values())
    assert len(sizes) == 1
    assert sizes[0] - tensors < 68_000, (len(bodies[0]), sorted(named_in(bodies[0])))


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return 2 * function(*args)

    return wrapper


@decorated
def doubled(model: iv.Model) -> int:
    return model.n_layers


@functools.lru_cache
def remembered(n: int) -> int:
    return n


@torch.no_grad()
def quiet(model: iv.Model) -> int:
    return model.n_layers


@contextmanager
def opened() -> Iterator[int]:
    yield 1


class Base:
    def value(self) -> int:
        return 1


class Derived(Base):
    def value(self) -> int:
        return super().value() + 1


class Private:
    def __init__(self) -> None:
        self.__hidden = 1


def calls_another(model: iv.Model) -> int:
    return remembered(model.n_layers)


def counts(model: iv.Model) -> int:
    n = 0

    def more() -> None:
        nonlocal n
        n += 1

    more()
    return n


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (doubled, "wraps"),
        (calls_another, "lru_cache"),
        (quiet, r"with torch\.no_grad"),
        (opened, "write a class"),
        (Derived, "name the class and self"),
        (Private, "two underscores"),
        (counts, "nonlocal"),
    ],
)
def test_what_would_break_on_the_way_is_refused(function: Any, what: str) -> None:
    with pytest.raises(RemoteError, match=what):
        check_travels(function)


def helper(n: int) -> int:
    return n + 1


def plain(model: iv.Model, n: int) -> int:
    with torch.no_grad():
        return helper(model.n_layers) + sum(x for x in range(n))


def test_plain_functions_and_our_own_are_sent(pair_of: PairOf) -> None:
    there, case = pair_of("llama")
    for function in (plain, iv.run, iv.complete):
        check_travels(function)
    assert there.job(plain, 3) == plain(case.model, 3)


def test_sweeps_from_another_deployment(pair_of: PairOf) -> None:
    sweeps_from_another_deployment(pair_of)
