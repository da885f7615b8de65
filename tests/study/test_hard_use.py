"""What goes wrong on the way: a study says so, and nothing that was computed is lost."""

import logging
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from floors import FLOOR32
from safetensors.torch import load_file, save_file

import interventions as iv
from interventions.errors import InterventionsError, ResultsError
from interventions.results import read_tree
from twohop.ask.memory import LIMITS, MemoryTooSmall
from twohop.ask.study import Study, longest_answer
from twohop.items.items import Item
from twohop.micro.folders import micro_folder
from twohop.pairs import Pair, find_pair
from twohop.running.pair_run import Models, Settings
from twohop.running.soundness import BrokenModel
from twohop.running.study import run_study
from twohop.stages.run import run_stage
from twohop.stages.table import NEEDS, STAGES


@pytest.fixture(scope="module")
def study() -> Study:
    """Four entities of the micro world, whose facts are lost from the image."""
    vlm, backbone = (iv.load(micro_folder(key)) for key in ("micro-naming", "micro-backbone"))
    benchmark = find_pair("micro-naming").benchmark().limited(4)
    tokens = longest_answer(backbone, benchmark)
    return Study(vlm=vlm, backbone=backbone, benchmark=benchmark, max_new_tokens=tokens)


OF_MEMORY = (
    *("backbone_text", "windows", "map_text", "attribution_text"),
    *("recall", "resolution", "map_image", "recovery"),
)


@pytest.fixture(scope="module")
def done(study: Study) -> dict[str, xr.Dataset]:
    found: dict[str, xr.Dataset] = {}
    for stage in OF_MEMORY:
        found[stage] = run_stage(stage, study, found)
    return found


# Memory


def on_a_gpu(_rows: int) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def on_a_cpu(rows: int) -> None:
    torch.empty(rows * 2**46)  # which no machine has: the allocator's own error


@contextmanager
def room_for(models: Sequence[iv.Model], rows: int, fail: Callable[[int], None]) -> Iterator[None]:
    """Let blocks fail on more rows than there is room for."""

    def check(_block: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > rows:
            fail(len(given[0]))

    blocks = [
        block
        for model in models
        for block in model.module.get_submodule(model.anatomy.blocks).children()
    ]
    hooks = [block.register_forward_pre_hook(check) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        LIMITS.clear()  # there is room again


@contextmanager
def batches_of(models: Sequence[iv.Model]) -> Iterator[list[int]]:
    """Note how many rows each pass through a first block has."""
    seen: list[int] = []
    first = [model.module.get_submodule(model.anatomy.blocks)[0] for model in models]
    hooks = [
        block.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        for block in first
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("stage", "rows", "fail"),
    [
        ("backbone_text", 1, on_a_gpu),
        ("windows", 2, on_a_cpu),
        ("attribution_text", 2, on_a_gpu),
        ("recall", 2, on_a_cpu),
        ("resolution", 2, on_a_gpu),
        ("map_image", 20, on_a_gpu),
        ("recovery", 8, on_a_gpu),
    ],
)
def test_batches_are_halved_until_they_fit(
    study: Study,
    done: dict[str, xr.Dataset],
    caplog: pytest.LogCaptureFixture,
    stage: str,
    rows: int,
    fail: Callable[[int], None],
) -> None:
    with room_for((study.vlm, study.backbone), rows, fail), caplog.at_level(logging.WARNING):
        found = run_stage(stage, study, {name: done[name] for name in NEEDS[stage]})
    assert "memory ran out on" in caplog.text
    xr.testing.assert_allclose(found, done[stage], rtol=0, atol=100 * FLOOR32)


def test_a_row_that_does_not_fit_ends_in_a_message(study: Study) -> None:
    with (
        room_for((study.backbone,), 0, on_a_cpu),
        pytest.raises(MemoryTooSmall, match="a single row needs too much memory"),
    ):
        run_stage("backbone_text", study, {})


def test_what_does_not_fit_is_not_made_by_another_method(
    study: Study, done: dict[str, xr.Dataset]
) -> None:
    """Nor stored as if it could not be told: there is room elsewhere."""
    with room_for((study.backbone,), 0, on_a_gpu), pytest.raises(MemoryTooSmall):
        run_stage(
            "attribution_text", study, {name: done[name] for name in NEEDS["attribution_text"]}
        )


def test_how_many_rows_fit_is_learnt_once(study: Study) -> None:
    """What did not fit is not tried again by the next call."""
    models = (study.backbone,)
    with batches_of(models) as seen, room_for(models, 2, on_a_gpu):
        run_stage("backbone_text", study, {})
        n_first = len(seen)
        run_stage("backbone_text", study, {})
    assert max(seen[:n_first]) > 2
    assert max(seen[n_first:]) <= 2


def test_what_is_no_lack_of_memory_is_not_tried_again(study: Study) -> None:
    tries: list[int] = []

    def fail(rows: int) -> None:
        tries.append(rows)
        raise RuntimeError("shapes do not fit")

    with room_for((study.backbone,), 1, fail), pytest.raises(RuntimeError, match="do not fit"):
        run_stage("backbone_text", study, {})
    assert len(tries) == 1


# Models and items that give little to measure


Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


def changed(folder: Path, change: Change) -> Pair:
    """The naming pair with other weights in its VLM."""
    made = Path(shutil.copytree(micro_folder("micro-naming"), folder))
    weights = load_file(made / "model.safetensors")
    change(weights)
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return replace(find_pair("micro-naming"), key="changed", vlm=lambda: made)


def asking(choose: Callable[[Sequence[Item]], Sequence[Item]], *, of: str = "micro-naming") -> Pair:
    """A pair that is asked other items."""
    whole = find_pair(of).benchmark()
    items = tuple(choose(whole.limited(3).items))
    return replace(
        find_pair(of), key="asked", benchmark=lambda: replace(whole, items=items, universe=items)
    )


def run(pair: Pair, out: Path, models: Models) -> dict[str, Any]:
    found = run_study(pair, out=out, settings=Settings(limit=3), models=models)
    assert (out / pair.key / "report.html").exists()
    return found


def test_a_vlm_that_recognises_nothing(tmp_path: Path, models: Models) -> None:
    def blind(weights: dict[str, torch.Tensor]) -> None:
        for name in weights:
            if "projector" in name:
                weights[name].zero_()

    found = run(changed(tmp_path / "blind", blind), tmp_path, models)
    assert found["verdict"].endswith("the gap could not be measured, as no item was recognised.")
    assert found["recognised"]["value"] == 0
    assert found["backbone_text"]["value"] > 0.5
    assert found["recovered"]["transplant_all_image"]["value"] is None
    assert found["diagnosis"]["not_recognised"]["value"] > 0.5


def test_a_backbone_that_knows_nothing(tmp_path: Path, models: Models) -> None:
    def of_the_next(items: Sequence[Item]) -> list[Item]:
        return [replace(one, answers=(f"Town of {one.entity.name}",)) for one in items]

    found = run(asking(of_the_next), tmp_path, models)
    assert found["backbone_text"]["value"] == 0
    assert found["diagnosis"]["knowledge_missing"]["value"] == 1
    assert found["windows"]["enrichment_end"]["value"] is None
    assert found["lateness"]["early"]["value"] == found["lateness"]["late"]["value"] == 0
    assert found["lateness"]["blocks"]["value"] is None
    assert found["lateness"]["reason"]
    assert found["prediction"]["auc"]["value"] is None
    assert found["prediction"]["not_measured"]


def test_a_vlm_that_loses_nothing(tmp_path: Path, models: Models) -> None:
    def right(items: Sequence[Item]) -> Sequence[Item]:
        return [*items[:2], *items[3:5]]

    found = run(asking(right, of="micro-aligned"), tmp_path, models)
    assert found["vlm_image"]["value"] == 1
    assert found["diagnosis"]["right"]["value"] == 1
    assert found["gap_points"]["value"] == 0
    assert all(one["value"] is None for one in found["recovered"].values())
    assert "no clear gap" in found["verdict"]


def test_one_entity_is_too_few(tmp_path: Path) -> None:
    pair = asking(lambda items: [one for one in items if one.entity == items[0].entity])
    with pytest.raises(InterventionsError, match="at least 2 entities"):
        run_study(pair, out=tmp_path)
    assert not [*tmp_path.iterdir()]


# What is broken


def test_one_answer_to_everything(tmp_path: Path, models: Models) -> None:
    def capital(items: Sequence[Item]) -> list[Item]:
        answer = items[0].answers
        return [replace(one, answers=answer) for one in items if one.relation == "capital"]

    found = run(asking(capital), tmp_path, models)
    assert found["by_relation"]["capital"]["best_constant"] == 1
    assert not found["by_relation"]["capital"]["above_constant"]


# What is broken


def test_weights_that_are_not_numbers_are_named(tmp_path: Path, models: Models) -> None:
    name = "language_model.model.layers.2.mlp.down_proj.weight"

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights[name].fill_(torch.nan)

    pair = changed(tmp_path / "spoilt", spoil)
    with pytest.raises(
        BrokenModel, match=r"spoilt computes NaN.* first in mlp_out of block 2.*down"
    ):
        run_study(pair, out=tmp_path / "runs", models=models, stages=["recall"])
    assert [*read_tree(tmp_path / "runs" / pair.key).children] == ["backbone_text"]


def test_a_full_disk_keeps_what_is_stored(tmp_path: Path, models: Models) -> None:
    settings = Settings(limit=2)
    folder = tmp_path / "micro-naming"
    run_study("micro-naming", out=tmp_path, settings=settings, models=models, stages=["windows"])
    before = read_tree(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "results.nc").stat().st_size, limits[1]))
    try:
        with pytest.raises(ResultsError, match=r"recall cannot be stored: File too large.* kept"):
            run_study("micro-naming", out=tmp_path, settings=settings, models=models)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_tree(folder).identical(before)
    assert sorted(one.name for one in folder.iterdir()) == ["results.nc", "settings.json"]
    run_study("micro-naming", out=tmp_path, settings=settings, models=models, stages=["map_text"])
    assert {"windows", "map_text"} < {*STAGES} & {*read_tree(folder).children}
