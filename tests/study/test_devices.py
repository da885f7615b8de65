"""On an accelerator, on two of them, and where memory runs out: the CPU's numbers, or an error.

The accelerator is pretended (``tests/support/pretend_device``), in a process of its own.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pretend_device
import pytest
import tiny
import torch
from device_calls import CALLS

from interventions.errors import LoadError
from twohop.ask.memory import ran_out
from twohop.running.devices import explained, failed
from twohop.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests/support/on_pretend_device.py"
ALL = bool(os.environ.get("ALL_DEVICES"))
"""``make devices`` takes every family and every stage; each gate, what has no other like it."""
FAMILIES = tuple(f"{name}@{where}" for name in tiny.FAMILIES for where in ("one", "two"))
CASES = (*FAMILIES, "llama@narrow") if ALL else ("llama@narrow", "gemma3@two")
NOT_NARROW = {"probed_where_they_lie"}  # fitted in float64, where the activations lie
STUDIES = (
    "micro-aligned@0/0:0.5,0.25,0.1:",  # both models on one device, and with less of its memory
    "micro-late@0/1::",
    "micro-naming@0/cpu::",
)

Differences = dict[tuple[str, str], str]


@cache
def differences(*arguments: str) -> Differences:
    """Run a command of the script: by case and call, what differs."""
    pretend_device.build_or_skip()
    folders = (ROOT, ROOT / "tests/support")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    by_call = {(case, call): text for case, call, text, _ in lines}
    assert done.returncode == 0, (done.stderr[-2000:], lines[-1:])
    return by_call


def test_the_device_refuses_what_a_gpu_refuses_and_computes_the_rest() -> None:
    by_call = differences("checks")
    assert {kind for kind, _ in by_call} == {"refused", "same"}
    assert {key: text for key, text in by_call.items() if text} == {}


def test_places_memory_and_number_formats() -> None:
    """What :mod:`device_demands` and :mod:`device_failures` ask for."""
    by_call = differences("demands")
    assert by_call
    assert {name: text for (_, name), text in by_call.items() if text} == {}


@pytest.mark.parametrize("case", CASES)
def test_every_call_gives_what_it_gives_on_the_cpu(case: str) -> None:
    all_calls = differences("calls", *CASES)
    by_call = {call: text for (asked, call), text in all_calls.items() if asked == case}
    assert by_call.pop("stays where it is") == ""
    assert {*by_call} == {*CALLS} - (NOT_NARROW if case.endswith("narrow") else set())
    assert {call: text for call, text in by_call.items() if text} == {}


@pytest.mark.parametrize(
    ("error", "is_failure", "is_memory"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True, False),
        (torch.AcceleratorError("CUDA error: the GPU has fallen off the bus"), True, False),
        (torch.AcceleratorError("CUDA error: out of memory"), False, True),
        (torch.OutOfMemoryError("CUDA out of memory"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
    ids=str,
)
def test_what_says_that_a_device_failed(
    error: Exception, is_failure: bool, is_memory: bool
) -> None:
    assert (failed(error), ran_out(error)) == (is_failure, is_memory)
    wrapped = LoadError("it cannot be loaded")
    wrapped.__cause__ = error
    assert failed(wrapped) == is_failure


def test_a_device_that_failed_is_named_and_long_advice_left_out() -> None:
    said = RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")
    text = explained(said, [torch.device("cpu")])
    assert "on cpu. It was said: CUDA error: unspecified launch failure\nThe stages" in text


@pytest.mark.skipif(not ALL, reason="takes minutes: make devices")
@pytest.mark.parametrize("study", STUDIES)
def test_every_stage_gives_what_it_gives_on_the_cpu(study: str) -> None:
    """Or ends in an error that says that memory ran out."""
    by_call = differences("stages", study)
    assert {stage for _, stage in by_call} >= {*STAGES}
    assert {stage: text for (_, stage), text in by_call.items() if text} == {}
