"""Flags as the items of any pair; and how many are recognised and known, before hours go by."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import twins
import xarray as xr

from interventions.errors import InterventionsError
from interventions.results import read_tree
from twohop.cli import main
from twohop.flags import data
from twohop.flags.items import DRAWINGS, MAP
from twohop.items.datamap import BRIEF
from twohop.pairs import PAIRS, flags_checked, own_pair, with_flags
from twohop.protocol import Protocol
from twohop.running.known import LEAST_KNOWN, Known
from twohop.running.study import Settings, run_in_turn
from twohop.stages.table import STAGES, Selection

COUNTRIES = 190


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> twins.Folders:
    """A published pair's twins."""
    return twins.make("llava-1.5-7b", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_flags_are_usable_items(name: str) -> None:
    checked = flags_checked(name)
    report = checked.report
    assert (report.source, report.entities, report.pictures) == (name, COUNTRIES, (3, 3))
    # Singapore's capital is Singapore: naming it is no recall.
    assert report.reasons() == {"answer_is_entity": 1}
    assert report.items == 3 * COUNTRIES - 1
    assert {item.relation for item in checked.items} == {*data.RELATIONS}
    for item in checked.items[::25]:
        fact = data.fact(item.entity.code, next(r for r in data.RELATIONS if r == item.relation))
        assert item.answers == fact.answers
        first, *others = (picture.open() for picture in checked.pictures[item.entity.code])
        plain = data.view(item.entity.code, None, style=DRAWINGS[name])
        assert np.array_equal(np.asarray(first), np.asarray(plain))
        assert len(others) == 2


def test_questions_about_a_flag_name_no_country() -> None:
    names = [name for country in data.entities() for name in (country.name, *country.aliases)]
    for wording in (*MAP.questions.values(), MAP.naming):
        assert wording.image is not None
        assert not any(re.search(rf"\b{re.escape(name)}\b", wording.image) for name in names)


def test_a_chat_is_asked_to_be_brief_and_a_plain_model_in_a_frame(folders: twins.Folders) -> None:
    pair = with_flags(own_pair(folders.vlm, folders.backbone))
    benchmark = pair.benchmark()
    assert (pair.key, benchmark.chat) == ("llava-1.5-7b-flags", True)
    shown = benchmark.templates["capital"].show("<image>")
    assert BRIEF in shown
    assert "What is the capital of the country with this flag?" in shown
    assert benchmark.naming.fill("France").count("Which country is France?") == 1
    framed = with_flags(PAIRS["flags-naming"]).benchmark()
    expected = "Question: What is the capital of France?\nAnswer:"
    assert framed.templates["capital"].fill("France") == expected


def test_a_pair_without_items_is_asked_about_flags_from_one_command(
    folders: twins.Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["study", "--vlm", str(folders.vlm), "--backbone", str(folders.backbone)]
    asked += ["--limit", "2", "--preset", "quick", "--out", str(tmp_path)]
    # A random model knows nothing: that is said before anything that takes long.
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert f"asked about flags: 569 items, {COUNTRIES} countries" in said
    assert "6 items: 0 recognised, 0 known in text, 0 both; of these 0 kept and 0 lost" in said
    assert "0 of 6 items are both recognised (0) and known in text (0)" in said
    run = tmp_path / "llava-1.5-7b-flags"
    assert {*read_tree(run).children} == {"backbone_text", "recall"}
    assert main(asked) == 2  # not a second time either
    assert "backbone_text            reused" in capsys.readouterr().err
    assert main([*asked, "--even-if-few"]) == 0
    assert {*read_tree(run).children} == {*STAGES}
    assert json.loads((run / "summary.json").read_text())["pair"] == "llava-1.5-7b-flags"
    page = (run / "report.html").read_text()
    assert "--data flags --seed 0 --limit 2 --preset quick" in page


def gates(recognised: int, known: int, kept: int, items: int = 100) -> xr.Dataset:
    """The gates of items of which the first so many are right."""
    names = ("recognised", "backbone_text", "vlm_image")
    right = [np.arange(items) < count for count in (recognised, known, kept)]
    return xr.Dataset({"right": (("gate", "item"), np.array(right))}, coords={"gate": [*names]})


def test_what_is_counted() -> None:
    known = Known.of(gates(60, 40, 15))
    assert known == Known(items=100, recognised=60, known=40, both=40, kept=15)
    assert known.too_few("a") is None


@pytest.mark.parametrize(
    ("recognised", "known", "items", "advice"),
    [
        (LEAST_KNOWN - 1, 90, 100, "The VLM hardly names what it sees"),
        (90, LEAST_KNOWN - 1, 100, "The backbone hardly knows the facts"),
        (0, 8, 8, "--even-if-few goes on all the same"),
    ],
)
def test_too_few_stop_with_advice(recognised: int, known: int, items: int, advice: str) -> None:
    counted = Known.of(gates(recognised, known, 0, items))
    assert re.search(f"{items} items are both.*{advice}", str(counted.too_few("a")))


@pytest.mark.parametrize(("both", "items"), [(LEAST_KNOWN, 1000), (2, 8), (1, 7), (0, 3)])
def test_few_are_enough_where_few_are_asked(both: int, items: int) -> None:
    assert Known.of(gates(both, both, 0, items)).too_few("a") is None


def test_a_study_that_may_stop_goes_on_where_enough_is_known(
    studied: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(studied("micro-naming"), tmp_path, dirs_exist_ok=True)
    [summary] = run_in_turn(
        [PAIRS["micro-naming"]],
        out=tmp_path,
        settings=Settings(protocol=Protocol.preset("quick")),
        selection=Selection.of(None, force=["diagnosis"]),
        even_if_few=False,
    )
    assert summary is not None
    said = capsys.readouterr().err
    assert said.index(" both; of these ") < said.index("windows") < said.index("done in")


def test_where_one_of_several_pairs_stops_the_others_are_run(
    studied: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in ("micro-naming", "micro-late"):
        shutil.copytree(studied(key), tmp_path, dirs_exist_ok=True)
    first = Known.of(read_tree(tmp_path / "micro-naming")["recall"].to_dataset())
    too_few = Known.too_few

    def spoiled(self: Known, pair: str) -> InterventionsError | None:
        return too_few(Known(self.items, 0, self.known, 0, 0) if self == first else self, pair)

    monkeypatch.setattr(Known, "too_few", spoiled)
    asked = {"out": tmp_path, "settings": Settings(protocol=Protocol.preset("quick"))}
    asked["selection"] = Selection.of(None, force=["diagnosis"])
    pairs = [PAIRS["micro-naming"], PAIRS["micro-late"]]
    stopped, whole = run_in_turn(pairs, **asked, even_if_few=False)
    assert stopped is None
    assert whole is not None
    assert "stopped: micro-naming: 0 of " in re.sub(r"\s+", " ", capsys.readouterr().err)
    with pytest.raises(InterventionsError, match="--even-if-few"):
        list(run_in_turn(pairs[:1], **asked, even_if_few=False))


def test_what_is_recognised_and_known_comes_first() -> None:
    assert STAGES[:2] == ("backbone_text", "recall")
