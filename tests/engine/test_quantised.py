"""Quantised weights, by bitsandbytes on a CPU: sizes, and numbers that do not hang on the batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from families import case_of
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

import interventions as iv
from interventions.architectures.abilities import abilities
from interventions.architectures.doctor import examine, report
from interventions.architectures.quantisation import (
    dependent_rows,
    described,
    keep_packed,
    quantisation_of,
)
from interventions.errors import LoadError, SiteError
from interventions.model.sites import RESIDUAL
from interventions.running.greedy import greedy
from interventions.sweeping.metrics import target

FORMATS: dict[str, tuple[dict[str, Any], str]] = {
    "int8": ({"load_in_8bit": True}, "bitsandbytes int8"),
    "nf4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes nf4"),
    "fp4": ({"load_in_4bit": True}, "bitsandbytes fp4"),
    "doubly": ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, "bitsandbytes fp4"),
    "head too": ({"load_in_4bit": True, "llm_int8_skip_modules": []}, "bitsandbytes fp4"),
    "head too, int8": ({"load_in_8bit": True, "llm_int8_skip_modules": []}, "bitsandbytes int8"),
}
TEXTS = (
    "The capital of France is",
    "Who was the first mayor of the big town in the north of the country?",
    "Paris is",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    for name in ("llama", "qwen3", "llava"):
        tiny.save(name, root / name)
    return root


def quantised(folders: Path, name: str, how: str) -> iv.Model:
    auto = AutoModelForImageTextToText if name == "llava" else AutoModelForCausalLM
    module = auto.from_pretrained(
        folders / name,
        quantization_config=BitsAndBytesConfig(**FORMATS[how][0]),
        device_map="cpu",
        dtype=torch.float32,
    )
    plain = case_of(name).model
    if name == "llava":
        return iv.load(module, processor=plain.processor)
    return iv.load(module, tokenizer=plain.tokenizer)


@pytest.fixture(scope="module")
def int8(folders: Path) -> iv.Model:
    return quantised(folders, "llama", "int8")


def prompt_of(model: iv.Model, texts: Any = TEXTS) -> iv.Prompt:
    return model.prompt(list(texts), spans={"it": [(0, 5)] * len(texts)})


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "llava"])
def test_sizes_are_those_of_the_whole_model(folders: Path, name: str, how: str) -> None:
    model, plain = quantised(folders, name, how), case_of(name).model
    for size in ("head_dim", "n_heads", "n_kv_heads", "d_model", "vocab", "n_layers"):
        assert getattr(model.anatomy, size) == getattr(plain.anatomy, size), size
    assert model.anatomy.parts == plain.anatomy.parts
    assert model.dtype == torch.float32
    assert quantisation_of(model.module) == FORMATS[how][1]
    ours, theirs = (report(one.module, source=name) for one in (model, plain))
    assert ours.sizes == theirs.sizes
    assert [one.weight for one in ours.parts] == [one.weight for one in theirs.parts]


@pytest.mark.parametrize("how", FORMATS)
def test_streams_and_head_are_right(folders: Path, how: str) -> None:
    model = quantised(folders, "llama", how)
    prompt = prompt_of(model, TEXTS[:1])
    sites = [iv.Site(one, slice(0, model.n_layers)) for one in RESIDUAL]
    before, attn, mlp, after = iv.read(model, prompt, sites)
    assert torch.allclose(before + attn + mlp, after, atol=1e-4)
    seen = []
    projection = model.module.model.layers[1].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        logits = model.module(**prompt.inputs).logits
    handle.remove()
    (heads,) = iv.read(model, prompt, [iv.Site("head_out", 1)])
    assert heads.shape[-2:] == (model.anatomy.n_heads, model.anatomy.head_dim)
    assert torch.equal(heads.flatten(2), seen[0])
    with torch.no_grad():
        unembedded = model.unembed(after[-1])
    assert torch.allclose(unembedded, logits, atol=1e-4 * float(logits.abs().max()))


def test_only_a_format_that_rounds_over_the_pass_makes_rows_dependent(folders: Path) -> None:
    for how in ("int8", "nf4"):
        model = quantised(folders, "llama", how)
        prompt = prompt_of(model)
        together = iv.run(model, prompt).logits
        alone = [iv.run(model, prompt.select([row]).trimmed()[0]).logits for row in range(3)]
        assert together is not None
        error = max(
            float((together[row] - one[0]).abs().max())
            for row, one in enumerate(alone)
            if one is not None
        )
        assert (error > 1e-3) == (model.anatomy.dependent_rows is not None), error


def test_int8_without_outliers_keeps_rows_apart(folders: Path) -> None:
    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    module = AutoModelForCausalLM.from_pretrained(
        folders / "llama", quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    assert dependent_rows(module) is None


@pytest.mark.parametrize("foils", [None, " big town"])
def test_a_sweep_is_one_cell_a_pass(int8: iv.Model, foils: str | None) -> None:
    prompt = prompt_of(int8)
    answer = "e" if foils is None else " the north"
    other = prompt_of(int8, TEXTS[::-1])
    found = iv.sweep(
        int8,
        prompt,
        other,
        answers=answer,
        foils=foils,
        metrics=["kl", "rank", "changed"],
        components=["resid_post", "mlp_out"],
        roles=["it"],
        each=False,
        progress=False,
    )
    assert found.attrs["path"] == "plain"
    assert "bitsandbytes int8" in found.attrs["path_reason"]
    assert "one cell a pass" in found.attrs["path_reason"]
    for row in range(len(prompt)):
        one, donor = (p.select([row]).trimmed()[0] for p in (prompt, other))
        place = one.at("it")
        at = one.at("last")
        chosen = target(int8, one, answer, foils)
        if not chosen.single:  # then the answer is behind the row when it is run
            both = chosen.scored(one)
            one, at = both.select([0]), chosen.positions(both).rows([0])
            place = one.at("it")
        clean = iv.run(int8, one, logits=at).logits
        assert clean is not None
        for component in ("resid_post", "mlp_out"):
            for layer in (0, int8.n_layers - 1):
                (value,) = iv.read(int8, donor, [iv.Site(component, layer, donor.at("it"))])
                patch = iv.Patch(component, layer, place, value)
                patched = iv.run(int8, one, patches=[patch], logits=at).logits
                assert patched is not None
                expected = torch.nn.functional.kl_div(
                    patched[:, 0].log_softmax(-1),
                    clean[:, 0].log_softmax(-1),
                    log_target=True,
                    reduction="sum",
                )
                mine = found["kl"].sel(component=component, layer=layer, role="it")[row]
                assert float(mine) == float(expected)


def test_a_replay_is_so_many_runs(int8: iv.Model) -> None:
    prompt = prompt_of(int8)
    place = prompt.at("last")
    cells = [[iv.ablated("mlp_out", layer, place)] for layer in range(int8.n_layers)]
    found = iv.replay(int8, prompt, cells)
    for cell, logits in zip(cells, found, strict=True):
        expected = iv.run(int8, prompt, patches=cell).logits
        assert expected is not None
        assert torch.equal(logits[:, 0], expected)


def test_answers_do_not_hang_on_the_other_rows(int8: iv.Model) -> None:
    prompt = prompt_of(int8)
    candidates = [" the town", " the big town", " Paris", " north"]
    place = prompt.at("it", -1)
    asked: dict[str, Any] = {"candidates": candidates, "max_new_tokens": 5, "stop": None}
    value = torch.ones(3, int8.d_model)
    patch = iv.Patch("resid_post", 1, place, value)
    for patches in ([], [patch]):
        together = iv.complete(int8, prompt, patches=patches, **asked)
        for row in range(3):
            one = prompt.select([row]).trimmed()[0]
            own = [iv.Patch("resid_post", 1, one.at("it", -1), value[:1])] if patches else []
            alone = iv.complete(int8, one, patches=own, **asked)
            assert together.texts[row] == alone.texts[0]
            assert together.choices[row] == alone.choices[0]
            assert together.logprobs[row] == alone.logprobs[0]


def test_generate_is_complete_row_by_row(int8: iv.Model) -> None:
    for text in TEXTS:
        prompt = int8.prompt(text)
        with int8.generate(prompt, max_new_tokens=5) as tracer:
            ids = tracer.result.save()
        prefill = iv.run(int8, prompt, keep_cache=True)
        made = greedy(int8, prefill, max_new_tokens=5, stop=None).ids[0]
        assert ids[0, prompt.length :].tolist()[: len(made)] == made


def test_collecting_does_not_hang_on_the_batch(int8: iv.Model, tmp_path: Path) -> None:
    sites = {"here": iv.RoleSite("mlp_out", [0, 3], "last")}
    found = iv.collect(
        int8, list(TEXTS), sites, out=tmp_path / "some", batch_rows=3, progress=False
    )
    for row, text in enumerate(TEXTS):
        prompt = int8.prompt(text)
        (value,) = iv.read(int8, prompt, [iv.Site("mlp_out", [0, 3], prompt.at("last"))])
        mine = torch.from_numpy(found["here"].isel(row=row).to_numpy())
        assert torch.equal(mine.reshape(2, -1), value.reshape(2, -1))


def test_attribution_does_not_hang_on_the_batch(int8: iv.Model) -> None:
    texts = ["The capital of France is", "is The capital of France", "of France is The capital"]
    assert len(set(int8.prompt(texts).lengths.tolist())) == 1
    asked: dict[str, Any] = {"answers": " the", "metric": "logprob", "verify": False}
    asked |= {"components": ["resid_post"], "method": "ig", "steps": 2}
    both = iv.attribute(int8, 0.0, int8.prompt(texts), **asked)
    for row, text in enumerate(texts):
        one = iv.attribute(int8, 0.0, int8.prompt(text), **asked)
        mine, theirs = (
            torch.from_numpy(found["score"].isel(item=at).to_numpy())
            for found, at in ((both, row), (one, 0))
        )
        mine, theirs = (values[~values.isnan()] for values in (mine, theirs))
        assert torch.equal(mine, theirs)


def test_a_prefix_is_not_shared(int8: iv.Model) -> None:
    texts = ["The capital of France is", "The capital of the country is"]
    assert not len(int8.prompt(texts, share_prefix=True).prefix_ids)


def test_it_is_said(int8: iv.Model) -> None:
    said = {one.name: one for one in abilities(int8.anatomy)}
    assert said["padded batches"].state == "partly"
    assert "one row" in said["padded batches"].note
    assert said["share_prefix="].state == "no"


CONFIGS: list[tuple[dict[str, Any], bool]] = [
    ({"quant_method": "gptq", "bits": 4}, False),
    ({"quant_method": "awq", "bits": 4}, False),
    ({"quant_method": "hqq"}, False),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, False),
    ({"quant_method": "fp8", "activation_scheme": "static"}, False),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, True),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, True),
    ({"load_in_8bit": True, "llm_int8_threshold": 0.0}, False),
    ({"quant_method": "torchao", "quant_type": {"_type": "Int4WeightOnlyConfig"}}, False),
    ({"quant_method": "torchao", "quant_type": {"_type": "Float8DynamicActivation"}}, True),
    (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"input_activations": {"dynamic": True, "strategy": "token"}}},
        },
        False,
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"input_activations": {"dynamic": True, "strategy": "tensor"}}},
        },
        True,
    ),
    ({"quant_method": "something new"}, True),
]


@pytest.mark.parametrize(("settings", "depend"), CONFIGS)
def test_which_formats_make_rows_dependent(settings: dict[str, Any], depend: bool) -> None:
    """By the config alone, as for a model whose weights are on a server."""
    module: Any
    module, _ = tiny.build("llama")
    module.config.quantization_config = settings
    assert (dependent_rows(module) is not None) == depend
    assert quantisation_of(module) == described(settings)


def test_running_it_leaves_it_the_model_that_it_was(folders: Path, tmp_path: Path) -> None:
    model = quantised(folders, "llama", "int8")
    before = model.fingerprint()
    prompt = model.prompt("The capital of France is")
    asked = {"answers": " a", "components": ["mlp_out"], "roles": ["last"], "progress": False}
    first = iv.sweep(model, prompt, 0.0, out=tmp_path, **asked)
    assert model.fingerprint() == before
    assert iv.sweep(model, prompt, 0.0, out=tmp_path, **asked).identical(first)
    again = quantised(folders, "llama", "int8")
    assert iv.sweep(again, prompt, 0.0, out=tmp_path, **asked).identical(first)


@pytest.mark.parametrize(("how", "change"), [("int8", "threshold"), ("nf4", "compute_dtype")])
def test_settings_of_a_format_are_a_part_of_the_model(folders: Path, how: str, change: str) -> None:
    model = quantised(folders, "llama", how)
    before = model.fingerprint()
    part: Any = model.module.model.layers[1].mlp.down_proj
    if change == "threshold":
        part.state.threshold = 0.5
    else:
        part.compute_dtype = torch.float16
    assert model.fingerprint()["modules"] != before["modules"]


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_torchs_own_quantisation(dtype: torch.dtype, whole: bool) -> None:
    module, tokenizer = tiny.build("llama")
    part = module.eval() if whole else module.model.layers[1].mlp
    torch.ao.quantization.quantize_dynamic(part, {torch.nn.Linear}, dtype=dtype, inplace=True)
    model = iv.load(module, tokenizer=tokenizer)
    int8 = dtype == torch.qint8
    kind = f"torch dynamic {'int8' if int8 else 'float16'}"
    assert quantisation_of(module) == model.fingerprint()["quantisation"] == kind
    assert (model.anatomy.dependent_rows is not None) == int8
    prompt = prompt_of(model, TEXTS[:2])
    asked: dict[str, Any] = {"answers": " a", "components": ["mlp_out"], "progress": False}
    found = iv.sweep(model, prompt, 0.0, roles=["last"], **asked)
    assert found.attrs["path"] == ("plain" if int8 else "suffix")
    for row, text in enumerate(TEXTS[:2]):
        alone = iv.sweep(model, prompt_of(model, [text]), 0.0, roles=["last"], **asked)
        np.testing.assert_allclose(found.logprob[row], alone.logprob[0], rtol=1e-4)
    with pytest.raises(SiteError, match=f"{kind}.: no gradient comes back"):
        iv.attribute(model, prompt, prompt, answers=" a", foils=" b", roles=["last"])
    before = model.fingerprint()
    layer: Any = module.model.layers[1].mlp.down_proj
    weight, bias = layer._weight_bias()
    other = torch.quantize_per_tensor(weight.dequantize(), 0.1, 0, torch.qint8) if int8 else -weight
    layer.set_weight_bias(other, bias)
    assert model.fingerprint() != before


def test_a_config_that_does_not_say_how_is_refused_alike(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    for call in (iv.load, examine):
        with pytest.raises(LoadError, match="quantization_config in its config"):
            call(tmp_path)


def test_weights_stay_packed_as_they_were(folders: Path) -> None:
    """Some CPUs have a kernel of bitsandbytes that packs them anew in the first pass."""
    layers = [
        part
        for part in quantised(folders, "llama", "nf4").module.modules()
        if hasattr(part, "support_avx512bf16_for_cpu")
    ]
    assert layers
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True  # as on such a CPU
    model = quantised(folders, "llama", "nf4")
    for layer in layers:
        keep_packed(layer)
        assert layer.support_avx512bf16_for_cpu is False
    before = model.fingerprint()
    with model.trace(prompt_of(model)):
        logits = model.logits[prompt_of(model).at("last")].save()
    assert torch.isfinite(logits).all()
    assert model.fingerprint() == before
