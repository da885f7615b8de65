"""A sweep and an attribution ask the same question: what runs, what is put in, what is measured."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from families import Case, case_of

import interventions as iv
from interventions.errors import InterventionsError, ResultsError, RoleError
from interventions.sweeping.metrics import target

TOLD: dict[str, Any] = {"answers": "river", "foils": "town"}  # of several tokens, and not as many
COMPONENTS = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
EVERY = 10_000  # places, which is more than there are
FLOOR = 2e-5  # the table of a sweep is kept in float32
SAME: dict[str, dict[str, Any]] = {
    "every token": {},
    "roles": {"roles": ["entity[-1]", "last"]},
    "each token of a role": {"roles": ["entity"], "each": True},
    "read elsewhere": {"roles": ["entity[-1]", "last"], "read_roles": ["last", "entity[0]"]},
    "one token read for all": {"roles": ["entity", "last"], "read_roles": ["last", "last"]},
    "some layers": {"roles": ["last"], "layers": [0, 2]},
}


@pytest.fixture(scope="module", params=["llama", "llava"])
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param, torch.float64, "sdpa")


@pytest.fixture(scope="module")
def other(case: Case) -> iv.Prompt:
    return beside(case)


def beside(case: Case) -> iv.Prompt:
    """As many tokens: other pictures of the same sizes, or the words in another order."""
    model, spans = case.model, {"entity": ["France", "the town"]}
    if case.pictures:
        pictures = [tiny.picture(one.size, seed=7 + i) for i, one in enumerate(case.pictures)]
        return model.prompt(list(case.texts), images=pictures, spans=spans)
    swaps = {"capital of": "of capital", "first mayor": "mayor first"}
    texts = [
        one.replace(old, new) for one in case.texts for old, new in swaps.items() if old in one
    ]
    return model.prompt(texts, spans=spans)


def told(model: iv.Model, run: iv.Prompt, source: iv.Prompt, **asked: Any) -> xr.DataArray:
    """What a sweep says of each cell, as a change."""
    found = iv.sweep(
        model, run, source, metrics="logit_diff", components=COMPONENTS, progress=False, **asked
    )
    return found["logit_diff"] - found["clean_logit_diff"]


def verified(scores: xr.Dataset) -> np.ndarray:
    """The exact effect of every place; 0 where both runs have one value, NaN where none."""
    effects = xr.where(scores["score"] == 0, 0.0, np.nan * scores["score"])
    places = zip(
        *(scores[f"checked_{one}"].values.tolist() for one in ("item", "component", "layer")),
        *(scores[f"checked_{one}"].values.tolist() for one in ("column", "effect")),
        strict=True,
    )
    for item, component, layer, column, effect in places:
        one = effects.sel(item=item, component=component, layer=layer)
        effects.loc[{"item": item, "component": component, "layer": layer}] = np.where(
            np.arange(one.size) == column, effect, one
        )
    return effects.transpose("item", "component", "layer", ...).values


@pytest.mark.parametrize("name", SAME)
def test_the_same_arguments_mean_the_same_cells(case: Case, other: iv.Prompt, name: str) -> None:
    asked = {**TOLD, **SAME[name]}
    changes = told(case.model, other, case.prompt, **asked)
    scores = iv.attribute(
        case.model, other, case.prompt, components=COMPONENTS, verify=EVERY, **asked
    )
    scores = scores.sel(component=COMPONENTS)
    assert scores["score"].dims == changes.dims
    assert scores["layer"].values.tolist() == changes["layer"].values.tolist()
    for one in {"role", "token", "position"} & {*changes.coords}:
        assert np.array_equal(scores[one], changes[one]), one
    exact = verified(scores)
    assert np.array_equal(np.isnan(exact), np.isnan(changes.values))
    assert np.nanmax(np.abs(exact)) > 100 * FLOOR
    assert np.nanmax(np.abs(exact - changes.values)) < FLOOR


@pytest.mark.parametrize("name", ["every token", "roles"])
def test_swapped_sides_swap_signs(case: Case, other: iv.Prompt, name: str) -> None:
    """The mean slope between two inputs is the same either way; what is put in is the opposite."""
    asked: dict[str, Any] = {**TOLD, **SAME[name], "method": "ig", "steps": 4}
    one, two = (
        iv.attribute(case.model, *sides, verify=False, components=COMPONENTS, **asked)
        for sides in ((other, case.prompt), (case.prompt, other))
    )
    for ours, theirs in (("run_metric", "source_metric"), ("source_metric", "run_metric")):
        assert np.allclose(one[ours], two[theirs], atol=1e-9)
    change = one["source_metric"] - one["run_metric"]
    assert (abs(change) > 100 * FLOOR).all()
    assert np.nanmax(np.abs(one["score"])) > 100 * FLOOR
    assert np.allclose(one["score"], -two["score"], atol=1e-9, equal_nan=True)


def test_what_carries_everything_changes_sign_with_the_sides(case: Case, other: iv.Prompt) -> None:
    """After the last block, at the last token, all is carried: the effect is the difference."""
    top = case.model.n_layers - 1
    asked: dict[str, Any] = {"answers": "b", "foils": "c", "roles": ["last"], "layers": top}
    last = {"component": "resid_post", "layer": top, "role": "last"}
    found = []
    for sides in ((other, case.prompt), (case.prompt, other)):
        changes = told(case.model, *sides, **asked).sel(last)
        scores = iv.attribute(
            case.model, *sides, method="ig-activations", steps=16, verify=False, **asked
        )
        whole = scores["source_metric"] - scores["run_metric"]
        assert np.allclose(changes, whole, atol=FLOOR)
        assert np.allclose(scores["score"].sel(last), whole, rtol=1e-3, atol=FLOOR)
        found.append(scores["score"].sel(last).values)
    assert np.allclose(found[0], -found[1], atol=1e-9)
    assert (np.abs(found[0]) > 100 * FLOOR).all()


def test_rows_picked_out_of_longer_ones_are_compared_token_by_token(case: Case) -> None:
    """Their padding shifts positions in the one prompt, and not in the other."""
    model, whole = case.model, beside(case)
    short = int(case.prompt.lengths.argmin())
    picture: dict[str, Any] = {"images": [case.pictures[short]]} if case.pictures else {}
    own = model.prompt([case.texts[short]], **picture)
    picked = whole.select([short])
    assert own.length < picked.length
    asked: dict[str, Any] = {**TOLD, "layers": [1]}
    for method in ("patching", "ig"):
        for sides in ((own, picked), (picked, own)):
            changes = told(model, *sides, **asked)
            scores = iv.attribute(
                model, *sides, components=COMPONENTS, method=method, steps=2, verify=EVERY, **asked
            ).sel(component=COMPONENTS)
            assert scores["score"].shape == changes.shape
            exact = verified(scores)
            assert np.nanmax(np.abs(exact)) > 100 * FLOOR
            assert np.nanmax(np.abs(exact - changes.values)) < FLOOR


def test_numbers_stand_for_the_other_prompt_with_other_embeddings(case: Case) -> None:
    """On either side: the run, or the source, is the prompt from what enters its first block on."""
    model, prompt = case.model, case.prompt
    every = prompt.every()
    zeroed = [iv.Patch("resid_pre", 0, every, torch.zeros(()))]
    asked: dict[str, Any] = {"answers": "b", "foils": "c"}
    logits = iv.run(model, prompt, patches=zeroed).logits
    assert logits is not None
    answer, foil = (target(model, prompt, one).answers[0][0] for one in "bc")
    own = (logits[:, answer] - logits[:, foil]).numpy()
    restored = iv.attribute(model, 0.0, prompt, verify=2, **asked)
    removed = iv.attribute(model, prompt, 0.0, verify=2, **asked)
    assert np.allclose(restored["run_metric"], own, atol=1e-9)
    assert np.allclose(removed["source_metric"], own, atol=1e-9)
    assert np.allclose(restored["source_metric"], removed["run_metric"], atol=1e-9)
    assert restored.attrs["prompt"] == removed.attrs["source"]
    assert restored.attrs["source"] == removed.attrs["prompt"]
    assert "source_token" not in restored.coords


def test_a_result_and_its_map_say_which_side_ran(case: Case, other: iv.Prompt) -> None:
    asked: dict[str, Any] = {**TOLD, "components": ["mlp_out"], "verify": False}
    scores = iv.attribute(case.model, case.prompt, other, **asked)
    assert scores.attrs["prompt"].startswith(case.prompt.texts[0])
    assert scores.attrs["source"].startswith(other.texts[0])
    assert "prompt runs" in scores.attrs["meaning"]
    title = iv.heatmap(scores, item=1).get_suptitle()
    assert title.startswith("attribution patching")
    assert "prompt runs, values of source put in" in title
    assert "item 1" in title
    again = iv.verify(case.model, scores, case.prompt, other, k=1, **TOLD)
    assert again.attrs["prompt"] == scores.attrs["prompt"]
    with pytest.raises(ResultsError, match="prompt and source, which are the other way round"):
        iv.verify(case.model, scores, other, case.prompt, k=1, **TOLD)


def test_both_leave_out_the_same_rows_for_the_same_reasons(case: Case, other: iv.Prompt) -> None:
    given: dict[str, Any] = {"roles": ["entity[0]", "last"], **TOLD}
    whole = case.prompt.roles
    lacking = replace(case.prompt, roles=[whole[0], {"last": whole[1]["last"]}])
    for sides in ((lacking, other), (other, lacking)):
        swept = iv.sweep(case.model, *sides, progress=False, **given)
        scores = iv.attribute(case.model, *sides, verify=False, **given)
        assert swept.attrs["left_out"] == scores.attrs["left_out"]
        assert json.loads(scores.attrs["left_out"]) == {"1": "no token of role 'entity[0]'"}
        assert scores["item"].values.tolist() == [0]
        assert np.isnan(swept["logprob"][1]).all()
    both = [replace(case.prompt, roles=[whole[0], {}]), replace(other, roles=[{}, other.roles[1]])]
    for call in (iv.sweep, iv.attribute):
        act: Any = call
        with pytest.raises(RoleError, match="no row has all of the roles named in both prompts"):
            act(case.model, *both, **given)


REFUSED: dict[str, dict[str, Any]] = {
    "no component": {"components": []},
    "a component twice": {"components": ["mlp_out", "mlp_out"]},
    "no such component": {"components": ["mlp"]},
    "no such layer": {"layers": 99},
    "no role": {"roles": []},
    "no such role": {"roles": ["entitty"]},
    "a role twice": {"roles": ["last", "last"]},
    "roles that no row has": {"roles": ["entity[99]"]},
    "read and not written": {"read_roles": ["last"]},
    "more read than written": {"roles": ["last"], "read_roles": ["last", "entity"]},
    "other tokens": {"roles": ["last"], "read_roles": ["entity"], "each": True},
    "no answer": {"answers": ""},
    "answers of other rows": {"answers": ["a", "b", "c"]},
    "the answer as foil": {"foils": "river"},
    "a flag in words": {"roles": ["last"], "each": "no"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse_the_same_in_the_same_words(case: Case, other: iv.Prompt, name: str) -> None:
    asked = {**TOLD, **REFUSED[name]}
    said = []
    for call, more in ((iv.sweep, {"metrics": "logit_diff"}), (iv.attribute, {})):
        act: Any = call
        with pytest.raises(InterventionsError) as refused:
            act(case.model, case.prompt, other, **more, **asked)
        said.append((type(refused.value), str(refused.value)))
    assert said[0] == said[1]


def test_prompts_whose_rows_do_not_correspond_are_refused_alike(case: Case) -> None:
    model = case.model
    one, two = (model.prompt(text) for text in ("The capital of France is", "The capital is"))
    said = []
    for call in (iv.sweep, iv.attribute):
        act: Any = call
        with pytest.raises(RoleError, match="tokens in the prompt and") as refused:
            act(model, one, two, **TOLD)
        said.append(str(refused.value))
    assert said[0] == said[1]


UNLIKE: dict[str, tuple[str, Any]] = {
    "one layer": (r"no axis layer\. Select with a list", lambda scores: scores.isel(layer=1)),
    "one component": ("no axis component", lambda scores: scores.sel(component="mlp_out")),
    "one item": ("no axis item", lambda scores: scores.isel(item=0)),
    "one column": ("no axis position", lambda scores: scores.isel(position=0)),
    "no heads": ("head_score is not there", lambda scores: scores.drop_vars("head_score")),
    "some columns": ("2 columns", lambda scores: scores.isel(position=[0, 1])),
    "columns turned": (
        "not in the order",
        lambda scores: scores.isel(position=slice(None, None, -1)),
    ),
    "written over": ("no attribution", lambda scores: scores.assign_attrs(roles="last")),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_verify_says_what_a_changed_map_lacks(case: Case, other: iv.Prompt, name: str) -> None:
    said, change = UNLIKE[name]
    scores = iv.attribute(case.model, other, case.prompt, **TOLD, verify=False, layers=[0, 1])
    with pytest.raises(ResultsError, match=said):
        iv.verify(case.model, change(scores), other, case.prompt, **TOLD)


def test_verify_takes_roles_only_in_their_order(case: Case, other: iv.Prompt) -> None:
    given = (case.model, other, case.prompt)
    asked: dict[str, Any] = {**TOLD, "roles": ["entity", "last"], "verify": False}
    turned = iv.attribute(*given, **asked).isel(role=[1, 0])
    with pytest.raises(ResultsError, match="not in the order"):
        iv.verify(given[0], turned, *given[1:], **TOLD)


def test_verify_reads_axes_by_their_names(case: Case, other: iv.Prompt) -> None:
    given = (case.model, other, case.prompt)
    scores = iv.attribute(*given, **TOLD, verify=False, layers=[0, 1])
    turned = scores.transpose("head", "position", ..., "item")
    plain, same = (iv.verify(given[0], each, *given[1:], **TOLD, k=3) for each in (scores, turned))
    for name in ("checked_score", "checked_effect", "checked_layer", "checked_column"):
        assert np.array_equal(plain[name], same[name]), name
    some = iv.verify(given[0], scores.isel(layer=[1]), *given[1:], **TOLD, k=3)
    assert {*some["checked_layer"].values.tolist()} == {1}


def test_answers_that_can_be_read_once_are_stored_as_they_were_asked(
    case: Case, other: iv.Prompt
) -> None:
    asked: dict[str, Any] = {"verify": False, "components": "mlp_out", "layers": 0}
    answers, foils = ["river", "town"], ["town", "river"]
    listed = iv.attribute(case.model, other, case.prompt, answers=answers, foils=foils, **asked)
    read_once: dict[str, Any] = {"answers": iter(answers), "foils": iter(foils)}
    once = iv.attribute(case.model, other, case.prompt, **read_once, **asked)
    assert once.attrs == listed.attrs
    assert json.loads(once.attrs["provenance"])["settings"]["answers"] == answers


def test_refusals_name_what_can_be_done(case: Case, other: iv.Prompt) -> None:
    model = case.model
    longer = model.prompt("one more time the town", spans={"entity": "one more time"})
    shorter = model.prompt("the town", spans={"entity": "town"})
    asked: dict[str, Any] = {"answers": "river", "roles": ["entity[-1]"]}
    asks: dict[str, Any] = {"metric": iv.attribute, "metrics": iv.sweep}
    for name, ask in asks.items():
        with pytest.raises(RoleError, match=r"such as entity\[-1\], here"):
            ask(model, shorter, longer, read_roles=["entity"], **asked, **{name: "logprob"})
    with pytest.raises(RoleError, match=r'(?s)"ig" goes from.*whatever the roles.*activations'):
        iv.attribute(model, shorter, longer, method="ig", metric="logprob", **asked)
    with pytest.raises(InterventionsError, match=r"is empty.*head_out"):
        iv.sweep(model, other, case.prompt, answers="river", components=[])
