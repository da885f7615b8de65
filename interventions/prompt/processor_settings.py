"""What a processor can be told about its images, so that nothing is told in vain."""

import inspect
from collections.abc import Mapping
from typing import Any

from interventions.errors import PromptError, did_you_mean
from interventions.given import named, plain

FIXED = (
    *("return_tensors", "data_format", "input_data_format", "device", "disable_grouping"),
    *("image_seq_length", "patch_size", "temporal_patch_size", "merge_size", "max_image_tiles"),
)
"""What prompts are made with anyway, and what belongs to the model."""
EVERYWHERE = {"do_convert_rgb", "default_to_square"}
AREA = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""The least and largest area of an image, and where Qwen's image processors have it in ``size``."""


def image_settings(processor: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be given to a processor's call.

    Parameters
    ----------
    processor : transformers processor
    given : dict
        By the processor's own names; those of its image processor, flat or in ``images_kwargs``.

    Raises
    ------
    PromptError
        If the image processor does not use one of them: transformers would pass over it.
    """
    flat = dict(given)
    nested = named(flat.pop("images_kwargs", None), "images_kwargs of processor_kwargs")
    if twice := sorted(set(flat) & set(nested)):
        raise PromptError(f"processor_kwargs: {twice[0]!r} is given twice, give it once.")
    flat.update(nested)
    images = processor.image_processor
    used = _used(images)
    for key in flat:
        if key in FIXED:
            raise PromptError(
                f"processor_kwargs: {key!r} is not to be changed: prompts are made with it, or the "
                f"model was. It can be given {', '.join(sorted(used))}."
            )
        if key not in used:
            raise PromptError(
                f"{type(images).__name__} does not use {key!r}, so it would change nothing. "
                f"{did_you_mean(key, sorted(used))}"
            )
    area = {AREA[key]: flat.pop(key) for key in AREA if key in flat}
    if area:
        if "size" in flat:
            raise PromptError("processor_kwargs: give either 'size' or 'min_pixels', 'max_pixels'.")
        flat["size"] = _sized(dict(images.size), area)
    return flat


def _used(images: Any) -> set[str]:
    """The settings that reach what an image processor does."""
    from transformers.processing_utils import ImagesKwargs

    valid = set(getattr(getattr(images, "valid_kwargs", None), "__annotations__", {}))
    method = getattr(images, "_preprocess", images.preprocess)
    read = set(inspect.signature(method).parameters) - {"self", "images", "kwargs", "args"}
    used = read & valid if valid else read
    if hasattr(images, "_standardize_kwargs"):
        own = valid - set(ImagesKwargs.__annotations__)
        used |= own & set(inspect.signature(images._standardize_kwargs).parameters)
    if "merge_size" in valid and {*AREA.values()} <= set(dict(images.size or {})):
        used |= set(AREA)
    return (used | (EVERYWHERE & valid)) - {*FIXED}


def _sized(size: dict[str, Any], area: Mapping[str, Any]) -> dict[str, Any]:
    sized = {key: plain(value) for key, value in {**size, **area}.items() if value is not None}
    least, most = (sized.get(key) for key in AREA.values())
    if not (isinstance(least, int) and isinstance(most, int) and 0 < least <= most):
        raise PromptError(
            f"processor_kwargs: an image's area is to lie between min_pixels={least!r} and "
            f"max_pixels={most!r}. Give whole numbers, the first no larger than the second."
        )
    return sized
