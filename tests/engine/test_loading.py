"""What loads, and what is refused with a reason."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import case_of, model_of
from micro import micro_folder
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import interventions as iv
from interventions.architectures.anatomy_finding import find_anatomy
from interventions.errors import AlignmentError, LoadError, PromptError
from interventions.model.pairing import layer_map
from interventions.model.sites import COMPONENTS
from interventions.probing.ridge import fit_probe
from interventions.running.lens import lens


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
    with pytest.raises(LoadError, match="Linear is not a transformers model"):
        find_anatomy(torch.nn.Linear(2, 2))
    with pytest.raises(LoadError, match="device and device_map were both given"):
        iv.load(micro_folder("micro-backbone"), device="cpu", device_map="auto")
    with pytest.raises(LoadError, match="a ready module runs here"):
        iv.load(llm.module, tokenizer=llm.tokenizer, remote=True)


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


def same_logits(one: iv.Model, other: iv.Model) -> None:
    """Whole forward passes agree bit for bit on a text (and a picture)."""
    text, pictures = "what is it", None
    if one.anatomy.is_vlm:
        text, pictures = f"{one.image_token}what is it", tiny.picture((40, 30))
    logits = []
    for model in (one, other):
        prompt = model.prompt(text, images=pictures)
        with model.trace(prompt):
            logits.append(model.logits[:].save())
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_folder_of_every_family_is_its_module(name: str, tmp_path: Path) -> None:
    folder = tiny.save(name, tmp_path / name)
    settings: dict[str, Any] = {}
    if name == "llama4":
        with pytest.raises(LoadError, match=r"Llama 4 needs torchvision.* pass a processor="):
            iv.load(folder)
        settings["processor"] = tiny.open_processor(folder)
    model = iv.load(folder, attn_implementation="eager", **settings)
    assert model.name == name
    assert not model.module.training
    same_logits(model, model_of(name))


def _layers(model: iv.Model, place: str) -> dict[str, str]:
    """A device map that puts every other block at ``place``, and all else on the CPU."""
    where: dict[str, str] = {}

    def walk(module: Any, path: str) -> None:
        if path and not model.anatomy.blocks.startswith(path):
            where[path] = "cpu"
            return
        for key, child in module.named_children():
            if path == model.anatomy.blocks:
                where[f"{path}.{key}"] = place if int(key) % 2 else "cpu"
            else:
                walk(child, f"{path}.{key}".removeprefix("."))

    walk(model.module, "")
    return where


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_devices_and_formats(name: str, tmp_path: Path) -> None:
    folder = tiny.save(name, tmp_path / name)
    plain = model_of(name)
    ways: list[dict[str, Any]] = [{"device_map": {"": "cpu"}}, {"device_map": "auto"}]
    for where in [*ways, {"device": "cpu"}]:
        model = iv.load(folder, attn_implementation="eager", **where)
        assert {value.device.type for value in model.module.parameters()} == {"cpu"}
        same_logits(model, plain)
    model = iv.load(folder, dtype=torch.float64, attn_implementation="sdpa")
    assert (model.dtype, model.module.config._attn_implementation) == (torch.float64, "sdpa")
    same_logits(model, model_of(name, torch.float64, "sdpa"))
    assert iv.load(folder, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "llava"])
@pytest.mark.parametrize("where", [{"device": "cpu"}, {"device_map": {"": "cpu"}}, {}])
def test_a_model_stays_where_it_is_on_a_machine_with_a_gpu(
    name: str, where: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline of transformers that nnsight makes would move it to the first GPU."""
    monkeypatch.setattr("transformers.pipelines.base.is_torch_cuda_available", lambda: True)
    model = iv.load(tiny.save(name, tmp_path / name), attn_implementation="eager", **where)
    same_logits(model, model_of(name))
    module, processor = tiny.build(name)
    kind = "processor" if name == "llava" else "tokenizer"
    assert iv.load(module, **{kind: processor}).device.type == "cpu"


@pytest.mark.parametrize("where", [{"device": "cpu"}, {"device_map": {"": "cpu"}}])
def test_a_cpu_has_float32_on_a_machine_with_a_gpu(
    where: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save_model(*tiny.build("llama", dtype=torch.bfloat16), tmp_path / "llama")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert iv.load(folder, **where).dtype == torch.float32
    assert iv.load(folder, dtype="auto", **where).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_offloaded_weights_change_nothing(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    folder = tiny.save(name, tmp_path / name)
    away = iv.load(folder, attn_implementation="eager", device_map=_layers(case.model, "disk"))
    assert {value.device.type for value in away.module.parameters()} == {"cpu", "meta"}
    sites = [iv.Site(one, slice(0, away.n_layers)) for one in COMPONENTS]
    ours, theirs = (iv.read(model, case.prompt, sites) for model in (away, case.model))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    anatomy = case.model.anatomy
    ends = dict.fromkeys((anatomy.final_norm, anatomy.head), "disk")
    whole = _layers(case.model, "disk") | ends
    last = iv.load(folder, attn_implementation="eager", device_map=whole)
    assert torch.equal(last.unembed(ours[-1][-1]), case.model.unembed(theirs[-1][-1]))
    logits = []
    for model in (away, case.model):
        with model.trace(case.prompt):  # blocks 1 and 3 are the ones on disk
            model.resid_pre[1, case.place] = 0.0
            model.mlp_out[1, case.place] *= 0.5
            model.head_out[3, case.place, 1] = 1.0
            logits.append(model.logits[:].save())
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", ["llava", "mistral3", "gemma3", "qwen2_5_vl", "internvl"])
def test_a_processor_of_another_model_is_refused(name: str) -> None:
    module, _ = tiny.build(name)
    other = "gemma3" if name != "gemma3" else "llava"
    _, processor = tiny.build(other)
    with pytest.raises(LoadError, match=r"does not belong to .* Pass the processor= of this"):
        iv.load(module, processor=processor)


def _halved(processor: Any) -> None:
    processor.patch_size //= 2


def _unmerged(processor: Any) -> None:
    processor.image_processor.merge_size = 1


@pytest.mark.parametrize(("name", "spoil"), [("llava", _halved), ("qwen2_5_vl", _unmerged)])
def test_another_number_of_image_tokens_is_noticed_before_a_forward(name: str, spoil: Any) -> None:
    module, processor = tiny.build(name)
    spoil(processor)
    model = iv.load(module, processor=processor)
    with pytest.raises(PromptError, match=r"image tokens, but the model will make"):
        model.prompt(f"{model.image_token}what is it", images=tiny.picture((40, 30)))


def test_layers_map_only_between_models_of_one_shape(llm: iv.Model, vlm: iv.Model) -> None:
    assert layer_map(vlm, llm) == list(range(8))
    config: Any = copy.deepcopy(llm.module.config)
    config.num_hidden_layers = 3
    shallow = iv.load(LlamaForCausalLM(config), tokenizer=llm.tokenizer)
    with pytest.raises(AlignmentError, match=r"8 layers x 64.* has 3 layers x 64"):
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
