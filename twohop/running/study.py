"""The study of pairs: stages run in order; each is stored as it is done, and not run again."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from twohop.ask.study import Study
from twohop.pairs import Pair, find_pair
from twohop.running.known import Known
from twohop.running.loading import Role, loaded_where_there_is_room
from twohop.running.pair_run import Models, PairRun, Settings, open_run, study_on
from twohop.running.reporter import Reporter
from twohop.stages.table import STAGES, Selection


def study_of(key: str | Pair, settings: Settings | None = None) -> Study:
    """Load a pair and its items for :func:`twohop.run_stage`, in a notebook; store nothing.

    Examples
    --------
    See :func:`twohop.stages.run.run_stages`.
    """
    pair, settings = find_pair(key) if isinstance(key, str) else key, settings or Settings()
    settings.loading.check(remote=settings.remote)
    benchmark = pair.benchmark().limited(settings.limit)
    roles: tuple[Role, ...] = ("vlm", "backbone")
    places = pair.places(remote=settings.remote)
    vlm, backbone = (
        loaded_where_there_is_room(
            places[role], remote=settings.remote, **settings.loading.of(role)
        )
        for role in roles
    )
    return study_on(benchmark, vlm, backbone, settings)


@overload
def run_study(
    key: str | Pair,
    *,
    out: Path,
    settings: Settings | None = None,
    models: Models | None = None,
    reporter: Reporter | None = None,
    stages: None = None,
    force: bool | Sequence[str] = (),
) -> dict[str, Any]: ...


@overload
def run_study(
    key: str | Pair,
    *,
    out: Path,
    settings: Settings | None = None,
    models: Models | None = None,
    reporter: Reporter | None = None,
    stages: Sequence[str],
    force: bool | Sequence[str] = (),
) -> dict[str, Any] | None: ...


def run_study(
    key: str | Pair,
    *,
    out: Path,
    settings: Settings | None = None,
    models: Models | None = None,
    reporter: Reporter | None = None,
    stages: Sequence[str] | None = None,
    force: bool | Sequence[str] = (),
) -> dict[str, Any] | None:
    """Run the whole study of one pair, or what is missing of it, or some stages.

    Parameters
    ----------
    key : str or Pair
    out : Path
        Folder of runs; this one goes to ``out/<pair>``. Stages that are the backbone's alone are
        kept in ``out/backbones`` and shared by the pairs on it.
    settings : Settings, optional
    models : Models, optional
        Shared between calls, so that a backbone is loaded once.
    reporter : Reporter, optional
    stages : sequence of str, optional
        Run these and what they need of :data:`twohop.stages.table.STAGES`; default: all.
    force : bool or sequence of str
        Compute these again though they are stored; True: the ``stages``. What was derived from
        them is given up, and computed again if it is among the ``stages``.

    Returns
    -------
    dict or None
        The summary, also written as ``summary.json``. None if stages are missing still: then there
        is no summary and no report.

    Raises
    ------
    ResultsError
        If the folder holds a run with other settings.
    InterventionsError
        If there is no such pair or stage.
    """
    pair = find_pair(key) if isinstance(key, str) else key
    selection = Selection.of(stages, force)
    summaries = run_in_turn(
        [pair], out=out, settings=settings, selection=selection, models=models, reporter=reporter
    )
    return next(summaries)


def run_in_turn(
    pairs: Sequence[Pair],
    *,
    out: Path,
    settings: Settings | None = None,
    selection: Selection | None = None,
    models: Models | None = None,
    reporter: Reporter | None = None,
    even_if_few: bool = True,
    before: Callable[[PairRun, Sequence[str]], None] | None = None,
) -> Iterator[dict[str, Any] | None]:
    """Run the study of several pairs, one after the other; give each one's summary.

    The parameters are those of :func:`run_study`. A stage that is forced and the backbone's alone
    is computed once for all pairs on it. Unless ``even_if_few``, a whole study stops behind the
    stage ``recall`` where too few items are recognised and known (:mod:`twohop.running.known`);
    of several pairs it goes on with the next, and the summary is None. ``before(run, to_run)`` is
    called with the stages that a pair is still to run, before the first of them.

    Raises
    ------
    InterventionsError
        If the only pair's stops.
    """
    models, reporter = models or Models(), reporter or Reporter()
    selection = selection or Selection()
    computed: set[tuple[Path, str]] = set()
    for pair in pairs:
        run = open_run(pair, out=out, settings=settings or Settings())
        reporter.say(f"[bold]{pair.key}[/bold]: {len(run.benchmark.items)} items")
        to_run, few = selection.to_run(run.stored()), None
        if before is not None and to_run:
            before(run, to_run)
        for stage in selection.wanted():
            where = (run.store(stage).folder, stage)
            left = [other for other in to_run if STAGES.index(other) >= STAGES.index(stage)]
            if stage not in to_run:
                reporter.reused(stage)
            else:
                if where in computed:
                    gone = run.keep(stage, run.common.get(stage), computed=False, again=left)
                    reporter.reused(stage)
                else:
                    needed = run.needed(stage)
                    with reporter.stage(stage) as progress, run.left_if_empty():
                        result = run.compute(
                            stage, needed, models=models, progress=progress, again=left
                        )
                    gone = run.keep(stage, result, again=left)
                reporter.gave_up([other for other in gone if other not in to_run], stage)
                computed.add(where)
            if stage == "recall" and left:
                known = Known.of(run.own.get(stage))
                reporter.say(known.said())
                if not even_if_few and selection.stages == STAGES:
                    few = known.too_few(pair.key)
            if few is not None:
                break
        models.drop(run.folders["vlm"])
        if few is None:
            yield run.finish(reporter)
        elif len(pairs) == 1:
            raise few
        else:
            reporter.stopped(few)
            yield None
