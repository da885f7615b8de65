"""Which worker does what: stages as soon as these can be run, and parts of others' stages.

A stage is run by one worker, its owner. Workers that have no stage to run do shards of those that
others own (:mod:`twohop.running.crew.messages`).
"""

import time
from collections.abc import Sequence
from typing import Any

from interventions.errors import InterventionsError
from twohop.running.crew.messages import (
    Begin,
    Compute,
    Computed,
    Expected,
    Finished,
    Given,
    Help,
    Kept,
    Loaded,
    Posted,
    Ready,
    Ticked,
    Waiting,
    Wanted,
    Yours,
)
from twohop.running.crew.seats import Job, Seat, Task, Traffic
from twohop.running.crew.shard_store import ShardStore
from twohop.running.crew.transport import Crew, Lost
from twohop.running.crew.worker import RunAsked
from twohop.running.devices import DeviceFailed
from twohop.running.known import Known
from twohop.running.pair_run import PairRun
from twohop.running.reporter import Reporter, expect_more
from twohop.stages.table import BACKBONE_STAGES, NEEDS, TABLE

MOST_LOST = 3
"""Workers that may be lost to one stage before it is given up."""


def label(run: PairRun, stage: str) -> str:
    """What a stage is called where several pairs run."""
    return stage if stage in BACKBONE_STAGES else f"{run.pair.key} {stage}"


def needs(run: PairRun, stage: str) -> list[Task]:
    """The tasks that a stage waits for."""
    return [(run.store(need).folder, need) for need in NEEDS[stage]]


class Schedule:
    """Tasks, each of one or more runs, given to workers until all are stored.

    Parameters
    ----------
    tasks : dict of (Path, str) to list of PairRun
    shares : dict of (Path, str) to float
        Of a GPU, or so many GPUs.
    crew : Crew
    reporter : Reporter
    few : dict, optional
        Where a pair that has too few items is entered, and why; None: they go on.
    """

    def __init__(
        self,
        tasks: dict[Task, list[PairRun]],
        shares: dict[Task, float],
        crew: Crew,
        reporter: Reporter,
        few: dict[str, InterventionsError] | None,
    ) -> None:
        self.tasks = tasks
        self.shares = shares
        self.crew = crew
        self.reporter = reporter
        self.few = few
        self.left = sorted(tasks, key=lambda task: TABLE[task[1]].turn)
        self.missing = set(self.left)
        self.seats: list[Seat] = []
        self.jobs: list[Job] = []
        self.begun = 0
        self.losses: dict[Any, int] = {}
        self.packed: dict[tuple[str, bool], bytes] = {}
        self.traffic = Traffic()

    def work(self) -> None:
        """Do all tasks."""
        with self.reporter.bars() as self.bars:
            try:
                while self.missing:
                    self.assign()
                    hands = [seat.hand for seat in self.seats]
                    for hand, message in self.crew.wait(hands):
                        seat = next((seat for seat in self.seats if seat.hand is hand), None)
                        if seat is not None:
                            self.hear(seat, message)
            finally:
                for seat in self.seats:
                    seat.hand.end()
        self.traffic.loads += sum(seat.loads for seat in self.seats)
        if self.traffic.helped or self.traffic.stored or self.traffic.lost:
            self.reporter.say(f"  {self.traffic.said()}")

    def start(self, share: float) -> None:
        """Start a worker."""
        self.seats.append(Seat(self.crew.start(share), share))
        self.traffic.workers += 1

    # Who does what

    def assign(self) -> None:
        """Give workers that are idle something to do."""
        for seat in [seat for seat in self.seats if seat.idle]:
            if ready := self.ready(seat.share):
                self.begin(seat, self.best(seat, ready))
        for job in self.jobs:
            while job.waiting and job.queue:
                job.waiting = False
                number = job.queue.popleft()
                del job.posted[number]
                job.owner.hand.send(Yours(number))
        idle = [seat for seat in self.seats if seat.idle]
        for seat in idle:
            jobs = [job for job in self.jobs if job.queue and job.owner.share == seat.share]
            mine = [job for job in jobs if job.run == seat.run]
            if mine or (jobs and (self.crew.keeps or not seat.run)):  # else it would load anew
                self.help(seat, (mine or jobs)[0])
        for job in self.jobs:
            beside = [s for s in self.seats if s.ready and s.share == job.owner.share]
            owners = sum(seat.job is not None for seat in beside)
            helpers = -(-(len(beside) - owners) // owners)
            if helpers != job.helpers:
                job.helpers = helpers
                job.owner.hand.send(Help(helpers))
        self.make_room()

    def ready(self, share: float) -> list[Task]:
        """The tasks of such workers that can be run and are not."""
        return [
            task
            for task in self.left
            if self.shares[task] == share
            and self.missing.isdisjoint(needs(self.tasks[task][0], task[1]))
        ]

    def make_room(self) -> None:
        """End workers that others are waiting for the room of, and start those that are needed."""
        shares = sorted({self.shares[task] for task in self.missing}, reverse=True)
        waiting = [
            share
            for share in shares
            if self.ready(share)
            and not any(seat.ready for seat in self.seats if seat.share == share)
        ]
        for seat in [seat for seat in self.seats if seat.idle]:
            if seat.share not in shares or (waiting and not self.ready(seat.share)):
                self.end(seat)
        for share in shares:
            if self.ready(share) and not any(seat.share == share for seat in self.seats):
                for _ in range(self.crew.workers(share)):
                    self.start(share)

    def best(self, seat: Seat, ready: Sequence[Task]) -> Task:
        """Which of the tasks that can be run a worker should take: of models that it has.

        If it keeps those of all pairs, a stage that it has run: it has what that asks for again.
        """
        mine = [task for task in ready if self.run_of(task) == seat.run]
        again = [task for task in ready if task[1] in seat.stages]
        return (again or mine or ready if self.crew.keeps else mine or ready)[0]

    def run_of(self, task: Task) -> bytes:
        """The run that a task is done for, packed."""
        run = self.tasks[task][0]
        which = run.pair.key, self.shares[task] > 1
        if which not in self.packed:
            self.packed[which] = RunAsked.of(run).spread(self.shares[task]).packed()
        return self.packed[which]

    def begin(self, seat: Seat, task: Task) -> None:
        """Let a worker run a stage."""
        self.left.remove(task)
        run, stage = self.tasks[task][0], task[1]
        shards = ShardStore(*task)
        bar = self.bars.add_task(label(run, stage), total=None)
        seat.run = self.run_of(task)
        seat.stages.add(stage)
        self.begun += 1
        seat.job = Job(self.begun, task, seat.run, seat, bar, shards, time.monotonic())
        self.jobs.append(seat.job)
        again = frozenset(self.coming(run))
        seat.hand.send(Begin(seat.run, stage, run.needed(stage), again, shards.digests()))

    def coming(self, run: PairRun) -> set[str]:
        """The stages of a run that are still to be computed."""
        folders = (run.own.folder, run.common.folder)
        return {stage for folder, stage in self.missing if folder in folders}

    def help(self, seat: Seat, job: Job) -> None:
        """Let a worker do a shard of another's stage."""
        number = job.queue.popleft()
        seat.helps, seat.run = (job, number), job.run
        seat.hand.send(Compute(job.run, job.number, number, job.posted[number][1]))

    # What they say

    def hear(self, seat: Seat, message: Any) -> None:
        """Take what a worker says."""
        job = seat.job
        if isinstance(message, Lost):
            self.lose(seat, message)
        elif isinstance(message, Ready):
            seat.ready = True
        elif isinstance(message, Loaded):
            seat.loads = message.models
        elif isinstance(message, Ticked):
            of = job if message.job is None else self.job(message.job)
            if of is not None:
                self.bars.update(of.bar, advance=message.rows)
        elif isinstance(message, Computed):
            self.helped(seat, message)
        elif job is None:
            return
        elif isinstance(message, Expected):
            expect_more(self.bars, job.bar, message.rows)
        elif isinstance(message, Posted):
            job.posted[message.number] = message.digest, message.shard
            job.queue.append(message.number)
            self.traffic.n_bytes += message.n_bytes
        elif isinstance(message, Wanted):
            self.give_stored(job, message)
        elif isinstance(message, Kept):
            self.traffic.own += 1
            job.shards.put(message.digest, message.opened())
        elif isinstance(message, Waiting):
            job.waiting = True
        elif isinstance(message, Finished):
            self.finish(seat, job, message)

    def job(self, number: int) -> Job | None:
        """The stage that is being run under a number; None if it is not any more."""
        return next((job for job in self.jobs if job.number == number), None)

    def helped(self, seat: Seat, done: Computed) -> None:
        """Hand on what came of another's shard."""
        if isinstance(done.error, DeviceFailed):
            return self.lose(seat, Lost(f"a worker's device failed: {done.error}"))
        seat.helps = None
        job = self.job(done.job)
        if job is None or done.number not in job.posted:
            return
        digest, _ = job.posted.pop(done.number)
        if done.result is None:  # the owner sees whether that is the helper's own trouble
            job.owner.hand.send(Yours(done.number))
            return
        self.traffic.helped += 1
        self.traffic.n_bytes += len(done.result)
        job.shards.put(digest, done.opened())
        self.give(job, Given(done.number, done.result))

    def give_stored(self, job: Job, wanted: Wanted) -> None:
        """Give an owner what is stored of a shard; its to do, if that cannot be read."""
        result = job.shards.get(wanted.digest)
        if result is None:
            job.owner.hand.send(Yours(wanted.number))
            return
        self.traffic.stored += 1
        self.give(job, Given.of(wanted.number, result))

    def give(self, job: Job, given: Given) -> None:
        """Give an owner what came of a shard."""
        job.waiting = False  # it says so again, if it still is
        job.owner.hand.send(given)

    def finish(self, seat: Seat, job: Job, finished: Finished) -> None:
        """Store a stage."""
        if isinstance(finished.error, DeviceFailed):
            return self.lose(seat, Lost(f"a worker's device failed: {finished.error}"))
        if finished.error is not None:
            raise finished.error
        assert finished.result is not None
        result, (_, stage) = finished.result, job.task
        runs = self.tasks[job.task]
        computed = {other for _, other in self.tasks}
        for i, run in enumerate(runs):
            gone = run.keep(stage, result, computed=i == 0, again=self.coming(run))
            gone = [label(run, other) for other in gone if other not in computed]
            self.reporter.gave_up(gone, label(run, stage))
        job.shards.drop()
        self.bars.remove_task(job.bar)
        self.reporter.finished(label(runs[0], stage), time.monotonic() - job.started)
        self.jobs.remove(job)
        self.missing.remove(job.task)
        seat.job = None
        if stage == "recall":
            self.judge(runs[0], result)

    def judge(self, run: PairRun, recall: Any) -> None:
        """Say how many items a pair recognises and knows; stop it if they are too few."""
        known = Known.of(recall)
        if any(run in of_task for of_task in self.tasks.values()):
            self.reporter.say(known.said())
            if self.few is not None and (why := known.too_few(run.pair.key)) is not None:
                self.stop(run, why)

    def stop(self, run: PairRun, why: InterventionsError) -> None:
        """Do nothing more for a pair."""
        assert self.few is not None
        self.few[run.pair.key] = why
        self.reporter.stopped(why)
        for task in [*self.left]:
            others = [other for other in self.tasks[task] if other is not run]
            if others:
                self.tasks[task] = others
            else:
                self.left.remove(task)
                self.missing.remove(task)
        for job in [job for job in self.jobs if self.tasks[job.task] == [run]]:
            self.missing.remove(job.task)
            self.jobs.remove(job)
            self.bars.remove_task(job.bar)
            self.end(job.owner)
            self.start(job.owner.share)

    # When one is gone

    def lose(self, seat: Seat, lost: Lost) -> None:
        """Let others do what a worker that is lost was doing, and start one in its place."""
        self.traffic.lost += 1
        self.end(seat)
        # What it was doing, if that is what ends workers: a stage, a shard, or to start.
        doing: Any = seat.job.task if seat.job is not None else seat.share
        if seat.helps is not None:
            doing = (seat.helps[0].number, seat.helps[1])
        self.losses[doing] = self.losses.get(doing, 0) + 1
        if self.losses[doing] >= MOST_LOST:
            where = f" in {seat.job.task[1]}" if seat.job is not None else ""
            raise OSError(f"{lost.why}; so did {MOST_LOST - 1} before it{where}")
        self.reporter.say(f"  {lost.why}; another goes on")
        if seat.job is not None:
            self.jobs.remove(seat.job)
            self.bars.remove_task(seat.job.bar)
            self.left.insert(0, seat.job.task)
        elif seat.helps is not None and seat.helps[1] in seat.helps[0].posted:
            seat.helps[0].queue.appendleft(seat.helps[1])
        self.start(seat.share)

    def end(self, seat: Seat) -> None:
        """End a worker."""
        self.traffic.loads += seat.loads
        self.seats.remove(seat)
        seat.hand.end()
