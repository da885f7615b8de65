"""A study killed at any moment goes on to the same bits, and leaves nothing running."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest
import xarray as xr
from stored import as_computed

from interventions.results import Store, read_tree
from twohop.running.pair_run import Settings
from twohop.running.study import run_study
from twohop.stages.table import STAGES

PAIR, SETTINGS = "micro-late", Settings(limit=2)
Moment = Callable[[psutil.Process, Path], bool]


@pytest.fixture(scope="module")
def start() -> Callable[[Path], ForkServerProcess]:
    """Begin the study in a process of its own; what it imports has been imported once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["twohop.running.study", "twohop.report.page", "nnsight"])

    def begin(out: Path) -> ForkServerProcess:
        asked = {"out": out, "settings": SETTINGS}
        process = context.Process(target=run_study, args=(PAIR,), kwargs=asked)
        process.start()
        return process

    return begin


def after(seconds: float) -> Moment:
    """So much time of the CPU, which a busy machine gives sooner or later."""

    def come(process: psutil.Process, _folder: Path) -> bool:
        times = process.cpu_times()
        return times.user + times.system >= seconds

    return come


def soon_after_storing(seconds: float) -> Moment:
    """So much time of the CPU after the next stage is stored."""
    versions: list[int] = []
    at: list[float] = []

    def come(process: psutil.Process, folder: Path) -> bool:
        store = folder / "results.nc"
        version = store.stat().st_mtime_ns if store.exists() else 0
        if version not in versions:
            versions.append(version)
            times = process.cpu_times()
            at.append(times.user + times.system)
        return len(at) > 1 and after(at[1] + seconds)(process, folder)

    return come


def before_the_report(_process: psutil.Process, folder: Path) -> bool:
    return (folder / "summary.json").exists()


def in_the_middle_of_the_report(_process: psutil.Process, folder: Path) -> bool:
    return any((folder / "figures").glob("*.svg"))


def killed(process: ForkServerProcess, folder: Path, moment: Moment) -> bool:
    """Whether a process was killed when the moment came; else it ended before."""
    there = psutil.Process(process.pid)
    deadline = time.monotonic() + 240
    try:
        while not moment(there, folder):
            assert time.monotonic() < deadline
            time.sleep(0.001)
            if not process.is_alive():
                break
    except psutil.NoSuchProcess:
        pass
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def bits(data: xr.Dataset) -> dict[str, bytes | list[str]]:
    return {
        str(name): one.values.tobytes() if one.dtype.kind in "biuf" else one.values.ravel().tolist()
        for name, one in data.variables.items()
    }


def stages_of(folder: Path) -> list[str]:
    """The stages stored; the file can be read after any kill."""
    return [*read_tree(folder).children] if (folder / "results.nc").exists() else []


def test_a_killed_study_goes_on_to_the_same_bits(
    tmp_path: Path, start: Callable[[Path], ForkServerProcess]
) -> None:
    folders = [tmp_path / name / PAIR for name in ("undisturbed", "killed")]
    undisturbed = start(folders[0].parent)
    undisturbed.join()
    assert undisturbed.exitcode == 0

    generator = random.Random(0)
    moments = [after(0.05), *(after(generator.uniform(0.05, 2)) for _ in range(4))]
    moments += [soon_after_storing(generator.uniform(0, 0.3)) for _ in range(6)]
    moments += [before_the_report, in_the_middle_of_the_report]
    stored = []
    for moment in moments:
        assert killed(start(folders[1].parent), folders[1], moment)
        stored.append(len(stages_of(folders[1])))
    assert {0, len(STAGES)} < {*stored}, "no kill came between stages"
    assert not (folders[1] / "report.html").exists()
    last = start(folders[1].parent)
    last.join()
    assert last.exitcode == 0

    one, other = (read_tree(folder) for folder in folders)
    for stage in STAGES:
        mine, its = (as_computed(tree[stage].to_dataset()) for tree in (one, other))
        xr.testing.assert_identical(mine, its)
        assert bits(one[stage].to_dataset()) == bits(other[stage].to_dataset())
    summaries = [(folder / "summary.json").read_bytes() for folder in folders]
    assert summaries[0] == summaries[1]
    assert (folders[1] / "report.html").exists()


def test_a_kill_before_the_settings_are_written_leaves_a_folder_that_can_be_used(
    tmp_path: Path,
) -> None:
    (tmp_path / ".settings.json.k2j4h5").write_text('{"se')  # as a kill leaves it
    Store(tmp_path, {"seed": 0})
    assert (tmp_path / "settings.json").exists()


def test_workers_do_not_outlive_a_killed_study(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "twohop", "study", "micro-naming", "micro-late"]
    command += ["--limit", "2", "--stage", "recall", "--out", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "2"}  # a thread to each worker
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    there = psutil.Process(process.pid)
    deadline = time.monotonic() + 240
    while not (workers := there.children()) or not [*tmp_path.glob("backbones/*/results.nc")]:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "workers outlive the study"
    subprocess.run(command, env=env, check=True, capture_output=True)
    for pair in ("micro-naming", "micro-late"):
        assert [*read_tree(tmp_path / pair).children] == ["backbone_text", "recall"]
