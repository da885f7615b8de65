"""Opening a VLM's processor, also where torchvision is not installed.

Without torchvision transformers neither makes nor opens a processor that has a part for videos,
nor Pixtral's. What they do with images and text does not need it, so that half is opened alone.
"""

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import transformers
from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES  # pyright: ignore
from transformers.utils.import_utils import is_torchvision_available

from interventions.errors import LoadError

VIDEO = "video_processor"


class _ImageHalf(ProcessorMixin):
    """Leaves the video part out of a processor class that this is mixed into."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return what the processor is made of, which is also what it opens in a folder."""
        return [name for name in super().get_attributes() if name != VIDEO]


class _NoVideo(ProcessorMixin):
    """Takes no offence at a video part that is named and not there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get(VIDEO) is None:
            kwargs.pop(VIDEO, None)
        ProcessorMixin.__init__(self, *args, **kwargs)


def open_processor(place: str, config: Any, **common: Any) -> Any:
    """Open the processor that belongs to a checkpoint.

    Parameters
    ----------
    place : str
        Repo id or folder.
    config : PretrainedConfig
        Of the model; says which class it is.
    **common
        ``revision`` and ``trust_remote_code``, for transformers.

    Raises
    ------
    LoadError
        If the checkpoint has no processor that can be opened here.
    """
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(place, **common)
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if config.model_type == "llava" and config.vision_config.model_type == "pixtral":
        name = "PixtralProcessor"
    if name is None:
        return AutoProcessor.from_pretrained(place, **common)
    if name == "Llama4Processor":
        raise LoadError(
            f"{place!r}: the image processor of Llama 4 needs torchvision, which is not installed. "
            "Install it, or pass a processor= of your own."
        )
    return processor_class(name).from_pretrained(place, **common)


def processor_class(name: str) -> Any:
    """Return a processor class of transformers by name, less what needs torchvision."""
    if name == "PixtralProcessor":
        return _pixtral()
    whole = getattr(transformers, name)
    if VIDEO not in whole.get_attributes():
        return whole
    more = {"SmolVLMProcessor": _smolvlm, "Gemma4Processor": _gemma4}.get(name)
    return type(name, (_ImageHalf, whole, _NoVideo), more(whole) if more else {})


def _pixtral() -> Any:
    """Import Pixtral's processor, which asks torchvision's image processor for one function."""
    package = "transformers.models.pixtral"
    absent = f"{package}.image_processing_pixtral"
    try:
        return importlib.import_module(f"{package}.processing_pixtral").PixtralProcessor
    except ImportError:
        sys.modules[absent] = importlib.import_module(f"{package}.image_processing_pil_pixtral")
        try:
            return importlib.import_module(f"{package}.processing_pixtral").PixtralProcessor
        finally:
            del sys.modules[absent]


def _gemma4(whole: Any) -> dict[str, Any]:
    """What lets Gemma 4's processor be made without its video part, which it asks for by place."""

    def __init__(
        self: Any,
        feature_extractor: Any,
        image_processor: Any,
        tokenizer: Any,
        video_processor: Any = None,
        chat_template: str | None = None,
        **settings: Any,
    ) -> None:
        del video_processor  # what a folder says of it
        parts = feature_extractor, image_processor, tokenizer, None
        whole.__init__(self, *parts, chat_template=chat_template, **settings)

    return {"__init__": __init__}


def _smolvlm(whole: Any) -> dict[str, Any]:
    """What lets SmolVLM's processor do without its video part and num2words, used for videos."""

    def __init__(
        self: Any,
        image_processor: Any,
        tokenizer: Any,
        video_processor: Any = None,
        image_seq_len: int = 169,
        chat_template: str | None = None,
    ) -> None:
        parts = image_processor, tokenizer, video_processor
        whole.__init__(self, *parts, image_seq_len=image_seq_len, chat_template=chat_template)

    module: Any = sys.modules[whole.__module__]
    module.num2words = module.num2words or str
    # Its chat template asks how videos are sampled, even where there are none.
    return {"__init__": __init__, VIDEO: SimpleNamespace(num_frames=64, fps=1)}
