"""Where, when and in which form entities are read, on models in which that is known."""

import copy

import micro_surgery as surgery
import numpy as np
import pytest
import torch
import xarray as xr

import interventions as iv
from twohop.ask.halves import halves
from twohop.ask.study import Study
from twohop.micro.benchmark import benchmark
from twohop.micro.folders import micro_folder
from twohop.micro.layout import LATE_BLOCK, RECALL_BLOCKS
from twohop.protocol import Protocol
from twohop.stages.recall import same_decoder
from twohop.stages.resolution.onset import median, onsets
from twohop.stages.resolution.probes import (
    NULLS,
    TRANSFERS,
    fit_on_names,
    mean_of_entities,
    nearest_form,
)
from twohop.stages.resolution.resolution import KINDS, drifted, names_of, resolution
from twohop.stages.resolution.states import settled

N, LAYERS, WIDTH, PROMPTS = 40, 6, 24, 4
END = RECALL_BLOCKS[-1]


@pytest.fixture(scope="module")
def late(llm: iv.Model) -> xr.Dataset:
    return resolution(Study(iv.load(micro_folder("micro-late")), llm, benchmark()))


# Made of numbers: what is known of the probes

Names = tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def names() -> Names:
    """States of names in prompts, which entity each is, and every entity's own direction."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(LAYERS, N, WIDTH, generator=generator)
    named = [own + 0.2 * torch.randn(own.shape, generator=generator) for _ in range(PROMPTS)]
    return named, [torch.arange(N)] * PROMPTS, own


def test_centring_brings_back_an_entity_that_a_constant_hides(names: Names) -> None:
    named, labels, own = names
    probes = fit_on_names(named, labels, n_classes=N, ridge=1e-2, seed=0)
    offset = 30 * torch.randn(LAYERS, 1, WIDTH, generator=torch.Generator().manual_seed(1))
    every = torch.arange(N)
    middle = (own + offset).double().mean(1, keepdim=True)
    hits = probes.hits(own + offset, every, middle=middle)
    hidden = {kind: float(right.double().mean()) for kind, right in hits.items()}
    assert hidden["transfer"] < 0.3
    assert hidden["transfer_centred"] > 0.99
    assert max(hidden[null] for null in NULLS.values()) < 0.1
    plainly = probes.hits(own, every, middle=own.double().mean(1, keepdim=True))
    assert all(bool(plainly[kind].all()) for kind in TRANSFERS)


def test_centring_is_taking_the_middle_off_and_the_names_mean_on(names: Names) -> None:
    named, labels, own = names
    probes = fit_on_names(named, labels, n_classes=N, ridge=1e-2, seed=0)
    moved = 0.5 * own + 3
    middle = moved.double().mean(1, keepdim=True) + 0.1
    hits = probes.hits(moved, torch.arange(N), middle=middle)
    for kind, probe in (("transfer_centred", probes.own), ("transfer_null_centred", probes.null)):
        expected = probe.predict(moved - middle + probe.mean) == torch.arange(N)
        assert torch.equal(hits[kind], expected)


def test_states_that_say_nothing_are_read_alike_whatever_they_are(names: Names) -> None:
    """Ahead of the picture all states are one state: no rounding decides who is read there."""
    named, labels, _ = names
    probes = fit_on_names(named, labels, n_classes=N, ridge=1e-2, seed=0)
    read = []
    for seed in range(5):
        drawn = torch.Generator().manual_seed(seed)
        states = torch.randn(LAYERS, 1, WIDTH, generator=drawn).expand(-1, N, -1)
        middle = states.double().mean(1, keepdim=True)
        hits = probes.hits(states, torch.arange(N), middle=middle)
        read.append(torch.stack([hits[kind] for kind in hits if kind.endswith("centred")]))
    assert all(torch.equal(of_seed, read[0]) for of_seed in read)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_last_bits_are_no_state_of_their_own(dtype: torch.dtype) -> None:
    """Rounding goes, where it is all that tells any rows apart; where it is not, nothing does."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(3, 1, WIDTH, generator=generator).to(dtype)
    steps = torch.randint(-2, 3, (3, N, WIDTH), generator=generator)
    states = (one.float() * (1 + steps * torch.finfo(dtype).eps)).to(dtype)
    states[1, 7, 3] += 0.5
    states[2] = torch.randn(N, WIDTH, generator=generator).to(dtype)
    assert not torch.equal(states[0], states[0, :1].expand(N, -1))
    left = settled(states)
    assert torch.equal(left[0], states[0, :1].expand(N, -1))
    assert torch.equal(left[1:], states[1:])


def test_another_basis_is_not_read_centred_or_not(names: Names) -> None:
    named, labels, own = names
    probes = fit_on_names(named, labels, n_classes=N, ridge=1e-2, seed=0)
    noise = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2))
    turned = own @ torch.linalg.qr(noise).Q
    hits = probes.hits(turned, torch.arange(N), middle=turned.double().mean(1, keepdim=True))
    assert max(float(hits[kind].double().mean()) for kind in TRANSFERS) < 0.15


def test_a_null_reads_as_many_as_a_guess_over_seeds(names: Names) -> None:
    named, labels, own = names
    middle = own.double().mean(1, keepdim=True)
    rates = []
    for seed in range(30):
        probes = fit_on_names(named, labels, n_classes=N, ridge=1e-2, seed=seed)
        hits = probes.hits(own, torch.arange(N), middle=middle)
        rates.append(float(hits["transfer_null"].double().mean()))
    assert abs(np.mean(rates) - 1 / N) < 0.02


def test_the_form_is_the_layer_that_a_state_was_taken_from(names: Names) -> None:
    named, labels, own = names
    told = mean_of_entities(named, labels, n_classes=N)
    taken = torch.tensor([4, 0, 5, 2, 2, 1])
    states = 3 * own[taken] + 50  # larger, and behind a constant
    form = nearest_form(states, told, middle=states.mean(1, keepdim=True))
    assert torch.equal(form, taken[:, None].expand(LAYERS, N))


# Models in which it is known


def test_what_is_formed_late_has_its_onset_there(late: xr.Dataset) -> None:
    entities = late.sizes["entity"]
    for kind in TRANSFERS:
        onset = late["onset"].sel(probe_kind=kind).values
        assert ((onset >= 0) & (onset <= END)).mean() < 0.1
        assert (onset > END).mean() > 0.7
        found = median(np.where(onset >= 0, onset, np.inf)).value
        assert found.value in (LATE_BLOCK, LATE_BLOCK + 1)
    assert (late["onset_null"] >= 0).mean() < 5 / entities
    places = {str(role) for role in late["chosen_role"].values}
    assert places == {*late.attrs["chosen_role"]}


def test_onsets_are_those_of_the_place_that_the_other_half_chose(late: xr.Dataset) -> None:
    codes = [entity.code for entity in benchmark().entities]
    half = halves(codes, seed=0)
    assert late["half"].values.tolist() == half.tolist()
    hits = {kind: late["probe"].sel(kind=kind) for kind in KINDS}
    either = hits["transfer"] | hits["transfer_centred"]
    luck = hits["transfer_null"] | hits["transfer_null_centred"]
    score = (either.astype(float) - luck.astype(float)).mean("layer").transpose("role", "entity")
    for own, other in ((0, 1), (1, 0)):
        best = score["role"].values.tolist()[score.values[:, half == other].mean(1).argmax()]
        assert late.attrs["chosen_role"][own] == best
        here = half == own
        assert {*late["chosen_role"].values[here]} == {best}
        for kind, null in NULLS.items():
            for name, of_kind in (("onset", kind), ("onset_null", null)):
                expected = onsets(hits[of_kind].sel(role=best).values[:, here], running=2)
                stored = late[name].sel(probe_kind=kind).values[here]
                assert stored.tolist() == expected.tolist()


def test_a_form_is_told_where_and_only_where_the_entity_is_read(late: xr.Dataset) -> None:
    read = late["probe"].sel(kind=[*TRANSFERS]).any("kind")
    form = late["form"]
    assert ((form >= 0) == read.transpose(*form.dims)).all()
    assert form.max() <= late.sizes["layer"] - 1
    place = late.attrs["chosen_role"][0]
    told = form.sel(role=place, layer=LATE_BLOCK + 1).values
    told = told[told >= 0]
    assert len(told) > 15
    assert np.median(told) <= END, "in the form that recall reads, not in that which it writes"


def test_the_same_numbers_in_another_format_are_another_decoder(llm: iv.Model) -> None:
    """What they answer differs; promoted to one format, the numbers are equal."""
    narrow = iv.load(micro_folder("micro-backbone"), dtype=torch.bfloat16)
    wide = iv.load(copy.deepcopy(narrow.module).float(), tokenizer=narrow.tokenizer)
    assert same_decoder(narrow, narrow)
    assert not same_decoder(narrow, wide)
    assert not same_decoder(llm, wide)


def test_a_bit_equal_decoder_has_not_drifted(late: xr.Dataset) -> None:
    assert late.attrs["drift_copied"] == 1
    drift = late["drift"].sel(kind="transfer").mean("entity").values
    assert np.array_equal(drift, late["backbone_accuracy"])
    assert drift.min() > 0.8
    assert late["drift"].sel(kind=[*NULLS.values()]).mean() < 0.15
    assert late["drift"].sel(kind=["plain", "shuffled"]).isnull().all()


def test_drift_is_found_where_the_basis_is_another_and_the_answers_are_the_same(
    llm: iv.Model,
) -> None:
    vlm = iv.load(micro_folder("micro-late"))
    study = Study(vlm, llm, benchmark())
    asked = [study.benchmark.templates["capital"].fill("Marlow")]
    before = iv.run(vlm, vlm.prompt(asked)).logits
    surgery.turned(vlm.module)
    after = iv.run(vlm, vlm.prompt(asked)).logits
    assert before is not None
    assert after is not None
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    drift, own = drifted(names_of(study, same=False), study=study)
    assert own.mean() > 0.9
    assert max(drift[kind].mean() for kind in TRANSFERS) < 0.25
    untouched = Study(iv.load(micro_folder("micro-late")), llm, benchmark())
    drift, own = drifted(names_of(untouched, same=False), study=untouched)
    assert np.array_equal(drift["transfer"], own), "asked of the VLM, as if it were another"


def test_two_entities_are_each_others_other_half(llm: iv.Model) -> None:
    vlm = iv.load(micro_folder("micro-late"))
    two = Study(vlm, llm, benchmark().limited(2), protocol=Protocol(onset_layers=3))
    stored = resolution(two)
    assert stored["half"].values.tolist() in ([0, 1], [1, 0])
    assert stored["onset"].max() <= stored.sizes["layer"] - 3
