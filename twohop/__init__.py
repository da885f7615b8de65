"""The two-hop study: how a vision-language model recalls facts about what it sees.

Begin with :func:`run_study`, which runs all of it on one of :data:`PAIRS`, or with
:func:`study_of` and :func:`run_stages`, which run some of it and store nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twohop.ask.study import Study
    from twohop.pairs import PAIRS, Pair, find_pair, own_pair, with_data, with_flags
    from twohop.protocol import Protocol
    from twohop.report.compare import read_summary
    from twohop.running.pair_run import Settings, read_run
    from twohop.running.study import run_study, study_of
    from twohop.stages.run import run_stage, run_stages

__all__ = [
    "PAIRS",
    "Pair",
    "Protocol",
    "Settings",
    "Study",
    "find_pair",
    "own_pair",
    "read_run",
    "read_summary",
    "run_stage",
    "run_stages",
    "run_study",
    "study_of",
    "with_data",
    "with_flags",
]

# Models and Datasets take seconds to import: each name brings its module when it is first used.
LATER = {
    "PAIRS": "pairs",
    "Pair": "pairs",
    "Protocol": "protocol",
    "Settings": "running.pair_run",
    "Study": "ask.study",
    "find_pair": "pairs",
    "own_pair": "pairs",
    "read_run": "running.pair_run",
    "read_summary": "report.compare",
    "run_stage": "stages.run",
    "run_stages": "stages.run",
    "run_study": "running.study",
    "study_of": "running.study",
    "with_data": "pairs",
    "with_flags": "pairs",
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"twohop.{LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
