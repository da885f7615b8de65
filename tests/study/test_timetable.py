"""The recall timetable: where the deadline was built, and what the statistics make of curves."""

import numpy as np
import pytest
import torch
import xarray as xr

import interventions as iv
from twohop.ask.questions import Questions
from twohop.ask.study import Study
from twohop.micro.layout import NUM_BLOCKS, RECALL_BLOCKS
from twohop.protocol import Protocol
from twohop.running.study import Settings, study_of
from twohop.stages.deadlines import crossing, deadlines, expected_right, falling
from twohop.stages.run import run_stages
from twohop.stages.timetable import about_nothing, neutral_ids, thinned, timetable

GRID = [0, 1, 2, 5, 9, 14, 21, 29]


@pytest.fixture(scope="module")
def study() -> Study:
    return study_of("micro-late", Settings(protocol=Protocol.preset("quick")))


@pytest.fixture(scope="module")
def data(study: Study) -> xr.Dataset:
    return run_stages(["timetable"], study)["timetable"]


def test_the_deadlines_are_where_recall_was_built(data: xr.Dataset) -> None:
    """Written in front of a block that it needs a form is in time, and behind it is too late."""
    assert data.sizes["item"] == 60
    table, deadline = data["accuracy"].values, data["deadline"].values
    first, last = RECALL_BLOCKS[0], RECALL_BLOCKS[-1]
    nothing = float(data["neutral"].mean())
    # Forms without anything recalled yet need both blocks; the form between needs the second.
    for form, needed in ((first, first), (last, last)):
        assert table[form, form] == 1
        assert table[form, needed + 1] <= nothing + 0.05
        assert needed < deadline[form] < needed + 1
        assert needed < data["deadline_low"][form] <= deadline[form] <= data["deadline_high"][form]
    assert first < deadline[0] < first + 1
    # What was recalled already is only read out, late.
    assert (deadline[last + 1 : -1] > last + 3).all()
    assert data["deadline_state"].values[:-1].tolist() == ["reached"] * (NUM_BLOCKS - 1)
    assert np.isnan(data["answered"].values[1, 0]).all()


def test_the_first_cell_is_the_models_own_run(data: xr.Dataset) -> None:
    """Also where the name has two tokens: the neutral run has none of it right but by luck."""
    assert any(" " in name for name in data["entity"].values)
    assert (data["answered"].values[0, 0] == 1).all()
    assert float(data["neutral"].mean()) < 0.3


def test_a_form_written_where_it_belongs_leaves_the_name_as_it_is(study: Study) -> None:
    model = study.backbone
    items = [item for item in study.benchmark.items if item.relation == "capital"][-6:]
    questions = Questions(study, items)
    rows = [*range(len(items))]
    prompt = questions.named(model, rows)
    neutral = about_nothing(prompt, neutral_ids(model, questions.template(rows)))
    names = prompt.at("entity")
    assert names.ragged
    kept = torch.ones_like(prompt.inputs["input_ids"], dtype=torch.bool)
    for row, (index, mask) in enumerate(zip(names.index, names.mask, strict=True)):
        kept[row, index[mask]] = False
    same = prompt.inputs["input_ids"] == neutral.inputs["input_ids"]
    assert (same == kept).all()
    sites = [iv.Site("resid_pre", slice(0, NUM_BLOCKS), names.filled())]
    [own] = iv.read(model, prompt, sites)
    patched = iv.run(model, neutral, patches=[iv.Patch("resid_pre", 3, names, own[3])], reads=sites)
    torch.testing.assert_close(patched.reads[0][3:][:, names.mask], own[3:][:, names.mask])
    assert not torch.allclose(patched.reads[0][2][names.mask], own[2][names.mask])


def test_blocks_are_thinned_by_steps_that_grow() -> None:
    for n_layers in (4, 8, 30, 80, 126):
        for most in (4, 8, 16):
            layers = thinned(n_layers, most)
            assert len(layers) <= most or n_layers <= most
            assert layers[:3] == [0, 1, 2]
            assert layers[-1] == n_layers - 1
            assert layers == sorted(set(layers))


def curves(answered: np.ndarray, neutral: np.ndarray, *, per_entity: int = 1) -> xr.Dataset:
    """A timetable of one form, 0, answered at the blocks of the grid, [block, item]."""
    n = answered.shape[1]
    table = np.zeros((len(GRID), len(GRID), n))
    table[0] = answered
    codes = [f"e{item // per_entity}" for item in range(n)]
    return xr.Dataset(
        {"answered": (("form", "block", "item"), table), "neutral": ("item", neutral)},
        coords={"form": GRID, "block": GRID, "entity": ("item", codes)},
        attrs={"n_layers": 30},
    )


def test_a_deadline_that_is_not_there_is_no_number() -> None:
    always, never = np.ones((8, 40)), np.zeros((8, 40))
    found = deadlines(curves(always, np.zeros(40)))
    assert found["deadline_state"][1][0] == "not reached"
    assert np.isnan(found["deadline"][1][0])
    assert found["deadline_high"][1][0] == np.inf
    for data in (
        curves(never, np.zeros(40)),
        curves(always, np.ones(40)),
        curves(always, np.zeros(40), per_entity=10),
    ):
        found = deadlines(data)
        assert found["deadline_state"][1][0] == "not measured"
        assert np.isnan([found[name][1][0] for name in ("deadline", "deadline_low")]).all()


def test_a_deadline_is_halfway_down_to_the_neutral_run() -> None:
    """All right until block 9, then the quarter that the neutral run has: down between 9 and 14."""
    answered = np.ones((8, 80))
    answered[5:, :60] = 0
    found = deadlines(curves(answered, np.r_[np.zeros(60), np.ones(20)]))
    assert found["deadline"][1][0] == pytest.approx(9 + (14 - 9) / 2)
    assert crossing(np.array([0, 4]), np.array([0.5, 0.1])) == np.inf
    rough = np.random.default_rng(0).random(9)
    smooth = falling(rough)
    assert (np.diff(smooth) <= 1e-12).all()
    assert smooth.mean() == pytest.approx(rough.mean())


@pytest.mark.parametrize(("centre", "width"), [(3, 2), (12, 10)])
def test_the_intervals_of_deadlines_hold_what_they_promise(centre: int, width: int) -> None:
    """Items of an entity, alike by half, each answered up to a block of its own."""
    rng = np.random.default_rng(4)

    def drawn(n: int) -> xr.Dataset:
        luck = (rng.normal(size=(n, 1)) + rng.normal(size=(n, 3))).ravel() / 2**0.5
        guessed = rng.random(3 * n) < 0.2
        answered = (centre + width * luck > np.array(GRID)[:, None]) | guessed
        answered[0] = True
        return curves(answered.astype(float), guessed.astype(float), per_entity=3)

    everyone = drawn(20_000)
    curve = everyone["answered"].values[0].mean(1)
    floor = float(everyone["neutral"].mean())
    truth = crossing(np.array(GRID), curve - (curve[0] + floor) / 2)
    inside = []
    for _ in range(300):
        found = deadlines(drawn(30))
        inside.append(found["deadline_low"][1][0] <= truth <= found["deadline_high"][1][0])
    assert np.mean(inside) >= 0.93


def test_what_is_expected_is_the_table_and_straight_lines_between() -> None:
    table = np.full((8, 8), np.nan)
    for row, form in enumerate(GRID):
        for column, block in enumerate(GRID[row:], row):
            table[row, column] = 1 - (block - form) / 40 - form / 100
    data = xr.Dataset(
        {"accuracy": (("form", "block"), table), "neutral": ("item", [0.0, 0.2])},
        coords={"form": GRID, "block": GRID},
        attrs={"n_layers": 30},
    )

    def expected(form: int, block: int) -> float:
        return float(expected_right(data, np.array([form]), np.array([block]))[0])

    for form, block in ((0, 0), (2, 9), (21, 29), (7, 11), (1, 25)):
        assert expected(form, block) == pytest.approx(1 - (block - form) / 40 - form / 100)
    assert expected(5, 2) == expected(5, 5), "there from its own block on"
    assert expected(0, 30) == expected(30, 30) == pytest.approx(0.1)


def test_without_items_nothing_is_measured(study: Study) -> None:
    data = timetable(study, np.zeros(len(study.benchmark.items), dtype=bool))
    assert data.sizes["item"] == 0
    assert np.isnan(data["accuracy"].values).all()
    assert {*data["deadline_state"].values} == {"not measured"}
