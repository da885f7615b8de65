"""``twohop study --remote``: the same study on a server and here."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from remote_operations import same_dataset

from interventions.results import read_tree
from twohop.cli import main
from twohop.running.pair_run import Settings
from twohop.running.study import run_study
from twohop.stages.table import STAGES

PAIR = "micro-naming"
ENTITIES = 4
# Of recall one asks without the entity, for the prior that the corrected forced choice takes off.
REQUESTS = {"recall": (5, 0), "recovery": (10, 1), "map_image": (1, 0)}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("here")
    run_study(PAIR, out=out, settings=Settings(limit=ENTITIES))
    return out / PAIR


def requests(run: Path, stage: str) -> tuple[int, int]:
    made = json.loads(read_tree(run)[stage].attrs["provenance"])
    return made["vlm"]["requests"], made["backbone"]["requests"]


def test_a_whole_study(here: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ["study", PAIR, "--limit", str(ENTITIES), "--out", str(tmp_path)]
    assert main([*asked, "--remote", os.environ["NDIF_HOST"]]) == 0
    assert "report.html" in capsys.readouterr().out
    there = tmp_path / PAIR
    ours, theirs = (read_tree(run) for run in (there, here))
    for stage in STAGES:
        same_dataset(ours[stage].to_dataset(), theirs[stage].to_dataset())
    summaries = [json.loads((run / "summary.json").read_text()) for run in (there, here)]
    # Weights that are on a server are not compared with others.
    compared = [summary["windows_vlm"].pop("same_as_backbone") for summary in summaries]
    assert compared == [False, True]
    assert summaries[0] == summaries[1]
    assert {stage: requests(there, stage) for stage in REQUESTS} == REQUESTS
    assert main(asked) == 2  # the folder of a run on a server
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["sandboxed"], indirect=True)
def test_stages_in_a_sandbox(here: Path, tmp_path: Path, path: str) -> None:
    settings = Settings(limit=ENTITIES, remote=True)
    run_study(PAIR, out=tmp_path, settings=settings, stages=["map_image"])
    ours, theirs = (read_tree(run) for run in (tmp_path / PAIR, here))
    for stage in ("backbone_text", "windows", "recall", "map_image"):
        same_dataset(ours[stage].to_dataset(), theirs[stage].to_dataset())
