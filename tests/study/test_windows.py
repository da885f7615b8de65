"""The recall windows, on models in which it is known where recall is, and by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
import xarray as xr

import interventions as iv
from interventions.sweeping.metrics import target
from twohop.ask.questions import Questions
from twohop.ask.study import Study, text_prompt
from twohop.items.items import Item
from twohop.micro.benchmark import benchmark
from twohop.micro.folders import micro_folder
from twohop.micro.layout import RECALL_BLOCKS
from twohop.protocol import Protocol
from twohop.stages.ablation import Grid, mean_of_known
from twohop.stages.patched import answered_cells
from twohop.stages.recall import text_gate
from twohop.stages.resolution.states import at_names
from twohop.stages.window_ends import ends_of, half_point, last_below, readout_end
from twohop.stages.windows import in_circuit, windows, windows_vlm

OUTSIDE = [block for block in range(8) if block not in RECALL_BLOCKS]
SMALL = Protocol(window_items=24)


@pytest.fixture(scope="module")
def vlm() -> iv.Model:
    return iv.load(micro_folder("micro-naming"))


@pytest.fixture(scope="module")
def study(vlm: iv.Model, llm: iv.Model) -> Study:
    return Study(vlm, llm, benchmark(), protocol=SMALL)


@pytest.fixture(scope="module")
def known(study: Study) -> np.ndarray:
    return in_circuit(text_gate(study, study.backbone, gate="backbone_text"))


@pytest.fixture(scope="module")
def measured(study: Study, known: np.ndarray) -> xr.Dataset:
    return windows(study, known)


def test_necessity_sufficiency_and_each_block_alone_say_where_recall_is(
    measured: xr.Dataset,
) -> None:
    assert measured.sizes["item"] == 24
    assert measured.attrs["left_out"] == 0
    first, stop = RECALL_BLOCKS.start, RECALL_BLOCKS.stop
    needed = measured["enrichment"].mean("item").values
    assert needed[: first + 1] == pytest.approx(needed[0])
    assert needed[stop:] == pytest.approx(1)
    assert needed[0] < 0.75
    drop = measured["alone_drop"].values
    assert drop[OUTSIDE] == pytest.approx(0), "those MLPs are zero by construction"
    assert drop.argmax() in RECALL_BLOCKS
    assert measured["alone_low"].values[drop.argmax()] > 0
    enough = measured["sufficiency"].mean("item").values
    assert enough[: first + 1] == pytest.approx(enough[0])
    assert enough[0] < 0.35, "nothing of the entity is left at its token"
    assert enough[stop:] == pytest.approx(enough[-1])
    assert enough[-1] > 0.7
    for curve in ("necessity", "sufficiency"):
        half = measured.sel(curve=curve)
        point, low, high = (float(half[name]) for name in ("half_point", "half_low", "half_high"))
        assert first < low <= point <= high < stop
    ends = measured.attrs
    assert ends["enrichment_end_low"] <= ends["enrichment_end"] <= ends["enrichment_end_high"]
    assert ends["enrichment_end"] in RECALL_BLOCKS
    assert ends["readout_end_low"] <= ends["readout_end"] <= ends["readout_end_high"]


def test_cells_are_what_they_are_by_hand(
    study: Study, known: np.ndarray, measured: xr.Dataset
) -> None:
    """One item, with means made by hand, by the engine's own runs."""
    model = study.backbone
    items = {item.id: item for item in study.benchmark.items}
    item = items[str(measured["item"].values[3])]
    template = study.benchmark.templates[item.relation]
    others = [
        other.entity
        for other, right in zip(study.benchmark.items, known, strict=True)
        if right and other.relation == item.relation and other.entity.code != item.entity.code
    ]
    prompts = [text_prompt(model, template, [entity]) for entity in others]
    own = text_prompt(model, template, [item.entity])

    def at_name(prompt: iv.Prompt, component: Literal["mlp_out", "resid_pre"]) -> torch.Tensor:
        sites = [iv.Site(component, block, prompt.at("entity", -1)) for block in range(8)]
        return torch.stack(iv.read(model, prompt, sites))

    means = torch.stack([at_name(prompt, "mlp_out") for prompt in prompts]).mean(0)
    embedded = torch.stack([at_name(prompt, "resid_pre")[0] for prompt in prompts]).mean(0)
    clean = at_name(own, "mlp_out")
    answer = target(model, own, [item.answers[0]])
    asked = answer.scored(own)
    place = asked.at("entity", -1)
    cells = []
    for edge in range(9):
        until = [iv.Patch("mlp_out", block, place, clean[block]) for block in range(edge)]
        behind = [iv.Patch("mlp_out", block, place, means[block]) for block in range(edge, 8)]
        cells += [behind, [iv.Patch("resid_pre", 0, place, embedded), *until, *behind]]
    cells += [[iv.Patch("mlp_out", block, place, means[block])] for block in range(8)]
    expected = answered_cells(model, asked, answer, cells, tick=lambda _rows: None)[:, 0]
    stored = measured.isel(item=3)
    assert stored["enrichment"].values.tolist() == expected[:18:2].tolist()
    assert stored["sufficiency"].values.tolist() == expected[1:18:2].tolist()
    assert stored["alone"].values.tolist() == expected[18:].tolist()


def test_the_mean_is_over_all_other_known_entities(study: Study, known: np.ndarray) -> None:
    model = study.backbone
    pairs = zip(study.benchmark.items, known, strict=True)
    items = [item for item, right in pairs if right and item.relation == "capital"]
    entities = [item.entity for item in items]
    template = study.benchmark.templates["capital"]
    [(names, at)] = at_names(model, [(template, entities)])
    wanted = [entities[2].code, entities[0].code]
    mean, there = mean_of_known(model, names, [entity.code for entity in entities], wanted)
    assert there.all()
    [mlps] = iv.read(model, names, [iv.Site("mlp_out", slice(0, 8), at)])
    rows = [row for row in range(len(items)) if row != 2]
    torch.testing.assert_close(mean[1:, 0], mlps[:, rows].mean(1), atol=1e-5, rtol=1e-5)
    _, there = mean_of_known(model, names.select([2]), wanted[:1], wanted)
    assert there.tolist() == [False, True]


def test_where_no_other_entity_is_known_an_item_is_left_out_and_no_zero(
    study: Study, known: np.ndarray
) -> None:
    items = study.benchmark.items
    lonely = next(i for i, item in enumerate(items) if known[i] and item.relation == "capital")
    few = np.array(
        [right and (i == lonely or item.relation == "language")
         for i, (item, right) in enumerate(zip(items, known, strict=True))]
    )  # fmt: skip
    sampled = replace(study, protocol=Protocol(window_items=6, window_blocks=3))
    found = windows(sampled, few)
    here = found["item"].values == items[lonely].id
    assert here.sum() == 1
    for name in ("enrichment", "sufficiency", "alone"):
        assert found[name][:, here].isnull().all()
        assert found[name][:, ~here].notnull().any("item" if name == "alone" else "edge").any()
    assert found["readout"][:, here].notnull().any(), (
        "another entity can be swapped in all the same"
    )
    assert found.attrs["left_out"] == 1
    assert "no other entity" in found.attrs["left_out_reason"]
    assert found.attrs["enrichment_end"] in (-1, *RECALL_BLOCKS)
    # Of eight blocks, three; of nine edges, four.
    for name, expected in vars(Grid.of(8, 3)).items():
        there = found[{"alone": "alone", "edges": "sufficiency", "swapped": "readout"}[name]]
        assert there.notnull().any("item").values.nonzero()[0].tolist() == expected
    nothing = windows(sampled, np.array([i == lonely for i in range(len(items))]))
    assert nothing.attrs["enrichment_end"] == -1
    assert nothing["half_point"].isnull().all()


def recalled(study: Study) -> xr.Dataset:
    return text_gate(study, study.vlm, gate="vlm_text")


def test_a_bit_equal_decoder_has_the_backbones_windows(study: Study, measured: xr.Dataset) -> None:
    own = windows_vlm(study, {"recall": recalled(study), "windows": measured})
    assert own.attrs["same_as_backbone"] == 1
    xr.testing.assert_equal(own, measured)


def test_windows_of_a_changed_decoder_are_its_own(
    study: Study, measured: xr.Dataset, llm: iv.Model
) -> None:
    changed = iv.load(micro_folder("micro-naming"))
    last = RECALL_BLOCKS[-1]
    mlp = changed.module.get_submodule(changed.anatomy.blocks)[last].mlp
    mlp.down_proj.weight.data.zero_()
    other = replace(study, vlm=changed)
    own = windows_vlm(other, {"recall": recalled(other), "windows": measured})
    assert own.attrs["same_as_backbone"] == 0
    assert 0 < own.sizes["item"] < measured.sizes["item"], "it knows fewer"
    assert {*own["item"].values} <= {*measured["item"].values}
    assert float(own["alone_drop"][last]) == 0, "nothing is recalled there any more"
    assert own.attrs["enrichment_end"] < last
    untouched = iv.load(micro_folder("micro-naming"))
    untouched.module.lm_head.weight.data[:, 0] += 1e-6  # not bit-equal, and as good as the same
    again = replace(study, vlm=untouched)
    same = windows_vlm(again, {"recall": recalled(again), "windows": measured})
    assert same.attrs["same_as_backbone"] == 0
    xr.testing.assert_equal(same.drop_attrs(), measured.drop_attrs())


def test_the_progress_is_that_of_all_that_is_run(study: Study, known: np.ndarray) -> None:
    from twohop.ask.on_server import Progress

    expected: list[int] = []
    ticks: list[int] = []
    told = replace(
        study,
        progress=Progress(expected.append, ticks.append),
        protocol=Protocol(window_items=5, window_blocks=3),
    )
    windows(told, known)
    assert sum(ticks) == sum(expected) > 0


# In numbers


def test_an_answer_that_begins_with_the_canonical_one_is_in_the_circuit(study: Study) -> None:
    said = {"Paris": True, "Paris, France": True, "paris.": True, "Parisian food": False,
            "It is Paris": False, "": False}  # fmt: skip
    gate = xr.Dataset(
        {
            "text": (("gate", "item"), [[*said]]),
            "surface": ("item", np.zeros(len(said), bool)),
        },
        coords={"gate": ["backbone_text"], "answer": ("item", ["Paris"] * len(said))},
    )
    assert in_circuit(gate).tolist() == [*said.values()]
    assert not in_circuit(gate.assign(surface=("item", np.ones(len(said), bool)))).any()


def test_an_answer_that_begins_as_the_name_does_is_on_the_surface(
    study: Study, known: np.ndarray
) -> None:
    """What the backbone answers with the first word of the name is not measured as recall."""
    before = text_gate(study, study.backbone, gate="backbone_text")["surface"].values
    row = int(np.flatnonzero(known & ~before)[0])
    items = list(study.benchmark.items)
    given = items[row].answers[0]
    alike = replace(items[row].entity, name=f"{given} {items[row].entity.name}")
    items[row] = replace(items[row], entity=alike)
    renamed = replace(study, benchmark=replace(study.benchmark, items=items))
    gate = text_gate(renamed, study.backbone, gate="backbone_text")
    assert np.flatnonzero(gate["surface"].values != before).tolist() == [row]
    assert [items[i].id for i in np.flatnonzero(before)] == ["que/capital"], "Quenlo City"


def test_half_points_are_where_half_of_the_range_is_reached() -> None:
    at = np.arange(5)
    curves = np.array([[0.2, 0.2, 0.8, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0, 1.0], [0.5] * 5])
    found = half_point(curves, at)
    assert found[:2] == pytest.approx([1 + 0.4 / 0.6, 0.5])
    assert np.isnan(found[2])
    thinned = half_point(curves[:1, [0, 2, 4]], at[[0, 2, 4]])
    assert thinned == pytest.approx(2 * 0.4 / 0.6)


def test_one_wrong_item_moves_the_end_and_hardly_the_half_point() -> None:
    """A slope without an edge: the last block below nine tenths is an extreme."""
    n, items = 31, 60
    answered = (np.arange(items) < 15 + 3 * np.arange(n)[:, None]).astype(float)
    entities = [str(item) for item in range(items)]
    before = ends_of(answered, entities, seed=0)
    answered[25, :7] = 0
    after = ends_of(answered, entities, seed=0)
    assert after.last[0] - before.last[0] > 8
    assert after.half[0] == pytest.approx(before.half[0], abs=1e-9)
    for found in (before, after):
        assert found.half[1] < found.half[0] < found.half[2]
        assert found.last[1] <= found.last[0] <= found.last[2]
        assert found.half[2] - found.half[1] < 6


def test_half_point_intervals_cover() -> None:
    """Items that need one of the blocks each, drawn: 95 of 100 intervals hold the true half."""
    rng, n, items, draws = np.random.default_rng(0), 12, 60, 200
    shares = np.linspace(2, 0.2, n)
    shares /= shares.sum()
    curve = np.concatenate([[0.0], shares.cumsum()])
    truth = half_point(curve, np.arange(n + 1))
    held = 0
    for draw in range(draws):
        needs = rng.choice(n, size=items, p=shares)
        answered = (np.arange(n + 1)[:, None] > needs).astype(float)
        codes = [str(item) for item in range(items)]
        found = ends_of(answered, codes, seed=draw, protocol=Protocol(resamples=300))
        held += found.half[1] <= truth <= found.half[2]
    assert held >= 0.92 * draws


def test_the_last_below_is_the_last_of_all() -> None:
    curves = np.array([[0.1, 0.5, 0.2, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert last_below(curves, np.array([0.4, 0.9])).tolist() == [2, -1]


def test_where_the_readout_ends_is_told_with_an_interval() -> None:
    """Of each entity the answer follows up to a block of its own: 20 of 40 to block 6, one to 9."""
    last = np.array([2] * 19 + [6] * 20 + [9])
    follows = (np.arange(12)[:, None] <= last).astype(float)
    follows[1::2] = np.nan  # so many blocks were not looked at
    entities = [str(i) for i in range(40)]
    found = readout_end(follows, entities, seed=0)
    assert found.tolist() == [6, 6, 6]
    low, high = readout_end(follows, entities, seed=0, protocol=Protocol(readout_follows=0.025))[1:]
    assert (low, high) == (6, 8), "one entity in forty: in some resamples it is not"
    assert readout_end(follows * 0, entities, seed=0).tolist() == [-1, -1, -1]
    nothing = readout_end(follows * np.nan, entities, seed=0)
    assert nothing[0] == -1
    assert np.isnan(nothing[1:]).all()


def test_nobody_is_swapped_in_for_nobody(study: Study) -> None:
    alone: Sequence[Item] = study.benchmark.items[:1]
    only = replace(study, benchmark=replace(study.benchmark, items=tuple(alone), universe=()))
    assert Questions(only, alone).rivals == [None]
    found = windows(only, np.array([True]))
    assert found.attrs["readout_end"] == -1
    assert found["readout"].isnull().all()
