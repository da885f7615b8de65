"""Routes, windows and heads of knockout curves; what they cost, keep and refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import PATHS, Case, case_of
from floors import FLOOR32, relative

import interventions as iv
from interventions.errors import PromptError, ResultsError, RoleError, SiteError
from interventions.prompt.positions import from_lists
from interventions.results import read_provenance
from interventions.sweeping.schedule import parts_of
from interventions.sweeping.sizes import Sizes

ASKED: dict[str, Any] = {"answers": [[7], [9]], "progress": False}
FIELD = ["image -> entity", "entity -> last", "image -> last"]


@pytest.fixture(scope="module")
def case() -> Case:
    return case_of("llava", torch.float32, "sdpa")


def knocked(case: Case, cut: iv.Knockout) -> torch.Tensor:
    """Log-probabilities of the two answers under one knockout, by a run of its own."""
    logits = iv.run(case.model, case.prompt, knockouts=[cut]).logits
    assert logits is not None
    return logits.log_softmax(-1)[[0, 1], [7, 9]]


def test_routes_by_region_position_and_name(case: Case) -> None:
    prompt, last = case.prompt, case.prompt.at("last")
    region = prompt.at("image", box=[(0, 0, 20, 15), (0, 0, 24, 20)])
    routes = {
        "region": (region, "last"),
        "text": "entity[-1]->last",
        "roles": ["image", last],
    }
    curves = iv.knockout_curves(case.model, prompt, routes, layers=[1, 2], window=2, **ASKED)
    assert curves["route"].values.tolist() == ["region", "text", "roles"]
    assert curves["key_role"].values.tolist() == ["image", "entity[-1]", "image"]
    assert curves["query_role"].values.tolist() == ["last"] * 3
    assert curves["last_layer"].values.tolist() == [2, 3]
    counts = region.counts.tolist()
    assert curves["edges"].values.tolist() == [
        [count, 1, len(roles["image"])] for count, roles in zip(counts, prompt.roles, strict=True)
    ]
    keys = {"region": region, "text": prompt.at("entity", -1), "roles": prompt.at("image")}
    for name, at in keys.items():
        theirs = knocked(case, iv.Knockout([1, 2], last, at)).numpy()
        ours = curves["logprob"].sel(layer=1, route=name).values
        assert np.abs(ours - theirs).max() < FLOOR32 * np.abs(theirs).max()


def test_the_question_is_without_the_last_token(case: Case) -> None:
    routes = ["image -> question", "question -> last"]
    curves = iv.knockout_curves(case.model, case.prompt, routes, layers=[1], **ASKED)
    roles = case.prompt.roles
    assert all({*own["last"]} <= {*own["question"]} for own in roles)
    for row, own in enumerate(roles):
        behind = [token for token in own["question"] if token > own["image"][-1]]
        assert curves["edges"].values[row].tolist() == [
            len(own["image"]) * (len(behind) - 1),
            len(own["question"]) - 1,
        ]
    places = [[token for token in own["question"] if token not in own["last"]] for own in roles]
    others = from_lists(places, length=case.prompt.length, single=False, role="others")
    cut = iv.Knockout(1, others, case.prompt.at("image"))
    theirs = knocked(case, cut).numpy()
    ours = curves["logprob"].sel(layer=1, route="image -> question").values
    assert np.abs(ours - theirs).max() < FLOOR32 * np.abs(theirs).max()


def test_a_token_goes_on_seeing_itself_only_where_asked(case: Case) -> None:
    entity, last = case.prompt.at("entity"), case.prompt.at("last")
    cuts = [iv.Knockout([0, 1], entity, entity, keep_self=keep) for keep in (False, True)]
    plain, kept = (iv.run(case.model, case.prompt, knockouts=[cut]).logits for cut in cuts)
    assert plain is not None
    assert kept is not None
    assert not torch.equal(plain, kept)
    with case.model.trace(case.prompt):
        iv.knockout(case.model, [0, 1], queries=entity, keys=entity, keep_self=True)
        traced = case.model.logits[last].save()
    assert relative(traced, kept) < FLOOR32
    n = case.prompt.length
    everything, front, back = (
        from_lists([[*places]] * 2, length=n, single=False, role="some")
        for places in (range(n), range(n - 2), range(n - 2, n))
    )
    alone = iv.Knockout(2, last, everything, keep_self=True)
    assert iv.run(case.model, case.prompt, knockouts=[alone]).logits is not None
    with pytest.raises(SiteError, match="nothing to see"):
        iv.run(case.model, case.prompt, knockouts=[iv.Knockout(2, last, everything)])
    # Each head is looked at: what two knockouts leave of one, another may not have.
    apart = [iv.Knockout(2, last, front, heads=[0]), iv.Knockout(2, last, back, heads=[1])]
    assert iv.run(case.model, case.prompt, knockouts=apart).logits is not None
    with pytest.raises(SiteError, match="nothing to see"):
        iv.run(case.model, case.prompt, knockouts=[apart[0], iv.Knockout(2, last, back)])


@contextmanager
def tokens_through_blocks(case: Case) -> Iterator[list[int]]:
    """Row x token counts of everything that goes through the MLP of a block."""
    counts: list[int] = []
    handles = [
        case.model.module.get_submodule(
            f"{PATHS[case.name].blocks}.{layer}.mlp"
        ).register_forward_pre_hook(lambda _m, args: counts.append(args[0].shape[:-1].numel()))
        for layer in range(case.model.n_layers)
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def test_cells_cost_a_tenth_of_as_many_runs_at_the_most(case: Case) -> None:
    heads = list(range(case.model.anatomy.n_heads))
    with tokens_through_blocks(case) as counts:
        curves = iv.knockout_curves(
            case.model, case.prompt, ["entity -> last", "image -> last"], heads=heads, **ASKED
        )
    assert curves.attrs["path"] == "suffix"
    cells = curves.attrs["cells"]
    assert cells == 2 * len(heads) * case.model.n_layers
    one_run = 2 * case.prompt.length * case.model.n_layers
    assert counts[: case.model.n_layers] == [2 * case.prompt.length] * case.model.n_layers
    # The picture is run once. A cell is one token in the blocks from its own on.
    above = sum(case.model.n_layers - layer for layer in range(case.model.n_layers))
    assert sum(counts) == one_run + 2 * 2 * len(heads) * above
    assert sum(counts) * 10 < cells * one_run


@pytest.mark.parametrize(("device", "ratio"), [("cuda", 22), ("cpu", 44)])
def test_at_real_size_cells_cost_what_the_page_says(device: str, ratio: int) -> None:
    """LLaVA 1.5 7B: a picture of 576 tokens, 43 of text, by the division that the engine makes."""
    n_layers, d_model, inner, length = 32, 4096, 11008, 624
    block = 4 * d_model**2 + 3 * d_model * inner
    sizes = Sizes(n_layers, d_model, 32, 32, 128, 32064, inner, 2, block)
    first = sorted([length - 43, length - 1, length - 1])  # image -> question, and two -> last
    overhead = sizes.pass_tokens(device)
    above = sum(
        (part.stop - part.start) * (length - first[part.start])
        for part in parts_of(first, 1, length, overhead)
    )
    sent = n_layers * length + above * sum(range(1, n_layers + 1))
    assert round(3 * n_layers * n_layers * length / sent) == ratio


def test_a_killed_run_goes_on_and_other_settings_are_refused(case: Case, tmp_path: Path) -> None:
    first = iv.knockout_curves(case.model, case.prompt, FIELD, out=tmp_path / "curves", **ASKED)
    again = iv.knockout_curves(case.model, case.prompt, FIELD, out=tmp_path / "curves", **ASKED)
    assert again.identical(first)
    settings = read_provenance(first)["settings"]
    assert settings["axes"]["route"] == FIELD
    changes: list[dict[str, Any]] = [
        {"window": 2},
        {"heads": {0: 1}},
        {"clusters": ["a", "b"]},
    ]
    for other in changes:
        with pytest.raises(ResultsError, match="other settings"):
            iv.knockout_curves(
                case.model, case.prompt, FIELD, out=tmp_path / "curves", **ASKED, **other
            )
    with pytest.raises(ResultsError, match="other settings"):
        iv.knockout_curves(case.model, case.prompt, FIELD[:2], out=tmp_path / "curves", **ASKED)


def test_many_prompts_have_intervals_and_p_values_over_clusters(case: Case) -> None:
    texts = [f"{case.model.image_token} the {word} of France is" for word in "abcdefgh"]
    pictures = [case.pictures[0]] * 8
    prompt = case.model.prompt(texts, images=pictures, spans={"entity": ["France"] * 8})
    asked = {"answers": [[7]] * 8, "progress": False, "metrics": ["logprob", "kl"]}
    curves = iv.knockout_curves(case.model, prompt, FIELD, window=2, **asked)
    by_cell = iv.cell_statistics(curves, "logprob")
    for name in ("change", "low", "high", "p", "p_map"):
        assert curves[f"{name}_logprob"].dims == ("layer", "route")
        np.testing.assert_allclose(
            curves[f"{name}_logprob"], by_cell[name], atol=1e-6, err_msg=name
        )
    change = (curves["logprob"] - curves["clean_logprob"]).mean("item")
    np.testing.assert_allclose(curves["change_logprob"], change, atol=1e-6)
    assert curves.attrs["statistics"] == "of 8 clusters, 128 flips of signs"
    assert np.isnan(curves["p_kl"]).all()
    assert (curves["low_kl"] <= curves["change_kl"]).all()
    assert {"first layer of a window of 2"} == {
        axes.get_xlabel() for axes in iv.lineplot(curves).axes
    }
    assert "route" in [axes.get_xlabel() for axes in iv.heatmap(curves).axes]
    clustered = iv.knockout_curves(
        case.model, prompt, FIELD, window=2, clusters=[*"aabbccdd"], **asked
    )
    assert clustered["cluster"].values.tolist() == [*"aabbccdd"]
    assert clustered.attrs["statistics"].startswith("none: 4 independent")
    swept = iv.sweep(case.model, prompt, 0.0, roles=["entity"], clusters=[*"aabbccdd"], **asked)
    assert swept["cluster"].values.tolist() == [*"aabbccdd"]
    swept = iv.sweep(case.model, prompt, 0.0, roles=["entity"], **asked)
    assert swept["p_map_logprob"].dims == ("component", "layer", "role")
    with pytest.raises(PromptError, match="2 clusters for 8 items"):
        iv.knockout_curves(case.model, prompt, FIELD, clusters=[1, 2], **asked)


def test_rows_without_an_edge_are_left_out_and_said(case: Case) -> None:
    prompt = case.prompt
    places = [prompt.roles[0]["last"], [1]]
    early = from_lists(places, length=prompt.length, single=True, role="early")
    curves = iv.knockout_curves(
        case.model, prompt, {"back": ("entity", early)}, layers=[1], **ASKED
    )
    assert "no edge of route 'back'" in curves.attrs["left_out"]
    assert np.isnan(curves["logprob"].values[1]).all()
    assert np.isfinite(curves["logprob"].values[0]).all()


@pytest.mark.parametrize(
    ("error", "match", "routes", "asked"),
    [
        (RoleError, "routes is empty", [], {}),
        (RoleError, r"Expected \"keys -> queries\"", "image", {}),
        (RoleError, r"Expected \"keys -> queries\"", {"r": ("image", 3)}, {}),
        (RoleError, "has no edge in any row.*earlier tokens to later", "last -> image", {}),
        (RoleError, "has no edge in any row", "last -> last", {}),
        (RoleError, "nowhere", "nowhere -> last", {}),
        (RoleError, "twice", ["image -> last", "image -> last"], {}),
        (SiteError, "no layer 99", "image -> last", {"layers": 99}),
        (SiteError, "window=0", "image -> last", {"window": 0}),
        (SiteError, "no head 99", "image -> last", {"heads": [99]}),
        (SiteError, "no head 99", "image -> last", {"heads": {1: 99}}),
        (SiteError, "layer of a head", "image -> last", {"heads": [(99, 1)]}),
        (SiteError, "heads= is empty", "image -> last", {"heads": {}}),
        (SiteError, "heads name one twice", "image -> last", {"heads": [1, 1]}),
        (SiteError, "set of heads is empty", "image -> last", {"heads": {"mine": []}}),
        (
            SiteError,
            "no window of layers has edges of route 'image -> last' in the heads",
            "image -> last",
            {"heads": {3: 1}, "layers": [0]},
        ),
        (PromptError, "metrics= is empty", "image -> last", {"metrics": []}),
        (PromptError, "give foils=", "image -> last", {"metrics": "logit_diff"}),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_runs(
    case: Case, error: type[Exception], match: str, routes: Any, asked: dict[str, Any]
) -> None:
    with tokens_through_blocks(case) as counts, pytest.raises(error, match=match):
        iv.knockout_curves(case.model, case.prompt, routes, **{**ASKED, **asked})
    assert counts == []


def test_positions_of_another_prompt_are_refused(case: Case) -> None:
    other = case.prompt.select([0])
    with pytest.raises(SiteError, match="positions of 1 rows"):
        iv.knockout_curves(case.model, case.prompt, {"r": (other.at("image"), "last")}, **ASKED)
