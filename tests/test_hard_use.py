"""What goes wrong on the way: a study says so, and nothing that was computed is lost."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import xarray as xr
from floors import FLOOR32

import interventions as iv
from twohop.asking import Study, longest_answer
from twohop.memory import MemoryTooSmall
from twohop.micro.folders import micro_folder
from twohop.pairs import find_pair
from twohop.stages import NEEDS, run_stage


@pytest.fixture(scope="module")
def study() -> Study:
    """Four entities of the micro world, whose facts are lost from the image."""
    vlm, backbone = (iv.load(micro_folder(key)) for key in ("micro-naming", "micro-backbone"))
    benchmark = find_pair("micro-naming").benchmark().limited(4)
    tokens = longest_answer(backbone, benchmark)
    return Study(vlm=vlm, backbone=backbone, benchmark=benchmark, max_new_tokens=tokens)


@pytest.fixture(scope="module")
def done(study: Study) -> dict[str, xr.Dataset]:
    found: dict[str, xr.Dataset] = {}
    for stage in ("backbone_text", "windows", "recall", "map_image", "recovery"):
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


@pytest.mark.parametrize(
    ("stage", "rows", "fail"),
    [
        ("backbone_text", 1, on_a_gpu),
        ("windows", 20, on_a_cpu),
        ("recall", 2, on_a_cpu),
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


def test_what_is_no_lack_of_memory_is_not_tried_again(study: Study) -> None:
    tries: list[int] = []

    def fail(rows: int) -> None:
        tries.append(rows)
        raise RuntimeError("shapes do not fit")

    with room_for((study.backbone,), 1, fail), pytest.raises(RuntimeError, match="do not fit"):
        run_stage("backbone_text", study, {})
    assert len(tries) == 1
