"""The house stays one in which the next room is found: who imports whom has bounds.

And what is in a room is called what it is.
"""

import pytest
from import_graph import ROOT, arrows, circles, import_graph, names_in, rooms
from vague_names import vague_names

MOST = {"interventions": (25, 129), "twohop": (17, 53)}
"""Rooms and arrows between them; a change that needs more says why.

`circuits`, `directions`, `lenses` and `subspaces` stand on passes and sweeping, and none of these
knows of them.
"""
NAMED = ("interventions", "twohop")
"""Packages in which every name is a noun for what it holds."""


@pytest.mark.parametrize("package", MOST)
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    assert circles(import_graph(package)) == []


@pytest.mark.parametrize("package", MOST)
def test_no_room_imports_itself_by_way_of_others(package: str) -> None:
    assert circles(rooms(import_graph(package))) == []


@pytest.mark.parametrize("package", MOST)
def test_rooms_and_arrows_are_few(package: str) -> None:
    between = rooms(import_graph(package))
    most_rooms, most_arrows = MOST[package]
    assert len(between) <= most_rooms
    assert arrows(between) <= most_arrows


@pytest.mark.parametrize("folder", ["interventions", "tests/engine"])
def test_the_engine_and_its_tests_know_nothing_of_the_study(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    knowing = {
        str(path) for path in files for name in names_in(path) if name.split(".")[0] == "twohop"
    }
    assert knowing == set()


@pytest.mark.parametrize("package", NAMED)
def test_a_name_is_the_noun_for_what_it_holds(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    vague = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in files
        for line, name in vague_names(path.read_text(encoding="utf-8"))
    ]
    assert vague == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("for one in rows: pass", "one"),
        ("for row, (one, _) in pairs: pass", "one"),
        ("[one for one in rows]", "one"),
        ("{one: row for one, row in pairs}", "one"),
        ("first, *found = rows", "found"),
        ("found: int = 1", "found"),
        ("found += 1", "found"),
        ("print(got := 1)", "got"),
        ("def count(some): pass", "some"),
        ("def count(*things): pass", "things"),
        ("def each_row(): pass", "each_row"),
        ("lambda made: 1", "made"),
        ("async def count():\n async for one in rows: pass", "one"),
        ("with file as thing: pass", "thing"),
        ("try: pass\nexcept OSError as found: pass", "found"),
        ("import numpy as stuff", "stuff"),
        ("match row:\n case [1, *some]: pass", "some"),
        ("match row:\n case {'a': 1, **some}: pass", "some"),
        ("match row:\n case [two]: pass", "two"),
    ],
)
def test_whatever_binds_a_vague_name_is_seen(source: str, name: str) -> None:
    assert [vague for _, vague in vague_names(source)] == [name]


@pytest.mark.parametrize(
    "source", ["row.one = 1", "call(one=1)", "one", "'one'  # one", "one_row = made_with(found)"]
)
def test_a_name_that_is_only_read_or_text_is_no_vague_one(source: str) -> None:
    assert vague_names(source) == []
