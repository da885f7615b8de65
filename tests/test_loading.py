"""What loads, and what is refused with a reason."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import interventions as iv
from interventions.alignment import layer_map
from interventions.anatomy import find_anatomy
from interventions.errors import AlignmentError, LoadError
from interventions.lens import lens
from interventions.probing import fit_probe
from twohop.micro.folders import micro_folder


def test_a_folder_and_a_ready_module_give_the_same_model(llm: iv.Model, named: iv.Prompt) -> None:
    again = iv.load(llm.module, tokenizer=llm.tokenizer)
    one, other = iv.run(llm, named).logits, iv.run(again, named).logits
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


def test_the_anatomy_of_both_kinds(llm: iv.Model, vlm: iv.Model) -> None:
    assert not llm.anatomy.is_vlm
    assert vlm.anatomy.is_vlm
    for model in (llm, vlm):
        assert (model.n_layers, model.d_model, model.anatomy.n_heads) == (8, 64, 4)
        for path in (model.anatomy.blocks, model.anatomy.head, model.anatomy.final_norm):
            model.module.get_submodule(path)
    assert vlm.anatomy.vision_tower is not None
    assert vlm.anatomy.projector is not None
    assert "VLM, 8 layers x 64" in repr(vlm)


def test_what_cannot_be_loaded_says_why(llm: iv.Model, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="Expected a Hugging Face repo id, or a folder"):
        iv.load(tmp_path)
    with pytest.raises(LoadError, match="Pass processor= for a VLM, tokenizer= for a language"):
        iv.load(llm.module)
    with pytest.raises(LoadError, match="no list of decoder blocks"):
        find_anatomy(torch.nn.Linear(2, 2))


def test_other_architectures_are_refused_with_the_reason() -> None:
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
    )

    with torch.device("meta"):
        gemma = Gemma2ForCausalLM(Gemma2Config(num_hidden_layers=1, vocab_size=32))
        qwen = Qwen2VLForConditionalGeneration(Qwen2VLConfig())
    with pytest.raises(LoadError, match="not of Llama's build"):
        find_anatomy(gemma)
    with pytest.raises(LoadError, match="type 'qwen2_vl' are not supported yet, only llava"):
        find_anatomy(qwen)


def test_a_half_loaded_model_is_refused(tmp_path: Path) -> None:
    source = micro_folder("micro-backbone")
    for file in source.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    dropped = next(name for name in weights if "mlp.down_proj" in name)
    kept = {name: value for name, value in weights.items() if name != dropped}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    with pytest.raises(LoadError, match="half-loaded"):
        iv.load(tmp_path)


def test_layers_map_only_between_models_of_one_shape(llm: iv.Model, vlm: iv.Model) -> None:
    assert layer_map(vlm, llm) == list(range(8))
    config: Any = copy.deepcopy(llm.module.config)
    config.num_hidden_layers = 3
    shallow = iv.load(LlamaForCausalLM(config), tokenizer=llm.tokenizer)
    with pytest.raises(AlignmentError, match=r"8 layers x 64.* 3 x 64"):
        layer_map(vlm, shallow)


def test_the_lens_at_the_last_layer_is_the_model(llm: iv.Model, named: iv.Prompt) -> None:
    found = iv.run(llm, named, reads=[iv.Site("resid_post", [7], named.at("last"))])
    assert found.logits is not None
    tokens = found.logits.argmax(-1, keepdim=True)
    logprob, rank = lens(llm, found.reads[0], tokens)
    expected = found.logits.log_softmax(-1).gather(-1, tokens)
    assert torch.allclose(logprob[0], expected, atol=1e-5)
    assert (rank == 0).all()


def test_probes_agree_with_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat(8)
    hidden = torch.randn(3, 40, 16, generator=generator) + labels[None, :, None] * 0.3
    probe = fit_probe(hidden, labels, n_classes=5, ridge=1e-2)
    onehot = torch.nn.functional.one_hot(labels, 5).double()
    for layer, rows in enumerate(hidden.double()):
        x = (rows - rows.mean(0)) / rows.std(0, correction=0)
        alpha = 1e-2 * float((x @ x.T).diagonal().mean())
        theirs = Ridge(alpha=alpha, fit_intercept=False).fit(x.numpy(), (onehot - 0.2).numpy())
        scores = torch.from_numpy(theirs.predict(x.numpy())) + 0.2
        assert torch.allclose(probe.scores(hidden)[layer], scores, atol=1e-8)


def test_a_probe_of_equal_rows_is_a_tie_not_a_crash() -> None:
    probe = fit_probe(torch.ones(1, 6, 4), torch.arange(3).repeat(2), n_classes=3)
    assert torch.allclose(probe.scores(torch.ones(1, 1, 4)), torch.full((1, 1, 3), 1 / 3).double())
