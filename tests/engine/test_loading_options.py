"""Quantised while loaded, and with adapters: what the same model made by hand gives."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import case_of
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

import interventions as iv
from interventions.architectures.quantisation import keep_packed, quantisation_of
from interventions.errors import LoadError

pytestmark = [  # of PEFT itself
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
DEEP = ["q_proj", "o_proj", "down_proj"]
NAMES = ("llama", "llava")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    for name in NAMES:
        tiny.save(name, root / name)
        for seed, adapter in enumerate(("first", "second")):
            torch.manual_seed(seed)
            config = LoraConfig(target_modules=DEEP, r=2, lora_alpha=64, init_lora_weights=False)
            wrapped: Any = get_peft_model(module_of(root / name), config)
            wrapped.save_pretrained(root / f"{name}-{adapter}")
    return root


def module_of(folder: Path, **settings: Any) -> Any:
    auto = AutoModelForImageTextToText if folder.name == "llava" else AutoModelForCausalLM
    module = auto.from_pretrained(folder, dtype=torch.float32, **settings).eval()
    keep_packed(module)  # on some CPUs bitsandbytes cannot run layers as small as these otherwise
    return module


def logits(module: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        return module(**case_of(name).prompt.inputs).logits


def ours(model: iv.Model, name: str) -> torch.Tensor:
    prompt = case_of(name).prompt
    with model.trace(prompt):
        out = model.logits[prompt.at("last")].save()
    return out


def at_last(whole: torch.Tensor, name: str) -> torch.Tensor:
    index = case_of(name).prompt.at("last").index
    return whole[torch.arange(len(whole)), index[:, 0]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_quantised_as_transformers_does(folders: Path, name: str, how: str) -> None:
    model = iv.load(folders / name, quantization=how, device="cpu")
    said: dict[str, dict[str, Any]] = {
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": torch.float32,
        },
        "int8": {"load_in_8bit": True},
    }
    config = BitsAndBytesConfig(**said[how])
    by_hand = module_of(folders / name, quantization_config=config, device_map="cpu")
    assert quantisation_of(model.module) == f"bitsandbytes {how}"
    theirs = at_last(logits(by_hand, name), name)
    torch.testing.assert_close(ours(model, name).flatten(), theirs.flatten())
    again = iv.load(folders / name, quantization=config, device="cpu")
    assert torch.equal(ours(again, name), ours(model, name))
    assert not torch.allclose(ours(model, name), ours(iv.load(folders / name), name), atol=1e-4)


def test_what_cannot_be_quantised_is_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"quantization='nf3' is not known. Did you mean 'nf4'"):
        iv.load(folders / "llama", quantization="nf3")
    with pytest.raises(LoadError, match=r"quantization='fp8' cannot be used here: .*GPU"):
        iv.load(folders / "llama", quantization="fp8", device="cpu")
    packed = iv.load(folders / "llama", quantization="int8", device="cpu")
    packed.module.save_pretrained(tmp_path / "packed")
    packed.tokenizer.save_pretrained(tmp_path / "packed")
    with pytest.raises(LoadError, match=r"is quantised already \(bitsandbytes int8\)"):
        iv.load(tmp_path / "packed", quantization="nf4")


@pytest.mark.parametrize("name", NAMES)
def test_adapters_act_one_at_a_time_or_not_at_all(folders: Path, name: str) -> None:
    places = {adapter: folders / f"{name}-{adapter}" for adapter in ("first", "second")}
    model = iv.load(folders / name, adapter=places)
    plain = iv.load(folders / name)
    expected: dict[str | None, torch.Tensor] = {None: ours(plain, name)}
    for adapter, place in places.items():
        wrapped = module_of(folders / name)
        wrapped.load_adapter(str(place))
        expected[adapter] = at_last(logits(wrapped, name), name).reshape_as(expected[None])
    prints = []
    shared = ("Q: what is the capital of France? A:", "Q: what is the capital of Spain? A:")
    for adapter in ("first", None, "second", "first"):
        if prints:
            model.adapter(adapter)
        torch.testing.assert_close(ours(model, name), expected[adapter])
        prints.append(model.fingerprint())
        assert not any(weight.requires_grad for weight in model.module.parameters())
        assert not model.module.training
        # What was computed for another adapter is not taken for this one's.
        if name == "llama":
            rows = model.prompt(list(shared), share_prefix=True)
            alone = model.prompt(list(shared))
            together, apart = (iv.complete(model, p, max_new_tokens=3) for p in (rows, alone))
            assert together == apart
    assert prints[0] == prints[3]
    assert len({str(each) for each in prints}) == 3
    assert not torch.allclose(expected["first"], expected["second"], atol=1e-3)


def test_an_adapter_is_called_by_its_folder(folders: Path) -> None:
    model = iv.load(folders / "llama", adapter=folders / "llama-first")
    with pytest.raises(LoadError, match=r"has no adapter 'llama-frist'. Did you mean 'llama-first"):
        model.adapter("llama-frist")
    with pytest.raises(LoadError, match=r"has no adapter\. Load it with one"):
        iv.load(folders / "llama").adapter("llama-first")


def test_adapters_and_quantised_weights(folders: Path) -> None:
    model = iv.load(
        folders / "llama", adapter=folders / "llama-first", quantization="nf4", device="cpu"
    )
    with_it = ours(model, "llama")
    model.adapter(None)
    bare = iv.load(folders / "llama", quantization="nf4", device="cpu")
    assert torch.equal(ours(model, "llama"), ours(bare, "llama"))
    assert not torch.allclose(with_it, ours(bare, "llama"), atol=1e-3)


def test_adapters_that_do_not_fit_are_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"cannot be put into llava|has no place|is incomplete"):
        iv.load(folders / "llava", adapter=folders / "llama-first")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LoadError, match="cannot be put into llama"):
        iv.load(folders / "llama", adapter=empty)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in (folders / "llama-first").iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(LoadError, match="a pickle, which can run code"):
        iv.load(folders / "llama", adapter=pickled)


def test_a_ready_module_is_used_as_it_is() -> None:
    module, tokenizer = tiny.build("llama")
    several: tuple[dict[str, Any], ...] = (
        {"dtype": torch.bfloat16},
        {"device": "cpu"},
        {"attn_implementation": "eager"},
        {"quantization": "nf4"},
        {"adapter": "someone/some-lora"},
    )
    for given in several:
        with pytest.raises(LoadError, match=f"{next(iter(given))} cannot be chosen for a ready"):
            iv.load(module, tokenizer=tokenizer, **given)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dtype": "float31"}, r"dtype='float31' is no number format .*mean 'float32'"),
        ({"dtype": "int8"}, r"dtype='int8' is no number format .* quantization="),
        ({"dtype": torch.int32}, r"dtype=torch.int32 is no number format .*Expected float32"),
        ({"device": "gpu"}, r"device='gpu' is not here\. Expected one of cpu"),
        ({"device": "cuda:99"}, r"device='cuda:99' is not here\. Expected one of cpu"),
        ({"device": "meta"}, r"device='meta' is not here"),
        ({"device_map": "autp"}, r"device_map='autp' is neither .*Did you mean 'auto'"),
        ({"attn_implementation": "eagre"}, r"'eagre' is not known\. Did you mean 'eager'"),
    ],
)
def test_places_and_formats_that_are_not_here_are_said_before_anything_is_read(
    asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(LoadError, match=said) as caught:
        iv.load("someone/no-such-model", **asked)
    assert "\n" not in str(caught.value)
