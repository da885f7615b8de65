"""What the timetable predicts, where it is known which items are lost, and why."""

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.text import Text

import interventions as iv
from twohop.ask.questions import Questions
from twohop.ask.study import Study
from twohop.protocol import Protocol
from twohop.report.timetable import calibration_figure, timetable_figure
from twohop.running.study import Settings, study_of
from twohop.stages.deadlines import deadlines
from twohop.stages.prediction import PREDICTORS, arrivals, predicted
from twohop.stages.run import run_stages
from twohop.stages.timetable import accuracy

FEW = Protocol(resamples=200)
LAYERS = 9


def resolution_of(
    entities: list[str], onset: np.ndarray, form: np.ndarray, *, half: np.ndarray | None = None
) -> xr.Dataset:
    """What the resolution says of entities that are read at one place, from a layer on."""
    n = len(entities)
    layer = np.arange(LAYERS)
    forms = np.full((2, LAYERS, n), -1)
    read = (layer[:, None] >= onset) & (onset >= 0)
    forms[1] = np.where(read, form, -1)
    return xr.Dataset(
        {
            "onset": (("probe_kind", "entity"), np.stack([onset, np.full(n, -1)])),
            "form": (("role", "layer", "entity"), forms),
            "half": ("entity", np.zeros(n, dtype=int) if half is None else half),
        },
        coords={
            "probe_kind": ["transfer", "transfer_centred"],
            "role": ["image", "last_image"],
            "layer": layer,
            "entity": entities,
        },
        attrs={"chosen_role": ["last_image", "last_image"], "vlm_blocks": [*range(LAYERS - 1)]},
    )


def gates_of(entities: list[str], right: np.ndarray) -> xr.Dataset:
    """Gates of items of two relations, [relation, entity]; all are named and known."""
    names = np.array(entities * 2)
    said = np.stack([np.ones(len(names)), np.ones(len(names)), right.ravel()]).astype(bool)
    relations = ["capital"] * len(entities) + ["language"] * len(entities)
    return xr.Dataset(
        {
            "right": (("gate", "item"), said),
            "surface": ("item", np.zeros(len(names), dtype=bool)),
        },
        coords={
            "gate": ["recognised", "backbone_text", "vlm_image"],
            "item": [f"{a}/{b}" for a, b in zip(names, relations, strict=True)],
            "entity": ("item", names),
            "relation": ("item", relations),
        },
    )


def steps(deadline: int = 3) -> xr.Dataset:
    """A timetable in which nine tenths are answered up to a block, in every form; then a tenth."""
    form, block, item = np.mgrid[:8, :8, :20]
    answered = (item < np.where(block < deadline, 18, 2)).astype(float)
    data = xr.Dataset(
        {
            "answered": (("form", "block", "item"), np.where(block < form, np.nan, answered)),
            "neutral": ("item", (np.arange(20) < 2).astype(float)),
        },
        coords={
            "form": np.arange(8),
            "block": np.arange(8),
            "entity": ("item", [f"e{i}" for i in range(20)]),
        },
        attrs={"n_layers": 8, "neutral_text": "it"},
    )
    for name, values in accuracy(data).items():
        data[name] = (("form", "block"), values)
    return data.assign(deadlines(data))


NAMES = [f"e{i}" for i in range(60)]


def test_a_model_that_is_late_is_predicted_and_so_is_one_that_is_not() -> None:
    rng = np.random.default_rng(2)
    onset = rng.integers(0, LAYERS - 1, 60)
    chance = np.where(onset < 3, 0.9, 0.1)
    right = rng.random((2, 60)) < chance
    found = predicted(
        gates_of(NAMES, right),
        resolution_of(NAMES, onset, onset // 4),
        steps(),
        seed=0,
        protocol=FEW,
    )
    said = found.attrs
    assert np.array_equal(found["expected"], np.tile(chance, 2))
    assert np.array_equal(found["predicted_lost"], np.tile(onset >= 3, 2))
    assert said["auc_low"] > said["auc_permuted_high"] > 0.5 > said["auc_permuted_low"]
    assert said["auc_p"] == 1 / 201
    assert said["slope_low"] < 1 < said["slope_high"]
    assert said["intercept_low"] < 0 < said["intercept_high"]
    assert said["excess_low"] < 0 < said["excess_high"]
    assert said["lost_if_predicted_low"] > said["lost_if_not_high"]
    assert said["brier"] < said["brier_base"]
    assert (said["n_items"], said["n_entities"], said["n_read"]) == (120, 60, 120)
    assert said["n_lost"] == (~right).sum()
    assert said["not_measured"] == ""
    assert found["predictor"].values.tolist() == [*PREDICTORS]
    assert said["auc"] == found["auc"].sel(predictor="timetable")


def test_items_that_are_set_aside_are_not_predicted() -> None:
    gates = gates_of(NAMES, np.tile(np.arange(60) % 2, (2, 1)))
    gates["surface"][:7] = True
    found = predicted(
        gates, resolution_of(NAMES, np.zeros(60, int), np.zeros(60, int)), steps(),
        seed=0, protocol=FEW,
    )  # fmt: skip
    assert found.sizes["item"] == 113
    assert set(gates["item"].values[:7]).isdisjoint(found["item"].values)


def test_losses_that_have_nothing_to_do_with_it_are_not_predicted() -> None:
    rng = np.random.default_rng(1)
    onset = rng.integers(0, LAYERS - 1, 60)
    right = rng.random((2, 60)) < 0.5
    found = predicted(
        gates_of(NAMES, right), resolution_of(NAMES, onset, onset), steps(), seed=0, protocol=FEW
    )
    assert found.attrs["auc_low"] < 0.5 < found.attrs["auc_high"]
    assert found.attrs["auc_p"] > 0.05
    assert found.attrs["slope_high"] < 1
    assert found.attrs["skill"] < 0


def test_the_form_tells_what_the_onset_does_not() -> None:
    """Read at one layer in two forms, of which the earlier one is too late there."""
    form = np.arange(60) % 2 * 3
    table = steps()
    table["accuracy"][:] = np.where(table["form"].values[:, None] < 3, 0.1, 0.9)
    right = np.tile(form == 3, (2, 1))
    found = predicted(
        gates_of(NAMES, right),
        resolution_of(NAMES, np.full(60, 4), form),
        table,
        seed=0,
        protocol=FEW,
    )
    auc = {name: float(found["auc"].sel(predictor=name)) for name in PREDICTORS}
    assert (auc["timetable"], auc["onset_alone"], auc["transfer_centred"]) == (1, 0.5, 0.5)
    assert found.attrs["gain"] == 0.5


def test_what_is_never_read_is_expected_as_of_nothing() -> None:
    onset = np.where(np.arange(60) < 30, 1, -1)
    right = np.tile(onset >= 0, (2, 1))
    right[0, 0] = False
    found = predicted(
        gates_of(NAMES, right), resolution_of(NAMES, onset, onset), steps(), seed=0, protocol=FEW
    )
    unread = ~found["read"].values
    assert unread.sum() == 60
    assert (found["expected"].values[unread] == 0.1).all()
    assert found["predicted_lost"].values[unread].all()
    assert (found["form"].values[unread] == -1).all()
    assert found.attrs["n_read"] == 60


def test_the_place_is_that_chosen_on_the_other_half_and_layers_are_matched() -> None:
    resolution = resolution_of(NAMES, np.full(60, 4), np.full(60, 2), half=np.arange(60) % 2)
    resolution.attrs["vlm_blocks"] = [0, 1, 3, 4, 5, 6, 8, 9]  # blocks 2 and 7 were put in
    first = arrivals(resolution)
    assert (first.block == 3).all()
    resolution.attrs["chosen_role"] = ["last_image", "image"]
    first = arrivals(resolution)
    assert np.array_equal(first.read, np.arange(60) % 2 == 0), "nothing is read at the other place"
    centred = resolution.copy(deep=True)
    centred["onset"].values[1] = 2
    centred["form"].values[1, 2:] = 5
    assert set(arrivals(centred).onset[::2]) == {2}
    assert set(arrivals(centred, ("transfer",)).onset[::2]) == {4}


def test_too_few_or_all_alike_is_not_measured_and_says_why() -> None:
    for names, right, why in (
        (NAMES, np.ones((2, 60)), "no item is lost"),
        (NAMES, np.zeros((2, 60)), "every item is lost"),
        (NAMES[:3], np.eye(2, 3), "3 entities, fewer than 5"),
    ):
        onset = np.arange(len(names)) % 5
        resolution = resolution_of(names, onset, onset)
        found = predicted(gates_of(names, right), resolution, steps(), seed=0, protocol=FEW)
        assert found.attrs["not_measured"] == why
        assert np.isnan([found.attrs[name] for name in ("auc", "auc_p", "slope", "skill")]).all()
        assert found.attrs["n_items"] == 2 * len(names)


def words(figure: Figure) -> str:
    """All that a figure says."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_figures_say_what_is_read_where_and_what_comes_of_it() -> None:
    onset = np.where(np.arange(60) < 30, 1, -1)
    right = np.tile(onset >= 0, (2, 1))
    right[0, :2] = False
    table, gates = steps(), gates_of(NAMES, right)
    found = predicted(gates, resolution_of(NAMES, onset, onset), table, seed=0, protocol=FEW)
    tree = xr.DataTree.from_dict({"timetable": table, "prediction": found})
    said = words(timetable_figure(tree))
    assert "right from the image: 58" in said
    assert "lost: 2 items" in said
    assert "never read in the VLM: 0 right, 60 lost" in said
    assert "“it” for the name, nothing written: 10 %" in said
    said = words(calibration_figure(tree))
    assert "120 items of 60 entities" in said
    assert "predicted lost 60, lost 62" in said
    assert f"area under the curve {found.attrs['auc']:.2f} [" in said

    told = predicted(
        gates_of(NAMES, np.ones((2, 60))),
        resolution_of(NAMES, onset, onset),
        table,
        seed=0,
        protocol=FEW,
    )
    tree = xr.DataTree.from_dict({"timetable": table, "prediction": told})
    assert "ranking not measured: no item is lost" in words(calibration_figure(tree))
    alone = xr.DataTree.from_dict({"timetable": table})
    assert "never read" not in words(timetable_figure(alone))


def test_without_a_timetable_nothing_is_predicted_or_drawn() -> None:
    table = steps().isel(item=slice(0))
    onset = np.arange(60) % 5
    found = predicted(
        gates_of(NAMES, np.eye(2, 60)), resolution_of(NAMES, onset, onset), table, seed=0
    )
    assert found.sizes["item"] == 0
    assert found.attrs["not_measured"] == "0 entities, fewer than 5"
    tree = xr.DataTree.from_dict({"timetable": table, "prediction": found})
    for figure in (timetable_figure(tree), calibration_figure(tree)):
        assert "not measured" in words(figure)


# Known answers: the micro models


@pytest.fixture(scope="module")
def kept() -> dict[str, xr.Dataset]:
    """What the backbone, which the pairs share, gave."""
    return {}


def nearest(study: Study) -> xr.Dataset:
    """From which layer on each entity's last image token is most like its own name, and where.

    A stand-in for the resolution's probes, by the cosine of centred states.
    """
    entities = study.benchmark.entities
    own = {item.entity.code: item for item in study.benchmark.items if item.relation == "capital"}
    questions = Questions(study, [own[entity.code] for entity in entities])
    rows = [*range(len(entities))]

    def states(model: iv.Model, prompt: iv.Prompt, role: str) -> torch.Tensor:
        at = prompt.at(role, -1)
        inside = iv.Site("resid_pre", slice(0, model.n_layers), at)
        out = iv.Site("resid_post", model.n_layers - 1, at)
        values, last = iv.read(model, prompt, [inside, out])
        every = torch.cat([values, last[None]])
        return torch.nn.functional.normalize(every - every.mean(1, keepdim=True), dim=-1)

    seen = states(study.vlm, questions.shown(rows), "image")
    named = states(study.backbone, questions.named(study.backbone, rows), "entity")
    alike = torch.einsum("led,fnd->lfen", seen, named)
    form = alike.diagonal(dim1=2, dim2=3).argmax(1)  # [layer, entity]
    layer, row = np.mgrid[: form.shape[0], : form.shape[1]]
    hit = alike[layer, form, row].argmax(-1).numpy() == row
    lasting = hit & np.vstack([hit[1:], np.zeros_like(hit[:1])])
    onset = np.where(lasting.any(0), lasting.argmax(0), -1)
    data = resolution_of([entity.name for entity in entities], onset, onset)
    data["form"].values[1] = np.where(hit, form.numpy(), -1)
    return data


@pytest.mark.parametrize(("pair", "lost"), [("micro-aligned", False), ("micro-late", True)])
def test_it_says_of_the_micro_models_what_was_built(
    pair: str, lost: bool, kept: dict[str, xr.Dataset]
) -> None:
    study = study_of(pair, Settings(protocol=Protocol.preset("quick")))
    results = run_stages(["recall", "timetable"], study, kept)
    kept.update({stage: results[stage] for stage in ("backbone_text", "timetable")})
    found = predicted(results["recall"], nearest(study), results["timetable"], seed=0, protocol=FEW)
    assert found.attrs["n_items"] > 40
    foretold, wrong = found["predicted_lost"].values, ~found["right"].values
    # Facts of four continents are guessed right a quarter of the time.
    assert foretold.mean() > 0.9 if lost else foretold.mean() == 0
    assert wrong.mean() > 0.7 if lost else wrong.mean() == 0
    assert found.attrs["excess_low"] <= 0 <= found.attrs["excess_high"]
