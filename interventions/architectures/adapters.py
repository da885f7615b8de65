"""Adapters (PEFT) that are put into a model as it is loaded, and switched afterwards."""

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interventions.architectures.checkpoint_place import place_of
from interventions.architectures.unwrapping import check_adapters
from interventions.architectures.wrapping import adapter_layers
from interventions.errors import LoadError, did_you_mean

PICKLED = "adapter_model.bin"


def named_adapters(given: str | Path | Mapping[str, str | Path] | None) -> dict[str, str]:
    """Adapters by name: of one, the last part of where it is.

    Examples
    --------
    >>> named_adapters("someone/llava-birds-lora")
    {'llava-birds-lora': 'someone/llava-birds-lora'}
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        place = place_of(given)
        given = {Path(place).name.replace(".", "-"): place}
    for name in given:
        # PEFT keeps an adapter's weights in a ModuleDict under its name.
        if not isinstance(name, str) or not name or "." in name:
            raise LoadError(
                f"adapter: got the name {name!r}; expected a text without dots, "
                'as in adapter={"birds": "someone/llava-birds-lora"}.'
            )
    return {name: place_of(place) for name, place in given.items()}


def add_adapters(module: Any, adapters: Mapping[str, str], name: str) -> None:
    """Put adapters into a loaded model; the first of them acts.

    Parameters
    ----------
    module : torch.nn.Module
        A transformers model.
    adapters : mapping of str to str
        Folder or repo id of each.
    name : str
        Of the model, for messages.

    Raises
    ------
    LoadError
        If PEFT is missing, an adapter cannot be found, does not fit the model, is incomplete, or
        does something that is not in the model's modules.
    """
    if not adapters:
        return
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise LoadError("adapter= needs PEFT: pip install peft.") from error
    loaded: list[str] = []
    for adapter, place in adapters.items():
        if Path(place).is_dir() and (Path(place) / PICKLED).is_file():
            names = {path.name for path in Path(place).iterdir()}
            if "adapter_model.safetensors" not in names:
                raise LoadError(
                    f"the adapter {place!r} has its weights in {PICKLED}, a pickle, which can run "
                    "code when it is opened. Save it again as safetensors (PEFT's "
                    "save_pretrained does)."
                )
        # transformers takes the weights of the ones before for missing, and makes them anew.
        kept = {path: weight.clone() for path, weight in weights_of(module, loaded).items()}
        try:
            with _quiet():
                # No pickle, also from the hub.
                report = module.load_adapter(place, adapter_name=adapter, use_safetensors=True)
        except Exception as error:  # PEFT, transformers, the hub and safetensors each have theirs
            raise LoadError(
                f"the adapter {place!r} cannot be put into {name}: "
                f"{str(error).strip() or type(error).__name__}\n"
                "Expected the folder or repo id of a PEFT adapter that was made on this model."
            ) from error
        with torch.no_grad():
            for path, weight in weights_of(module, loaded).items():
                weight.copy_(kept[path])
        loaded.append(adapter)
        own = set(weights_of(module, [adapter]))
        if missing := sorted(own & {*report.missing_keys}):
            raise LoadError(
                f"the adapter {place!r} is incomplete: {len(missing)} of its weights for {name} "
                f"are not there, such as {missing[0]!r}, and would be random."
            )
        if extra := sorted(report.unexpected_keys):
            raise LoadError(
                f"the adapter {place!r} has weights that {name} has no place for, such as "
                f"{extra[0]!r}. It was made on another model."
            )
    check_adapters(module, name)
    module.eval().requires_grad_(False)
    switch_adapter(module, next(iter(adapters)), name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what transformers and PEFT say of several adapters, and of missing weights."""
    logger = logging.getLogger("transformers.integrations.peft")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            yield
    finally:
        logger.setLevel(level)


def weights_of(module: nn.Module, adapters: Collection[str]) -> dict[str, torch.Tensor]:
    """Weights of adapters in a model, by path: PEFT puts an adapter's name into theirs."""
    return {
        path: weight
        for path, weight in module.named_parameters()
        if any(part in adapters for part in path.split("."))
    }


def switch_adapter(module: Any, adapter: str | None, name: str) -> None:
    """Let one of a model's adapters act, or none.

    Raises
    ------
    LoadError
        If it has no such adapter, or one is merged into the weights.
    """
    there = [*(getattr(module, "peft_config", None) or {})]
    if not there:
        raise LoadError(f"{name} has no adapter. Load it with one: iv.load(..., adapter=PLACE).")
    if adapter is not None and adapter not in there:
        raise LoadError(f"{name} has no adapter {adapter!r}. {did_you_mean(adapter, there)}")
    layers: list[Any] = adapter_layers(module)
    if merged := sorted({own for layer in layers for own in layer.merged_adapters}):
        raise LoadError(
            f"the adapter {merged[0]!r} of {name} is merged into its weights, so it acts whatever "
            "is switched. Unmerge it first (PEFT's unmerge)."
        )
    for layer in layers:
        if adapter is not None:
            layer.set_adapter(adapter)
        layer.enable_adapters(enabled=adapter is not None)
    module.requires_grad_(False)  # PEFT sets the adapter that acts to be trained
