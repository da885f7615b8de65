"""Faults of other libraries' models, which ``doctor`` names and a run refuses.

A fault is looked for in the code that is installed, not in its version number: it ends with the
release that mends it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interventions.errors import UpstreamError


@dataclass(frozen=True)
class Fault:
    """What is broken in the models of one family.

    Attributes
    ----------
    since : str
        The release of transformers that brought it.
    what : str
        What happens.
    advice : str
        What to do.
    shows : callable
        ``shows(module)``: whether the code of a model has it.
    """

    since: str
    what: str
    advice: str
    shows: Callable[[Any], bool]


def _asks_for_image_outputs(module: Any) -> bool:
    """Whether the forward of a Llama 4 reads what the output of its language model has not."""
    from transformers import Llama4ForConditionalGeneration
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast

    if "image_outputs" in inspect.signature(MoeCausalLMOutputWithPast).parameters:
        return False
    whole = (part for part in module.modules() if isinstance(part, Llama4ForConditionalGeneration))
    return any(
        "image_outputs" in inspect.unwrap(type(part).forward).__code__.co_names for part in whole
    )


FAULTS: dict[str, Fault] = {
    "llama4": Fault(
        since="5.24.0",
        what="every forward pass ends in an AttributeError ('image_outputs'), with images and "
        "without, as it asks its language model for what only a vision-language model returns",
        advice="Install transformers 5.23, or a later release that mends it.",
        shows=_asks_for_image_outputs,
    ),
}
"""By ``config.model_type``."""


def fault_of(module: Any, model_type: str) -> str | None:
    """Return what is broken in a model with the transformers installed here; None if it runs.

    Parameters
    ----------
    module : torch.nn.Module
        A transformers model, on whatever device (meta too).
    model_type : str
        Its config's name for its architecture.
    """
    fault = FAULTS.get(model_type)
    if fault is None or not fault.shows(module):
        return None
    from transformers import __version__

    return (
        f"{type(module).__name__} of transformers {__version__} is broken (since {fault.since}): "
        f"{fault.what}. {fault.advice}"
    )


def check_unbroken(module: Any, model_type: str) -> None:
    """Refuse to run a model here whose code is broken; see :func:`fault_of`.

    Raises
    ------
    UpstreamError
        With what is broken, and what to do.
    """
    if fault := fault_of(module, model_type):
        raise UpstreamError(fault)
