"""A model without its weights, made from the config of a checkpoint; and its processor."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from interventions.architectures.opening import place_of, reading
from interventions.architectures.quantised_opening import check_opens
from interventions.errors import InterventionsError, LoadError


@dataclass(frozen=True)
class Blueprint:
    """A model on meta.

    Attributes
    ----------
    module : torch.nn.Module
    config : PretrainedConfig
    processor : optional
        Processor or tokenizer; None where it cannot be opened.
    prompts_missing : str or None
        Why.
    original_layout : bool
        The checkpoint is in LLaVA's original layout.
    """

    module: Any
    config: Any
    processor: Any | None
    prompts_missing: str | None
    original_layout: bool


def blueprint(source: str | Path, *, revision: str | None = None) -> Blueprint:
    """Make a model without its weights from a folder or repo.

    Raises
    ------
    LoadError
        If there is no config, it is of no supported kind, or ``load`` would refuse what lies
        beside it: weights of another layout or cut short, a format that cannot be opened here.
    """
    from interventions.architectures.llava_layout import is_original_llava

    place = place_of(source)
    with reading(place, doing="examined", weights=False, revision=revision):
        original = is_original_llava(place, revision=revision)
        config, opened = (_original_llava if original else _transformers)(place, revision)
        check_opens(config, place, device_map=default_device())
        return Blueprint(_weightless(config), config, *opened, original)


def default_device() -> str:
    """Where a model goes that was given no place."""
    return "cuda" if torch.cuda.is_available() else "cpu"


Opened = tuple[Any | None, str | None]


def _transformers(place: str, revision: str | None) -> tuple[Any, Opened]:
    from transformers import AutoConfig, AutoTokenizer

    from interventions.architectures.processors import open_processor

    common: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(place, **common)
    try:
        if sees(config):
            processor = open_processor(place, config, **common)
        else:
            processor = AutoTokenizer.from_pretrained(place, **common)
    except InterventionsError as error:
        return config, (None, str(error))
    except Exception as error:  # transformers raises all sorts; the anatomy does not need it
        return config, (None, f"its processor or tokenizer cannot be opened: {error}")
    if not getattr(getattr(processor, "tokenizer", processor), "is_fast", False):
        return config, (processor, "its tokenizer is not a fast one (it has no tokenizer.json)")
    return config, (processor, None)


def _original_llava(place: str, revision: str | None) -> tuple[Any, Opened]:
    """The config of a checkpoint in LLaVA's original layout, as transformers' LLaVA has it."""
    from transformers import AutoConfig, AutoTokenizer, LlavaConfig

    from interventions.architectures.llava_layout import LAYOUTS, _config_of, _image_token

    original = _config_of(place, revision)
    if (kind := original.get("mm_projector_type", "linear")) != "mlp2x_gelu":
        raise LoadError(
            f"{place}: its projector is {kind!r}; transformers' LLaVA has only 'mlp2x_gelu', two "
            "linear layers with a GELU between them."
        )
    tower = original["mm_vision_tower"]
    inside = Path(place) / tower
    vision = AutoConfig.from_pretrained(str(inside) if inside.is_dir() else tower)
    text = AutoConfig.for_model(
        LAYOUTS[original["model_type"]],
        **{k: v for k, v in original.items() if not k.startswith("mm_") and k != "model_type"},
    )
    opened: Opened
    image_token_id: int | None = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:  # as above
        opened = None, f"its tokenizer cannot be opened: {error}"
    else:
        token, _ = _image_token(tokenizer)  # load() makes the processor around it
        image_token_id = tokenizer.convert_tokens_to_ids(token)
        opened = SimpleNamespace(tokenizer=tokenizer, image_token=token), None
    config: Any = LlavaConfig(
        vision_config=getattr(vision, "vision_config", vision),
        text_config=text,
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(original.get("tie_word_embeddings", False)),
    )
    if image_token_id is not None:
        config.image_token_id = image_token_id
    return config, opened


def sees(config: Any) -> bool:
    """Whether the config is of a VLM."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _weightless(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if getattr(config, "is_encoder_decoder", False):
        raise LoadError(
            f"{config.model_type} is an encoder-decoder; only decoders of one stack are supported."
        )
    auto = AutoModelForImageTextToText if sees(config) else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)
