"""What is demanded of a study whose device fails in the middle of a stage."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_demands import demand, fake

from twohop.cli import main
from twohop.running.pair_run import read_run

COMMAND = ("study", "micro-late", "--preset", "quick", "--limit", "6", "--device", "fake:0,fake:1")


def studied(out: str, stage: str) -> tuple[int, str]:
    """Status of a study of one stage, and what it says on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main([*COMMAND, "--out", out, "--stage", stage])
    return status, " ".join(said.getvalue().split())


@contextmanager
def failing(device: int, after: int) -> Iterator[None]:
    """Let a device be gone after so many more operators."""
    fake().fail(device, after)
    try:
        yield
    finally:
        fake().fail(device, -1)


@demand
def a_device_that_fails_ends_a_study_with_what_to_do() -> None:
    """Stages before it are stored, the device is named, and the same command goes on."""
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as out:
        for stage in ("backbone_text", "recall"):
            before, *_ = fake().counts()
            status, said = studied(whole, stage)
            assert status == 0, said
            taken = fake().counts()[0] - before
        assert studied(out, "backbone_text")[0] == 0
        with failing(0, taken // 2):
            status, said = studied(out, "recall")
        assert status == 2, said
        assert "a device failed in recall. It was on fake:0. It was said: CUDA error: uns" in said
        assert "the same command goes on" in said
        assert "CUDA_VISIBLE_DEVICES, or another --device" in said
        assert [*read_run(Path(out, "micro-late")).children] == ["backbone_text"]
        assert studied(out, "recall")[0] == 0
        ours, theirs = (read_run(Path(folder, "micro-late"))["recall"] for folder in (out, whole))
        assert ours.to_dataset().equals(theirs.to_dataset())


@demand
def a_device_that_fails_while_a_plan_is_timed_is_named_as_such() -> None:
    with contextlib.redirect_stderr(io.StringIO()) as said, failing(0, 200):
        assert main([*COMMAND, "--plan"]) == 2
    assert "twohop: a device failed" in said.getvalue()
