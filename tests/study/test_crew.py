"""Studies shared by several workers: the same bits, whoever computed what and whoever was lost."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import xarray as xr
from stored import as_computed

from interventions import load
from interventions.errors import InterventionsError, ResultsError
from interventions.results import Store, read_tree
from interventions.running.budget import free_on, share_memory
from twohop.items.validation import check
from twohop.pairs import PAIRS, own_pair, with_data
from twohop.running.crew.crews import crew_of, visible_gpus
from twohop.running.crew.messages import Compute, Computed, Kept, Ready
from twohop.running.crew.on_ray import OnRay, RayMissing
from twohop.running.crew.processes import Process, Processes
from twohop.running.crew.schedule import Schedule
from twohop.running.crew.seats import Traffic
from twohop.running.crew.shard_store import ShardStore
from twohop.running.crew.side_by_side import run_side_by_side
from twohop.running.crew.transport import Hand, Lost
from twohop.running.crew.worker import RunAsked
from twohop.running.loading import Loading
from twohop.running.pair_run import Settings, open_run
from twohop.running.planning import plan_of_rest
from twohop.running.study import run_study
from twohop.running.weighing import GB, Machine
from twohop.stages.table import Selection

PAIR = PAIRS["micro-late"]
FEW = Settings(limit=4)
AHEAD = ("backbone_text", "recall", "windows")
RECOVERY = Selection.of(["recovery"], force=False)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Workers here have one thread each, and so has what they are compared with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages up to recovery, run by this process alone."""
    out = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    run_study(PAIR, out=out, settings=FEW, stages=["recovery"])
    return out


@pytest.fixture
def ahead(alone: Path, tmp_path: Path) -> Path:
    """A folder with all that recovery needs, and without it."""
    out = tmp_path / "shared"
    shutil.copytree(alone, out)
    store = Store(out / PAIR.key, open_run(PAIR, out=out, settings=FEW).own.settings)
    store.put("recall", store.get("recall"), drop=["recovery"])
    assert {*read_tree(out / PAIR.key).children} == {*AHEAD}
    return out


def result(out: Path, stage: str = "recovery") -> xr.Dataset:
    return as_computed(read_tree(out / PAIR.key)[stage].to_dataset())


class Watched(Processes):
    """Processes that are told on, and of which some are killed.

    Parameters
    ----------
    kill : callable
        ``kill(hand, message)``: whether to kill that worker now.
    """

    def __init__(
        self, workers: int, kill: Callable[[Hand, Any], bool] = lambda _hand, _message: False
    ) -> None:
        super().__init__(workers)
        self.heard: list[Any] = []
        self._kill = kill

    def wait(self, hands: Sequence[Process]) -> list[tuple[Hand, Any]]:
        said = super().wait(hands)
        for hand, message in said:
            self.heard.append(message)
            if self._kill(hand, message):
                assert isinstance(hand, Process)
                hand.process.kill()
                hand.process.join()
        return said

    def count(self, kind: type) -> int:
        return sum(isinstance(message, kind) for message in self.heard)


def share(out: Path, crew: Processes, selection: Selection = RECOVERY) -> None:
    run_side_by_side([PAIR], crew, out=out, settings=FEW, selection=selection)


def test_an_idle_worker_does_a_part_and_the_bits_are_the_same(alone: Path, ahead: Path) -> None:
    crew = Watched(2)
    share(ahead, crew)
    assert crew.count(Computed) > 3, "nobody helped"
    assert crew.count(Kept) > 3, "the owner left all of it to others"
    xr.testing.assert_identical(result(alone), result(ahead))
    assert not [*ahead.glob("**/shards")], "a stage that is stored needs no shards"


def test_when_the_owner_is_lost_another_goes_on_where_it_was(alone: Path, ahead: Path) -> None:
    killed: list[Hand] = []

    def kill(hand: Hand, message: Any) -> bool:
        enough = isinstance(message, Kept) and crew.count(Kept) > 4 and not killed
        if enough:
            killed.append(hand)
        return enough

    crew = Watched(1, kill)
    schedules: list[Traffic] = []
    stored = ShardStore(ahead / PAIR.key, "recovery")
    with pytest.MonkeyPatch.context() as patch:
        work = Schedule.work

        def watched(schedule: Schedule) -> None:
            schedules.append(schedule.traffic)
            work(schedule)

        patch.setattr(Schedule, "work", watched)
        share(ahead, crew)
    [traffic] = schedules
    assert (traffic.workers, traffic.lost) == (2, 1)
    assert traffic.stored > 4, "what was computed before was computed again"
    assert stored.digests() == frozenset()
    xr.testing.assert_identical(result(alone), result(ahead))


def test_a_helper_that_is_lost_costs_its_shard_alone(alone: Path, ahead: Path) -> None:
    sent: list[Hand] = []

    class Told(Watched):
        def start(self, share: float) -> Process:
            hand = super().start(share)
            send = hand.send

            def told(message: Any) -> None:
                send(message)
                if isinstance(message, Compute) and not sent:
                    sent.append(hand)
                    hand.process.kill()

            hand.send = told
            return hand

    crew = Told(2)
    share(ahead, crew)
    assert sent
    assert crew.count(Lost) == 1
    xr.testing.assert_identical(result(alone), result(ahead))


def test_an_idle_worker_that_is_lost_is_replaced(
    alone: Path, ahead: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: list[Hand] = []

    def kill(hand: Hand, message: Any) -> bool:
        idle = isinstance(message, Ready) and bool(crew.count(Ready) == 2) and not killed
        if idle:
            killed.append(hand)
        return idle

    crew = Watched(2, kill)
    share(ahead, crew)
    assert killed
    assert crew.count(Lost) == 1
    assert "3 workers" in capsys.readouterr().err
    xr.testing.assert_identical(result(alone), result(ahead))


def test_workers_make_room_for_those_that_take_more(tmp_path: Path) -> None:
    pairs = [PAIR, PAIRS["micro-naming"]]
    started: list[float] = []

    class Told(Processes):
        def start(self, share: float) -> Process:
            started.append(share)
            alive = [hand for hand in self._there if hand.process.is_alive()]
            assert len(alive) < 2, "what others had room for is taken"
            return super().start(share)

    run_side_by_side(
        pairs,
        Told(1),
        out=tmp_path,
        settings=Settings(limit=2),
        selection=Selection.of(["recall"], force=False),
        share_of=lambda run, _stages: 1.0 if run.pair is PAIR else 0.5,
    )
    assert {*started} == {0.5, 1.0}
    for pair in pairs:
        assert "recall" in read_tree(tmp_path / pair.key).children


def test_what_a_pair_that_is_stopped_was_doing_is_ended(tmp_path: Path) -> None:
    """Another pair is run to its end meanwhile."""
    crew = Watched(2)
    settings = Settings(limit=2)
    other = PAIRS["micro-naming"]
    few = Schedule.judge

    def judge(schedule: Schedule, run: Any, recall: Any) -> None:
        few(schedule, run, recall)
        if run.pair is PAIR and not stopped:
            stopped.append(run)
            doing = [job for job in schedule.jobs if schedule.tasks[job.task] == [run]]
            schedule.few = {}
            schedule.stop(run, InterventionsError("too few"))
            assert not any(job in schedule.jobs for job in doing)
            assert not any(schedule.tasks[task] == [run] for task in schedule.missing)

    stopped: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "judge", judge)
        run_side_by_side(
            [PAIR, other],
            crew,
            out=tmp_path,
            settings=settings,
            selection=Selection.of(["recall", "resolution"], force=False),
        )
    assert stopped
    assert {"recall", "resolution"} <= {*read_tree(tmp_path / other.key).children}


def test_each_worker_counts_on_its_part_of_the_memory() -> None:
    whole = Machine("cpu", (120,), ("cpu",))
    assert whole.part(3).free == (40,)
    [mine] = Processes(4).machines(Loading())
    [its] = Processes(1).machines(Loading())
    assert 3 < its.free[0] / mine.free[0] < 5
    model = load(PAIR.vlm())
    before = free_on(model)
    share_memory(4)
    try:
        assert 3 < before / free_on(model) < 5
    finally:
        share_memory(1)


def test_a_study_is_planned_for_the_cluster_not_for_where_it_is_started(tmp_path: Path) -> None:
    class Cards(OnRay):
        card = 80 * GB  # type: ignore[assignment]

        def __init__(self, gpus: list[float]) -> None:
            self.gpus = gpus

        def _nodes(self) -> list[dict[str, Any]]:
            return [{"Resources": {"GPU": count}} for count in self.gpus]

    [one] = Cards([1.0]).machines(Loading())
    assert (one.kind, one.names, one.spread) == ("cuda", ("cuda:0",), False)
    assert 70 * GB < one.free[0] < 80 * GB
    small, large = Cards([1.0, 4.0]).machines(Loading())
    assert small == one
    assert large.names == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    assert large.spread
    run = open_run(PAIR, out=tmp_path, settings=FEW)
    plan = plan_of_rest(run, ["recall"], [small, large])
    assert plan is not None
    assert plan.machine == small
    none = replace(small, free=(1000,))
    plan = plan_of_rest(run, ["recall"], [none, large])
    assert plan is not None
    assert plan.machine == large, "blocks are spread where one GPU has no room"
    assert not plan.remedy


def test_a_stage_that_takes_every_worker_with_it_is_given_up(ahead: Path) -> None:
    crew = Watched(1, lambda _hand, message: isinstance(message, Kept))
    with pytest.raises(OSError, match="ended with status -9, perhaps for lack of memory; so did 2"):
        share(ahead, crew)
    assert crew.count(Lost) == 3
    assert {*read_tree(ahead / PAIR.key).children} == {*AHEAD}


def test_a_study_that_is_killed_within_a_stage_goes_on_within_it(alone: Path, ahead: Path) -> None:
    command = [sys.executable, "-m", "twohop", "study", PAIR.key, "--limit", "4"]
    command += ["--stage", "recovery", "--out", str(ahead), "--on", "processes", "--workers", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    stored = ShardStore(ahead / PAIR.key, "recovery")
    deadline = time.monotonic() + 240
    while len(stored.digests()) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert "recovery" not in read_tree(ahead / PAIR.key).children
    again = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert "stored before" in again.stderr
    xr.testing.assert_identical(result(alone), result(ahead))


def test_a_shard_that_cannot_be_read_is_computed_again(alone: Path, ahead: Path) -> None:
    crew = Watched(1, lambda _hand, message: isinstance(message, Kept) and crew.count(Kept) == 3)
    stored = ShardStore(ahead / PAIR.key, "recovery")
    spoilt: list[str] = []
    give = Schedule.give_stored

    def spoil(schedule: Schedule, job: Any, wanted: Any) -> None:
        if not spoilt:
            spoilt.append(wanted.digest)
            (stored.folder / f"{wanted.digest}.pt").write_bytes(b"no such thing")
        give(schedule, job, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "give_stored", spoil)
        share(ahead, crew)
    assert spoilt
    xr.testing.assert_identical(result(alone), result(ahead))


@pytest.mark.parametrize("stage", ["recall", "resolution"])
def test_forced_stages_are_computed_anew(ahead: Path, stage: str) -> None:
    """Also one that was killed before it was stored."""
    stale = ShardStore(ahead / PAIR.key, stage)
    stale.put("0123", [1.0])
    assert stale.digests() == {"0123"}
    share(ahead, Processes(1), Selection.of([stage], force=[stage]))
    assert stale.digests() == frozenset()


def test_large_shards_are_taken_up_again(tmp_path: Path) -> None:
    """More goes both ways at once than a pipe holds."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    selection = Selection.of(["resolution"], force=False)
    kept: list[int] = []

    def kill(_hand: Hand, message: Any) -> bool:
        if isinstance(message, Kept):
            kept.append(len(message.result))
        return isinstance(message, Kept) and len(kept) == 5

    settings = Settings()
    run_side_by_side([PAIR], Watched(1), out=whole, settings=settings, selection=selection)
    run_side_by_side([PAIR], Watched(1, kill), out=again, settings=settings, selection=selection)
    assert max(kept) > 2**18
    xr.testing.assert_identical(result(whole, "resolution"), result(again, "resolution"))


def test_too_few_items_stop_it_the_second_time_as_well(ahead: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twohop.running.known.LEAST_KNOWN", 10**6)
        patch.setattr("twohop.running.known.OF_FEW", 0.001)
        with pytest.raises(InterventionsError, match="are both recognised"):
            run_side_by_side([PAIR], Processes(1), out=ahead, settings=FEW, even_if_few=False)
    assert {*read_tree(ahead / PAIR.key).children} == {*AHEAD}


def test_a_worker_with_other_files_says_so(ahead: Path) -> None:
    asked = RunAsked.of(open_run(PAIR, out=ahead, settings=FEW))
    assert asked.opened().own.settings == asked.expected
    other = replace(asked, expected={**asked.expected, "vlm_checkpoint": "another"})
    with pytest.raises(ResultsError, match="a worker has another vlm_checkpoint"):
        other.opened()


def test_workers_have_a_gpu_each_of_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert visible_gpus() == ["4", "5"]
    crew = Processes(2, gpus=visible_gpus())
    first, second = crew.start(0.0), crew.start(0.0)
    assert (first.gpu, second.gpu) == ("4", "5")
    first.end()
    third = crew.start(0.0)
    assert third.gpu == "4", "the one that is free"
    second.end()
    third.end()


def test_what_would_run_code_is_not_stored(tmp_path: Path) -> None:
    store = ShardStore(tmp_path, "recall")
    store.put("good", [{"text": "Paris", "scores": [0.5], "at": torch.arange(3)}])
    store.put("bad", os.system)
    assert store.digests() == {"good"}
    assert store.get("bad") is None
    [read] = store.get("good")  # type: ignore[misc]
    assert read["text"] == "Paris"
    assert torch.equal(read["at"], torch.arange(3))
    store.drop()
    assert not [*tmp_path.iterdir()]


def test_a_users_own_items_go_to_workers(tmp_path: Path) -> None:
    from PIL import Image

    rows = ["entity,image,relation,question,answer"]
    names = [entity.name for entity in PAIR.benchmark().entities[:3]]
    answers = PAIR.benchmark().answer_set("capital")
    for i, name in enumerate(names):
        Image.new("RGB", (32, 32), (80 * i, 40, 200 - 60 * i)).save(tmp_path / f"{i}.png")
        rows.append(f"{name},{i}.png,capital,The capital of {{entity}} is,{answers[i]}")
    (tmp_path / "items.csv").write_text("\n".join(rows) + "\n")
    pair = own_pair(str(PAIR.vlm()), str(PAIR.backbone()))
    pair = with_data(pair, check(str(tmp_path / "items.csv")), alter_views=True)
    selection = Selection.of(["recall"], force=False)
    for out, crew in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        run_side_by_side([pair], Processes(crew), out=out, selection=selection)
    trees = [read_tree(tmp_path / out / pair.key)["recall"] for out in ("one", "two")]
    mine, its = (as_computed(tree.to_dataset()) for tree in trees)
    xr.testing.assert_identical(mine, its)


def test_too_few_items_stop_a_shared_study_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twohop.running.known.LEAST_KNOWN", 10**6)
        patch.setattr("twohop.running.known.OF_FEW", 0.001)
        with pytest.raises(InterventionsError, match="are both recognised"):
            run_side_by_side(
                [PAIR], Processes(2), out=tmp_path, settings=Settings(limit=2), even_if_few=False
            )
    assert "recall" in read_tree(tmp_path / PAIR.key).children
    assert "diagnosis" not in read_tree(tmp_path / PAIR.key).children


def test_who_shares(tmp_path: Path) -> None:
    two = [PAIRS["micro-naming"], PAIR]
    assert crew_of(None, None, [PAIR], FEW) is None
    assert crew_of(None, None, two, replace(FEW, remote=True)) is None
    assert isinstance(crew_of(None, 3, [PAIR], FEW), Processes)
    assert isinstance(crew_of("processes", None, [PAIR], FEW), Processes)
    for where, settings, said in (
        ("slurm", FEW, "expected processes, ray or ray://HOST:PORT"),
        ("processes", replace(FEW, remote=True), "a server has workers of its own"),
    ):
        with pytest.raises(InterventionsError, match=said):
            crew_of(where, None, [PAIR], settings)


def test_a_model_of_several_gpus_is_spread_over_them() -> None:
    asked = RunAsked(PAIR, Path(), FEW)
    assert asked.spread(0.5) is asked
    assert asked.spread(2.0).settings.loading.device_map == "auto"
    chosen = replace(asked, settings=replace(FEW, loading=Loading(device=("cuda:0", "cuda:1"))))
    assert chosen.spread(2.0) is chosen


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayMissing, match=r"pip install 'twohop\[ray\]'"):
        OnRay()


ON_RAY = """
import sys
from pathlib import Path

import psutil

from twohop.pairs import PAIRS
from twohop.running.crew.messages import Computed, Kept
from twohop.running.crew.on_ray import OnRay, RayMissing
from twohop.running.crew.side_by_side import run_side_by_side
from twohop.running.pair_run import Settings
from twohop.stages.table import Selection


class Watched(OnRay):
    heard = 0
    killed = False

    def wait(self, hands):
        said = super().wait(hands)
        self.heard += sum(isinstance(message, Kept | Computed) for _, message in said)
        if self.heard > 6 and not self.killed:
            actors = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]
                      and p.info["cmdline"][0].startswith("ray::Post")]
            assert len(actors) == 2, actors
            actors[0].kill()
            self.killed = True
        return said


crew = Watched(workers=2)
selection = Selection.of(["recovery"], force=False)
run_side_by_side([PAIRS["micro-late"]], crew, out=Path(sys.argv[1]), settings=Settings(limit=4),
                 selection=selection)
assert crew.killed
"""


def test_a_ray_of_two_with_one_killed_gives_the_same_bits(alone: Path, ahead: Path) -> None:
    """Where Ray remembers a cluster that is gone, as one that was killed is."""
    scratch = Path(tempfile.mkdtemp(prefix="ray"))
    (scratch / "ray").mkdir()
    (scratch / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(scratch)}
    command = [sys.executable, "-c", ON_RAY, str(ahead)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    shutil.rmtree(scratch, ignore_errors=True)
    assert ran.returncode == 0, ran.stderr
    assert "a worker of the cluster is lost" in ran.stderr
    assert "3 workers" in ran.stderr
    xr.testing.assert_identical(result(alone), result(ahead))
    assert not [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].startswith("ray::Post")
    ], "actors outlive the study"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_a_cluster_that_this_machine_is_no_part_of(alone: Path, ahead: Path) -> None:
    """By its address, as a client: what is started elsewhere does the work."""
    ray, port, client = Path(sys.executable).parent / "ray", free_port(), free_port()
    scratch = tempfile.mkdtemp(prefix="ray")  # short: sockets' names are
    start = [ray, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    start += [f"--port={port}", f"--ray-client-server-port={client}", "--include-dashboard=false"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    env["RAY_TMPDIR"] = scratch
    head = subprocess.Popen(start, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not answers(client):
            assert head.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        command = [sys.executable, "-m", "twohop", "study", PAIR.key, "--limit", "4"]
        command += ["--stage", "recovery", "--out", str(ahead), "--on", f"ray://127.0.0.1:{client}"]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()
        head.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    assert ran.returncode == 0, ran.stderr
    assert "2 workers" in ran.stderr
    xr.testing.assert_identical(result(alone), result(ahead))
