"""Checkpoints of types that transformers has no class for: each is refused for what it is."""

import json
from pathlib import Path

import pytest
import tiny

import interventions as iv
from interventions.architectures.doctor import examine
from interventions.errors import LoadError

CODE = "import sys\n\nsys.exit('code of a checkpoint was run')\n"
TYPES = ("llava_onevision1_5", "llavaonevision1_5")


def checkpoint(folder: Path, kind: str, *, code: bool = True) -> Path:
    """A folder with weights, whose config tells of a type of its own."""
    tiny.save("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "architectures": ["LLaVAOneVision1_5_ForConditionalGeneration"]}
    if code:
        (folder / "modeling_own.py").write_text(CODE)
        own = ("AutoConfig", "AutoModelForCausalLM")
        config["auto_map"] = {auto: f"modeling_own.Own{auto}" for auto in own}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("opened_by", [iv.load, examine])
def test_llava_onevision_15_is_refused_for_what_it_is(
    opened_by: object, kind: str, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "it", kind)
    assert callable(opened_by)
    with pytest.raises(LoadError) as refused:
        opened_by(folder)
    said = str(refused.value)
    assert f"is of type '{kind}' (LLaVA-OneVision-1.5: a RICE vision tower" in said
    assert "cannot be converted to" in said
    assert "has no class, so it runs only by the Python code that comes with it" in said
    assert "trust_remote_code=True), and iv.load(module, processor=processor)" in said
    assert "Expected a Hugging Face repo id" not in said


def test_another_type_with_code_of_its_own_is_told_the_same_way(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "it", "somebodys_own")
    with pytest.raises(LoadError, match=r"is of type 'somebodys_own', for which transformers 5"):
        iv.load(folder)


def test_a_type_without_code_is_not_told_to_trust_any(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "it", "somebodys_own", code=False)
    with pytest.raises(LoadError, match="Upgrade transformers if a newer one has it") as refused:
        iv.load(folder)
    assert "trust_remote_code" not in str(refused.value)
