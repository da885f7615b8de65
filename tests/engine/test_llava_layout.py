"""Checkpoints in LLaVA's original layout give the model that they were taken from."""

from pathlib import Path

import pytest
import tiny
import torch
from families import model_of
from original_llava import RESERVED, write
from safetensors.torch import load_file, save_file
from transformers import SiglipVisionConfig

import interventions as iv
from interventions.errors import LoadError


@pytest.mark.parametrize("inside", [True, False], ids=["tower-inside", "tower-beside"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("reserved", [True, False], ids=["reserved-token", "added-token"])
def test_it_is_the_model_it_was(tmp_path: Path, inside: bool, shards: int, reserved: bool) -> None:
    source = write(tmp_path / "old", inside=inside, shards=shards, reserved=reserved)
    model = iv.load(tmp_path / "old", attn_implementation="eager")
    assert model.name == "old"
    assert model.anatomy.is_vlm
    assert model.image_token == (RESERVED if reserved else "<image>")
    image = model.anatomy.image_token_id
    assert model.tokenizer.convert_tokens_to_ids(model.image_token) == image
    prompt = model.prompt(f"What is {model.image_token} ?", images=tiny.picture((40, 30)))
    assert prompt.at("image").index.shape[1] == 16
    with model.trace(prompt):
        ours = model.logits[:].save()
    ids = prompt.inputs["input_ids"]
    theirs = dict(prompt.inputs)
    theirs["input_ids"] = ids.masked_fill(ids == image, source.config.image_token_id)
    with torch.no_grad():
        logits = source(**theirs).logits
    known = len(model.tokenizer) - (not reserved)  # an added token has a logit of its own
    assert torch.equal(ours[..., :known], logits[..., :known])
    assert (ours.argmax(-1) < known).all()


def test_settings_go_through(tmp_path: Path) -> None:
    write(tmp_path, mm_vision_select_feature="cls_patch", mm_vision_select_layer=-1)
    model = iv.load(tmp_path, dtype=torch.float64, attn_implementation="sdpa", device="cpu")
    config = model.module.config
    assert (model.dtype, config._attn_implementation) == (torch.float64, "sdpa")
    assert (config.vision_feature_select_strategy, config.vision_feature_layer) == ("full", -1)
    prompt = model.prompt(f"What is {model.image_token} ?", images=tiny.picture())
    assert prompt.at("image").index.shape[1] == 17  # with the class token
    assert iv.run(model, prompt).logits is not None


def test_other_projectors_and_towers_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "linear", mm_projector_type="linear")
    with pytest.raises(LoadError, match=r"projector is 'linear'; .* has only 'mlp2x_gelu'"):
        iv.load(tmp_path / "linear")
    write(tmp_path / "siglip")
    SiglipVisionConfig(hidden_size=32).save_pretrained(tmp_path / "siglip" / "tower")
    with pytest.raises(LoadError, match=r"type 'siglip_vision_model'; only CLIP towers"):
        iv.load(tmp_path / "siglip")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    write(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(LoadError, match=r"no \.safetensors file\. Pickled .* convert them"):
        iv.load(tmp_path)


@pytest.mark.parametrize("dropped", ["model.mm_projector.2.weight", "model.norm.weight"])
def test_missing_weights_are_refused(tmp_path: Path, dropped: str) -> None:
    write(tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    weights = load_file(file)
    del weights[dropped]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"half-loaded model: 1 weights .* Use a complete"):
        iv.load(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    newline = {"model.image_newline": torch.zeros(48)}  # LLaVA 1.6 has it
    save_file({**load_file(file), **newline}, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"no place for, such as .*image_newline"):
        iv.load(tmp_path)
    narrow = {"model.mm_projector.0.weight": torch.zeros(48, 16)}
    save_file({**load_file(file), **narrow}, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match="cannot be loaded"):
        iv.load(tmp_path)


def test_a_server_cannot_convert_it(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(LoadError, match=r"original layout, .* a server cannot run it"):
        iv.load(tmp_path, remote="local")


def test_a_processor_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path)
    made = iv.load(tmp_path)
    assert iv.load(tmp_path, processor=made.processor).processor is made.processor
    with pytest.raises(LoadError, match="does not belong to"):
        iv.load(tmp_path, processor=model_of("gemma3").processor)
