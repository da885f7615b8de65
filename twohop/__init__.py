"""The two-hop study: how a vision-language model recalls facts about what it sees.

Begin with :func:`run_study`, which runs all of it on one of :data:`PAIRS`, or with
:func:`study_of` and :func:`run_stages`, which run some of it and store nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twohop.asking import Study
    from twohop.pairs import PAIRS, Pair, find_pair, own_pair, with_data
    from twohop.protocol import Protocol
    from twohop.report.compare import read_summary
    from twohop.runs import Settings, read_run
    from twohop.stages import run_stage, run_stages
    from twohop.study import run_study, study_of

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
]

# Models and Datasets take seconds to import: each name brings its module when it is first used.
LATER = {
    "PAIRS": "pairs",
    "Pair": "pairs",
    "Protocol": "protocol",
    "Settings": "runs",
    "Study": "asking",
    "find_pair": "pairs",
    "own_pair": "pairs",
    "read_run": "runs",
    "read_summary": "report.compare",
    "run_stage": "stages",
    "run_stages": "stages",
    "run_study": "study",
    "study_of": "study",
    "with_data": "pairs",
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"twohop.{LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
