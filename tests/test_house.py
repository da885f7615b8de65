"""The house stays one in which the next room is found: who imports whom has bounds."""

import pytest
from import_graph import ROOT, arrows, circles, import_graph, names_in, rooms

MOST = {"interventions": (20, 83), "twohop": (17, 53)}
"""Rooms and arrows between them; a change that needs more says why."""


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
