"""Checkpoints in LLaVA's original layout, read into transformers' LLaVA classes.

The layout of LLaVA's own repository, which LLaVA-MORE and others keep: a ``llava_llama`` config,
the projector under ``model.mm_projector``, and a CLIP tower that is inside the checkpoint or lies
in a repo of its own, named by ``mm_vision_tower``.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from interventions.errors import LoadError

LAYOUTS = {"llava_llama": "llama", "llava_mistral": "mistral", "llava": "llama"}
PROJECTOR = {"0": "linear_1", "2": "linear_2"}
TOWER = "model.vision_tower.vision_tower."
RESERVED = "<|reserved_special_token_"
IMAGE = "<image>"


def is_original_llava(place: str, *, revision: str | None = None) -> bool:
    """Whether a folder or repo holds a checkpoint in LLaVA's original layout."""
    config = _config_of(place, revision)
    return config.get("model_type") in LAYOUTS and "mm_vision_tower" in config


def _config_of(place: str, revision: str | None) -> dict[str, Any]:
    path = Path(place) / "config.json"
    if not Path(place).is_dir():
        path = Path(hf_hub_download(place, "config.json", revision=revision))
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@dataclass(frozen=True)
class Original:
    """A checkpoint in LLaVA's original layout as transformers' LLaVA has it, without weights.

    Attributes
    ----------
    config : LlavaConfig
        Its image token is that of the processor, once :meth:`processor` has been asked for.
    tower : str
        Folder or repo id of its vision tower.
    """

    config: Any
    tower: str

    @classmethod
    def at(cls, place: str, *, revision: str | None = None) -> "Original":
        """Read a folder or repo.

        Raises
        ------
        LoadError
            If projector or tower are of a kind that transformers' LLaVA does not have.
        """
        original = _config_of(place, revision)
        if (kind := original.get("mm_projector_type", "linear")) != "mlp2x_gelu":
            raise LoadError(
                f"{place}: its projector is {kind!r}; transformers' LLaVA has only 'mlp2x_gelu', "
                "two linear layers with a GELU between them."
            )
        tower = original["mm_vision_tower"]
        tower = str(Path(place) / tower) if (Path(place) / tower).is_dir() else tower
        seeing: Any = AutoConfig.from_pretrained(tower)
        seeing = getattr(seeing, "vision_config", seeing)
        if seeing.model_type != "clip_vision_model":
            raise LoadError(
                f"{place}: its vision tower {tower!r} is of type {seeing.model_type!r}; only CLIP "
                "towers are read from LLaVA's original layout. Use a checkpoint in transformers' "
                "own."
            )
        text = AutoConfig.for_model(
            LAYOUTS[original["model_type"]],
            **{k: v for k, v in original.items() if not k.startswith("mm_") and k != "model_type"},
        )
        patches = original.get("mm_vision_select_feature", "patch") == "patch"
        config = LlavaConfig(
            vision_config=seeing,
            text_config=text,
            vision_feature_layer=original.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy="default" if patches else "full",
            projector_hidden_act="gelu",
            tie_word_embeddings=bool(original.get("tie_word_embeddings", False)),
        )
        return cls(config, tower)

    def tokens(
        self, place: str, *, tokenizer: Any | None = None, revision: str | None = None
    ) -> tuple[Any, str]:
        """The tokenizer, and its token for an image, which the config is told."""
        text = self.config.text_config
        opened = tokenizer or AutoTokenizer.from_pretrained(place, config=text, revision=revision)
        image_token = _image_token(opened)
        self.config.image_token_id = opened.convert_tokens_to_ids(image_token)
        return opened, image_token

    def processor(
        self, place: str, *, tokenizer: Any | None = None, revision: str | None = None
    ) -> LlavaProcessor:
        """The processor that transformers' LLaVA would have."""
        opened, image_token = self.tokens(place, tokenizer=tokenizer, revision=revision)
        return LlavaProcessor(
            image_processor=CLIPImageProcessorPil.from_pretrained(self.tower),
            tokenizer=opened,
            patch_size=self.config.vision_config.patch_size,
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            num_additional_image_tokens=1,
            image_token=image_token,
            chat_template=getattr(opened, "chat_template", None),
        )


def load_original_llava(
    place: str, *, tokenizer: Any | None = None, revision: str | None = None, **placement: Any
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load a checkpoint in LLaVA's original layout.

    The tokenizer has no image token there. A reserved token becomes it where there is one;
    otherwise ``<image>`` is added and the embeddings grow by a row that text never uses.

    Parameters
    ----------
    place : str
        Folder or repo id.
    tokenizer : optional
        Used instead of the checkpoint's.
    revision : str, optional
    **placement
        ``device_map``, ``dtype`` and ``attn_implementation``, for transformers.

    Returns
    -------
    model : LlavaForConditionalGeneration
    processor : LlavaProcessor

    Raises
    ------
    LoadError
        If projector or tower are of a kind that transformers' LLaVA does not have, or weights are
        missing, pickled or of something else.
    """
    folder = Path(place)
    if not folder.is_dir():
        wanted = ["*.json", "*.safetensors", "tokenizer*", "*.model"]
        folder = Path(snapshot_download(place, revision=revision, allow_patterns=wanted))
    original = Original.at(str(folder))
    processor = original.processor(str(folder), tokenizer=tokenizer)
    state = {name: value for path in _weights(folder) for name, value in load_file(path).items()}
    renamed = {_renamed(name): value for name, value in state.items()}
    if not any(name.startswith(TOWER) for name in state):
        vision = _whole(place, CLIPVisionModel, original.tower, dtype=torch.float32)
        renamed |= {f"model.vision_tower.{k}": v for k, v in vision.state_dict().items()}
    config = original.config
    model = _whole(
        place,
        LlavaForConditionalGeneration,
        None,
        config=config,
        state_dict=renamed,
        **placement,
    )
    if (size := config.image_token_id + 1) > config.text_config.vocab_size:
        _grow(model, size)
    with suppress(OSError):  # a checkpoint need not say which tokens end a text
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, processor


def _whole(place: str, kind: Any, *args: Any, **settings: Any) -> Any:
    """Load a model that has all its weights and nothing beside, or say what is amiss."""
    model, report = kind.from_pretrained(*args, output_loading_info=True, **settings)
    if missing := sorted(report["missing_keys"]):
        raise LoadError(
            f"{place!r} is a half-loaded model: {len(missing)} weights are not in the checkpoint, "
            f"such as {missing[0]!r}. Use a complete checkpoint."
        )
    if kind is LlavaForConditionalGeneration and (beside := sorted(report["unexpected_keys"])):
        raise LoadError(
            f"{place!r} has {len(beside)} weights that transformers' LLaVA has no place for, such "
            f"as {beside[0]!r}, so it is another model. LLaVA 1.6 is in transformers' own layout "
            "in the llava-hf repos."
        )
    return model


@torch.no_grad()
def _grow(model: Any, size: int) -> None:
    """Give new tokens the mean of the old ones: their logits are then never the largest."""
    old = model.config.text_config.vocab_size
    model.resize_token_embeddings(size, mean_resizing=False)
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        part.weight[old:] = part.weight[:old].float().mean(0).to(part.weight.dtype)


def _weights(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise LoadError(
            f"{folder} has no .safetensors file. Pickled weights are not read: convert them with "
            "safetensors' own tool."
        )
    return paths


def _image_token(tokenizer: Any) -> str:
    """The token that stands for an image; it is added where there is none."""
    known = tokenizer.get_vocab()
    if IMAGE in known:
        return IMAGE
    reserved = sorted(token for token in known if token.startswith(RESERVED))
    if reserved:
        return reserved[0]
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return IMAGE


def _renamed(name: str) -> str:
    """The name that a weight of the original layout has in transformers' LLaVA."""
    if name.startswith("model.mm_projector."):
        which, _, part = name.removeprefix("model.mm_projector.").partition(".")
        return f"model.multi_modal_projector.{PROJECTOR.get(which, which)}.{part}"
    if name.startswith(TOWER):
        return "model.vision_tower." + name.removeprefix(TOWER).removeprefix("vision_model.")
    if name == "lm_head.weight":
        return name
    return "model.language_model." + name.removeprefix("model.")
