"""On an accelerator, on two of them, and where memory runs out: the CPU's numbers, or an error.

The accelerator is pretended (``tests/support/pretend_device``), in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pretend_device
import pytest
import tiny
from device_calls import CALLS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests/support/on_pretend_device.py"
AT_EVERY_GATE = ("llava@one", "mllama@one", "llama@two", "gemma3@two", "qwen2_5_vl@two")
ALL = tuple(f"{name}@{where}" for name in tiny.FAMILIES for where in ("one", "two"))
CASES = ALL if os.environ.get("ALL_DEVICES") else AT_EVERY_GATE
"""``make test-devices`` takes every family, on one device and on two."""

Differences = dict[tuple[str, str], str]


@cache
def lines_of(*arguments: str) -> tuple[list[list[str]], str]:
    """What the script said, and what it died of."""
    try:
        pretend_device.build()
    except pretend_device.NoCompiler as error:
        pytest.skip(str(error))
    folders = (ROOT, ROOT / "tests/support")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines, f"exit status {done.returncode}: {done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def differences() -> Callable[..., Differences]:
    """Run a command of the script: by case and call, what differs."""

    def of(*arguments: str) -> Differences:
        lines, end = lines_of(*arguments)
        found = {(case, call): text for case, call, text, _ in lines}
        assert "exit status 0:" in end, (end, list(found)[-1:])
        return found

    return of


def test_the_device_refuses_what_a_gpu_refuses_and_computes_the_rest(
    differences: Callable[..., Differences],
) -> None:
    found = differences("checks")
    assert {kind for kind, _ in found} == {"refused", "same"}
    assert {key: text for key, text in found.items() if text} == {}


@pytest.mark.parametrize("case", CASES)
def test_every_call_gives_what_it_gives_on_the_cpu(
    case: str, differences: Callable[..., Differences]
) -> None:
    found = {
        call: text for (one, call), text in differences("calls", *CASES).items() if one == case
    }
    assert found.pop("stays where it is") == ""
    assert {*found} == {*CALLS}
    assert {call: text for call, text in found.items() if text} == {}


def test_places(differences: Callable[..., Differences]) -> None:
    """Models stay where they are put, and values go where they are needed."""
    found = differences("places")
    assert found
    assert {key: text for key, text in found.items() if text} == {}
