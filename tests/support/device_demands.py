"""What devices are asked for beyond the same numbers: places, memory and number formats.

Each demand is a function that asserts; only to be run once the pretend device is on.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from families import Case, case_of
from remote_operations import drawn, layers_of
from spreading import model_on
from transformers import AutoModelForCausalLM, GPT2Config

import interventions as iv
from interventions import digests
from interventions.model.fingerprints import fingerprint, hooks_of
from interventions.model.prefix_attention import attention
from interventions.results import read_provenance
from interventions.running.budget import SHARE, Budget
from interventions.sweeping.sizes import Sizes
from twohop.ask import residence
from twohop.ask.memory import LIMITS, MemoryTooSmall, limit_of, read
from twohop.ask.on_server import no_tick
from twohop.ask.study import Study
from twohop.micro.folders import micro_folder
from twohop.pairs import find_pair
from twohop.protocol import Protocol
from twohop.running.loading import Loading, loaded_where_there_is_room
from twohop.running.pair_run import Settings
from twohop.running.planning import plan_of
from twohop.running.study import study_of
from twohop.stages.asked import Counts
from twohop.stages.patched import run_cells
from twohop.stages.recall import same_decoder
from twohop.stages.run import run_stage

SMALL = replace(
    Protocol.preset("quick"),
    random_seeds=2,
    question_places=2,
    image_places=2,
    back_tokens=1,
    later_layers=(0.6,),
    earlier_layers=(0.0,),
)
ASKED = ("backbone_text", "recall", "windows", "resolution", "recovery")
"""Stages that ask one model and then the other, and what they need."""
DEMANDS: dict[str, Callable[[], None]] = {}


def demand(function: Callable[[], None]) -> Callable[[], None]:
    """Put a function into the table, under its name."""
    DEMANDS[function.__name__] = function
    return function


def fake() -> Any:
    """What ``torch.cuda`` is of CUDA."""
    return torch.get_device_module("fake:0")


def places_of(model: iv.Model) -> set[str]:
    return {str(weight.device) for weight in model.module.parameters()}


@contextmanager
def room(n_bytes: int, device: int = 0) -> Iterator[None]:
    """Let a device have so many bytes beside those in use."""
    fake().set_memory_limit(fake().memory_allocated(device) + n_bytes, device)
    try:
        yield
    finally:
        fake().set_memory_limit(0, device)
        LIMITS.clear()


def llama(where: str, dtype: torch.dtype = torch.float32) -> tuple[iv.Model, Case]:
    """The tiny model on devices, and the same on the CPU."""
    return model_on("llama", where, dtype, "sdpa"), case_of("llama", dtype, "sdpa")


# One model at a time


@cache
def a_small_study() -> tuple[Study, dict[str, xr.Dataset]]:
    """A micro study on one device that has room for both models, and what its stages give."""
    loading = Loading(device=("fake:0",))
    study = study_of("micro-late", Settings(protocol=SMALL, limit=4, loading=loading))
    done: dict[str, xr.Dataset] = {}
    for stage in ASKED:
        done[stage] = run_stage(stage, study, done)
    return study, done


@demand
def one_model_at_a_time_gives_the_same_bits() -> None:
    study, done = a_small_study()
    both, spare = fake().memory_allocated(0), residence.SPARE
    residence.SPARE = 1e9  # no device has so much to spare
    try:
        for stage in ASKED:
            alone = run_stage(stage, replace(study, kept={}), done)
            for name, value in done[stage].variables.items():
                np.testing.assert_array_equal(alone[name].values, value.values, err_msg=name)
            assert [home.away for home in residence.HOMES.values()].count(True) == 1
            assert fake().memory_allocated(0) < both
            assert read_provenance(alone)["vlm"]["device"] == "fake:0"
    finally:
        residence.SPARE = spare
        for model in (study.vlm, study.backbone):
            residence.at_home(model)
    assert fake().memory_allocated(0) >= both
    tied = study.vlm.module
    assert places_of(study.vlm) == {"fake:0"}
    assert tied.get_input_embeddings().weight.device == tied.device


@demand
def the_other_model_leaves_where_there_is_no_room_to_load_one() -> None:
    folders = micro_folder("micro-late"), micro_folder("micro-backbone")
    first = loaded_where_there_is_room(folders[0], device="fake:1")
    with room(200_000, device=1):  # a fifth of the second
        second = loaded_where_there_is_room(folders[1], device="fake:1")
        assert places_of(first) == {"cpu"}
        assert residence.home_of(first) == torch.device("fake:1")
        assert places_of(second) == {"fake:1"}
        assert same_decoder(first, second)
    with room(0, device=1):
        residence.leave()
        fake().set_memory_limit(fake().memory_allocated(1) + 200_000, 1)
        with pytest.raises(MemoryTooSmall, match="does not fit where it is to be loaded"):
            loaded_where_there_is_room(folders[1], device="fake:1")


@demand
def a_stage_takes_about_the_memory_that_was_planned() -> None:
    _, done = a_small_study()
    counts = Counts.of(done["recall"], done["backbone_text"])
    settings = Settings(protocol=SMALL, limit=4, loading=Loading(device=("fake:0",)))
    plan = plan_of(find_pair("micro-late"), settings, stages=ASKED, counts=counts, same=True)
    for stage in plan.stages:
        if stage.roles:
            [height] = [
                int(said.split()[0]) * 10**6
                for device, said in read_provenance(done[stage.stage])["memory"].items()
                if device == "fake:0"
            ]
            ratio = stage.height.peak / height
            assert 0.6 < ratio < 2.5, (stage.stage, stage.height.peak, height)


# Places


@demand
def a_model_is_where_it_was_asked_to_be() -> None:
    folder = micro_folder("micro-late")
    assert places_of(iv.load(folder, device="fake:1")) == {"fake:1"}
    assert places_of(iv.load(folder, device_map={"": "fake:1"})) == {"fake:1"}
    assert places_of(iv.load(folder)) == {"cpu"}
    module: Any
    module, tokenizer = tiny.build("llama")
    assert places_of(iv.load(module.to("fake:1"), tokenizer=tokenizer)) == {"fake:1"}


@demand
def a_decoder_is_known_again_on_another_device() -> None:
    folders = micro_folder("micro-aligned"), micro_folder("micro-backbone")
    for places in (("fake:0", "fake:1"), ("fake:1", "cpu"), ("cpu", "fake:0")):
        models = [iv.load(folder, device=at) for folder, at in zip(folders, places, strict=True)]
        assert same_decoder(*models)
        with torch.no_grad():
            next(iter(models[1].module.model.layers.parameters())).view(-1)[0] += 1
        assert not same_decoder(*models)


@demand
def a_fingerprint_is_the_same_wherever_the_weights_are() -> None:
    at_home = case_of("llama", torch.float32, "sdpa").model
    fast = digests.fast_digest
    for way in (fast, lambda: None):  # with and without the library that tells of small tensors
        digests.fast_digest = way
        try:
            for where in ("one", "two"):
                there, _ = llama(where)
                assert fingerprint(there) == fingerprint(at_home), where
                assert hooks_of(there) == hooks_of(at_home)
        finally:
            digests.fast_digest = fast
    large = drawn(3, 700_001)  # more than is brought to the CPU
    for tensor in (large, large.bfloat16()[:, 1:].contiguous(), large.bfloat16().flatten()[3:]):
        assert digests.tensor_digest(tensor.to("fake:1")) == digests.tensor_digest(tensor)


@demand
def values_of_a_model_on_another_device_are_taken() -> None:
    """A VLM and its backbone on two devices: what one computes is written into the other."""
    folders = micro_folder("micro-aligned"), micro_folder("micro-backbone")
    gave = []
    for places in (("cpu", "cpu"), ("fake:0", "fake:1"), ("cpu", "fake:0"), ("fake:1", "cpu")):
        vlm, backbone = (
            iv.load(folder, device=at) for folder, at in zip(folders, places, strict=True)
        )
        text = "The capital of France is"
        prompt, source = (model.prompt(text) for model in (vlm, backbone))
        last = source.at("last")
        [value] = iv.read(backbone, source, [iv.Site("resid_post", 0, last)])
        patch = iv.Patch("resid_post", 2, prompt.at("last"), 3 * value)
        swept = iv.sweep(
            vlm,
            prompt,
            iv.FromModel(iv.pair(vlm, backbone), source),
            answers=" a",
            roles=["last"],
            progress=False,
        )
        logits = iv.run(vlm, prompt, patches=[patch]).logits
        assert logits is not None
        gave.append((logits.cpu(), torch.from_numpy(swept["logprob"].values)))
    for ours in gave[1:]:
        torch.testing.assert_close(ours, gave[0], rtol=0, atol=1e-4)


@demand
def answers_wait_for_a_device_once_a_step() -> None:
    """Not once for every row."""
    model, _ = llama("one")
    waits = []
    for n_rows in (2, 12):
        prompt = model.prompt(["The capital of France is the town"] * n_rows)
        before = fake().counts()[1]
        iv.complete(model, prompt, max_new_tokens=3, candidates=["Paris", "the big river"])
        waits.append(fake().counts()[1] - before)
    assert waits[1] <= waits[0] + 2, waits


# Number formats


@demand
def sixteen_bits_are_rounded_about_as_by_sdpa() -> None:
    """Attention to a shared prefix against float64."""
    generator = torch.Generator().manual_seed(0)
    config = torch.nn.Module()
    for sharpness in (0.3, 3.0):
        query, key, value = (
            torch.randn(4, 2, n, 32, generator=generator).bfloat16() for n in (3, 703, 703)
        )
        key *= sharpness
        key[:], value[:] = key[:1].clone(), value[:1].clone()  # of one prefix
        exact = torch.nn.functional.scaled_dot_product_attention(
            query.double(), key.double(), value.double()
        )
        there = [tensor.to("fake:0") for tensor in (query, key, value)]
        whole = (
            torch.nn.functional.scaled_dot_product_attention(there[0], there[1], there[2])
            .cpu()
            .double()
        )
        own_key: Any
        own_key, own_value = (tensor[:, :, 700:].clone() for tensor in there[1:])
        own_key.shared = tuple(tensor[:1, :, :700].clone() for tensor in there[1:])
        apart = attention(config, there[0], own_key, own_value, None)[0].cpu().double()
        error, of_sdpa = (
            float((result - exact).pow(2).mean().sqrt())
            for result in (apart.transpose(1, 2), whole)
        )
        assert error < 2 * of_sdpa, (sharpness, error, of_sdpa)


@demand
def an_architecture_is_looked_at_without_float64() -> None:
    """One that the engine was not tested on: its parts must add up."""
    _, tokenizer = tiny.build("llama")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    module = AutoModelForCausalLM.from_config(config).eval().to("fake:0")
    fake().refuse_float64(True)
    try:
        assert iv.load(module, tokenizer=tokenizer).n_layers == 3
    finally:
        fake().refuse_float64(False)


# Memory


@demand
def a_budget_counts_what_is_held_unused_as_free() -> None:
    model, _ = llama("one")
    with room(10**8):
        free = Budget.of(model).n_bytes
        fake().hold(6 * 10**7)
        try:
            assert Budget.of(model).n_bytes == free == int(10**8 * SHARE)
        finally:
            fake().hold(0)


@demand
def a_budget_is_that_of_the_fullest_device() -> None:
    model, _ = llama("two")
    with room(10**8, 0), room(10**7, 1):
        assert Budget.of(model).n_bytes == int(10**7 * SHARE)


@demand
def a_budget_is_kept() -> None:
    """Of replays whose budget lets a few cells through at once, and of one that lets all."""
    model, case = llama("one")
    n_rows = 24
    prompt = case.prompt.select([0, 1] * (n_rows // 2))
    at = prompt.at("entity", -1)
    values = drawn(n_rows, case.model.d_model, seed=1)
    cells = [[iv.Patch("mlp_out", layer, at, values)] for layer in layers_of(case)] * 64
    iv.replay(model, prompt, cells[:1])  # what is kept for later calls is there
    least = n_rows * Sizes.of(model).clean(prompt.length, len(prompt.prefix_ids))
    taken = []
    for budget in (2 * least, 4 * least, 64 * least):
        before = fake().memory_allocated()
        fake().reset_peak_memory_stats(0)
        iv.replay(model, prompt, cells, budget=budget, reduce=lambda logits: logits.amax((1, 2, 3)))
        taken.append(fake().max_memory_allocated() - before)
        assert taken[-1] <= budget, (taken, budget)
    assert taken[0] < taken[2], taken  # it is the budget that decides


@demand
def cells_that_do_not_fit_the_budget_are_halved() -> None:
    """And no number of float64 is asked of the device."""
    model, case = llama("one")
    n_rows = 24
    prompt = case.prompt.select([0, 1] * (n_rows // 2))
    at = prompt.at("entity", -1)
    patches = [
        [iv.Patch("mlp_out", layer, at, drawn(n_rows, case.model.d_model, seed=layer))]
        for layer in layers_of(case)
    ]

    def measure(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        assert len(logits) == len(rows)
        return logits[:, 0].amax(-1)

    def table_of(asked: iv.Model) -> np.ndarray:
        return run_cells(
            asked, prompt, patches, positions=prompt.at("last"), measure=measure, tick=no_tick
        )

    expected = table_of(case.model)
    fake().refuse_float64(True)
    try:
        fake().reset_peak_memory_stats(0)
        before = fake().memory_allocated()
        np.testing.assert_allclose(table_of(model), expected, rtol=0, atol=1e-4)
        taken = fake().max_memory_allocated() - before
        with room(taken // 2):
            np.testing.assert_allclose(table_of(model), expected, rtol=0, atol=1e-4)
            learnt = limit_of(model, "clean runs").tokens, limit_of(model, "cells").tokens
        assert min(learnt) < np.inf
    finally:
        fake().refuse_float64(False)


@demand
def what_was_read_waits_on_the_cpu() -> None:
    """All of it together has no room on the device, and each part has."""
    model, case = llama("one")
    prompt = case.prompt.select([0, 1] * 40)
    sites = [
        iv.Site(component, layers_of(case), prompt.every().filled())
        for component in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    ]
    expected = iv.read(case.model, prompt, sites)
    size = sum(value.numel() * value.element_size() for value in expected)
    with room(size):
        values = read(model, prompt, sites)
        assert limit_of(model, "read").tokens < np.inf
    for ours, theirs in zip(values, expected, strict=True):
        assert ours.device.type == "cpu"
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def complaint(name: str) -> str:
    """Empty if the demand is met."""
    try:
        DEMANDS[name]()
    except Exception:
        return traceback.format_exc()[-1500:]
    return ""
