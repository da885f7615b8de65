"""Folders that hold no model, or a broken one: ``load`` and ``doctor`` say what, and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import interventions as iv
from interventions.architectures.doctor import examine
from interventions.cli import main
from interventions.errors import LoadError

Spoil = Callable[[Path], Any]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("whole") / "llama")


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(raw)


def only(*kept: str, **files: Any) -> Spoil:
    """Keep some files, and add others (a double underscore is a dot)."""

    def spoil(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()
        for name, content in files.items():
            write(folder, name.replace("__", "."), content)

    return spoil


def also(name: str, content: Any) -> Spoil:
    return lambda folder: write(folder, name, content)


def changed(**entries: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        write(folder, "config.json", config | entries)

    return spoil


def quantised(**settings: Any) -> Spoil:
    return changed(quantization_config=settings)


def in_pieces(folder: Path, *, index: bool = True, lose: bool = True) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:9]}
    parts["model-00002-of-00002.safetensors"] = names[9:]
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, folder / file, metadata={"format": "pt"})
    if index:
        where = {name: file for file, some in parts.items() for name in some}
        write(folder, "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    (folder / "model.safetensors").unlink()
    if lose:
        (folder / "model-00002-of-00002.safetensors").unlink()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def respelt(**change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    """Weights of one layer changed by name, and others added beside them."""

    def spoil(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        layer = "model.layers.0.mlp.down_proj"
        weight = weights[f"{layer}.weight"]
        made = {f"{layer}.{name}": act(weight.clone()).clone() for name, act in change.items()}
        save_file(weights | made, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def pickled(folder: Path, *, keep: float = 1.0) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: int(len(whole) * keep)])


def listed(content: Any) -> Spoil:
    """In pieces, with another list of them."""
    return lambda folder: (
        in_pieces(folder, lose=False),
        write(folder, "model.safetensors.index.json", content),
    )


REST = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
NO_CONFIG = ("tokenizer.json", "tokenizer_config.json")

REFUSED: dict[str, tuple[Spoil, str]] = {
    "adapter": (
        only(adapter_config__json=ADAPTER, adapter_model__safetensors=b"x"),
        r"an adapter \(LORA\) of 'org/base'.*pip install peft.*PeftModel\.from_pretrained",
    ),
    "adapter with a tokenizer": (only(*NO_CONFIG, adapter_config__json=ADAPTER), "an adapter"),
    "adapter with a config": (
        only(*REST, adapter_config__json=ADAPTER, adapter_model__safetensors=b"x"),
        "an adapter .* not a model of its own",
    ),
    "adapter beside a model": (also("adapter_config.json", ADAPTER), "beside it: which is it"),
    "adapter that says nothing": (only(adapter_config__json={}), r"an adapter \(PEFT\)"),
    "gptq": (
        quantised(quant_method="gptq", bits=4, group_size=128),
        r"quantised \(gptq 4 bit\).*pip install optimum gptqmodel",
    ),
    "awq": (
        quantised(quant_method="awq", bits=4, group_size=128),
        r"quantised \(awq 4 bit\).*pip install gptqmodel",
    ),
    "compressed-tensors": (
        quantised(quant_method="compressed-tensors", config_groups={}),
        r"quantised \(compressed-tensors\).*pip install compressed-tensors",
    ),
    "hqq": (quantised(quant_method="hqq", quant_config={}), r"\(hqq\).*pip install hqq"),
    "torchao": (
        quantised(
            quant_method="torchao",
            quant_type={"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}},
        ),
        r"\(torchao\).*pip install torchao",
    ),
    "quanto": (quantised(quant_method="quanto", weights="int8"), "pip install optimum-quanto"),
    "aqlm": (quantised(quant_method="aqlm"), r"pip install aqlm"),
    "fbgemm": (quantised(quant_method="fbgemm_fp8"), r"fbgemm_fp8.*requires a GPU"),
    "exl2": (quantised(quant_method="exl2", bits=4.0), r"exl2.*transformers does not open"),
    "modelopt": (quantised(quant_method="modelopt"), r"modelopt.*transformers does not open"),
    "quantised without a method": (quantised(bits=4), "unknown .*transformers does not open"),
    "gguf": (only(model__gguf=b"GGUF"), r"llama\.cpp \(GGUF\).*gguf_file"),
    "gguf with a config": (only(*REST, model__gguf=b"GGUF"), r"GGUF"),
    "onnx": (only(*REST, model__onnx=b"x"), "ONNX export"),
    "tensorflow": (only(*REST, tf_model__h5=b"x"), "TensorFlow weights"),
    "flax": (only(*REST, flax_model__msgpack=b"x"), "Flax weights"),
    "mistral's own": (
        only(params__json={"dim": 8}, consolidated__safetensors=b"x"),
        "in its makers' own layout",
    ),
    "meta's own": (only(params__json={}, consolidated__00__pth=b"x"), "in their makers' own"),
    "megatron": (
        lambda folder: (only()(folder), write(folder, "mp_rank_00/model_states.pt", b"x")),
        "Megatron or DeepSpeed",
    ),
    "diffusers": (only(model_index__json={}), "diffusers pipeline"),
    "sentence-transformers": (
        only("config.json", "model.safetensors", config_sentence_transformers__json={}),
        "gives vectors and no text",
    ),
    "a trainer's folder": (
        lambda folder: (only()(folder), write(folder, "checkpoint-5/config.json", {})),
        "'checkpoint-5' inside it has one",
    ),
    "a classifier": (
        changed(architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification, whose head does not write",
    ),
    "pointer to weights": (also("model.safetensors", POINTER), r"model\.safetensors is a pointer"),
    "pointer to a tokenizer": (also("tokenizer.json", POINTER), r"tokenizer\.json .*git lfs pull"),
    "pointer to a config": (also("config.json", POINTER), r"config\.json is a pointer"),
    "a lost piece": (in_pieces, "1 of its 2 files of weights are missing, such as 'model-00002"),
    "a lost index": (lambda f: in_pieces(f, index=False, lose=False), r"not the index\.json"),
    "cut short": (cut, r"model\.safetensors has \d+ bytes of \d+.*Download it again"),
    "no weights in the file": (also("model.safetensors", b"12"), "is no file of weights"),
    "an empty file": (also("model.safetensors", b""), "is no file of weights"),
    "int8 and not a word of it": (
        respelt(weight=lambda one: (one * 100).to(torch.int8), SCB=lambda one: one[:, 0]),
        r"down_proj\.weight in model\.safetensors is of type I8.*no quantization_config",
    ),
    "float8 and not a word of it": (
        respelt(weight=lambda one: one.to(torch.float8_e4m3fn)),
        r"is of type F8_E4M3.*without their scales",
    ),
    "a list that is none": (listed([]), r"does not say which weight is in which file"),
    "a list without files": (listed({"weight_map": []}), r"does not say which weight"),
    "half a list": (listed(b'{"weight_map": {"a'), r"does not say which weight"),
    "another name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "weights.safetensors"),
        r"'weights\.safetensors', a name under which transformers does not look",
    ),
    "a pickle cut short": (
        lambda folder: pickled(folder, keep=0.8),
        r"pytorch_model\.bin is no file of weights",
    ),
    "a page of HTML": (also("model.safetensors", b"<!DOCTYPE html>" * 9), "is no file of weights"),
    "a pickle that is none": (
        only(*REST, pytorch_model__bin=b"<html>"),
        r"pytorch_model\.bin is no file of weights",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_load_and_doctor_say_the_same(
    what: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, reason = REFUSED[what]
    folder = tmp_path / "it"
    shutil.copytree(whole, folder)
    spoil(folder)
    with pytest.raises(LoadError, match=f"(?s){reason}") as loading:
        iv.load(folder)
    with pytest.raises(LoadError) as examining:
        examine(folder)
    assert str(loading.value) == str(examining.value)
    assert main(["doctor", str(folder)]) == 2
    assert str(folder) in capsys.readouterr().err


ACCEPTED: dict[str, Spoil] = {
    "in pieces": lambda folder: in_pieces(folder, lose=False),
    "pickled": pickled,
    "what another model beside it has": respelt(**{"adapter.weight": lambda one: one[0]}),
    "exports beside it": also("model.onnx", b"x"),
    "gguf beside it": also("model-q4.gguf", b"GGUF"),
    "its makers' layout beside it": also("consolidated.safetensors", b"x"),
    "a trainer's leavings": also("training_args.bin", b"x"),
    "an index of pickles that were not downloaded": also(
        "pytorch_model.bin.index.json", {"weight_map": {"a": "pytorch_model-1-of-1.bin"}}
    ),
    "its own checkpoints": also("checkpoint-5/config.json", {}),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_lies_beside_a_model_does_not_matter(what: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    shutil.copytree(whole, folder)
    ACCEPTED[what](folder)
    loaded = iv.load(folder)
    assert loaded.n_layers == examine(folder).sizes["n_layers"]
    assert torch.equal(loaded.module.lm_head.weight, iv.load(whole).module.lm_head.weight)


LEFT_OUT: dict[str, tuple[Spoil, str]] = {
    "a bias": (respelt(bias=lambda one: one[:, 0]), r"a 'bias' of .*down_proj \(Linear\)"),
    "a scale of a pickle": (
        lambda folder: (respelt(weight_scale=lambda one: one[:1])(folder), pickled(folder)),
        r"a 'weight_scale' of",
    ),
    "blocks": (changed(num_hidden_layers=2), r"weights of model\.layers\.2, .* there are 2 of"),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_no_part_of_the_checkpoint_is_left_out(what: str, whole: Path, tmp_path: Path) -> None:
    spoil, reason = LEFT_OUT[what]
    folder = tmp_path / "it"
    shutil.copytree(whole, folder)
    spoil(folder)
    with pytest.raises(LoadError, match=reason):
        iv.load(folder)


def in_float8(folder: Path, *, scales: bool) -> None:
    quantised(quant_method="fp8", weight_block_size=[128, 128])(folder)
    made = {"weight": lambda one: one.to(torch.float8_e4m3fn)}
    if scales:
        made["weight_scale_inv"] = lambda one: torch.ones_like(one[:1, :1], dtype=torch.float32)
    respelt(**made)(folder)


def test_packed_weights_without_their_scales_are_half_loaded(whole: Path, tmp_path: Path) -> None:
    for scales in (True, False):
        folder = tmp_path / str(scales)
        shutil.copytree(whole, folder)
        in_float8(folder, scales=scales)
    layer = iv.load(tmp_path / "True").module.model.layers[0].mlp.down_proj
    expected = iv.load(whole).module.model.layers[0].mlp.down_proj.weight.to(torch.float8_e4m3fn)
    assert torch.equal(layer.weight, expected.float())
    with pytest.raises(LoadError, match=r"half-loaded model: its packed weights"):
        iv.load(tmp_path / "False")


def test_a_folder_in_the_place_of_weights(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    shutil.copytree(whole, folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(LoadError, match="a config, and no weights"):
        iv.load(folder)


def test_sizes_that_cannot_be_are_no_crash(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    shutil.copytree(whole, folder)
    changed(vocab_size=1, pad_token_id=2)(folder)
    for act in (iv.load, examine):
        with pytest.raises(LoadError, match="must be within num_embeddings"):
            act(folder)


def test_weights_that_are_not_there(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    shutil.copytree(whole, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"a config, and no weights.*doctor"):
        iv.load(folder)
    assert examine(folder).sizes["n_layers"] == 4  # which needs none


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_noticed(share: float, whole: Path) -> None:
    folder = whole.parent / "cut"
    if not folder.exists():
        shutil.copytree(whole, folder)
    raw = (whole / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: int(share * len(raw))])
    for act in (iv.load, examine):
        with pytest.raises(LoadError, match=r"is not complete: model\.safetensors"):
            act(folder)


@pytest.mark.parametrize("act", [iv.load, examine])
def test_what_is_no_place(act: Callable[[Any], Any], whole: Path, llm: iv.Model) -> None:
    with pytest.raises(LoadError, match=r"is a file\. Give the folder"):
        act(whole / "config.json")
    for absent in (whole / "absent", str(whole / "absent"), "./absent", "~/absent/folder"):
        with pytest.raises(LoadError, match="there is no such folder"):
            act(absent)
    for thing in (3, None, llm):
        with pytest.raises(LoadError, match=r"cannot be loaded\. Give a Hugging Face"):
            act(thing)
