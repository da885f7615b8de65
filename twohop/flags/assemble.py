"""The embedded pairs as folders that stock transformers classes open."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from interventions.errors import InterventionsError
from twohop.flags.backbone import (
    backbone_folder,
    cache_folder,
    put_in_place,
    quiet_transformers,
)
from twohop.flags.templates import IMAGE_PLACEHOLDER
from twohop.flags.tower import IMAGE_TOKENS, PATCH_SIZE, image_processor, tower_config

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, LlavaConfig

PairKey = Literal["flags-naming", "flags-aligned", "flags-late"]
PAIR_KEYS: tuple[PairKey, ...] = get_args(PairKey)

RESERVED_TOKEN = "<empty_output>"
"""A special token of the backbone that text never holds; the image placeholder takes its id."""

UP, DOWN = ".up", ".down"
"""How the two factors of a changed weight are named, behind the weight's own name."""

SHIPPED_WEIGHTS = Path(__file__).parent / "weights"


class WeightsMissing(InterventionsError):
    """A folder without the trained parts of a pair."""


def pair_config(text_config: LlamaConfig, *, image_token_id: int) -> LlavaConfig:
    """Stock LLaVA over the tower and the backbone; the projector reads the tower's last block."""
    from transformers import LlavaConfig

    return LlavaConfig(
        vision_config=tower_config(),
        text_config=text_config,
        image_token_index=image_token_id,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )


def pair_folder(key: PairKey, *, weights: Path | None = None) -> Path:
    """A folder with one embedded pair's VLM, assembled on the first call.

    Parameters
    ----------
    key
        ``"flags-naming"``, ``"flags-aligned"`` or ``"flags-late"``.
    weights
        Folder with ``tower.safetensors`` and ``<key>.safetensors``; ``None`` is the shipped one.

    Returns
    -------
    Path
        A folder in the cache, named by what is in it, that
        ``LlavaForConditionalGeneration.from_pretrained`` and ``AutoProcessor.from_pretrained``
        open. Its language model is bit for bit the one of
        :func:`~twohop.flags.backbone.backbone_folder`, and so are its tokens, except that the
        image placeholder has taken the id of a reserved one; ``"flags-late"`` changes some of
        the weights, those that its file has :func:`changes` of.

    Raises
    ------
    WeightsMissing
        If ``weights`` lacks a file.
    BackboneUnavailable
        If the language model cannot be had.

    Examples
    --------
    >>> from transformers import AutoProcessor, LlavaForConditionalGeneration
    >>> folder = pair_folder("flags-aligned")
    >>> vlm = LlavaForConditionalGeneration.from_pretrained(folder)
    """
    if key not in PAIR_KEYS:
        raise InterventionsError(f"no embedded pair {key!r}; expected one of {list(PAIR_KEYS)}")
    source = weights or SHIPPED_WEIGHTS
    parts = {
        "vision_tower": source / "tower.safetensors",
        "projector": source / f"{key}.safetensors",
    }
    missing = [path.name for path in parts.values() if not path.is_file()]
    if missing:
        raise WeightsMissing(
            f"{source} has no {' and no '.join(missing)}. Expected a folder that training has "
            "finished writing; `weights=None` takes the shipped weights."
        )
    # The assembling code is part of what is in the folder, so it is part of the name too.
    content = [*parts.values(), Path(__file__), Path(__file__).with_name("tower.py")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in content))
    folder = cache_folder() / f"{key}-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    backbone = backbone_folder()
    with (
        tempfile.TemporaryDirectory(prefix="pair-", dir=cache_folder()) as scratch,
        quiet_transformers(),
    ):
        assembled = Path(scratch) / "made"
        _save_model(assembled, backbone=backbone, **parts)
        _save_processor(assembled, backbone=backbone)
        put_in_place(assembled, folder)
    return folder


def _save_model(folder: Path, *, backbone: Path, vision_tower: Path, projector: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import GenerationConfig, LlamaConfig, LlavaForConditionalGeneration

    image_token_id = _reserved_id(backbone / "tokenizer.json")
    config = pair_config(LlamaConfig.from_pretrained(backbone), image_token_id=image_token_id)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    text = load_file(backbone / "model.safetensors")
    trained = load_file(projector)
    changed = changes(trained)
    for name, change in changed.items():
        text[name] = (text[name].float() + change).to(text[name].dtype)
    state = {f"model.language_{name}": value for name, value in text.items()}
    state["lm_head.weight"] = text["model.embed_tokens.weight"]
    tower = load_file(vision_tower)
    state |= {f"model.vision_tower.{name}": value for name, value in tower.items()}
    state |= {
        f"model.multi_modal_projector.{name}": value
        for name, value in trained.items()
        if not name.endswith((UP, DOWN))
    }
    # Buffers are not in the files; a model that is only saved does not need them.
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(backbone)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)


def changes(trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is added to weights of the language model, by their names, in float32.

    ``trained`` is what a pair's file holds; a change is kept there as two factors of low rank.
    """
    names = [name.removesuffix(UP) for name in trained if name.endswith(UP)]
    return {name: trained[name + UP].float() @ trained[name + DOWN].float() for name in names}


def _reserved_id(tokenizer_file: Path) -> int:
    added = json.loads(tokenizer_file.read_text(encoding="utf-8"))["added_tokens"]
    return next(token["id"] for token in added if token["content"] == RESERVED_TOKEN)


def _save_processor(folder: Path, *, backbone: Path) -> None:
    from transformers import AutoTokenizer, LlavaProcessor

    with tempfile.TemporaryDirectory() as scratch:
        renamed = Path(scratch)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(backbone / name, renamed / name)
        _rename_reserved(renamed / "tokenizer.json")
        tokenizer = AutoTokenizer.from_pretrained(
            renamed, extra_special_tokens={"image_token": IMAGE_PLACEHOLDER}
        )
    processor = LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_PLACEHOLDER,
    )
    processor.save_pretrained(folder)


def _rename_reserved(tokenizer_file: Path) -> None:
    """Give the reserved token's id to the placeholder, which takes the space before it along."""
    content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        if token["content"] == RESERVED_TOKEN:
            token |= {"content": IMAGE_PLACEHOLDER, "lstrip": True}
    vocabulary = content["model"]["vocab"]
    if RESERVED_TOKEN in vocabulary:
        vocabulary[IMAGE_PLACEHOLDER] = vocabulary.pop(RESERVED_TOKEN)
    tokenizer_file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
