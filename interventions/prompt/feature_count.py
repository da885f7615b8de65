"""How many image features a model makes of a row's images, by its own code.

A family's formula says what its usual parts make. It is believed where it agrees with what the
processor wrote and every part is transformers' own; else the model is asked, once per kind of
input, by running what makes the features. Weights that are not here are never asked for.
"""

import inspect
from typing import Any

import torch

from interventions.architectures.anatomy import Anatomy
from interventions.errors import PromptError

Tensors = dict[str, torch.Tensor]
LIBRARY, PARTS = "transformers.", ("transformers.", "torch.")


def feature_count(
    module: Any,
    anatomy: Anatomy,
    tensors: Tensors,
    *,
    tokens: int,
    known: dict[Any, int | None],
    told: bool = False,
) -> int | None:
    """Number of image features that a model will make.

    Parameters
    ----------
    module : torch.nn.Module
        The model.
    anatomy : Anatomy
        Where its parts are.
    tensors : dict of str to Tensor
        What the processor made of one row's images.
    tokens : int
        How many image tokens the processor wrote.
    known : dict
        What was measured on this model before; added to.
    told : bool
        The processor was told something of images, so that the model may not take what it made.

    Returns
    -------
    int or None
        None where it is left to the model's own check: its images have no tokens, or it cannot
        be asked.

    Raises
    ------
    PromptError
        If the processor was told something, and the model cannot take what it made.
    """
    if anatomy.image_token_id is None:
        return None
    if not told and _usual(module, anatomy) and anatomy.family.count(module, tensors) == tokens:
        return tokens
    key = _kind(module, anatomy, tensors)
    if key not in known or (told and known[key] is None):
        known[key] = _measured(module, tensors, told)
    return known[key]


def _parts(module: Any, anatomy: Anatomy) -> list[Any]:
    """What makes the features: the tower, and the projector where that is no part of it."""
    return [
        module.get_submodule(path) for path in (anatomy.vision_tower, anatomy.projector) if path
    ]


def _usual(module: Any, anatomy: Anatomy) -> bool:
    """Whether what makes the features is as transformers has it."""
    parts = _parts(module, anatomy)
    inside = [submodule for part in parts for submodule in part.modules()]
    return (
        all(type(part).__module__.startswith(LIBRARY) for part in (module, *parts))
        and all(type(submodule).__module__.startswith(PARTS) for submodule in inside)
        and not any(
            submodule._forward_hooks or submodule._forward_pre_hooks for submodule in inside
        )
    )


def _kind(module: Any, anatomy: Anatomy, tensors: Tensors) -> Any:
    """What the number may depend on: the parts, and shapes and sizes, but no colours."""
    parts = tuple((id(part), type(part)) for part in _parts(module, anatomy))
    given = tuple(
        (key, tuple(value.shape), None if value.is_floating_point() else value.numpy().tobytes())
        for key, value in sorted(tensors.items())
    )
    return parts, given


def _measured(module: Any, tensors: Tensors, told: bool) -> int | None:
    make = getattr(module, "get_image_features", None)
    if make is None:
        return None
    taken = set(inspect.signature(make).parameters)
    inner = getattr(getattr(module, "model", None), "get_image_features", None)
    if inner is not None:
        taken |= set(inspect.signature(inner).parameters)
    weight = next(module.parameters())
    given = {
        key: value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)
        for key, value in tensors.items()
        if key in taken
    }
    try:
        # What fails here fails again when the prompt is run, and is said there.
        with torch.no_grad():
            return _entries(make(**given))
    except Exception as error:
        no_memory = isinstance(error, torch.OutOfMemoryError)  # which says nothing of the picture
        if told and weight.device.type != "meta" and not no_memory:
            raise PromptError(
                "the model cannot read images that were made with these processor_kwargs: "
                f"{str(error).rstrip('.')}. Leave out what changes their size or shape."
            ) from error
        return None


def _entries(output: Any) -> int | None:
    """Number of vectors in what a model gives as its image features."""
    features = getattr(output, "pooler_output", None)
    if features is None:
        features = getattr(output, "last_hidden_state", output)
    several = features if isinstance(features, list | tuple) else [features]
    return sum(tensor.shape[:-1].numel() for tensor in several)
