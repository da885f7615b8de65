"""Folders in SAELens' format: what is read of them, and what is refused and why."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import case_of, raw_run
from floors import FLOOR32, noise, relative
from raw_dictionary import ARCHITECTURES, Raw, drawn_weights, written

import interventions as iv
from interventions.errors import LoadError, PatchError

WIDTH = 48


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalised", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("centred", [True, False])
def test_numbers_are_those_of_the_reference(
    architecture: str, normalised: str, centred: bool, tmp_path: Path
) -> None:
    raw_settings: dict[str, Any] = {"normalize_activations": normalised}
    if "transcoder" not in architecture:
        raw_settings["apply_b_dec_to_input"] = centred
    weights = drawn_weights(architecture, WIDTH, 24, WIDTH)
    metadata = {"hook_name": "blocks.1.mlp.hook_in"} if "transcoder" in architecture else {}
    written(
        tmp_path / "sae", architecture, WIDTH, weights=weights, metadata=metadata, **raw_settings
    )
    sae, raw = iv.load_sae(tmp_path / "sae"), Raw(architecture, weights, **raw_settings)
    hidden, features = 3 * noise((5, WIDTH)) + 1, [2, 11]
    assert relative(sae.encode(hidden), raw.encode(hidden)) < FLOOR32
    skip = hidden @ weights["W_skip"].T if "W_skip" in weights else 0
    assert relative(sae.reconstruct(hidden), raw.decode(raw.encode(hidden)) + skip) < FLOOR32

    def edit(acts: torch.Tensor) -> torch.Tensor:
        acts[:, features] += 2.0
        return acts

    moved = sae.features(features).moved(hidden, torch.full((5, 2), 2.0))
    assert relative(hidden + moved, raw.edited(hidden, hidden, edit)) < FLOOR32


def test_topk_by_lengths_of_the_decoder(tmp_path: Path) -> None:
    weights = drawn_weights("topk", WIDTH, 24, WIDTH)
    weights["W_dec"] *= torch.linspace(0.2, 3, 24)[:, None]
    settings = {"k": 3, "rescale_acts_by_decoder_norm": True}
    written(tmp_path / "sae", "topk", WIDTH, weights=weights, **settings)
    sae, raw = iv.load_sae(tmp_path / "sae"), Raw("topk", weights, **settings)
    hidden = noise((6, WIDTH))
    assert relative(sae.encode(hidden), raw.encode(hidden)) < FLOOR32
    assert relative(sae.reconstruct(hidden), raw.decode(raw.encode(hidden))) < FLOOR32
    assert int((sae.encode(hidden) > 0).sum(-1).max()) <= 3
    features = sae.features([7])
    assert torch.equal(features.coordinates(hidden), sae.encode(hidden)[:, [7]])


def test_configurations_from_before_sae_lens_6(tmp_path: Path) -> None:
    folder = written(tmp_path / "sae", "standard", WIDTH)
    config = {
        "d_in": WIDTH,
        "d_sae": 24,
        "dtype": "torch.float32",
        "hook_point": "blocks.2.hook_mlp_out",
        "hook_point_head_index": None,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5},
        "normalize_activations": False,
        "finetuning_scaling_factor": False,
        "apply_b_dec_to_input": False,
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    sae = iv.load_sae(folder)
    assert (sae.component, sae.layer, sae.activation, sae.k) == ("mlp_out", 2, "topk", 5)
    assert not sae.centred


@pytest.mark.parametrize(
    ("hook", "component"),
    [
        ("hook_resid_pre", "resid_pre"),
        ("hook_resid_mid", "resid_mid"),
        ("hook_resid_post", "resid_post"),
        ("hook_attn_out", "attn_out"),
        ("hook_mlp_out", "mlp_out"),
        ("attn.hook_z", "head_out"),
        ("mlp.hook_post", "mlp_post"),
    ],
)
def test_names_of_hooks(hook: str, component: str, tmp_path: Path) -> None:
    sae = iv.load_sae(written(tmp_path / "sae", "standard", 8, hook_name=f"blocks.13.{hook}"))
    assert (sae.component, sae.layer) == (component, 13)
    chosen = iv.load_sae(tmp_path / "sae", component="resid_post", layer=2)
    assert (chosen.component, chosen.layer) == ("resid_post", 2)


def test_what_attention_puts_together_of_its_heads(tmp_path: Path) -> None:
    case = case_of("llama")
    width = case.model.anatomy.n_heads * case.model.anatomy.head_dim
    weights = drawn_weights("standard", width, 24, width)
    written(tmp_path / "z", "standard", width, hook_name="blocks.1.attn.hook_z", weights=weights)
    sae, raw = iv.load_sae(tmp_path / "z"), Raw("standard", weights)
    rows, at = torch.arange(2), case.place.index[:, 0]

    def change(hidden: torch.Tensor) -> torch.Tensor:
        changed, old = hidden.clone(), hidden[rows, at]
        changed[rows, at] = raw.edited(old, old, lambda acts: acts * 0.0)
        return changed

    expected, _ = raw_run(case, edits=[("head_out", 1, change)])
    patch = sae.patch(slice(None), case.place, 0.0, "scale")
    logits = iv.run(case.model, case.prompt, patches=[patch]).logits
    assert logits is not None
    assert relative(logits, expected[:, -1]) < FLOOR32
    assert iv.feature_acts(case.model, case.prompt, sae, case.place).shape == (2, 24)


def test_a_factor_that_is_not_in_the_files_is_asked_for(tmp_path: Path) -> None:
    weights = drawn_weights("standard", WIDTH, 24, WIDTH)
    folder = written(
        tmp_path / "sae",
        "standard",
        WIDTH,
        weights=weights,
        normalize_activations="expected_average_only_in",
    )
    with pytest.raises(LoadError, match="give norm_scaling_factor="):
        iv.load_sae(folder)
    sae = iv.load_sae(folder, norm_scaling_factor=0.5)
    hidden = noise((4, WIDTH))
    raw = Raw("standard", weights)
    assert relative(sae.encode(hidden), raw.encode(hidden * 0.5)) < FLOOR32
    assert relative(sae.reconstruct(hidden), raw.decode(raw.encode(hidden * 0.5)) / 0.5) < FLOOR32


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"architecture": "matryoshka_batchtopk"}, "is not known here. Known: standard, gated"),
        ({"architecture": None}, "architecture None"),
        ({"activation_fn": "tanh-relu"}, "activation function 'tanh-relu'"),
        ({"normalize_activations": "other"}, "normalize_activations='other'"),
        ({"reshape_activations": "hook_q"}, "reshape_activations='hook_q'"),
        ({"metadata": {"hook_head_index": 3}}, "of head 3 alone"),
        ({"metadata": {"hook_name": "blocks.1.ln2.hook_normalized"}}, "norm's weight"),
        ({"metadata": {"hook_name": "hook_embed"}}, "not known here. Say component="),
        ({"metadata": {"hook_name": None}}, "no hook_name. Say component="),
        ({"metadata": {"hook_name": "blocks.1.mlp.hook_pre"}}, "not known here. Say component="),
        ({"d_in": 12}, r"cfg.json says .24, 12."),
        ({"d_in": None}, "d_in of"),
        ({"architecture": "topk", "k": 99}, r"k of .* is 99"),
        ({"dtype": "int4"}, "dtype of"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input='false'. Expected true or"),
    ],
)
def test_what_is_not_known_is_refused(settings: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "sae", "standard", WIDTH, **settings)
    with pytest.raises(LoadError, match=match):
        iv.load_sae(folder)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"norm_scaling_factor": 2.0}, "takes no norm_scaling_factor"),
        ({"source": "mlp_in"}, "is no transcoder"),
        ({"component": "mlp_pre"}, "only read"),
        ({"layer": -1}, "layer is -1"),
    ],
)
def test_what_does_not_go_together_is_refused(
    asked: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = written(tmp_path / "sae", "standard", WIDTH)
    with pytest.raises(LoadError, match=match):
        iv.load_sae(folder, **asked)


def test_transcoders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", "transcoder", WIDTH, hook_name="blocks.0.mlp.hook_in")
    with pytest.raises(LoadError, match=r"blocks \[0, 1\]. Transcoders across blocks"):
        iv.load_sae(folder)
    with pytest.raises(LoadError, match="computes one before the other"):
        iv.load_sae(folder, source="resid_post", layer=1)
    folder = written(tmp_path / "b", "transcoder", WIDTH, apply_b_dec_to_input=True)
    with pytest.raises(LoadError, match="its b_dec is of what it writes"):
        iv.load_sae(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"b_dec_out": torch.zeros(WIDTH)}, "Expected .'W_dec', 'W_enc', 'b_dec', 'b_enc'."),
        ({"scaling_factor": torch.full((24,), 2.0)}, "scaling_factor that is not 1"),
        ({"b_enc": torch.full((24,), float("nan"))}, "b_enc of .* holds NaN"),
        ({"b_enc": torch.zeros(24, dtype=torch.long)}, "in floating point"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, torch.Tensor], match: str, tmp_path: Path
) -> None:
    weights = {**drawn_weights("standard", WIDTH, 24, WIDTH), **change}
    with pytest.raises(LoadError, match=match):
        iv.load_sae(written(tmp_path / "sae", "standard", WIDTH, weights=weights))
    weights = {**drawn_weights("standard", WIDTH, 24, WIDTH), "scaling_factor": torch.ones(24)}
    iv.load_sae(written(tmp_path / "sae", "standard", WIDTH, weights=weights))


def test_weights_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    weights = drawn_weights("standard", WIDTH, 24, WIDTH)
    weights["b_dec"] += 1e5
    folder = written(tmp_path / "sae", "standard", WIDTH, weights=weights, dtype="float16")
    with pytest.raises(LoadError, match=r"b_dec of .* reaches 1e\+05, which .* float16, cannot"):
        iv.load_sae(folder)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    folder = written(tmp_path / "sae", "standard", WIDTH)
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(pickle.dumps({"W_enc": 1}))
    with pytest.raises(LoadError, match="Expected a safetensors file"):
        iv.load_sae(folder)
    weights.rename(folder / "sae_weights.pt")
    with pytest.raises(LoadError, match=r"Pickled weights .* are never opened"):
        iv.load_sae(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(LoadError, match="Expected an object"):
        iv.load_sae(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(LoadError, match="cannot be read"):
        iv.load_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(LoadError, match=r"has no cfg\.json"):
        iv.load_sae(folder)


def test_a_dictionary_of_another_model_is_refused(tmp_path: Path) -> None:
    case = case_of("llama")
    sae = iv.load_sae(written(tmp_path / "sae", "standard", 32))
    with pytest.raises(PatchError, match="is 48 wide"):
        iv.run(case.model, case.prompt, patches=[sae.patch([0], case.place, 0.0)])
    with pytest.raises(PatchError, match=r"width 32, but resid_post .* is 48 wide"):
        iv.feature_acts(case.model, case.prompt, sae, case.place)
    with pytest.raises(PatchError, match="name one twice"):
        sae.features([1, 1])
    with pytest.raises(PatchError, match="is no dictionary"):
        iv.feature_acts(case.model, case.prompt, case.model, case.place)  # type: ignore[arg-type]
