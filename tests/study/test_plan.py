"""A plan: what a study takes is what it takes, and what does not fit is refused with what does."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import xarray as xr
from published_configs import published_config

from interventions import Model
from interventions.results import read_provenance
from interventions.sweeping.sizes import Sizes
from twohop.ask.residence import held_on
from twohop.ask.study import Study
from twohop.cli import main
from twohop.pairs import find_pair
from twohop.protocol import Protocol
from twohop.published import PUBLISHED
from twohop.report.settings import settings_rows
from twohop.running.loading import Loading
from twohop.running.pair_run import Models, Settings
from twohop.running.plan import TooLarge, planned
from twohop.running.planning import plan_of
from twohop.running.published_plans import (
    CARDS,
    fit_on,
    published_plan,
    published_scope,
    published_weights,
)
from twohop.running.rates import rate_of
from twohop.running.study import study_of
from twohop.running.weighing import Machine, Weights
from twohop.stages.asked import Counts, scope_of
from twohop.stages.costs import COSTS
from twohop.stages.heights import Heights
from twohop.stages.run import run_stage
from twohop.stages.table import STAGES
from twohop.stages.work import Role

QUICK = Protocol.preset("quick")
DOCS = Path(__file__).resolve().parents[2] / "docs"
EXACT = {"attribution_text", "attribution_image"}
"""Stages of which not one token depends on what is answered, other than who is asked."""
CLOSE = 0.05
"""Of those whose samples are dealt out among relations as even as can be, which is not quite so."""
ANSWERED = 0.35
"""Of those that answer: an answer may be shorter than the longest, a choice clear at once."""


@contextmanager
def counted(*models: Model) -> Iterator[dict[str, int]]:
    """Tokens that go through the blocks of models, those that are skipped left out."""
    tokens = {"all": 0}

    def count(_module: object, given: tuple[torch.Tensor, ...]) -> None:
        tokens["all"] += given[0].shape[:-1].numel()

    handles = [
        block.mlp.register_forward_pre_hook(count)
        for model in models
        for block in model.module.get_submodule(model.anatomy.blocks)
    ]
    try:
        yield tokens
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def measured() -> tuple[Study, dict[str, int], dict[str, xr.Dataset]]:
    """A micro study, with the tokens that each stage took, and its results."""
    study = study_of("micro-late", Settings(protocol=QUICK, limit=12))
    done: dict[str, xr.Dataset] = {}
    took = {}
    for stage in STAGES:
        with counted(study.vlm, study.backbone) as tokens:
            done[stage] = run_stage(stage, study, done)
        took[stage] = tokens["all"]
    return study, took, done


def test_every_stage_has_a_cost() -> None:
    assert {*COSTS} == {*STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_as_many_tokens_go_through_blocks_as_was_planned(
    stage: str, measured: tuple[Study, dict[str, int], dict[str, xr.Dataset]]
) -> None:
    study, took, done = measured
    counts = Counts.of(done["recall"], done["backbone_text"])
    scope = scope_of(study, counts=counts, same=True)
    works = COSTS[stage](scope, QUICK)
    tokens = sum(work.tokens for work in works)
    if stage in EXACT or not took[stage]:
        assert tokens == took[stage]
    elif stage in {"windows", "timetable", "map_text", "map_image", "resolution"}:
        assert tokens == pytest.approx(took[stage], rel=CLOSE)
    else:
        assert tokens == pytest.approx(took[stage], rel=ANSWERED)


def test_what_a_stage_took_is_stored_and_shown(
    measured: tuple[Study, dict[str, int], dict[str, xr.Dataset]],
) -> None:
    *_, done = measured
    for stage in STAGES:
        [(device, said)] = read_provenance(done[stage])["memory"].items()
        assert device == "cpu"
        assert int(said.removesuffix(" MB")) > 100  # PyTorch alone is more
    rows = dict(settings_rows(xr.DataTree.from_dict(done)))
    assert "MB" in rows["memory"]


def test_a_height_is_of_the_block_alone() -> None:
    with Heights() as large:
        torch.ones(50_000_000).sum()
    with Heights() as small:
        torch.ones(10).sum()
    if Path("/proc/self/clear_refs").exists():
        assert large.n_bytes["cpu"] - small.n_bytes["cpu"] > 100_000_000


def test_weights_change_nothing_but_time(
    measured: tuple[Study, dict[str, int], dict[str, xr.Dataset]],
) -> None:
    """A plan from configs alone counts what one of the loaded models does."""
    study, *_ = measured
    plan = plan_of(find_pair("micro-late"), Settings(protocol=QUICK, limit=12))
    scope = scope_of(study)
    for stage in plan.stages:
        works = COSTS[stage.stage](scope, QUICK)
        assert sum(stage.tokens.values()) == sum(work.tokens for work in works)
    assert not plan.timed
    assert not plan.remedy
    models: dict[Role, Model] = {"vlm": study.vlm, "backbone": study.backbone}
    for role, model in models.items():
        real = sum(weight.nbytes for weight in model.module.parameters())
        assert plan.weights[role].nbytes == real
    assert rate_of(study.backbone, study).flops > 0


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_sizes_are_those_of_the_configs(key: str) -> None:
    pair = PUBLISHED[key]
    shape = pair.shape
    vlm = published_config(pair.vlm)
    config = vlm.get_text_config(decoder=True)
    text = SimpleNamespace(**config.to_dict())  # also where blocks are unlike one another
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    crossing = len(getattr(text, "cross_attention_layers", []))
    assert shape.n_layers + shape.crossing == text.num_hidden_layers
    assert (shape.crossing, shape.head_dim) == (crossing, head)
    assert (shape.d_model, shape.inner) == (text.hidden_size, text.intermediate_size)
    assert (shape.n_heads, shape.n_kv_heads) == (
        text.num_attention_heads,
        text.num_key_value_heads,
    )
    assert 0 <= text.vocab_size - shape.vocab <= 64
    # All blocks, the ends and the tower are the model.
    language = shape.n_layers * shape.block + shape.ends
    assert language == pytest.approx(pair.backbone_parameters.value, rel=0.01)


def test_the_smallest_change_that_fits_is_named() -> None:
    def remedy(key: str, gigabytes: int, *, spare: int = 1) -> str:
        plan = planned(
            key,
            published_scope(PUBLISHED[key], QUICK),
            published_weights(PUBLISHED[key]),
            Machine.of(gigabytes),
            protocol=QUICK,
            spare=Machine.of(gigabytes, count=spare) if spare > 1 else None,
        )
        return plan.remedy

    assert remedy("llava-1.5-7b", 24) == ""
    assert "--quantization int8." in remedy("llava-1.5-13b", 24)
    assert "--device-map auto, over 2 GPUs." in remedy("llava-1.5-13b", 24, spare=2)
    assert "--quantization nf4." in remedy("qwen2.5-vl-72b", 80)
    assert "Nothing here makes it fit" in remedy("qwen2.5-vl-72b", 24)
    assert "--remote" in remedy("qwen2.5-vl-72b", 24)
    wide = published_plan("llava-1.5-7b", Machine.of(24), protocol=QUICK, n_bytes=4)
    assert "--dtype bfloat16" in wide.remedy
    with pytest.raises(TooLarge, match=r"takes \d+\.\d GB at least, one model and one row"):
        wide.check()


@pytest.mark.parametrize(("beside_weights", "status"), [(1000, 0), (-1000, 2)])
def test_only_weights_that_do_not_fit_refuse_a_run(
    beside_weights: int,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rows are an estimate: a run that may not fit is tried."""
    plan = plan_of(find_pair("micro-late"), Settings(protocol=QUICK, limit=6))
    free = max(of.nbytes for of in plan.weights.values()) + beside_weights
    small = Machine("cpu", (free,), ("cpu",))
    monkeypatch.setattr(Machine, "here", lambda _: small)
    command = ["study", "micro-late", "--preset", "quick", "--limit", "6"]
    assert main([*command, "--stage", "recall", "--out", str(tmp_path)]) == status
    said = " ".join(capsys.readouterr().err.split())
    assert "micro-late does not fit on cpu" in said
    assert ("It is tried" in said) == (status == 0)
    assert main([*command, "--plan", "--out", str(tmp_path)]) == 2


def test_both_models_are_there_where_there_is_room() -> None:
    one, both = (
        published_plan("llava-1.5-13b", Machine.of(size), protocol=QUICK) for size in (48, 80)
    )
    weights = [of.nbytes for of in one.weights.values()]
    assert not one.stages[1].height.both
    assert both.stages[1].height.both
    assert max(weights) < one.peak < sum(weights) < both.peak < 80e9
    assert one.least == both.least


def test_packing_leaves_embeddings_and_head() -> None:
    whole = Weights(7_000_000_000, 260_000_000, 2)
    packed = Weights(7_000_000_000, 260_000_000, 2, "nf4")
    assert whole.nbytes == 14_000_000_000
    assert 2 * 260_000_000 < packed.nbytes < whole.nbytes / 3


def test_more_memory_never_takes_more_cards() -> None:
    for key in PUBLISHED:
        ways = [fit_on(key, card, protocol=QUICK) for card in CARDS]
        fewest = [min(fit.count for fit in of_card) for of_card in ways]
        assert fewest == sorted(fewest, reverse=True)


def test_the_table_of_the_docs_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["pairs", "--plan"]) == 0
    printed = capsys.readouterr().out.strip()
    page = (DOCS / "study/plan.md").read_text(encoding="utf-8")
    assert printed in page
    assert "twohop pairs --plan" in page


def test_a_plan_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    assert main(["study", "micro-late", "--plan", "--limit", "6", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in STAGES)
    assert "a forward pass of each model was timed" in shown
    assert not out.exists()


def test_what_does_not_fit_ends_in_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No machine that tests run on has 400 GB: and nothing has to be fetched to know it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for long
    assert main(["study", "llama-3.2-vision-90b", "--plan"]) == 2
    said = capsys.readouterr()
    assert "llama-3.2-vision-90b does not fit on" in said.err
    assert "--remote" in said.err
    assert "Traceback" not in said.err
    assert "meta-llama/Llama-3.1-70B-Instruct 141.1 GB" in said.out


def test_sizes_know_keys_and_values() -> None:
    """LLaVA-1.5-7B: 32 blocks, 32 heads of 128, two bytes each."""
    sizes = Sizes(32, 4096, 32, 32, 128, 32_064, 11_008, 2, 200_000_000)
    assert sizes.keys(1) == 2 * 32 * 32 * 128 * 2
    assert json.dumps(sizes.keys(611)) == "320339968"


def test_a_plan_is_of_the_stages_that_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", "micro-late", "--plan", "--limit", "6", "--stage", "recall"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "recall" in printed
    assert "backbone_text" in printed
    assert "timetable" not in printed


def test_what_cannot_be_planned_is_run_all_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def busy(_: object) -> Machine:
        raise RuntimeError("the device is busy")

    monkeypatch.setattr(Machine, "here", busy)
    command = ["study", "micro-late", "--limit", "6", "--stage", "backbone_text"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert "what is left could not be planned" in caplog.text


def test_weights_that_are_not_sure_to_be_counted_right_refuse_nothing() -> None:
    plan = published_plan("llava-1.5-7b", Machine.of(4), protocol=QUICK)
    assert plan.hopeless
    assert not replace(plan, sure=False).hopeless


def test_what_a_study_holds_is_its_own_to_use() -> None:
    """Else the second pair of a run would be refused for the models of the first."""
    cpu = torch.device("cpu")
    gc.collect()  # models of other tests would go meanwhile
    before = held_on(cpu)
    models = Models()
    model = models.get(find_pair("micro-late").vlm())
    weights = sum(tensor.nbytes for tensor in model.module.parameters())
    assert held_on(cpu) - before >= weights
    assert Machine.here(Loading(device=("cpu",))).free[0] > weights
