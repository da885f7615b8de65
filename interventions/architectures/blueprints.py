"""A model without its weights, made from the config of a checkpoint; and its processor."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from interventions.architectures.checkpoint_place import place_of
from interventions.architectures.opening import reading
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
    from interventions.architectures.llava_layout import Original

    original = Original.at(place, revision=revision)
    try:
        tokenizer, image_token = original.tokens(place, revision=revision)
    except Exception as error:  # as above
        return original.config, (None, f"its tokenizer cannot be opened: {error}")
    # load() makes the processor around it
    return original.config, (SimpleNamespace(tokenizer=tokenizer, image_token=image_token), None)


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
