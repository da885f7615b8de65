"""Some stages of a study, some again, and each of them alone."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import xarray as xr
from rich.console import Console
from stored import as_computed

from interventions.errors import InterventionsError
from interventions.results import read_tree
from twohop.ask.on_server import Progress
from twohop.cli import main, parser
from twohop.pairs import PAIRS
from twohop.running.crew.processes import Processes
from twohop.running.crew.side_by_side import run_side_by_side
from twohop.running.pair_run import Models, Settings
from twohop.running.reporter import Reporter
from twohop.running.study import run_in_turn, run_study, study_of
from twohop.stages.run import run_stage, run_stages
from twohop.stages.table import NEEDS, STAGES, Selection, derived, with_needs

TWO = Settings(limit=2)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


OF_RESULTS = ("prediction", "diagnosis")
"""Stages that look at other stages' results alone."""


class Heard(Reporter):
    """A reporter that remembers what it said."""

    def __init__(self) -> None:
        self.text = io.StringIO()
        super().__init__(Console(file=self.text, width=200))

    def lines(self) -> Iterator[list[str]]:
        for line in self.text.getvalue().splitlines():
            yield line.split()


def test_what_a_stage_needs_and_what_is_derived_from_it() -> None:
    assert with_needs(["recovery"]) == ["backbone_text", "recall", "windows", "recovery"]
    assert derived("resolution") == ["prediction", "diagnosis"]
    assert derived("backbone_text") == [one for one in STAGES[1:] if one != "resolution"]
    assert all(need in STAGES[: STAGES.index(stage)] for stage in STAGES for need in NEEDS[stage])


def test_only_what_is_not_stored_or_is_forced_is_run() -> None:
    assert Selection.of(["recall"], force=False).to_run([]) == ["backbone_text", "recall"]
    assert Selection.of(["recall"], force=False).to_run(STAGES) == []
    assert Selection.of(["recall"], force=True).to_run(STAGES) == ["recall"]
    assert Selection.of(["diagnosis"], force=["recall"]).to_run(STAGES) == [
        "recall",
        "timetable_vlm",
        "recovery",
        "diagnosis",
    ]
    found = Selection.of(None, force=["map_text"]).to_run(STAGES)
    assert found == ["map_text", "attribution_text"]
    assert Selection.of(None, force=True).to_run(STAGES) == [*STAGES]
    # What was derived from a stage that is gone is not to be trusted.
    without = [stage for stage in STAGES if stage != "recall"]
    assert Selection().to_run(without) == ["recall", *derived("recall")]


def test_a_wrong_stage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["study", "micro-naming", "--out", str(tmp_path)]
    assert main([*command, "--stage", "windows,recal"]) == 2
    assert "no stage 'recal'. Did you mean 'recall'?" in capsys.readouterr().err
    assert main([*command, "--force", "window"]) == 2
    assert "Did you mean 'windows'?" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
    with pytest.raises(SystemExit):
        parser().parse_args(["study", "--help"])
    text = capsys.readouterr().out
    assert all(stage in text for stage in STAGES)


def test_a_stage_alone_says_what_it_needs() -> None:
    study = study_of("micro-late", TWO)
    with pytest.raises(InterventionsError, match=r"without windows it cannot run"):
        run_stage("map_text", study, {"backbone_text": xr.Dataset()})
    with pytest.raises(InterventionsError, match="Did you mean 'recovery'"):
        run_stage("recover", study)


def test_stages_come_one_by_one_to_the_same_run(tmp_path: Path, models: Models) -> None:
    folder = tmp_path / "some" / "micro-late"

    heard = Heard()
    shared = {"out": tmp_path / "some", "settings": TWO, "models": models}
    assert run_study("micro-late", stages=["recall"], reporter=heard, **shared) is None
    assert [*read_tree(folder).children] == ["backbone_text", "recall"]
    assert "written when windows, timetable, " in heard.text.getvalue()
    assert not (folder / "summary.json").exists()

    summary = run_study("micro-late", reporter=(heard := Heard()), **shared)
    assert ["recall", "reused"] in [*heard.lines()]
    whole = read_tree(folder)
    assert set(whole.children) == set(STAGES)

    again = run_study(
        "micro-late", stages=["recall"], force=True, reporter=(heard := Heard()), **shared
    )
    assert again is None
    assert f"{', '.join(derived('recall'))}: given up" in heard.text.getvalue()
    assert {*read_tree(folder).children} == {*STAGES} - {*derived("recall")}
    assert not (folder / "summary.json").exists()
    assert not (folder / "report.html").exists()

    assert run_study("micro-late", **shared) == summary
    assert (folder / "report.html").exists()
    for stage in STAGES:
        xr.testing.assert_identical(
            as_computed(read_tree(folder)[stage].to_dataset()),
            as_computed(whole[stage].to_dataset()),
        )


def test_the_backbones_stage_is_forced_once_for_all_pairs(tmp_path: Path, models: Models) -> None:
    pairs = [PAIRS["micro-naming"], PAIRS["micro-late"]]
    shared = {"out": tmp_path, "settings": TWO, "models": models}
    selection = Selection.of(["recall", "windows"], force=False)
    assert [*run_in_turn(pairs, selection=selection, **shared)] == [None, None]
    heard = Heard()
    selection = Selection.of(["windows"], force=["backbone_text"])
    assert [*run_in_turn(pairs, selection=selection, reporter=heard, **shared)] == [None, None]
    said = [line[:2] for line in heard.lines()]
    assert said.count(["backbone_text", "done"]) == 1
    assert said.count(["windows", "reused"]) == 1
    for pair in pairs:
        assert [*read_tree(tmp_path / pair.key).children] == ["backbone_text", "windows"]


def test_workers_run_some_stages_of_several_pairs(tmp_path: Path) -> None:
    pairs = [PAIRS["micro-naming"], PAIRS["micro-late"]]
    selection = Selection.of(["recall"], force=["recall"])
    found = run_side_by_side(pairs, Processes(2), out=tmp_path, settings=TWO, selection=selection)
    assert found == [None, None]
    for pair in pairs:
        assert [*read_tree(tmp_path / pair.key).children] == ["backbone_text", "recall"]


def test_bars_end_where_they_say() -> None:
    expected: list[int] = []
    ticks: list[int] = []

    def tick(rows: int) -> None:
        ticks.append(rows)
        assert sum(ticks) <= sum(expected), "a bar cannot be further than its end"

    study = replace(
        study_of("micro-naming", Settings(limit=6)), progress=Progress(expected.append, tick)
    )
    done: dict[str, xr.Dataset] = {}
    for stage in STAGES:
        done[stage] = run_stage(stage, study, done)
        assert sum(ticks) == sum(expected), stage
        # Without a run of any model: the VLM's decoder is the backbone's, and so is its text.
        assert sum(ticks) > 0 or stage in ("windows_vlm", "timetable_vlm", *OF_RESULTS)
        ticks.clear()
        expected.clear()
    assert done["recovery"].sizes["tried"] > 2
    assert [*run_stages(["diagnosis"], study, done)] == [*done]
