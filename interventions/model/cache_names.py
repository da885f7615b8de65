"""What transformers calls the keys and values of earlier tokens.

``cache`` from 5.24 on, ``past_key_values`` before: as an argument of models and of their parts, and
in what they return. The name is read off the model at hand, as code that goes to a server meets
another version there than here.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from interventions.errors import PromptError

NAMES = ("cache", "past_key_values")
"""The newest first: what has both has the older one for the sake of old code."""


def cache_argument(module: torch.nn.Module) -> str:
    """Return what a transformers model, or a part of one, calls the cache it is given.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaModel
    >>> sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=1, vocab_size=4)
    >>> cache_argument(LlamaModel(LlamaConfig(num_hidden_layers=1, **sizes))) in NAMES
    True
    """
    named = inspect.signature(module.forward).parameters
    accepted = [name for name in NAMES if name in named]
    return accepted[0] if accepted else installed_name()


def installed_name() -> str:
    """Return the name in the transformers that is installed: for ``generate``, and for wrappers."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    fields = inspect.signature(CausalLMOutputWithPast).parameters
    return next(name for name in NAMES if name in fields)


def names_a_cache(given: Mapping[str, Any]) -> bool:
    """Whether arguments name a cache, by either name."""
    return any(name in given for name in NAMES)


def given_cache(given: Mapping[str, Any]) -> Any:
    """Return the cache among a module's arguments, by either name; None without one."""
    return next((given[name] for name in NAMES if given.get(name) is not None), None)


def returned_cache(output: Any) -> Any:
    """Return the cache of what a transformers model returned; None if it kept none."""
    return output.cache if hasattr(output, "cache") else output.past_key_values


def with_cache_named(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments whose cache, given by either name, has this one.

    Raises
    ------
    PromptError
        If both names were given.
    """
    taken = [key for key in NAMES if key in given]
    if len(taken) > 1:
        raise PromptError(
            f"{' and '.join(taken)} were both given, which are two names of one argument. "
            "Give one of them."
        )
    return {name if key in NAMES else key: value for key, value in given.items()}
