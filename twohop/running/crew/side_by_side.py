"""The study of several pairs on several workers: which stages, how much of a GPU each takes.

This process alone stores: stages as when pairs run one after the other, and shards as they come,
so that a stage whose owner is lost, or that is killed, is not begun anew.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from interventions.errors import InterventionsError
from twohop.pairs import Pair
from twohop.running.crew.schedule import Schedule, label
from twohop.running.crew.seats import Task
from twohop.running.crew.shard_store import ShardStore
from twohop.running.crew.transport import Crew
from twohop.running.pair_run import PairRun, Settings, open_run
from twohop.running.reporter import Reporter
from twohop.stages.table import STAGES, Selection


def run_side_by_side(
    pairs: Sequence[Pair],
    crew: Crew,
    *,
    out: Path,
    settings: Settings | None = None,
    selection: Selection | None = None,
    reporter: Reporter | None = None,
    even_if_few: bool = True,
    before: Callable[[PairRun, Sequence[str]], None] | None = None,
    share_of: Callable[[PairRun, Sequence[str]], float] | None = None,
) -> list[dict[str, Any] | None]:
    """Run the study of several pairs, or what is missing of it, on several workers.

    Parameters
    ----------
    pairs : sequence of Pair
    crew : Crew
        Where the workers come from.
    out, settings, selection, reporter, even_if_few, before
        As in :func:`twohop.running.study.run_in_turn`.
    share_of : callable, optional
        ``share_of(run, stages)`` is the part of a GPU that these stages of a run take, or the
        number of GPUs. Default: none.

    Returns
    -------
    list of dict or None
        The summaries; None of a pair of which stages are missing still.

    Raises
    ------
    InterventionsError
        If a stage cannot be run, or the only pair's study stops at too few items.
    OSError
        If workers are lost again and again.
    """
    reporter = reporter or Reporter()
    runs = [open_run(pair, out=out, settings=settings or Settings()) for pair in pairs]
    for run in runs:
        reporter.say(f"[bold]{run.pair.key}[/bold]: {len(run.benchmark.items)} items")
    selection = selection or Selection()
    tasks: dict[Task, list[PairRun]] = {}
    shares: dict[Task, float] = {}
    reused: dict[str, None] = {}
    for run in runs:
        stored = run.stored()
        to_run = selection.to_run(stored)
        if before is not None and to_run:
            before(run, to_run)
        share = share_of(run, to_run) if share_of is not None and to_run else 0.0
        for stage in selection.wanted():
            if stage in to_run:
                task = (run.store(stage).folder, stage)
                tasks.setdefault(task, []).append(run)
                shares[task] = max(share, shares.get(task, 0.0))
                if stage in stored or stage in selection.force:  # again, all of it
                    ShardStore(*task).drop()
            else:
                reused[label(run, stage)] = None
    for name in reused:
        reporter.reused(name)
    few: dict[str, InterventionsError] = {}
    if tasks:
        stops = not even_if_few and selection.stages == STAGES
        schedule = Schedule(tasks, shares, crew, reporter, few if stops else None)
        for run in runs:
            if "recall" in selection.usable(run.stored()):
                schedule.judge(run, run.own.get("recall"))
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(run.left_if_empty())
            schedule.work()
    if few and len(pairs) == 1:
        raise next(iter(few.values()))
    return [None if run.pair.key in few else run.finish(reporter) for run in runs]
