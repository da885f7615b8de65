"""Maps of pictures beside the lens: what is stored is what the engine's own calls give."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import interventions as iv
from interventions.prompt.positions import from_lists
from twohop.ask.questions import Questions
from twohop.ask.study import first_tokens
from twohop.protocol import Protocol
from twohop.running.study import Settings, study_of
from twohop.stages.recall import same_decoder
from twohop.stages.resolution.beside import mixed_regions, regions_of, windows_of
from twohop.stages.resolution.picture_maps import MEASURES, Axis
from twohop.stages.resolution.pictured import read_pictures
from twohop.stages.resolution.resolution import names_of
from twohop.stages.resolution.states import own_items

FLOOR: Any = {"rtol": 1e-4, "atol": 2e-5}
WINDOWS = 3


class Case:
    """One picture of a study, beside the others that its maps compare it with."""

    def __init__(self, study: Any, stored: xr.Dataset, entity: str) -> None:
        self.vlm, self.stored = study.vlm, stored.sel(mapped=entity)
        by_name = {item.entity.name: item for item in own_items(study.benchmark)}
        self.item = by_name[entity]
        [self.other] = [
            item
            for item in study.benchmark.items
            if item.entity.name == str(self.stored["mapped_other"].item())
            and item.relation == self.item.relation
        ]
        protocol = study.protocol
        own = Questions(study, [self.item], protocol.test_view)
        self.shown = own.shown([0], marked=True)
        self.others = {
            against: Questions(study, [item], view).shown([0], like=own, marked=True)
            for against, item, view in (
                ("other", self.other, protocol.test_view),
                ("same", self.item, protocol.fit_views[0]),
            )
        }
        answers = [item.answers[0] for item in (self.item, self.other)]
        own, foil = first_tokens(self.vlm, self.shown, answers)
        self.contrast: dict[str, Any] = {"answers": [[own]], "foils": [[foil]]}


@pytest.fixture(scope="module", params=["micro-late", "micro-naming"])
def study(request: pytest.FixtureRequest) -> Any:
    protocol = Protocol(picture_entities=6, picture_maps=2, picture_windows=WINDOWS)
    return study_of(request.param, Settings(limit=12, protocol=protocol))


@pytest.fixture(scope="module")
def maps(study: Any) -> xr.Dataset:
    return read_pictures(study)


@pytest.fixture(scope="module")
def case(study: Any, maps: xr.Dataset) -> Case:
    return Case(study, maps, str(maps["mapped"].values[1]))


def test_of_the_pictures_that_are_read_so_many_are_mapped(maps: xr.Dataset) -> None:
    assert maps.sizes["pictured"] == 6
    assert maps["mapped"].values.tolist() == maps["pictured"].values[::3].tolist()
    assert maps["picture_refused"].sel(measure=[*MEASURES[:-1]]).values.tolist() == [[""] * 5] * 2
    assert (maps["picture_refused"].sel(measure="probe") == "no probe was fitted.").all()
    assert maps["picture_probe"].isnull().all()
    assert (maps["mapped_answer"] != maps["mapped_foil"]).all()
    assert (maps["mapped_other"] != maps["mapped"].values).all()


def test_attention_is_that_of_the_map(case: Case) -> None:
    for rollout, name in ((False, "weight"), (True, "rollout")):
        theirs = iv.attention_map(case.vlm, case.shown, roles=["image"], rollout=rollout)[name]
        stored = case.stored["picture_rollout" if rollout else "picture_attention"]
        np.testing.assert_allclose(stored.values, theirs[0].values, rtol=1e-5)


def test_attribution_is_that_of_attribute(case: Case, study: Any) -> None:
    method: Any = study.protocol.attribution_methods[0]
    said = []
    for against, other in case.others.items():
        theirs = iv.attribute(
            case.vlm,
            case.shown,
            other,
            **case.contrast,
            components="resid_pre",
            roles=["image"],
            each=True,
            method=method,
            steps=study.protocol.attribution_steps,
            verify=False,
        )
        ours = case.stored["picture_attribution"].sel(against=against).values
        np.testing.assert_allclose(-ours, theirs["score"][0, 0].values, **FLOOR)
        assert np.abs(ours).max() > 1e-3
        said.append(theirs.attrs["method_name"])
    assert {*said} == {case.stored["attributed_by"].item()}


def test_patches_are_those_of_a_sweep(case: Case) -> None:
    regions = case.stored["picture_region"].values
    assert len({*regions}) == case.shown.at("image").counts[0] == 4
    layers = case.stored["picture_window"].values.tolist()
    for against, other in case.others.items():
        theirs = iv.sweep(
            case.vlm,
            case.shown,
            other,
            **case.contrast,
            metrics="logit_diff",
            components="resid_pre",
            layers=layers,
            roles=["image"],
            each=True,
            progress=False,
        )
        lost = (theirs["clean_logit_diff"] - theirs["logit_diff"])[0, 0].values
        ours = case.stored["picture_patched"].sel(against=against).values
        np.testing.assert_allclose(ours[:, regions], lost, **FLOOR)
        assert np.isnan(np.delete(ours, regions, axis=1)).all()
        assert np.abs(lost).max() > 1e-2


def test_cuts_are_those_of_knockout_curves(case: Case) -> None:
    tokens = case.shown.at("image").index[0].tolist()
    n, regions = case.shown.length, case.stored["picture_region"].values
    behind = _at(case.shown, [*range(tokens[-1] + 1, n)])
    firsts = case.stored["picture_window"].values.tolist()
    lasts = case.stored["picture_window_last"].values.tolist()
    ours = case.stored["picture_cut"].sel(cut_off="region").values
    for k, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
        theirs = iv.knockout_curves(
            case.vlm,
            case.shown,
            {str(token): (_at(case.shown, [token]), behind) for token in tokens},
            **case.contrast,
            metrics="logit_diff",
            layers=[first],
            window=last - first + 1,
            progress=False,
        )
        lost = (theirs["clean_logit_diff"] - theirs["logit_diff"])[0, 0].values
        np.testing.assert_allclose(ours[k, regions], lost, **FLOOR)
    drawn = case.stored["picture_cut"].sel(cut_off="random").values
    np.testing.assert_allclose(
        np.sort(drawn, axis=1), np.sort(ours, axis=1), **FLOOR
    )  # of one token each


def _at(prompt: iv.Prompt, tokens: list[int]) -> iv.Positions:
    return from_lists([tokens], length=prompt.length, single=False, role="tokens")


def test_a_probe_tells_the_entity_from_the_other_at_each_token(study: Any) -> None:
    same = same_decoder(study.vlm, study.backbone)
    probes = names_of(study, same=same).probes(slice(None), study=study)
    entities = study.benchmark.entities
    middle = torch.randn(study.vlm.n_layers + 1, 1, study.vlm.d_model)

    def between(own: Any, other: Any) -> Axis:
        rows = [entities.index(item.entity) for item in (own, other)]
        return probes.between(*rows, middle=middle.double())

    maps = read_pictures(study, between)
    assert (maps["picture_refused"] == "").all()
    case = Case(study, maps, str(maps["mapped"].values[0]))
    image = case.shown.at("image")
    before, behind = iv.read(
        case.vlm,
        case.shown,
        [
            iv.Site("resid_pre", [*range(case.vlm.n_layers)], image),
            iv.Site("resid_post", [case.vlm.n_layers - 1], image),
        ],
    )
    states = torch.cat([before, behind])[:, 0].double() - middle
    own, other = (entities.index(item.entity) for item in (case.item, case.other))
    for which, probe in (("own", probes.own), ("null", probes.null)):
        scores = probe.scores(states + probe.mean)
        theirs = (scores[..., own] - scores[..., other]).numpy()
        ours = case.stored["picture_probe"].sel(which_probe=which).values
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_regions_and_windows_share_out_pictures_and_blocks() -> None:
    for n_layers, most in ((8, 3), (5, 6), (32, 6), (1, 6)):
        windows = windows_of(n_layers, Protocol(picture_windows=most))
        assert [block for window in windows for block in window] == [*range(n_layers)]
        assert len(windows) == min(n_layers, most)
    edges = {
        "x0": [0, 10, 0, 10, np.nan],
        "x1": [10, 20, 10, 20, np.nan],
        "y0": [0, 0, 15, 15, np.nan],
        "y1": [15, 15, 30, 30, np.nan],
    }
    sides = {"width": [20] * 5, "height": [30] * 5}
    grid = xr.Dataset({name: ("token", column) for name, column in (edges | sides).items()})
    assert regions_of(grid, 1).tolist() == [0, 0, 0, 0, -1]
    assert regions_of(grid, 2).tolist() == [0, 1, 2, 3, -1]
    assert regions_of(grid, 4).tolist() == [5, 7, 13, 15, -1]


def test_regions_of_several_tokens_are_patched_and_cut_as_one(study: Any) -> None:
    whole = replace(study, protocol=replace(study.protocol, picture_regions=1))
    maps = read_pictures(whole)
    assert maps.sizes["region"] == 1
    case = Case(whole, maps, str(maps["mapped"].values[0]))
    theirs = iv.sweep(
        case.vlm,
        case.shown,
        case.others["other"],
        **case.contrast,
        metrics="logit_diff",
        components="resid_pre",
        layers=maps["picture_window"].values.tolist(),
        roles=["image"],
        progress=False,
    )
    lost = (theirs["clean_logit_diff"] - theirs["logit_diff"])[0, 0, :, 0].values
    ours = case.stored["picture_patched"].sel(against="other").values[:, 0]
    np.testing.assert_allclose(ours, lost, **FLOOR)
    region, drawn = case.stored["picture_cut"].values[..., 0]
    np.testing.assert_allclose(region, drawn, **FLOOR)  # of all tokens, either way


def test_a_control_is_drawn_of_tokens_that_show_something() -> None:
    """Tokens behind lines, and padding, are of no region, and of no control either."""
    regions = np.array([0, 0, -1, 1, 2, -1, 2, 2, -1])
    draws = np.array([mixed_regions(regions, [0, row]) for row in range(50)])
    assert ((draws == -1) == (regions == -1)).all()
    assert (np.sort(draws, -1) == np.sort(regions)).all()
    assert len(np.unique(draws, axis=0)) > 10
