"""Maps of attention and of the lens, in every family, against attention and heads by hand."""

import numpy as np
import pytest
import torch
from families import PATHS, Case, case_of, with_sdpa
from floors import FLOOR32, relative
from raw_attention import raw_attention

import interventions as iv
from interventions.errors import RoleError, SiteError


def attending(case: Case) -> list[int]:
    paths = PATHS[case.name]
    without = {*paths.recurrent, *paths.cross_blocks}
    return [layer for layer in range(case.model.n_layers) if layer not in without]


def on_sdpa(case: Case) -> Case:
    return case_of(case.name) if PATHS[case.name].no_sdpa else with_sdpa(case)


def weights_of(case: Case) -> dict[int, torch.Tensor]:
    """By block, [row, query, key], the mean over heads; 0 for queries that are padding."""
    _, seen = raw_attention(case)
    real = case.real[:, :, None]
    return {
        layer: torch.where(real, weights.float().mean(1), 0)[..., : case.prompt.length]
        for layer, weights in seen.weights.items()
    }


def test_attention_is_what_blocks_attend_with(case: Case) -> None:
    layers, last = attending(case), case.prompt.at("last").index[:, 0]
    rows = torch.arange(len(case.prompt))
    for case_run in (case, on_sdpa(case)):
        ours = iv.attention_map(case_run.model, case_run.prompt)
        assert ours["layer"].values.tolist() == layers
        by_head = iv.attention_map(case_run.model, case_run.prompt, heads=[1, 0], layers=layers[-1])
        weights = weights_of(case_run)
        theirs = torch.stack([weights[layer][rows, last] for layer in layers], 1)
        found = torch.from_numpy(ours["weight"].values)
        there = torch.from_numpy(np.isfinite(ours["weight"].values))
        assert torch.equal(there.any(1), case.real)
        assert relative(found[there], theirs.double()[there]) < FLOOR32
        assert np.allclose(np.nansum(found, -1), 1, atol=1e-5)
        _, seen = raw_attention(case_run)
        heads = seen.weights[layers[-1]][rows, :, last][:, [1, 0], : case.prompt.length].double()
        mine = torch.from_numpy(by_head["weight"].values[:, 0])
        assert relative(mine[mine.isfinite()], heads[mine.isfinite()]) < FLOOR32


def test_rollout_multiplies_the_blocks_by_hand(case: Case) -> None:
    paths = PATHS[case.name]
    if paths.recurrent or paths.cross_blocks:
        with pytest.raises(SiteError, match=r"block [01] of"):
            iv.attention_map(case.model, case.prompt, rollout=True)
        return
    case_run = on_sdpa(case)
    weights, n = weights_of(case_run), case.prompt.length
    joint, by_layer = torch.eye(n, dtype=torch.float64).expand(len(case.prompt), n, n), []
    for layer in range(case.model.n_layers):
        joint = (0.5 * torch.eye(n) + 0.5 * weights[layer].double()) @ joint
        by_layer.append(joint[torch.arange(len(case.prompt)), case.prompt.at("last").index[:, 0]])
    theirs = torch.stack(by_layer, 1)
    ours = iv.attention_map(case_run.model, case.prompt, rollout=True)["rollout"].values
    found = torch.from_numpy(ours)
    there = found.isfinite()
    assert torch.equal(there.any(1), case.real)
    assert relative(found[there], theirs[there]) < FLOOR32
    assert np.allclose(np.nansum(ours, -1), 1, atol=1e-5)
    some = iv.attention_map(case_run.model, case.prompt, rollout=True, layers=[2])["rollout"]
    assert np.allclose(some.values[:, 0], ours[:, 2], atol=1e-7, equal_nan=True)


def test_the_lens_of_the_last_layer_says_what_the_model_says(case: Case) -> None:
    model, prompt = case.model, case.prompt
    seen = iv.lens_map(model, prompt, [[7], [9]])
    logits = iv.run(model, prompt, logits=prompt.every().filled()).logits
    assert logits is not None
    logprob = logits.double().log_softmax(-1)
    place = prompt.every().filled().index
    ours = torch.from_numpy(seen["logprob"].values)
    assert torch.equal(ours.isfinite().any(1), case.real)
    for row, token in enumerate((7, 9)):
        mine = prompt.every().mask[row]
        where = place[row][mine]
        expected = logprob[row, : len(mine)][mine, token]
        assert relative(ours[row, -1][where].exp(), expected.exp()) < FLOOR32
        better = (logprob[row][mine] > expected[:, None]).sum(-1)
        assert (seen["rank"].values[row, -1][where] == better.numpy()).all()
    states = iv.read(model, prompt, [iv.Site("resid_post", slice(None), prompt.at("last"))])[0]
    alone, rank = iv.lens(model, states, torch.tensor([[7], [9]]))
    at_last = iv.lens_map(model, prompt, [[7], [9]], roles=["last"])
    assert relative(torch.from_numpy(at_last["logprob"].values[..., 0].T), alone[..., 0]) < FLOOR32
    shares = at_last["reciprocal_rank"].values[..., 0].T
    assert shares.tolist() == (1 / (1 + rank[..., 0].double())).tolist()


def test_maps_of_image_tokens_lie_on_the_picture_or_are_refused(shown: Case) -> None:
    model, prompt = shown.model, shown.prompt
    calls = (
        lambda: iv.lens_map(model, prompt, "Paris", roles=["image"]),
        lambda: iv.attention_map(model, prompt, roles=["image"]),
        lambda: iv.attention_map(model, prompt, roles=["image"], heads=0),
    )
    if model.anatomy.cross_blocks:
        for call in calls:
            with pytest.raises(RoleError, match="image"):
                call()
        return
    grid = prompt.image_grid()
    for call in calls:
        dataset = call()
        for row in range(len(prompt)):
            mine = grid.isel(token=np.flatnonzero(grid["row"] == row))
            n = mine.sizes["token"]
            for edge in ("x0", "y0", "x1", "y1"):
                assert np.array_equal(
                    dataset[edge].values[row, :n], mine[edge].values, equal_nan=True
                )
        drawing = iv.overlay(dataset, shown.pictures[0], item=0, picture=0)
        assert np.isfinite(drawing.values).any()
        assert drawing.least == (0.0 if np.nanmin(drawing.values) >= 0 else -drawing.most)
