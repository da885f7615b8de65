"""What ``interventions doctor`` and ``families`` say is so."""

import json
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import PATHS, case_of, model_of, part
from raw_tower import blocks, tower_paths
from tiny.configs import true_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    GPT2Config,
    OPTConfig,
    T5Config,
)

from interventions.architectures.anatomy import Anatomy
from interventions.architectures.anatomy_finding import find_anatomy
from interventions.architectures.doctor import Report, examine, report
from interventions.architectures.families import FAMILIES, TEXT_FAMILIES, family
from interventions.architectures.family_table import GROUPS, markdown
from interventions.cli import main
from interventions.errors import LoadError
from interventions.model.sites import VISION

NAMES = ("llama", "llava", "gemma3", "qwen2_5_vl", "mllama", "llama4")
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of checkpoints, of which the weights are deleted."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in NAMES:
        tiny.save(name, root / name)
        for weights in (root / name).glob("*.safetensors"):
            weights.unlink()
    tokenizer: Any = AutoTokenizer.from_pretrained(root / "llama")
    gpt2 = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=len(tokenizer))
    gpt2.save_pretrained(root / "gpt2")
    tokenizer.save_pretrained(root / "gpt2")
    OPTConfig(num_hidden_layers=1, vocab_size=len(tokenizer)).save_pretrained(root / "opt")
    T5Config().save_pretrained(root / "t5")
    return root


@cache
def weightless(name: str) -> Any:
    config = tiny.shrink(true_config(name))
    auto = AutoModelForImageTextToText if name in tiny.VLMS else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


def state(found: Report, name: str) -> str:
    return next(one.state for one in found.abilities if one.name == name)


def works(found: Report) -> dict[str, str]:
    return {one.name: one.state for one in found.abilities if one.state != "yes"}


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_are_where_the_hand_written_map_says(name: str, folders: Path) -> None:
    found, module = examine(folders / name), weightless(name)
    assert found.tested
    for one in found.parts:
        for path in one.paths:
            assert type(module.get_submodule(path)).__name__ == one.kind, path
    for component in ("head_out", "attn_out", "mlp_out"):
        said = {
            layer: path
            for one in found.parts
            if one.name == component
            for layer, path in zip(one.layers, one.paths, strict=True)
        }
        assert sorted(said) == list(range(found.sizes["n_layers"]))
        for layer, path in said.items():
            assert module.get_submodule(path) is part(name, module, component, layer)
    named = {one.name: one for one in found.parts}
    assert module.get_submodule(named["head"].path) is module.get_output_embeddings()
    assert module.get_submodule(named["embeddings"].path) is module.get_input_embeddings()
    assert ("vision tower" in named) == ("projector" in named) == (name in tiny.VLMS)
    assert named["head"].weight == (found.sizes["vocab"], found.sizes["d_model"])
    assert found.sizes["parameters"] == sum(one.numel() for one in module.parameters())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "llama4"])
def test_it_says_what_a_loaded_model_says(name: str, folders: Path) -> None:
    found, model = examine(folders / name), model_of(name)
    assert found.prompts_missing is None
    assert found.placeholder == model.image_token
    assert found.identity == model.anatomy.identity
    sizes = {key: value for key, value in found.sizes.items() if key != "parameters"}
    assert sizes == {key: getattr(model.anatomy, key) for key in sizes}


def test_what_is_special_is_said(folders: Path) -> None:
    special = {
        name: {one.what: one.layers for one in examine(folders / name).special} for name in NAMES
    }
    assert special == {
        "llama": {},
        "llava": {},
        "qwen2_5_vl": {},
        "gemma3": {"norms behind sublayers": tuple(range(6)), "sliding window": tuple(range(5))},
        "mllama": {"cross-attention": (1, 4), "gates": (1, 4)},
        "llama4": {"mixture of experts": (0, 1, 2, 3), "chunked attention": (0, 1, 2)},
    }


def test_what_works_is_said(folders: Path) -> None:
    mask = {"knockout": "partly"}
    image = 'prompt.at("image")'
    assert works(examine(folders / "llava")) == {"vision.*": "partly", **mask}
    assert works(examine(folders / "llama")) == {image: "no", "image_features": "no", **mask}
    assert works(examine(folders / "gemma3")) == {"share_prefix=": "partly", **mask}
    mllama = works(examine(folders / "mllama"))
    assert mllama[image] == "no"
    assert mllama["attn_out, mlp_out"] == mllama["share_prefix="] == "partly"
    paligemma = report(weightless("paligemma"), source="here")
    assert state(paligemma, "share_prefix=") == "no"
    assert paligemma.prompts_missing == "no processor or tokenizer was given"


@pytest.mark.parametrize("name", tiny.VLMS)
def test_the_tower_is_said_to_have_what_it_has(name: str) -> None:
    found, case = report(weightless(name), source="here"), case_of(name)
    [said] = [one for one in found.abilities if one.name == "vision.*"]
    depth, unused = len(blocks(case)), tower_paths(name).unused
    assert said.note.startswith(f"{depth} blocks, ")
    assert said.state == ("partly" if unused else "yes")
    streams = {one.removeprefix("vision.") for one in VISION}
    assert all(stream in said.note for stream in streams)
    assert ("can only be read" in said.note) == (unused > 0)
    config = case.model.module.config.vision_config
    sides = [config.patch_size] * 2 if isinstance(config.patch_size, int) else config.patch_size
    assert f"patches of {sides[0]} x {sides[1]} pixels" in said.note
    tower = case.model.anatomy.tower
    assert tower is not None
    assert ("to a view" in said.note) == (tower.n_patches is not None)
    if tower.n_patches is not None and name != "mllama":  # whose views are padded
        beside = {
            count % n
            for count in case.prompt.vision["tower"].counts
            for n in (tower.n_patches, tower.n_patches + 1)
        }
        assert 0 in beside
    assert tower.n_patches != 0


def test_a_text_only_model_has_no_tower_to_speak_of(folders: Path) -> None:
    assert not [one for one in examine(folders / "llama").abilities if one.name == "vision.*"]


def test_a_processor_that_cannot_be_opened_leaves_the_anatomy(
    folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((folders / "llava" / "config.json").read_bytes())
    found = examine(tmp_path)
    assert found.prompts_missing is not None
    assert "cannot be opened" in found.prompts_missing
    assert found.image_token_id is not None
    llama4 = examine(folders / "llama4").prompts_missing
    assert llama4 is None or "needs torchvision" in llama4


def test_an_architecture_outside_the_suite(folders: Path) -> None:
    found = examine(folders / "gpt2")
    assert not found.tested
    paths = {one.name: one.path for one in found.parts}
    assert paths["attn_out"] == "transformer.h.{L}.attn"
    assert paths["head_out"] == "transformer.h.{L}.attn.c_proj"
    assert found.sizes["head_dim"] == 8


def test_llavas_original_layout(folders: Path, tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folders / "llama")
    CLIPVisionConfig(hidden_size=24, num_hidden_layers=2).save_pretrained(tmp_path / "tower")
    config = {
        **{"model_type": "llava_llama", "mm_vision_tower": "tower", "vocab_size": len(tokenizer)},
        **{"mm_projector_type": "mlp2x_gelu", "hidden_size": 32, "intermediate_size": 64},
        **{"num_hidden_layers": 3, "num_attention_heads": 4},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    blind = examine(tmp_path)
    assert (blind.model_type, blind.image_token_id) == ("llava", None)
    assert "tokenizer cannot be opened" in str(blind.prompts_missing)
    tokenizer.save_pretrained(tmp_path)
    found = examine(tmp_path)
    assert (found.sizes["n_layers"], found.sizes["d_model"]) == (3, 32)
    assert found.prompts_missing is None
    assert found.image_token == found.placeholder
    assert found.image_token_id is not None
    (tmp_path / "config.json").write_text(json.dumps(config | {"mm_projector_type": "linear"}))
    with pytest.raises(LoadError, match="its projector is 'linear'"):
        examine(tmp_path)


def test_json_has_the_keys_of_the_report(folders: Path, capsys: Any) -> None:
    assert main(["doctor", str(folders / "mllama"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == [one.name for one in fields(Report)]
    assert said["images"] == "cross-attention"
    assert said["placeholder"] == "<|image|>"
    assert {one["state"] for one in said["abilities"]} == {"yes", "partly", "no"}
    assert set(said["parts"][0]) == {
        *("name", "path", "kind", "weight", "parameters", "output", "layers")
    }


@pytest.mark.parametrize("name", [*NAMES, "gpt2"])
def test_it_reads_well_at_80_columns(
    name: str, folders: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(folders)
    assert main(["doctor", name]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for one in ("what it is", "identity", "Where the parts are", "What works", "head_out"):
        assert one in shown
    if name in PATHS:
        assert f"{PATHS[name].blocks}.L   (L = " in shown
    assert ("no, its parts were found through" in shown) == (name == "gpt2")


def test_a_refused_model_ends_in_its_reason_and_status_2(
    folders: Path, tmp_path: Path, capsys: Any
) -> None:
    for place, reason in (
        (folders / "opt", "is not one attention and one MLP"),
        (folders / "t5", "encoder-decoder"),
        (tmp_path, "Expected a Hugging Face repo id, or a folder"),
    ):
        assert main(["doctor", str(place)]) == 2
        said = capsys.readouterr()
        assert reason in said.err
        assert said.err.startswith("interventions: ")
        assert said.out == ""
    (tmp_path / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(LoadError, match="no_such_thing"):
        examine(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match="cannot be examined"):
        examine(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 30}')
    with pytest.raises(LoadError, match=r"hidden size \(30\) is not a multiple"):
        examine(tmp_path)


def test_an_unknown_command_is_named(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["docter"])
    assert stop.value.code == 2
    assert "docter" in capsys.readouterr().err


def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-m", "interventions", "families"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert shown.strip() == markdown()


def test_the_page_on_families_has_the_table_that_the_code_makes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"<!-- families -->\n{markdown()}\n<!-- /families -->" in text


def test_the_table_has_every_family_once_and_its_facts_are_the_models() -> None:
    named = [name for group in GROUPS for name in group.names]
    assert sorted(named) == sorted({*FAMILIES, *TEXT_FAMILIES})
    for group in GROUPS:
        for name in group.names:
            anatomy: Anatomy = find_anatomy(weightless(name))
            assert anatomy.model_type == name
            assert bool(anatomy.cross_blocks) == group.cross, name
            assert anatomy.windowed == group.windowed, name
            assert anatomy.three_axis_positions == group.three_axis, name
            assert anatomy.parts[0].behind_norm == group.behind_norm, name
            assert all(block.projection for block in anatomy.parts) != group.headless, name
            assert bool(anatomy.recurrent_blocks) == group.recurrent, name
            assert family(name).two_way == family(group.names[0]).two_way, name
