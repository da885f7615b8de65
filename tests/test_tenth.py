"""Which tests are long is read off their code; which are in the tenth, off their names."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import tenth


def run_study() -> None:
    """As the study's own is called."""


def through_another() -> None:
    run_study()


class Clinic:
    """What a fixture may give."""

    @property
    def found(self) -> None:
        return through_another()


def by_a_fixture(clinic: Clinic) -> None:
    assert clinic.found is None


def of_no_study() -> None:
    """Only its code is looked at."""


def item(function: Any, *fixtures: Any, asks: tuple[str, ...] = ()) -> Any:
    """As much of a test as the rule looks at."""
    given = {f"{i}": [SimpleNamespace(func=one)] for i, one in enumerate(fixtures)}
    info = SimpleNamespace(name2fixturedefs=given, names_closure=list(asks))
    return SimpleNamespace(function=function, _fixtureinfo=info)


def made_by() -> Clinic:
    return Clinic()


@pytest.mark.parametrize(
    ("test", "long"),
    [
        (item(through_another), True),
        (item(lambda: [through_another() for _ in range(2)]), True),
        (item(by_a_fixture, made_by), True),
        (item(of_no_study, asks=("studied",)), True),
        (item(of_no_study, asks=("tmp_path",)), False),
        (item(by_a_fixture), False),
        (SimpleNamespace(), False),  # an example of a docstring
    ],
)
def test_a_test_is_long_if_it_comes_to_what_runs_stages(test: Any, long: bool) -> None:
    assert tenth.runs_a_study(test) is long


@dataclass(eq=False)
class Named:
    """A test that has a name and a file."""

    function: Any
    _fixtureinfo: Any
    nodeid: str
    path: str


def chosen(names: list[str], *, tenth_only: bool) -> list[str]:
    items: list[Any] = [
        Named(
            **vars(item(through_another if "study" in name else of_no_study)),
            nodeid=name,
            path=name.split("::")[0],
        )
        for name in names
    ]
    gone: list[Any] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: gone.extend(items))
    config: Any = SimpleNamespace(getoption=lambda _name: tenth_only, hook=hook)
    tenth.pytest_collection_modifyitems(config, items)
    assert len(items) + len(gone) == len(names)
    return [one.nodeid for one in items]


NAMES = [f"{file}::x{i}" for file in ("a", "b", "c") for i in range(300)]
LONG = ["c::study1", "b::study1", "c::study2"]


def test_the_tenth_is_a_tenth_of_every_file_and_no_study() -> None:
    found = chosen([*NAMES, *LONG], tenth_only=True)
    assert found == chosen([*NAMES, *LONG], tenth_only=True)
    assert not {*found} & {*LONG}
    for file in ("a", "b", "c"):
        assert 15 < sum(name.startswith(file) for name in found) < 50


def test_all_of_them_begin_with_the_longest_and_keep_their_order() -> None:
    names = sorted([*NAMES, *LONG])
    found = chosen(names, tenth_only=False)
    assert sorted(found) == names
    assert [*dict.fromkeys(name[0] for name in found)] == ["c", "b", "a"]
    for file in ("a", "b", "c"):
        assert [n for n in found if n[0] == file] == [n for n in names if n[0] == file]
