"""A tenth of the tests, for while one writes; and the long ones first, for when all are run.

A test is long if it runs stages of a study, itself or in a fixture: the code that it comes to in
its own file names what does. Of the others every tenth is taken, by a digest of its name, so that
each part of the suite is in it by its share, and the same ones are in it every time.
"""

import inspect
import zlib
from collections import Counter
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

RUNS_STAGES = frozenset(
    ("run_study", "run_side_by_side", "run_in_turn", "run_stage", "run_stages", "Process")
)
"""What runs stages, or a process that does."""
BY_ANOTHER_NAME = frozenset(("kept_and_said", "studied", "twins", "Popen"))
"""A notebook; a study that is run once for several files; pairs for studies; another process."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option ``--tenth``."""
    parser.addoption("--tenth", action="store_true", help="a tenth of the tests; no whole study")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tenth, if it is asked for; else begin with the files that take longest."""
    long = {item for item in items if runs_a_study(item)}
    if config.getoption("tenth"):
        kept = [
            one for one in items if one not in long and zlib.crc32(one.nodeid.encode()) % 10 == 0
        ]
        config.hook.pytest_deselected(items=[*{*items} - {*kept}])
        items[:] = kept
        return
    studies = Counter(item.path for item in long)
    items.sort(key=lambda item: -studies[item.path])  # those of a file stay together, in order


def runs_a_study(item: pytest.Item) -> bool:
    """Whether a test, or a fixture that it asks for, comes to what runs stages of a study."""
    function = getattr(item, "function", None)
    if function is None:  # an example of a docstring
        return False
    info: Any = getattr(item, "_fixtureinfo")  # noqa: B009 - private, and the only one to know
    fixtures = [one for several in info.name2fixturedefs.values() for one in several]
    begun = [function, *(one.func for one in fixtures)]
    asked = {*info.names_closure, *(name for one in begun for name in names_from(one))}
    return not asked.isdisjoint(RUNS_STAGES | BY_ANOTHER_NAME)


def names_from(start: Any) -> set[str]:
    """Every name in the code of a function, and of those of its own file that it comes to."""
    found: set[str] = set()
    seen: set[int] = set()
    pending = [inspect.unwrap(start)]
    while pending:
        function = pending.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        names = set(names_in(function.__code__))
        found |= names
        for name in names:
            pending += functions_of(function.__globals__.get(name), function.__module__)
    return found


def functions_of(value: Any, module: str) -> list[FunctionType]:
    """A function of a file, or all that a class of it has."""
    if getattr(value, "__module__", None) != module:
        return []
    several = vars(value).values() if isinstance(value, type) else [value]
    plain = (
        inspect.unwrap(getattr(one, "fget", None) or one)
        for one in several
        if callable(one) or hasattr(one, "fget")
    )
    return [one for one in plain if inspect.isfunction(one)]


def names_in(code: CodeType) -> Iterator[str]:
    """Names that code looks up, with the functions in it."""
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from names_in(one)
