"""The micro models as folders that transformers opens: assembled once from the shipped weights."""

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from platformdirs import user_cache_path

from interventions.errors import InterventionsError, did_you_mean
from twohop.micro.layout import NUM_BLOCKS, has_attention, has_mlp, vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

MicroKey = Literal["micro-backbone", "micro-naming", "micro-aligned", "micro-late"]
MICRO_KEYS: tuple[MicroKey, ...] = get_args(MicroKey)

BACKBONE, VISION = "backbone", "vision"


def weight_file(part: str, weights: Path | None = None) -> Path:
    """Return where the tensors of a part are: `backbone`, `vision`, or a projector's name."""
    root = Path(str(files("twohop.micro"))) / "weights" if weights is None else weights
    return root / f"{part}.safetensors"


def _parts(key: MicroKey) -> tuple[str, ...]:
    projector = key.removeprefix("micro-")
    return (BACKBONE,) if key == "micro-backbone" else (BACKBONE, VISION, projector)


def micro_folder(key: MicroKey, *, weights: Path | None = None, cache: Path | None = None) -> Path:
    """Return a folder with a micro model in it, assembling it on first use.

    `micro-backbone` opens with `AutoModelForCausalLM` and `AutoTokenizer`, the others with
    `LlavaForConditionalGeneration` and `AutoProcessor`; all offline, in float32. Vocabulary and
    language-model weights are the same, bit for bit, in all of them.

    Parameters
    ----------
    key
        Which model.
    weights
        A folder written by `twohop.micro.training.train`, instead of the shipped weights.
    cache
        Where to assemble; by default `$TWOHOP_CACHE`, or the user's cache folder. The folder's
        name contains a hash of the weights, so a new release never meets an old folder.

    Raises
    ------
    InterventionsError
        If there is no such key, or `weights` lacks a file.

    Examples
    --------
    >>> from transformers import AutoModelForCausalLM
    >>> model = AutoModelForCausalLM.from_pretrained(micro_folder("micro-backbone"))
    """
    if key not in MICRO_KEYS:
        raise InterventionsError(f"no micro model {key!r}. {did_you_mean(key, MICRO_KEYS)}")
    digest = hashlib.sha256()
    for part in _parts(key):
        path = weight_file(part, weights)
        if not path.is_file():
            raise InterventionsError(
                f"{key} needs {path}, which is not there. Give weights= a folder that "
                "twohop.micro.training.train wrote, or leave it out to use the shipped ones."
            )
        digest.update(path.read_bytes())
    digest.update(repr((vocabulary(), version("transformers"))).encode())
    if cache is None:
        chosen = os.environ.get("TWOHOP_CACHE")
        cache = Path(chosen) if chosen else user_cache_path("twohop")
    folder = cache / f"{key}-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=cache))
        try:
            _assemble(key, scratch, weights)
            scratch.chmod(0o755)
            try:
                scratch.rename(folder)
            except OSError:
                if not folder.is_dir():  # not merely assembled by someone else meanwhile
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _assemble(key: MicroKey, folder: Path, weights: Path | None) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import LlavaForConditionalGeneration

    from twohop.micro.parts import build_processor, build_tokenizer, generation_config, vlm_config

    def tensors(part: str) -> "dict[str, torch.Tensor]":
        stored = load_file(weight_file(part, weights))
        return {name: tensor.to(torch.float32) for name, tensor in stored.items()}

    backbone = backbone_model(tensors(BACKBONE))
    if key == "micro-backbone":
        backbone.generation_config = generation_config()
        build_tokenizer().save_pretrained(folder)
        backbone.save_pretrained(folder)
        return
    with torch.random.fork_rng(devices=[]):
        model = LlavaForConditionalGeneration(vlm_config())
    model.model.language_model.load_state_dict(backbone.model.state_dict())
    model.lm_head.load_state_dict(backbone.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(tensors(VISION))
    model.model.multi_modal_projector.load_state_dict(tensors(key.removeprefix("micro-")))
    model.generation_config = generation_config()
    build_processor().save_pretrained(folder)
    model.save_pretrained(folder)


def backbone_model(live: "dict[str, torch.Tensor]") -> "LlamaForCausalLM":
    """Return the backbone with these weights in its live sublayers, and zeros in the others.

    Parameters
    ----------
    live
        State dict of a `LlamaForCausalLM` without the tensors `is_live` is false for.
    """
    import torch
    from transformers import LlamaForCausalLM

    from twohop.micro.parts import language_config

    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(language_config())
    state = {
        name: tensor if is_live(name) else torch.zeros_like(tensor)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state | live)
    return model.eval()


def is_live(name: str) -> bool:
    """Return whether a weight of the backbone, by its state-dict name, is free to be non-zero.

    Examples
    --------
    >>> is_live("model.layers.0.mlp.down_proj.weight")
    False
    >>> is_live("model.layers.1.mlp.down_proj.weight")
    True
    """
    for block in range(NUM_BLOCKS):
        if name.startswith(f"model.layers.{block}.self_attn."):
            return has_attention(block)
        if name.startswith(f"model.layers.{block}.mlp."):
            return has_mlp(block)
    return True
