"""Processors whose class needs torchvision, which is not there: their image half works without.

transformers 5.23 neither constructs nor opens a processor that has a video part unless torchvision
is installed, nor Pixtral's, nor Llama 4's image processor; SmolVLM's asks for num2words, which it
uses for videos only. Here they are made, and opened, from the parts that are there.
"""

import importlib
import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers
from transformers import AutoProcessor, AutoTokenizer, Llama4Processor, ProcessorMixin

from tiny.llama4 import Llama4ImageProcessorPil

WITH_VIDEOS = {
    *("LlavaOnevisionProcessor", "InternVLProcessor", "SmolVLMProcessor"),
    *("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"),
}


class ImageHalf(ProcessorMixin):
    """Leaves the video part out of a processor class that this is mixed into."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return what the processor is made of, which is also what it opens in a folder."""
        return [name for name in super().get_attributes() if name != "video_processor"]


@cache
def processor_class(name: str) -> Any:
    """Return a processor class by name: transformers' own, less what cannot be had here."""
    if name == "PixtralProcessor":
        return _pixtral()
    if name == "Llama4Processor":
        return _Llama4Processor
    whole = getattr(transformers, name)
    if name not in WITH_VIDEOS:
        return whole
    return type(name, (ImageHalf, whole), _smolvlm(whole) if name == "SmolVLMProcessor" else {})


def open_processor(folder: Path) -> Any:
    """Open the processor in a folder, as ``AutoProcessor`` does where everything is installed."""
    settings = folder / "processor_config.json"
    if not settings.is_file():
        return AutoProcessor.from_pretrained(folder)
    return processor_class(json.loads(settings.read_text())["processor_class"]).from_pretrained(
        folder
    )


def _smolvlm(whole: Any) -> dict[str, Any]:
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
    # its chat template asks how videos are sampled, even where there are none
    return {"__init__": __init__, "video_processor": SimpleNamespace(num_frames=64, fps=1)}


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


class _Llama4Processor(Llama4Processor):
    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        images = Llama4ImageProcessorPil.from_pretrained(pretrained_model_name_or_path)
        return [images, AutoTokenizer.from_pretrained(pretrained_model_name_or_path)]


_Llama4Processor.__name__ = "Llama4Processor"  # what its folder says
