"""Attention of every family is what its eager function makes, and goes where it is put."""

from typing import Any

import pytest
import torch
from families import PATHS, Case, case_of, with_sdpa
from floors import FLOOR32, noise, relative
from raw_attention import Seen, raw_attention

import interventions as iv
from interventions.errors import BudgetTooSmall, PatchError, SiteError
from interventions.model.sites import ATTENDING, Component
from interventions.running import attention_memory


def layers_of(case: Case, component: Component) -> list[int]:
    paths, n_layers = PATHS[case.name], case.model.n_layers
    without = {*paths.recurrent}
    if component.endswith("_rot"):
        without |= {*paths.headless}
    if component == "k_rot":
        without |= {*paths.cross_blocks}
    return [layer for layer in range(n_layers) if layer not in without]


def expected_of(seen: Seen, component: Component, layer: int) -> torch.Tensor:
    """[row, position, head, ...]."""
    values = {"q_rot": seen.query, "k_rot": seen.key}.get(component, seen.weights)[layer]
    return values.transpose(1, 2)


def on_sdpa(case: Case) -> Case:
    return case_of(case.name) if PATHS[case.name].no_sdpa else with_sdpa(case)


def shares(like: torch.Tensor) -> torch.Tensor:
    """Another pattern that sums to one over what could be seen, for weights [..., key]."""
    weights = noise(tuple(like.shape), 3).abs() * (like > 0)
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("component", [name for name in ATTENDING if name != "attn_scores"])
def test_reads_equal_the_eager_functions_at_every_layer(case: Case, component: Component) -> None:
    for case_run in (case, on_sdpa(case)):
        _, seen = raw_attention(case_run)  # an sdpa model's vision tower stays as it is
        for layer in range(case.model.n_layers):
            site = iv.Site(component, layer)
            if layer not in layers_of(case, component):
                with pytest.raises(SiteError, match=f"block {layer} of "):
                    iv.read(case_run.model, case_run.prompt, [site])
                continue
            [ours] = iv.read(case_run.model, case_run.prompt, [site])
            theirs = expected_of(seen, component, layer)
            assert relative(ours[case.real], theirs[case.real]) < FLOOR32, layer


def test_scores_make_the_pattern(case: Case) -> None:
    for layer in layers_of(case, "attn_scores"):
        sites = [iv.Site(name, layer) for name in ("attn_scores", "attn_pattern")]
        scores, pattern = iv.read(case.model, case.prompt, sites)
        where = case.real
        if layer in PATHS[case.name].cross_blocks:
            where = where & case.prompt.inputs["cross_attention_mask"].flatten(2).any(-1)
        assert relative(scores.softmax(-1)[where], pattern[where]) < FLOOR32
        assert relative(pattern[where].sum(-1), torch.ones(())) < FLOOR32


def test_reading_attention_changes_nothing_bit_for_bit(case: Case) -> None:
    for case_run in (case, on_sdpa(case)):
        model, before = case_run.model, settings_of(case_run)
        with model.trace(case_run.prompt):
            plain = model.logits[:].save()
        layer = layers_of(case, "attn_pattern")[-1]
        with model.trace(case_run.prompt):
            pattern = model.attn_pattern[layer, case.place].save()
            logits = model.logits[:].save()
        with model.trace(case_run.prompt):
            model.attn_pattern[layer, case.place] = pattern
            same = model.logits[:].save()
        assert torch.equal(logits, plain)
        assert torch.equal(same, plain)
        assert settings_of(case_run) == before


def settings_of(case: Case) -> list[Any]:
    config = case.model.module.config
    text = config.get_text_config(decoder=True)
    return [config._attn_implementation, text._attn_implementation]


def test_written_patterns_equal_the_eager_functions_and_land(case: Case) -> None:
    layers = layers_of(case, "attn_pattern")
    rows, at = torch.arange(len(case.prompt)), case.place.index[:, 0]
    for layer in sorted({layers[0], *PATHS[case.name].cross_blocks[:1], layers[-1]}):
        [own] = iv.read(case.model, case.prompt, [iv.Site("attn_pattern", layer, case.place)])
        value = shares(own)

        def put(weights: torch.Tensor, value: torch.Tensor = value) -> torch.Tensor:
            weights[rows, :, at] = value
            return weights

        patch = iv.Patch("attn_pattern", layer, case.place, value)
        sites = [iv.Site("attn_pattern", layer, case.place)]
        for case_run in (case, on_sdpa(case)):
            expected, _ = raw_attention(case_run, change=(layer, put))
            with case_run.model.trace(case_run.prompt):
                case_run.model.attn_pattern[layer, case.place] = value
                logits = case_run.model.logits[:].save()
            assert relative(logits[case.real], expected[case.real]) < FLOOR32, layer
            run = iv.run(case_run.model, case_run.prompt, patches=[patch], reads=sites)
            assert torch.equal(run.reads[0], value)


def test_patterns_of_one_head_are_replayed(case: Case) -> None:
    case = on_sdpa(case)
    model, layer = case.model, layers_of(case, "attn_pattern")[-1]
    last = case.prompt.at("last")
    [own] = iv.read(model, case.prompt, [iv.Site("attn_pattern", layer, last, heads=1)])
    cells = [[iv.Patch("attn_pattern", layer, last, shares(own), heads=1)], []]
    cells[1] = [iv.Patch("attn_pattern", layer, last, own, heads=1)]
    changed, same = iv.replay(model, case.prompt, cells)[:, :, 0]
    for ours, patches in ((changed, cells[0]), (same, [])):
        logits = iv.run(model, case.prompt, patches=patches).logits
        assert logits is not None
        assert relative(ours, logits) < FLOOR32


def test_a_padded_batch_attends_as_single_rows_do(case: Case) -> None:
    layers = [i for i in layers_of(case, "attn_pattern") if i in case.model.anatomy.self_blocks]
    last = case.prompt.at("last")
    [together] = iv.read(case.model, case.prompt, [iv.Site("attn_pattern", layers, last)])
    for row, text in enumerate(case.texts):
        alone = case.model.prompt(text, images=[case.pictures[row]] if case.pictures else None)
        [single] = iv.read(case.model, alone, [iv.Site("attn_pattern", layers, alone.at("last"))])
        n = single.shape[-1]
        # Shares of one: what they are compared with is one.
        assert float((together[:, row, :, -n:] - single[:, 0]).abs().max()) < FLOOR32
        assert not together[:, row, :, :-n].any()


def test_what_is_no_pattern_is_refused(case: Case) -> None:
    model, layer = case.model, layers_of(case, "attn_pattern")[-1]
    last = case.prompt.at("entity", -1)
    [own] = iv.read(model, case.prompt, [iv.Site("attn_pattern", layer, last)])
    unseen = torch.zeros_like(own)
    short = int(case.prompt.lengths.argmin())
    unseen[..., -1] = 1.0
    unseen[short] = own[short]
    unseen[short, :, :] = torch.eye(own.shape[-1])[0]  # padding
    for value, words in (
        (own * 0.5, "sum to one"),
        (unseen, "cannot see"),
        (own[..., :-1], "wide"),
    ):
        patch = iv.Patch("attn_pattern", layer, last, value)
        with pytest.raises(PatchError, match=words):
            iv.run(model, case.prompt, patches=[patch])
    with pytest.raises(PatchError, match="can only be read"):
        iv.run(model, case.prompt, patches=[iv.Patch("q_rot", layer, last, torch.tensor(0.0))])


def test_attention_for_which_there_is_no_memory_is_refused_before_it_runs(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = iv.Site("attn_pattern", layers_of(case, "attn_pattern")[-1])
    needed = attention_memory.attention_bytes(case.model, case.prompt, [], [site])
    assert needed > 0
    monkeypatch.setattr(attention_memory, "free_on", lambda _: needed - 1)
    with pytest.raises(BudgetTooSmall, match=r"MiB are free\. Read fewer blocks"):
        iv.read(case.model, case.prompt, [site])
    iv.read(case.model, case.prompt, [iv.Site("resid_post", 0)])
