"""A plan of checkpoints that are packed already: what their weights take as they are loaded."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

from interventions import Model, load
from twohop.protocol import Protocol
from twohop.published import PUBLISHED
from twohop.running.loading import Loading
from twohop.running.plan import planned
from twohop.running.planning import stored_bytes
from twohop.running.published_plans import published_scope, published_weights
from twohop.running.weighing import Machine, Weights
from twohop.stages.work import Role

QUICK = Protocol.preset("quick")
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
BITS_4 = {"bits": 4, "group_size": 16}


def built(folder: Path, name: str, **packing: Any) -> Model:
    """A tiny model, of its config alone, that says how its weights are packed."""
    tiny.save(name, folder)
    path = folder / "config.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"quantization_config": packing, "dtype": "bfloat16"}
        )
    )
    return load(folder, remote="local")


@pytest.mark.parametrize("name", ["llama", "llava"])
@pytest.mark.parametrize(
    "packing",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "llm_int8_skip_modules": []},
        {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "mlp"]},
    ],
    ids=str,
)
def test_a_packed_checkpoint_is_counted_as_it_is_loaded(
    name: str, packing: dict[str, Any], tmp_path: Path
) -> None:
    tiny.save(name, tmp_path / "whole")
    auto = AutoModelForImageTextToText if name == "llava" else AutoModelForCausalLM
    packed = auto.from_pretrained(
        tmp_path / "whole",
        quantization_config=BitsAndBytesConfig(**packing),
        device_map="cpu",
        dtype=torch.float32,
    )
    shutil.copytree(tmp_path / "whole", tmp_path / "packed")
    packed.save_pretrained(tmp_path / "packed")
    real = sum(weight.nbytes for weight in packed.parameters())
    for part in packed.modules():
        weight: Any = getattr(part, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            real += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
        elif getattr(weight, "SCB", None) is not None:
            real += weight.SCB.nbytes
    counted = Weights.of(load(tmp_path / "packed", remote="local"), Loading(), on_cpu=True)
    assert counted.nbytes == real


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_packed_blocks_leave_ends_and_vision_whole(method: str, tmp_path: Path) -> None:
    listed = {"modules_to_not_convert": ["vision_tower", "multi_modal_projector"]}
    model = built(tmp_path, "llava", quant_method=method, **BITS_4, **listed)
    counted = Weights.of(model, Loading(dtype="float16"), on_cpu=True)
    blocks = model.module.get_submodule(model.anatomy.blocks)
    matrices = [part.weight for part in blocks.modules() if isinstance(part, torch.nn.Linear)]
    packed = sum(weight.numel() for weight in matrices)
    assert counted.stored is not None
    scales = sum(math.ceil(weight.shape[1] / 16) * weight.shape[0] for weight in matrices)
    order = sum(4 * weight.shape[1] for weight in matrices) if method == "gptq" else 0
    assert counted.whole == counted.parameters - packed
    assert counted.stored == packed / 2 + scales * 2.5 + order
    assert counted.nbytes == counted.stored + 2 * counted.whole


def test_fp8_is_a_byte_where_it_is_computed_with_and_unpacked_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(tmp_path, "llama", **FP8)
    here = Weights.of(model, Loading(dtype="bfloat16"), on_cpu=True)
    assert here.stored is None
    assert here.nbytes == 2 * here.parameters
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    there = Weights.of(model, Loading(dtype="bfloat16", device=("cuda",)), on_cpu=False)
    blocks = model.module.get_submodule(model.anatomy.blocks)
    matrices = [part.weight for part in blocks.modules() if isinstance(part, torch.nn.Linear)]
    packed = sum(weight.numel() for weight in matrices)
    tiles = [math.prod(math.ceil(size / 128) for size in weight.shape) for weight in matrices]
    assert there.stored == packed + 4 * sum(tiles)
    assert there.whole == there.parameters - packed


def test_what_is_packed_is_not_advised_to_be_packed_and_is_fetched_as_it_is() -> None:
    of = published_weights(PUBLISHED["qwen2.5-vl-72b"])
    weights: dict[Role, Weights] = {
        role: replace(part, stored=part.parameters) for role, part in of.items()
    }
    scope = published_scope(PUBLISHED["qwen2.5-vl-72b"], QUICK)
    plan = planned("it", scope, weights, Machine.of(48), protocol=QUICK)
    assert "--quantization" not in plan.remedy
    assert stored_bytes(replace(weights["vlm"], n_bytes=4)) == weights["vlm"].nbytes
    on_load = Weights(1000, 100, 4, "nf4")
    assert stored_bytes(on_load) == 2000
