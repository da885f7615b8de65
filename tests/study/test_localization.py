"""Where the fact is carried: the maps of the micro pairs, exact and by attribution."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import twins
import xarray as xr
from families import model_of

import interventions as iv
from interventions.prompt.answer_tokens import token_ids
from twohop.ask.study import Study, first_tokens
from twohop.items.benchmark import data_benchmark
from twohop.items.formats import CHAT, Writer, chat_template_of
from twohop.items.items import Entity, Item
from twohop.items.validation import check
from twohop.micro.folders import micro_folder
from twohop.micro.layout import GATHER_BLOCKS, READ_BLOCKS, RECALL_BLOCKS, has_attention, has_mlp
from twohop.micro.world import facts
from twohop.pairs import find_pair
from twohop.protocol import Protocol
from twohop.stages.maps.agreement import MEASURES, agreement, doubtful, in_windows
from twohop.stages.maps.attributed import attribution_map, scores
from twohop.stages.maps.contrasts import MAP_ROLES, Swap, swapped_items, swaps
from twohop.stages.maps.exact import patching_map

COMPONENTS = ("attn_out", "mlp_out", "resid_post")


@pytest.fixture(scope="module")
def aligned(llm: iv.Model, vlm: iv.Model) -> Study:
    return Study(vlm, llm, find_pair("micro-aligned").benchmark(), protocol=Protocol(map_items=12))


@pytest.fixture(scope="module")
def taught() -> np.ndarray:
    return np.array([fact.taught for fact in facts()])


Maps = tuple[xr.Dataset, xr.Dataset]


@pytest.fixture(scope="module")
def text(aligned: Study, taught: np.ndarray) -> Maps:
    exact = patching_map(aligned, aligned.backbone, {"right": taught}, shown=False)
    return exact, attribution_map(aligned, aligned.backbone, exact, shown=False)


@pytest.fixture(scope="module")
def image(aligned: Study, taught: np.ndarray) -> Maps:
    exact = patching_map(aligned, aligned.vlm, {"right": taught}, shown=True)
    return exact, attribution_map(aligned, aligned.vlm, exact, shown=True)


@pytest.mark.parametrize("which", ["text", "image"])
def test_attribution_peaks_where_recall_was_put(which: str, request: pytest.FixtureRequest) -> None:
    _, found = request.getfixturevalue(which)
    effect = found["share"].sel(group="right")
    mlp = effect.sel(component="mlp_out")
    block, role = np.unravel_index(mlp.values.argmax(), mlp.shape)
    assert block in RECALL_BLOCKS
    assert MAP_ROLES[role] == "entity"
    assert float(mlp.sel(role="entity").sum("layer")) > 0.4
    read = effect.sel(component="attn_out", role="last")
    assert read.values.argmax() in READ_BLOCKS
    for component, there in (("mlp_out", has_mlp), ("attn_out", has_attention)):
        silent = [block for block in range(8) if not there(block)]
        assert np.abs(effect.sel(component=component, layer=silent)).max() < 1e-6
    residual = effect.sel(component="resid_post")
    before, after = residual.sel(layer=RECALL_BLOCKS[-1]), residual.sel(layer=READ_BLOCKS[-1])
    assert float(before.sel(role="entity")) > 0.5 > float(before.sel(role="last"))
    assert float(after.sel(role="last")) > 0.5 > float(after.sel(role="entity"))
    assert np.abs(residual.sel(layer=GATHER_BLOCKS[0], role="last")) < 0.1


@pytest.mark.parametrize("which", ["text", "image"])
def test_attribution_asks_what_the_exact_map_asks(
    which: str, request: pytest.FixtureRequest
) -> None:
    exact, found = request.getfixturevalue(which)
    assert found["map_item"].values.tolist() == exact["map_item"].values.tolist()
    assert np.allclose(found["span"], exact["span"], atol=1e-4)
    assert found.attrs["refused"] == ""


def test_a_token_that_is_no_text_of_its_own_is_attributed_as_it_is_patched() -> None:
    model = model_of("qwen2")
    own, other = (
        Item(name, Entity(name, name), "it", (answer,))
        for name, answer in (("a", "日本"), ("b", "the sea"))
    )
    clean, corrupt = (model.prompt([f"The town {word} is"]) for word in ("here", "there"))
    ids = [first_tokens(model, clean, item.answers)[0] for item in (own, other)]
    assert token_ids(model, [model.tokenizer.decode(ids[:1])]) != [ids[:1]]
    swap = Swap([0], [(own, other)], clean, corrupt, ["last"], ids[:1], ids[1:])
    _, span = scores(model, swap, "patching", steps=1)
    logits = [iv.run(model, prompt).logits for prompt in (clean, corrupt)]
    assert logits[0] is not None
    assert logits[1] is not None
    expected = (logits[0] - logits[1])[0, ids] @ torch.tensor([1.0, -1.0])
    assert np.allclose(span, expected, atol=1e-6, rtol=1e-4)


def ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < one).sum() + ((values == one).sum() - 1) / 2 for one in values])


@pytest.mark.parametrize("which", ["text", "image"])
def test_agreement_is_with_the_exact_cells(
    which: str, aligned: Study, request: pytest.FixtureRequest
) -> None:
    exact, found = request.getfixturevalue(which)
    # Eight blocks make eight windows, so that cells compare one by one.
    one = found["score"].mean("map_item").transpose("component", "layer", "role").values
    other = exact["restored"].mean("map_item").transpose("component", "window", "role").values
    expected = {
        "all": np.corrcoef(one.ravel(), other.ravel())[0, 1],
        "rank": np.corrcoef(ranks(one.ravel()), ranks(other.ravel()))[0, 1],
    }
    for i, component in enumerate(COMPONENTS):
        expected[component] = np.corrcoef(one[i].ravel(), other[i].ravel())[0, 1]
    top = aligned.protocol.top_cells
    a, b = (set(np.argsort(-np.abs(cells.ravel()))[:top].tolist()) for cells in (one, other))
    expected["top"] = len(a & b) / top
    for measure, value in expected.items():
        stored = found.sel(measure=measure)
        assert float(stored["agreement"]) == pytest.approx(value, abs=1e-9), measure
        assert float(stored["agreement_low"]) <= value + 1e-9
        assert float(stored["agreement_high"]) >= value - 1e-9
    assert found.attrs["method"] == aligned.protocol.attribution_methods[0]
    assert float(found["agreement"].sel(measure="all")) > 0.9
    assert not any(doubtful(float(found["agreement_low"].sel(measure=c))) for c in COMPONENTS)


def test_attribution_that_does_not_agree_is_doubtful(llm: iv.Model, taught: np.ndarray) -> None:
    late = iv.load(micro_folder("micro-late"))
    benchmark = find_pair("micro-late").benchmark()
    study = Study(late, llm, benchmark, protocol=Protocol(map_items=12))
    exact = patching_map(study, study.vlm, {"right": taught}, shown=True)
    found = attribution_map(study, study.vlm, exact, shown=True)
    low = found["agreement_low"]
    assert doubtful(float(low.sel(measure="mlp_out"))), "late entities recall nothing there"
    assert not doubtful(float(low.sel(measure="resid_post")))


def test_runs_of_other_lengths_are_attributed_by_another_method(aligned: Study, text: Maps) -> None:
    exact, _ = text
    by_id = {item.id: item for item in aligned.benchmark.items}
    longer = [item for item in aligned.benchmark.items if " " in item.entity.name]
    own = [by_id[str(one)] for one in exact["map_item"].values]

    def told(one: Item, other: Item) -> bool:
        same = one.answers[0].split()[0] == other.answers[0].split()[0]
        return one.relation == other.relation and not same

    others = [next(two for two in longer if told(one, two)) for one in own]
    swapped = exact.assign_coords(swapped_with=("map_item", [one.id for one in others]))
    found = attribution_map(aligned, aligned.backbone, swapped, shown=False)
    assert found.attrs["method"] == "relp"
    assert found.attrs["refused"] == ""
    assert np.isfinite(found["effect"]).all()

    alone = replace(aligned, protocol=Protocol(attribution_methods=("ig",)))
    refused = attribution_map(alone, aligned.backbone, swapped, shown=False)
    assert "differ in length" in refused.attrs["refused"]
    assert (refused.attrs["method"], refused.attrs["method_name"]) == ("", "none")
    for name in ("effect", "score", "agreement", "agreement_low", "agreement_high"):
        assert np.isnan(refused[name]).all()


def test_swaps_can_be_told_apart_and_correspond(aligned: Study, taught: np.ndarray) -> None:
    for model, shown in ((aligned.backbone, False), (aligned.vlm, True)):
        pairs = swapped_items(aligned, model, taught, shown=shown)
        assert len(pairs) == aligned.protocol.map_items
        for swap in swaps(aligned, model, pairs, shown=shown):
            assert swap.roles == list(MAP_ROLES)
            assert all(a != b for a, b in zip(swap.answers, swap.foils, strict=True))
            assert swap.clean.lengths.tolist() == swap.corrupt.lengths.tolist()
            for one, other in zip(swap.clean.roles, swap.corrupt.roles, strict=True):
                assert {r: len(one[r]) for r in MAP_ROLES} == {r: len(other[r]) for r in MAP_ROLES}
                tokens = [*one["entity"], *one["between"], *one["last"]]
                assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))


def test_maps_of_two_models_swap_an_item_with_the_same_one(
    aligned: Study, taught: np.ndarray
) -> None:
    text = dict(swapped_items(aligned, aligned.backbone, taught, shown=False))
    fewer = taught.copy()
    fewer[np.nonzero(taught)[0][::2]] = False
    for right in (taught, fewer):
        image = dict(swapped_items(aligned, aligned.vlm, right, shown=True))
        both = {*text} & {*image}
        assert len(both) >= 4
        assert all(text[item] == image[item] for item in both)
    assert len({other.entity for other in text.values()}) > 4


def test_groups_of_items_are_measured_apart(aligned: Study, taught: np.ndarray) -> None:
    few = replace(aligned, protocol=Protocol(map_items=3, agreement_resamples=40))
    groups = {
        "right": taught & (np.arange(len(taught)) % 2 == 0),
        "lost": taught & (np.arange(len(taught)) % 2 == 1),
    }
    exact = patching_map(few, few.vlm, groups, shown=True)
    assert exact["map_group"].values.tolist() == ["right"] * 3 + ["lost"] * 3
    ids = [item.id for item in few.benchmark.items]
    for group, mine in groups.items():
        rows = exact["map_group"].values == group
        assert all(mine[ids.index(item)] for item in exact["map_item"].values[rows])
        mean = exact["restored"].isel(map_item=np.nonzero(rows)[0]).mean("map_item")
        xr.testing.assert_allclose(exact["effect"].sel(group=group, drop=True), mean)
        assert float(exact["span_mean"].sel(group=group)) == pytest.approx(
            float(exact["span"].values[rows].mean())
        )
    found = attribution_map(few, few.vlm, exact, shown=True)
    assert found["group"].values.tolist() == ["right", "lost"]
    alone = attribution_map(
        few, few.vlm, exact.isel(map_item=slice(3, 6)).sel(group=["lost"]), shown=True
    )
    lost = exact["map_group"].values == "lost"
    xr.testing.assert_allclose(
        found["score"].isel(map_item=lost), alone["score"], rtol=1e-4, atol=1e-5
    )
    for name in ("effect", "effect_low", "group_agreement"):
        mine, its = (maps[name].sel(group="lost") for maps in (found, alone))
        if "measure" in mine.dims:  # ranks jump where rounding turns two cells about
            mine, its = (of.sel(measure=[*MEASURES[:-2]]) for of in (mine, its))
        xr.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)
    windows = in_windows(
        found["score"].values, exact["first_block"].values, exact["last_block"].values
    )
    restored = exact["restored"].transpose("component", "window", "role", "map_item").values
    again = agreement(
        windows[..., lost],
        restored[..., lost],
        found["map_entity"].values[lost].tolist(),
        seed=few.seed,
        protocol=few.protocol,
    )
    for measure, estimate in again.items():
        mine = found["group_agreement"].sel(group="lost", measure=measure)
        assert float(mine) == pytest.approx(estimate.value, abs=1e-12, nan_ok=True)


def test_sublayers_of_a_window_are_added_up() -> None:
    score = np.arange(3 * 4 * 2.0).reshape(3, 4, 1, 2)
    found = in_windows(score, np.array([0, 1]), np.array([0, 3]))
    assert found.shape == (3, 2, 1, 2)
    assert np.array_equal(found[0, 1], score[0, 1:].sum(0))
    assert np.array_equal(found[1, 0], score[1, 0])
    assert np.array_equal(found[2, :], score[2, [0, 3]])


def test_agreement_of_few_entities_and_of_nothing() -> None:
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(3, 4, 3, 4))
    few = agreement(cells, cells, ["a", "a", "b", "c"], seed=0)["all"]
    assert few.value == pytest.approx(1)
    assert (few.low, few.high, few.n) == (-1, 1, 4)
    assert doubtful(few.low)
    empty = agreement(cells[..., :0], cells[..., :0], [], seed=0)["all"]
    assert np.isnan(empty.value)
    assert doubtful(empty.low)
    constant = agreement(np.zeros_like(cells), cells, list("abcdef")[:4], seed=0)
    assert np.isnan(constant["all"].value)


@pytest.mark.parametrize(
    ("key", "method", "roles"),
    [("llama-3.2-vision-11b", "relp", ["between", "last"]), ("gemma-3-12b", "ig", MAP_ROLES)],
)
def test_maps_of_other_architectures(
    key: str, method: str, roles: list[str], tmp_path: Path
) -> None:
    made = twins.make(key, tmp_path, brief=False)
    vlm, backbone = iv.load(made.vlm), iv.load(made.backbone)
    writer = Writer(CHAT, chat_template_of(vlm.processor, name=key))
    study = Study(vlm, backbone, data_benchmark(check(made.data), writer))
    every = np.ones(len(study.benchmark.items), dtype=bool)
    for model, shown in ((backbone, False), (vlm, True)):
        exact = patching_map(study, model, {"right": every}, shown=shown)
        found = attribution_map(study, model, exact, shown=shown)
        assert found.attrs["refused"] == ""
        assert np.allclose(found["span"], exact["span"], atol=1e-4)
        there = roles if shown else MAP_ROLES
        for one in (exact, found):
            known = one["effect"].sel(group="right").notnull().any("component")
            assert [r for r in MAP_ROLES if known.sel(role=r).all()] == list(there)
    assert found.attrs["method"] == method
    assert float(found["agreement"].sel(measure="all")) > 0.8
