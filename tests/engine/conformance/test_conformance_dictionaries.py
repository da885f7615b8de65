"""Features of sparse autoencoders and transcoders, read and edited, equal hooks in every family."""

from pathlib import Path

import pytest
import torch
from families import PATHS, Case, case_of, raw_run, with_sdpa
from floors import FLOOR32, relative
from raw_dictionary import ARCHITECTURES, Raw, drawn_weights, written
from raw_inside import raw_inside

import interventions as iv

CHOSEN = [3, 0, 17]


def layer_of(case: Case) -> int:
    return list(case.model.anatomy.self_blocks)[1]


def opened(case: Case, architecture: str, folder: Path) -> tuple[iv.Dictionary, Raw]:
    """A dictionary of the case's model in the engine, and the reference."""
    width = case.model.d_model
    weights = drawn_weights(architecture, width, 24, width)
    written(folder, architecture, width, hook_name="blocks.1.mlp.hook_in", weights=weights)
    component = "mlp_out" if "transcoder" in architecture else "resid_post"
    made = iv.load_sae(folder, layer=layer_of(case), component=component)
    return made, Raw(architecture, weights)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_read_and_edited_as_hooks_do(
    case: Case, architecture: str, tmp_path: Path
) -> None:
    sae, raw = opened(case, architecture, tmp_path / "sae")
    model, layer = case.model, layer_of(case)
    rows, at = torch.arange(len(case.prompt)), case.place.index[:, 0]
    if raw.transcoder:
        _, [seen] = raw_inside(case, reads=[("mlp_in", layer)])
    else:
        _, [seen] = raw_run(case, reads=[("resid_post", layer)])
    expected = raw.encode(seen[rows, at])
    acts = iv.feature_acts(model, case.prompt, sae, case.place)
    assert relative(acts, expected) < FLOOR32
    assert torch.equal(
        iv.feature_acts(model, case.prompt, sae, case.place, features=CHOSEN), acts[:, CHOSEN]
    )

    def edit(features: torch.Tensor) -> torch.Tensor:
        features[:, CHOSEN] = features[:, CHOSEN] * 3.0 + 1.0
        return features

    def change(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[rows, at] = raw.edited(seen[rows, at], hidden[rows, at], edit)
        return changed

    patches = [sae.patch(CHOSEN, case.place, 3.0 * acts[:, CHOSEN] + 1.0)]
    logits, _ = raw_run(case, edits=[(sae.component, layer, change)])
    for place, theirs in ((case.prompt.at("last"), logits[:, -1]), (case.place, logits[rows, at])):
        ours = iv.run(model, case.prompt, patches=patches, logits=place).logits
        assert ours is not None
        assert relative(ours[:, 0], theirs) < FLOOR32


@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "transcoder"])
def test_features_that_stay_change_nothing_bit_for_bit(
    case: Case, architecture: str, tmp_path: Path
) -> None:
    sae, _ = opened(case, architecture, tmp_path / "sae")
    plain = iv.run(case.model, case.prompt).logits
    assert plain is not None
    patches = [
        sae.patch(CHOSEN, case.place, 1.0, "scale"),
        sae.patch(slice(None), case.place, 0.0, "add"),
    ]
    for patch in patches:
        logits = iv.run(case.model, case.prompt, patches=[patch]).logits
        assert logits is not None
        assert torch.equal(logits, plain)
    own = iv.feature_acts(case.model, case.prompt, sae, case.place)
    logits = iv.run(
        case.model, case.prompt, patches=[sae.patch(slice(None), case.place, own)]
    ).logits
    assert logits is not None
    assert relative(logits, plain) < FLOOR32


@pytest.mark.parametrize("architecture", ["gated", "transcoder"])
def test_cells_replay_what_runs_give(case: Case, architecture: str, tmp_path: Path) -> None:
    case = case_of(case.name) if PATHS[case.name].no_sdpa else with_sdpa(case)
    sae, _ = opened(case, architecture, tmp_path / "sae")
    last = case.prompt.at("last")
    cells = [
        [sae.patch(CHOSEN, case.place, 2.0)],
        [sae.patch([5], last, 4.0, "add")],
        [sae.patch(CHOSEN, case.place, 0.0, "scale"), iv.ablated("mlp_in", layer_of(case), last)],
    ]
    replayed = iv.replay(case.model, case.prompt, cells)[:, :, 0]
    for ours, patches in zip(replayed, cells, strict=True):
        logits = iv.run(case.model, case.prompt, patches=patches).logits
        assert logits is not None
        assert relative(ours, logits) < FLOOR32
