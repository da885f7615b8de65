"""Every published pair through the whole study, as a tiny twin; the numbers mean nothing.

What a twin says is what its items are about (:mod:`twins`), so items are recognised, lost and kept,
and every stage runs on real models of the pair's architecture, tokenizer and chat template.
"""

import json
import re
from pathlib import Path
from typing import Any

import pages
import pytest
import twins
import xarray as xr

from interventions.errors import InterventionsError
from interventions.results import read_tree
from twohop.cli import main
from twohop.pairs import find_pair
from twohop.published import PUBLISHED
from twohop.scoring import OUTCOMES
from twohop.stages.diagnosis import VERDICTS
from twohop.stages.recall import GATES
from twohop.stages.recovery.arms import ARMS, WITHOUT_IMAGE_TOKENS
from twohop.stages.resolution.beside import NO_OTHER
from twohop.stages.resolution.picture_maps import MEASURES
from twohop.stages.table import STAGES
from twohop.stages.timing import STATES

GAPS = ("gap_points", "gap_relative", "gap_points_forced", "gap_points_vlm_text")
FIGURES = ("gates", "outcomes", "resolution", "windows", "timetable", "calibration", "map")
FIGURES += ("recovery",)
N_ITEMS = 7
STUDY_PAGES = Path(__file__).parents[2] / "docs" / "study"
LISTED = ("outcomes", "diagnosis", "recovered", "followed", "still_right", "forced_by_rule")
LISTED += ("contrasts", "evidence", "map_similarity")
PARTS = ("windows", "windows_vlm", "lateness", "prediction")
"""Of these, a page names every key with what it is part of."""


def undocumented(summary: dict[str, Any]) -> set[str]:
    """Keys of a summary that the pages on the study do not name."""
    keys = {*summary, *(key for name in LISTED for key in summary[name])}
    keys |= {key for of_arm in summary["net"].values() for key in of_arm}
    keys |= {
        key for name in ("contrasts", "evidence") for test in summary[name].values() for key in test
    }
    parts = {f"{name.removesuffix('_vlm')}.{key}" for name in PARTS for key in summary[name]}
    text = (STUDY_PAGES / "summary.md").read_text(encoding="utf-8")
    named = pages.names(STUDY_PAGES / "summary.md") | pages.names(STUDY_PAGES / "index.md")
    named |= {key.strip(".").split(".")[-1] for key in re.findall(r"`([\w.<> ]+)`", text)}
    return {key for key in keys if key not in named} | {
        part for part in parts if f"`{part}`" not in text
    }


def numbers_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every number that ``docs/study/summary.md`` documents."""
    found = [summary[name] for name in (*GATES, *GAPS)]
    found += [summary["lateness"][state] for state in (*STATES, "blocks")]
    found += [summary["windows"][end] for end in ("enrichment_end", "readout_end")]
    found += [summary["forced"][gate] for gate in GATES if gate != "recognised"]
    found += [summary["outcomes"][one] for one in OUTCOMES]
    found += [summary["diagnosis"][one] for one in VERDICTS]
    found += [summary["recovered"][arm] for arm in ARMS]
    return [*found, *summary["followed"].values(), *summary["still_right"].values()]


def check_maps(resolved: xr.Dataset, page: str, *, recurrent: bool) -> None:
    """Every measure of a picture is there, or it is said why not."""
    for measure in MEASURES:
        refused = resolved["picture_refused"].sel(measure=measure)
        there = resolved[f"picture_{measure}"].notnull()
        made = there.any([dim for dim in there.dims if dim != "mapped"])
        assert (made == (refused == "")).all(), refused.values.tolist()
        reasons = {*refused.values.tolist()} - {"", NO_OTHER}
        assert bool(reasons) == (measure == "rollout" and recurrent), reasons
        for reason in reasons:
            assert "a recurrent state" in reason
            assert f"No {measure}: {reason}" in page


@pytest.mark.parametrize("key", PUBLISHED)
def test_the_study_runs_from_one_command(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = twins.make(key, tmp_path / "models")
    command = ["study", "--vlm", str(made.vlm), "--backbone", str(made.backbone)]
    assert main([*command, "--data", str(made.data), "--out", str(tmp_path / "runs")]) == 0
    run = tmp_path / "runs" / f"{key}-items"
    summary, tree = json.loads((run / "summary.json").read_text()), read_tree(run)
    assert set(tree.children) == set(STAGES)
    assert summary["n_items"] + summary["n_surface"] == N_ITEMS
    # A folder of InternVL's does not tell how it was made.
    assert summary["architecture"] == (
        "other" if "internvl" in key else PUBLISHED[key].architecture
    )
    assert not undocumented(summary)
    for number in numbers_of(summary):
        assert set(number) == {"value", "low", "high", "n"}
        assert (number["value"] is None) or number["low"] <= number["value"] <= number["high"]
    # Not only code that looks at nothing: facts are known, and some are lost from the image.
    assert summary["backbone_text"]["value"] > 0
    assert tree["recovery"].sizes["lost"] > 0
    assert tree["windows"].sizes["item"] > 0

    page = (run / "report.html").read_text()
    for figure in FIGURES:
        assert (run / "figures" / f"{figure}.png").stat().st_size > 0
    crossing = PUBLISHED[key].architecture == "cross-attention"
    roles = [str(role) for role in tree["resolution"].to_dataset()["role"].values]
    assert ("last_image" in roles) == ("image" in roles) == (not crossing)
    assert "last" in roles
    n_lost = tree["recovery"].sizes["lost"]
    for at_image, at_question in WITHOUT_IMAGE_TOKENS.items():
        here, absent = (at_question, at_image) if crossing else (at_image, at_question)
        assert summary["recovered"][here]["n"] > 0
        assert summary["recovered"][absent] == {"value": None, "low": None, "high": None, "n": 0}
        assert summary["not_available"][f"recovered/{absent}"]
    whole = "transplant_question" if crossing else "transplant_all_image"
    assert summary["recovered"][whole]["n"] == n_lost
    assert ("not available" in page) == crossing
    assert ("the image enters by cross-attention" in capsys.readouterr().out) == crossing
    resolved = tree["resolution"].to_dataset()
    assert ("picture_lens" in resolved) == (not crossing)
    if not crossing:
        check_maps(resolved, page, recurrent=key == "qwen3.5-9b")
    if crossing:
        assert summary["diagnosis"]["late"]["value"] == 0
        assert tree["resolution"].sizes["layer"] > tree["windows"].sizes["edge"]


def test_a_published_pair_is_found_with_items_and_its_chat() -> None:
    for key, pair in PUBLISHED.items():
        if pair.layout == "mistral":
            with pytest.raises(InterventionsError, match="convert it first, then give its folder"):
                find_pair(key, has_data=True)
            continue
        found = find_pair(key, has_data=True)
        assert (found.key, found.vlm(), found.backbone()) == (key, pair.vlm, pair.backbone)
        assert found.format is not None
        assert found.format.kind == "chat"
        assert find_pair(key).key == f"{key}-flags"
