"""Processors without torchvision: the engine's, and Llama 4's, which the engine cannot open."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, Llama4Processor

from interventions.architectures import processors
from tiny.llama4 import Llama4ImageProcessorPil


class _Llama4Processor(Llama4Processor):
    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        images = Llama4ImageProcessorPil.from_pretrained(pretrained_model_name_or_path)
        return [images, AutoTokenizer.from_pretrained(pretrained_model_name_or_path)]


_Llama4Processor.__name__ = "Llama4Processor"  # what its folder says


def processor_class(name: str) -> Any:
    """Return a processor class by name: transformers' own, less what cannot be had here."""
    return _Llama4Processor if name == "Llama4Processor" else processors.processor_class(name)


def open_processor(folder: Path) -> Any:
    """Open the processor in a folder, as ``AutoProcessor`` does where everything is installed."""
    settings = folder / "processor_config.json"
    if not settings.is_file():
        return AutoProcessor.from_pretrained(folder)
    return processor_class(json.loads(settings.read_text())["processor_class"]).from_pretrained(
        folder
    )
