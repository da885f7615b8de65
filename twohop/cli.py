"""The commands: ``twohop study``, ``compare``, ``pairs``, ``data`` and ``train``."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twohop.running.options import (
    RUNS,
    add_study,
    asked_loading,
    asked_protocol,
    names,
    natural,
)

if TYPE_CHECKING:
    from twohop.items.validation import Checked
    from twohop.pairs import Pair
    from twohop.protocol import Protocol
    from twohop.running.pair_run import PairRun, Settings
    from twohop.running.weighing import Machine


FLAGS = "flags"
"""What a pair without items of its own is asked."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(
        prog="twohop",
        description="Measure how vision-language models recall facts about what they see.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_study(commands)

    compare = commands.add_parser("compare", help="put finished runs side by side")
    compare.add_argument(
        "run",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a run's folder, or a pair's name in --runs",
    )
    compare.add_argument(
        "--runs", type=Path, default=Path(RUNS), help="folder of runs (%(default)s)"
    )
    compare.add_argument("--out", type=Path, help="where to write (default: RUNS/compare)")

    pairs = commands.add_parser("pairs", help="list the pairs: built in, and published")
    pairs.add_argument("--json", action="store_true", help="print them as JSON")
    pairs.add_argument(
        "--ndif",
        action="store_true",
        help="ask NDIF what it runs (done anyway if NDIF_API_KEY or NDIF_HOST is set)",
    )

    pairs.add_argument(
        "--plan",
        action="store_true",
        help="print what a study of each published pair takes on GPUs of several sizes",
    )

    data = commands.add_parser("data", help="check a file of items before a study")
    tasks = data.add_subparsers(dest="task", required=True, metavar="TASK")
    check = tasks.add_parser(
        "check",
        help="say of every row whether it is usable, and why not",
        description="Exit status: 0 if anything is usable, 1 if nothing is, 2 if FILE cannot be "
        "read or has not the columns.",
    )
    check.add_argument(
        "data",
        metavar="FILE",
        help="JSON Lines, CSV, TSV or Parquet; a folder of PopVQA or of `datasets`; "
        "hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT; or flags, flags-iso",
    )
    check.add_argument(
        "--map", metavar="MAP", help="field=column pairs with commas between, or a TOML file"
    )
    check.add_argument("--all", action="store_true", help="name every row that is set aside")
    check.add_argument("--json", action="store_true", help="print the report as JSON")

    train = commands.add_parser("train", help="retrain an embedded pair's vision parts")
    train.add_argument("what", choices=("flags", "micro"))
    train.add_argument("--out", type=Path, help="folder for weights (default: train/WHAT)")
    train.add_argument("--seed", type=natural, default=0, help="of the projectors (%(default)s)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.

    A user's mistake ends in its message and status 2, an interrupt in status 130, neither in a
    traceback.
    """
    options = parser().parse_args(argv)
    # Threads that spin for long while they wait slow each other down many times over as soon as
    # anything else runs on the machine; ones that sleep at once are late for small matrices. A
    # short spin is as fast as the one and as safe as the other. Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from interventions.errors import InterventionsError

    try:
        return COMMANDS[options.command](options)
    except InterventionsError as error:
        sys.stderr.write(f"twohop: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"twohop: {error}. What was done before is stored.\n")
        return 2
    except RuntimeError as error:
        from twohop.running.devices import explained, failed

        if not failed(error):
            raise
        sys.stderr.write(f"twohop: a device failed. {explained(error, ())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. What was done is stored; the same command goes on.\n")
        return 130


def run_studies(options: argparse.Namespace) -> int:
    """``twohop study``."""
    from rich.console import Console

    from interventions.progress import quiet_libraries
    from twohop.report.compare import read_summary, write_comparison
    from twohop.report.console import print_comparison, print_summary
    from twohop.running.crew.crews import crew_of, share_of
    from twohop.running.crew.side_by_side import run_side_by_side
    from twohop.running.study import Settings, run_in_turn
    from twohop.stages.table import STAGES, Selection

    quiet_libraries()
    share_heads_on_a_cpu()
    again = options.force is not None and (names(",".join(options.force)) or True)
    selection = Selection.of(options.stage, again)
    protocol, loading = asked_protocol(options), asked_loading(options)
    loading.check(remote=options.remote)
    pairs = asked_pairs(options, protocol)
    console = Console()
    settings = Settings(
        limit=options.limit,
        seed=options.seed,
        remote=options.remote,
        protocol=protocol,
        loading=loading,
    )
    crew = crew_of(options.on, options.workers, pairs, settings)
    machines = [] if crew is None else [*crew.machines(loading)]
    if options.plan:
        timing = crew is None or not crew.away
        return plan_studies(pairs, settings, selection.wanted(), machines, timing=timing)
    asked = {"out": options.out, "settings": settings, "selection": selection}
    asked |= {"before": partial(say_plan, machines=machines), "even_if_few": options.even_if_few}
    if crew is None:
        run = run_in_turn(pairs, **asked)
    else:
        run = run_side_by_side(pairs, crew, **asked, share_of=share_of(crew))
    summaries, folders = [], []
    for pair, summary in zip(pairs, run, strict=True):
        if summary is not None:
            print_summary(summary, console)
            summaries.append(summary)
            folders.append(options.out / pair.key)
    if len(folders) > 1:
        page = write_comparison(folders, options.out / "compare")
        print_comparison([read_summary(folder) for folder in folders], console)
        console.print(f"Side by side: {page}", soft_wrap=True)
    for summary, folder in zip(summaries, folders, strict=True):
        console.print(f"\n{summary['verdict']}", soft_wrap=True)
        console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    stopped = selection.stages == STAGES and len(summaries) < len(pairs)
    return 2 if stopped else 0


def plan_studies(
    pairs: "Sequence[Pair]",
    settings: "Settings",
    stages: "Sequence[str]",
    machines: "Sequence[Machine]",
    *,
    timing: bool,
) -> int:
    """``twohop study --plan``: of each pair, what it takes anew; refused if one does not fit."""
    from rich.console import Console

    from twohop.running.plan_text import print_plan
    from twohop.running.planning import plan_before

    asked = {"stages": stages, "machines": machines, "timing": timing}
    plans = [plan_before(pair, settings, **asked) for pair in pairs]
    for plan in plans:
        print_plan(plan, Console())
    for plan in plans:
        plan.check()
    return 0


def say_plan(
    run: "PairRun", to_run: "Sequence[str]", *, machines: "Sequence[Machine]" = ()
) -> None:
    """Say in a line what is left of a run takes; refuse it if not even the weights fit.

    What else does not fit by the plan is said, and tried: rows are an estimate.
    """
    from rich.console import Console

    from twohop.running.plan_text import said
    from twohop.running.planning import plan_of_rest

    plan = plan_of_rest(run, to_run, machines)
    if plan is not None:
        console = Console(stderr=True)
        console.print(f"  {said(plan)}", highlight=False, markup=False, soft_wrap=True)
        if plan.hopeless:
            plan.check()
        elif doubts := plan.doubts():
            console.print(
                f"  By this estimate {doubts} It is tried; a stage that does not fit says so, and "
                "those before it stay done.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def asked_pairs(options: argparse.Namespace, protocol: "Protocol") -> "list[Pair]":
    """The pairs that ``twohop study`` is to run, each with what it is asked.

    That is ``--data`` if it is given; else a built-in pair's own items, and flags for any other.
    """
    from rich.console import Console

    from interventions.errors import InterventionsError
    from twohop.pairs import DRAWINGS, PAIRS, find_pair, own_pair, what_it_takes, with_data
    from twohop.published import PUBLISHED
    from twohop.report.data import print_data

    if (options.vlm is None) != (options.backbone is None):
        raise InterventionsError("--vlm and --backbone are one pair. Give both, or neither.")
    if not options.pair and options.vlm is None:
        raise InterventionsError("no pair was given. See: twohop pairs; or --vlm and --backbone.")
    console = Console(stderr=True)
    pairs = [find_pair(key, has_data=True) for key in dict.fromkeys(options.pair)]
    for key in options.pair:
        if key in PUBLISHED and not options.remote:
            console.print(what_it_takes(PUBLISHED[key]), highlight=False, soft_wrap=True)
    if options.vlm is not None:
        pairs.append(own_pair(options.vlm, options.backbone))
    own_items = [options.data is None and PAIRS.get(pair.key) is pair for pair in pairs]
    for_items = {**for_files(options), "--format": options.format}
    if all(own_items) and (idle := [option for option, value in for_items.items() if value]):
        raise InterventionsError(f"{idle[0]} is for the items of a file: give --data FILE.")
    with console.status(f"checking {options.data or FLAGS}"):
        checked = None if all(own_items) else asked_items(options)
    if checked is None:
        return pairs
    if (options.data or FLAGS) in DRAWINGS:
        counts = f"{checked.report.items} items, {checked.report.entities} countries"
        console.print(
            f"asked about flags: {counts}; see: twohop data check {FLAGS}", highlight=False
        )
    else:
        print_data(checked.report, console)
    given = {"format": options.format, "alter_views": options.alter_views, "protocol": protocol}
    return [
        pair if own else with_data(pair, checked, **given)
        for pair, own in zip(pairs, own_items, strict=True)
    ]


def for_files(options: argparse.Namespace) -> dict[str, Any]:
    """Options that say how a file is read."""
    return {"--map": options.map, "--alter-views": getattr(options, "alter_views", False)}


def asked_items(options: argparse.Namespace) -> "Checked":
    """The items of ``--data``: of a file, or flags."""
    from interventions.errors import InterventionsError
    from twohop.items.datamap import read_map
    from twohop.items.validation import check
    from twohop.pairs import DRAWINGS, flags_checked

    name = options.data or FLAGS
    if name not in DRAWINGS:
        return check(name, read_map(options.map))
    if idle := [option for option, value in for_files(options).items() if value]:
        raise InterventionsError(f"{idle[0]} is for the items of a file: give --data FILE.")
    return flags_checked(name)


def check_data(options: argparse.Namespace) -> int:
    """``twohop data check``.

    With ``--json``, the report as :meth:`twohop.items.validation.Report.as_dict` gives it.
    """
    import json

    from rich.console import Console

    from twohop.report.data import print_data

    with Console(stderr=True).status(f"checking {options.data}"):
        report = asked_items(options).report
    if options.json:
        sys.stdout.write(json.dumps(report.as_dict(), indent=2) + "\n")
    else:
        print_data(report, Console(), everything=options.all)
    return 0 if report.items else 1


def compare_runs(options: argparse.Namespace) -> int:
    """``twohop compare``."""
    from rich.console import Console

    from twohop.report.compare import read_summary, write_comparison
    from twohop.report.console import print_comparison

    folders = [run if run.is_dir() else options.runs / run for run in options.run]
    page = write_comparison(folders, options.out or options.runs / "compare")
    console = Console()
    print_comparison([read_summary(folder) for folder in folders], console)
    console.print(f"Side by side: {page}", soft_wrap=True)
    return 0


def list_pairs(options: argparse.Namespace) -> int:
    """``twohop pairs``.

    With ``--json``, an object as :func:`twohop.report.pairs.pairs_as_dict` gives it.
    """
    import json

    from rich.console import Console

    from twohop.published import PUBLISHED
    from twohop.published.hosts import ask_ndif, local_gpus, ndif_is_configured, where_it_could_run
    from twohop.report.pairs import pairs_as_dict, print_pairs

    if options.plan:
        from twohop.running.plan_text import print_fits

        print_fits(Console())
        return 0
    gpus = local_gpus()
    ndif = ask_ndif() if options.ndif or ndif_is_configured() else None
    where = {key: where_it_could_run(pair, gpus, ndif) for key, pair in PUBLISHED.items()}
    if options.json:
        sys.stdout.write(json.dumps(pairs_as_dict(where, gpus, ndif), indent=2) + "\n")
    else:
        print_pairs(where, ndif, Console())
    return 0


def train_pair(options: argparse.Namespace) -> int:
    """``twohop train``."""
    from interventions.progress import quiet_libraries

    out = options.out or Path("train") / options.what
    quiet_libraries()
    if options.what == "flags":
        from twohop.flags.training import train as train_flags

        train_flags(out=out, seed=options.seed)
    else:
        from twohop.micro.training import train as train_micro

        train_micro(out=out, seed=options.seed)
    sys.stdout.write(f"Weights are in {out}.\n")
    return 0


def share_heads_on_a_cpu() -> None:
    """Let query heads share their keys and values in place, where transformers would copy them.

    Under a mask it copies the keys and values once per query head, as some GPUs want it. On a CPU
    the copies take longer than attention itself.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")


COMMANDS = {
    "study": run_studies,
    "compare": compare_runs,
    "pairs": list_pairs,
    "data": check_data,
    "train": train_pair,
}

if __name__ == "__main__":
    sys.exit(main())
