"""The study end to end on the micro pair, whose circuit is known by construction."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from interventions.errors import InterventionsError, ResultsError
from interventions.results import Store, read_tree
from twohop.cli import main
from twohop.micro.layout import COMPOSE_BLOCKS, RECALL_BLOCKS
from twohop.pairs import PAIRS
from twohop.protocol import Protocol
from twohop.running.crew.messages import Begin, Finished, Ready
from twohop.running.crew.processes import Process, Processes
from twohop.running.crew.side_by_side import run_side_by_side
from twohop.running.crew.transport import Lost
from twohop.running.reporter import Reporter
from twohop.running.study import Settings, run_study
from twohop.scoring import OUTCOMES
from twohop.stages.diagnosis import VERDICTS
from twohop.stages.recall import GATES
from twohop.stages.recovery.arms import ARMS
from twohop.stages.resolution.onset import onsets
from twohop.stages.table import STAGES
from twohop.stages.timing import STATES, at_places

QUICK = Settings(protocol=Protocol.preset("quick"))
"""What the fixture's studies were made with."""


@pytest.fixture(scope="session")
def runs(studied: Callable[..., Path]) -> Path:
    """All three, in one folder; to be read only."""
    [out] = {studied(pair) for pair in ("micro-naming", "micro-aligned", "micro-late")}
    return out


def summary(runs: Path, pair: str) -> dict[str, Any]:
    return json.loads((runs / pair / "summary.json").read_text())


@pytest.mark.parametrize("pair", ["micro-naming", "micro-aligned", "micro-late"])
def test_every_documented_number_is_there(runs: Path, pair: str) -> None:
    found = summary(runs, pair)
    assert found["pair"] == pair
    assert found["n_items"] + found["n_surface"] == 72
    numbers = [found[gate] for gate in GATES]
    numbers += [found[key] for key in ("gap_points", "gap_relative")]
    numbers += [found["lateness"][state] for state in (*STATES, "blocks")]
    numbers += [found["prediction"]["auc"], found["windows"]["enrichment_end"]]
    numbers += [contrast["difference"] for contrast in found["contrasts"].values()]
    numbers += [test["estimate"] for test in found["evidence"].values()]
    numbers += [number for effect in found["net"].values() for number in effect.values()]
    numbers += [found["outcomes"][one] for one in OUTCOMES]
    numbers += [found["diagnosis"][one] for one in VERDICTS]
    numbers += [found["recovered"][arm] for arm in ARMS]
    for number in numbers:
        assert set(number) == {"value", "low", "high", "n"}
        if number["value"] is not None:
            assert number["low"] <= number["value"] <= number["high"]
    assert sum(one["value"] for one in found["outcomes"].values()) == pytest.approx(1)
    assert sum(one["value"] for one in found["diagnosis"].values()) == pytest.approx(1)
    assert sum(found["lateness"][state]["value"] for state in STATES) == pytest.approx(1)


def test_the_enrichment_window_is_where_recall_was_put(runs: Path) -> None:
    for pair in ("micro-naming", "micro-aligned"):
        assert summary(runs, pair)["windows"]["enrichment_end"]["value"] == RECALL_BLOCKS[-1]
    windows = read_tree(runs / "micro-naming")["windows"].to_dataset()
    survives = windows["enrichment"].mean("item")
    # Not to chance: attention still finds some answers in the names' embeddings.
    assert float(survives.sel(edge=RECALL_BLOCKS.start)) < 0.65
    assert float(survives.sel(edge=RECALL_BLOCKS.stop)) > 0.9


def test_the_exact_map_finds_the_recall_blocks(runs: Path) -> None:
    found = read_tree(runs / "micro-naming")["map_text"].to_dataset()
    effect = found["share"].sel(group="right")
    mlp = effect.sel(component="mlp_out", role="entity").values
    blocks = [int(b) for b in found["first_block"]]
    inside = [i for i, block in enumerate(blocks) if block in RECALL_BLOCKS]
    outside = [i for i, block in enumerate(blocks) if block not in RECALL_BLOCKS]
    assert max(mlp[inside]) > 0.2
    assert np.abs(mlp[outside]).max() < 1e-6, "those MLPs are zero by construction"
    last = effect.sel(component="resid_post", role="last").values
    assert last[-1] == pytest.approx(1, abs=1e-5), "the whole state at the end is the whole effect"


def test_naming_loses_facts_and_the_backbones_entity_gives_them_back(runs: Path) -> None:
    found = summary(runs, "micro-naming")
    assert found["recognised"]["low"] > 0.8
    assert found["gap_points"]["low"] > 20
    arms = found["recovered"]
    assert arms["transplant_all_image"]["low"] > arms["mean_entity"]["high"]
    assert arms["transplant_all_image"]["low"] > arms["norm_matched"]["high"]
    assert arms["transplant_all_image"]["low"] > arms["back_patching"]["high"]
    assert arms["wrong_entity"]["high"] < 0.25
    assert found["followed"]["wrong_entity"]["value"] > 0.75
    assert found["followed"]["wrong_entity"]["low"] > arms["wrong_entity"]["high"]
    assert arms["cot_gold"]["low"] > 0.75 > arms["cot_wrong"]["high"]


def test_aligned_has_no_gap_and_is_not_late(runs: Path) -> None:
    found = summary(runs, "micro-aligned")
    assert abs(found["gap_points"]["value"]) < 10
    assert found["lateness"]["early"]["low"] > 0.75
    assert found["lateness"]["blocks"]["high"] <= 0
    assert found["diagnosis"]["late"]["value"] == 0


def test_late_by_construction_is_found_late(runs: Path) -> None:
    found = summary(runs, "micro-late")
    came = found["lateness"]
    assert came["late"]["low"] > 0.75 > came["null_late"]["high"]
    assert came["blocks"]["low"] > 0
    tree = read_tree(runs / "micro-late")
    verdicts, resolution = (tree[name].to_dataset() for name in ("diagnosis", "resolution"))
    late = verdicts["blocks"].values[(verdicts["state"] == "late").values]
    assert np.median(late) - 1 in COMPOSE_BLOCKS, "the last block done where it is first read"
    plain = at_places(resolution, "probe").sel(kind="plain").transpose("layer", "entity").values
    first = onsets(plain, running=QUICK.protocol.onset_layers)
    usual = np.median(np.where(first < 0, np.inf, first))
    assert usual <= RECALL_BLOCKS[-1], "decodable is not usable"
    assert found["contrasts"]["back_patching"]["difference"]["low"] > 0
    assert found["contrasts"]["back_patching"]["shown"]
    assert found["evidence"]["back_patching"]["state"] == "shown"
    shares = {name: one["value"] for name, one in found["diagnosis"].items()}
    assert max(shares, key=lambda name: shares[name]) == "late"


def test_what_the_backbone_was_never_taught_is_knowledge_missing(runs: Path) -> None:
    from twohop.micro.world import facts

    verdicts = read_tree(runs / "micro-aligned")["diagnosis"].to_dataset()
    untaught = [f"{fact.code}/{fact.relation}" for fact in facts() if not fact.taught]
    assert untaught
    for item in untaught:
        verdict = str(verdicts["verdict"].sel(item=item).values)
        assert verdict in ("knowledge_missing", "right")


def test_results_carry_their_provenance(runs: Path) -> None:
    tree = read_tree(runs / "micro-naming")
    assert set(tree.children) == set(STAGES)
    for stage in STAGES:
        about = json.loads(tree[stage].attrs["provenance"])
        assert about["settings"]["seed"] == 0
        assert about["vlm"]["dtype"] == "torch.float32"
        assert about["versions"]["nnsight"]


def test_a_second_run_reuses_everything_and_changes_nothing(runs: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs, tmp_path / "again"))
    folder = out / "micro-naming"
    before, stored = read_tree(folder), (folder / "results.nc").stat().st_mtime_ns
    said = io.StringIO()
    reporter = Reporter(Console(file=said, width=200))
    run_study("micro-naming", out=out, settings=QUICK, reporter=reporter)
    assert read_tree(folder).identical(before)
    assert (folder / "results.nc").stat().st_mtime_ns == stored
    told = [line.split() for line in said.getvalue().splitlines()]
    assert [line[0] for line in told if line[1:] == ["reused"]] == [*STAGES]


def test_other_settings_are_refused_with_the_difference(runs: Path) -> None:
    with pytest.raises(ResultsError, match="seed: stored 0, asked 1"):
        run_study("micro-naming", out=runs, settings=replace(QUICK, seed=1))


def test_pairs_side_by_side_give_what_they_give_alone(runs: Path, tmp_path: Path) -> None:
    pairs = ("micro-naming", "micro-late")
    asked = [PAIRS[pair] for pair in pairs]
    found = run_side_by_side(asked, Processes(2), out=tmp_path, settings=QUICK)
    assert [one and one["pair"] for one in found] == list(pairs)
    for pair in pairs:
        alone, beside = read_tree(runs / pair), read_tree(tmp_path / pair)
        for stage in STAGES:
            xr.testing.assert_allclose(
                alone[stage].to_dataset(), beside[stage].to_dataset(), atol=1e-4
            )


def test_a_worker_that_dies_ends_in_a_message() -> None:
    worker = Process(1, None, beside=1)
    assert worker.heard() == Ready()
    worker.process.kill()
    heard = worker.heard()
    assert isinstance(heard, Lost)
    assert heard.why.startswith("a worker ended with status -9")


def test_a_workers_error_is_the_studys() -> None:
    worker = Process(1, None, beside=1)
    assert worker.heard() == Ready()
    worker.send(Begin(b"no run", "recall", {}, frozenset(), frozenset()))
    heard = next(heard for heard in iter(worker.heard, None) if isinstance(heard, Finished))
    assert type(heard.error).__name__ == "UnpicklingError"
    worker.end()


def test_limit_takes_fewer_entities(studied: Callable[..., Path]) -> None:
    assert summary(studied("micro-naming", limit=6), "micro-naming")["n_entities"] == 6


@pytest.mark.parametrize("limit", [2, 3])
def test_two_entities_give_a_report_and_no_bold_claim(
    studied: Callable[..., Path], limit: int
) -> None:
    out = studied("micro-late", limit=limit)
    assert (out / "micro-late" / "report.html").exists()
    assert summary(out, "micro-late")["diagnosis"]["late"]["value"] in (0.0, None)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ResultsError, match="not the folder of a run"):
        Store(tmp_path, {"seed": 0})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failed_write_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path, {"seed": 0})
    store.put("one", xr.Dataset({"a": ("x", [1.0, 2.0])}))
    with pytest.raises(Exception, match=r".*"):
        store.put("two", xr.Dataset({"a": ("x", np.zeros(1, dtype=[("b", int)]))}))
    assert store.stages() == ["one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.nc", "settings.json"]


def test_mistakes_on_the_command_line_end_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "micro-namign", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'micro-naming'?" in capsys.readouterr().err
    assert main(["study", "micro-naming", "--limit", "1", "--out", str(tmp_path)]) == 2
    assert "at least 2 entities" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", "micro-naming", "--seed", "-1"])
    assert "expected 0 or more" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["study", "micro-naming", "--out", str(tmp_path / "file")]) == 2
    assert "Not a directory" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert str(tmp_path / "a") in capsys.readouterr().err
    assert main(["pairs"]) == 0
    assert "flags-aligned" in capsys.readouterr().out


def test_items_with_one_id_twice_are_refused() -> None:
    from twohop.items.items import Entity, Item, check_items

    item = Item("a/b", Entity("a", "A"), "b", ("x",))
    with pytest.raises(InterventionsError, match="occurs twice"):
        check_items([item, item])
