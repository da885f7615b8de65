"""Several pairs at once on a CPU: two workers that take stages as soon as these can be run.

A small model's many short steps leave cores waiting for each other; two processes with half of the
cores each do not. Workers compute; this process alone stores, so that a kill at any moment
leaves every stage stored or not begun, as when pairs run one after the other.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from interventions.progress import quiet_libraries
from twohop.ask.on_server import Progress
from twohop.pairs import PAIRS, Pair
from twohop.running.known import Known
from twohop.running.pair_run import Models, PairRun, Settings, open_run
from twohop.running.reporter import Reporter, expect_more
from twohop.stages.table import BACKBONE_STAGES, NEEDS, TABLE, Selection

WORKERS = 2
Task = tuple[Path, str]  # a store's folder, and a stage


@dataclass
class Worker:
    """A process, and what it is doing.

    Attributes
    ----------
    process, pipe
    task : Task or None
    bar : int
        Of the task.
    started : float
    stages : set of str
        What it has run: it keeps models and states that the next pair's will ask for again.
    """

    process: Any
    pipe: Connection
    task: Task | None = None
    bar: Any = None
    started: float = 0.0
    stages: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Expected:
    """How many rows are to come in the stage that a worker has begun, beside those before."""

    rows: int


def worth_sharing(pairs: Sequence[Pair]) -> bool:
    """Whether to run pairs side by side: several built-in ones, small enough to be loaded twice."""
    built_in = all(PAIRS.get(pair.key) is pair for pair in pairs)
    cores = torch.get_num_threads()
    return len(pairs) > 1 and built_in and cores >= WORKERS and not torch.cuda.is_available()


def run_side_by_side(
    pairs: Sequence[Pair],
    *,
    out: Path,
    settings: Settings | None = None,
    selection: Selection | None = None,
    reporter: Reporter | None = None,
    before: Callable[[PairRun, Sequence[str]], None] | None = None,
) -> list[dict[str, Any] | None]:
    """Run the study of several built-in pairs, or what is missing of it.

    Parameters
    ----------
    pairs : sequence of Pair
        All of :data:`twohop.pairs.PAIRS`.
    out, settings, selection, reporter, before
        As in :func:`twohop.running.study.run_in_turn`.

    Returns
    -------
    list of dict or None
        The summaries; None of a pair of which stages are missing still.
    """
    reporter = reporter or Reporter()
    runs = [open_run(pair, out=out, settings=settings or Settings()) for pair in pairs]
    for run in runs:
        reporter.say(f"[bold]{run.pair.key}[/bold]: {len(run.benchmark.items)} items")
    selection = selection or Selection()
    tasks: dict[Task, list[PairRun]] = {}
    reused: dict[str, None] = {}
    for run in runs:
        to_run = selection.to_run(run.stored())
        if before is not None and to_run:
            before(run, to_run)
        for stage in selection.wanted():
            if stage in to_run:
                tasks.setdefault((run.store(stage).folder, stage), []).append(run)
            else:
                reused[label(run, stage)] = None
    for name in reused:
        reporter.reused(name)
    if tasks:
        workers = [start_worker() for _ in range(WORKERS)]
        try:
            with ExitStack() as stack:
                for run in runs:
                    stack.enter_context(run.left_if_empty())
                run_tasks(tasks, workers, reporter)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()
    return [run.finish(reporter) for run in runs]


def label(run: PairRun, stage: str) -> str:
    """What a stage is called where several pairs run."""
    return stage if stage in BACKBONE_STAGES else f"{run.pair.key} {stage}"


def run_tasks(
    tasks: dict[Task, list[PairRun]], workers: Sequence[Worker], reporter: Reporter
) -> None:
    """Give tasks, each of one or more runs, to workers until all are stored."""
    left = sorted(tasks, key=lambda task: TABLE[task[1]].turn)
    missing = set(left)
    with reporter.bars() as bars:
        while missing:
            for worker in workers:
                ready = [
                    task for task in left if missing.isdisjoint(needs(tasks[task][0], task[1]))
                ]
                if worker.task is not None or not ready:
                    continue
                task = next((task for task in ready if task[1] in worker.stages), ready[0])
                left.remove(task)
                run, stage = tasks[task][0], task[1]
                worker.bar = bars.add_task(label(run, stage), total=None)
                worker.task, worker.started = task, time.monotonic()
                worker.stages.add(stage)
                needed = run.needed(stage)
                again = {other for _, other in missing}
                out = run.own.folder.parent
                worker.pipe.send((run.pair.key, out, run.settings, stage, needed, again))
            for pipe in wait([worker.pipe for worker in workers if worker.task is not None]):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                message = received(worker)
                if isinstance(message, int):
                    bars.update(worker.bar, advance=message)
                    continue
                if isinstance(message, Expected):
                    expect_more(bars, worker.bar, message.rows)
                    continue
                assert worker.task is not None
                stage = worker.task[1]
                again = {other for _, other in tasks}
                for i, run in enumerate(tasks[worker.task]):
                    coming = {other for _, other in missing}
                    gone = run.keep(stage, message, computed=i == 0, again=coming)
                    gone = [label(run, other) for other in gone if other not in again]
                    reporter.gave_up(gone, label(run, stage))
                bars.remove_task(worker.bar)
                name = label(tasks[worker.task][0], stage)
                reporter.finished(name, time.monotonic() - worker.started)
                if stage == "recall":
                    reporter.say(Known.of(message).said())
                missing.remove(worker.task)
                worker.task = None


def needs(run: PairRun, stage: str) -> list[Task]:
    """The tasks that a stage waits for."""
    return [(run.store(need).folder, need) for need in NEEDS[stage]]


def received(worker: Worker) -> Any:
    """What a worker has to say: rows expected or done, or a Dataset; its error is raised here."""
    try:
        message = worker.pipe.recv()
    except EOFError:
        worker.process.join()
        raise OSError(
            f"a worker ended with status {worker.process.exitcode}, perhaps for lack of memory"
        ) from None
    if isinstance(message, BaseException):
        raise message
    return message


def start_worker() -> Worker:
    """Start a process that computes what it is sent, on its share of the cores."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    threads = max(1, torch.get_num_threads() // WORKERS)
    process = context.Process(target=work, args=(theirs, threads), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def work(pipe: Connection, threads: int) -> None:
    """Compute stages until killed: the loop of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=end_with_parent, daemon=True).start()
    quiet_libraries()
    torch.set_num_threads(threads)
    models = Models()
    runs: dict[Any, PairRun] = {}
    progress = Progress(lambda rows: pipe.send(Expected(rows)), pipe.send)
    while True:
        key, out, settings, stage, done, again = pipe.recv()
        try:
            asked = (key, out, settings)
            if asked not in runs:
                runs[asked] = open_run(PAIRS[key], out=out, settings=settings)
            run = runs[asked]
            result = run.compute(stage, done, models=models, progress=progress, again=again)
            pipe.send(result)
        except Exception as error:
            pipe.send(error)


def end_with_parent() -> None:
    """Leave nothing running when the parent is gone, however it ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
