"""What modules compute with beside their weights: numbers, vectors, functions, and their own code.

Everything is told by its content, in JSON types that are the same in every process. What a library
wrote is told by its name: its version is another matter.
"""

import enum
import inspect
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from interventions.digests import (
    UnknownContent,
    code_digest,
    digest_of,
    globals_of,
    of_library,
    tensor_digest,
)

PASSING = (
    *("training", "gradient_checkpointing", "kernel_config", "loss_type", "name_or_path"),
    *("max_seq_len_cached", "original_max_seq_len", "rope_deltas", "warnings_issued"),
    "all_tied_weights_keys",
)
"""Attributes of modules that change without a change of what is computed, or say nothing of it."""
OF_CONFIG = ("_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype")
OF_TORCH = frozenset(vars(torch.nn.Module()))
HELD = ("_parameters", "_buffers", "_modules")
Known = dict[int, str]  # what was said already, by identity


def settings_of(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """What each module keeps beside its tensors, and the code of classes of no library, by name.

    Parameters
    ----------
    module : torch.nn.Module

    Yields
    ------
    (str, JSON type)
    """
    known = {id(part): path or "the model" for path, part in module.named_modules()}
    config = getattr(module, "config", None)
    known |= {id(one): "config" for one in (config, *_parts(config))}
    for path, part in module.named_modules():
        yield path, _class(type(part), known)
        for name, value in _kept(part):
            yield f"{path}.{name}", _said(value, known)


def config_of(module: torch.nn.Module) -> Any:
    """What a model's config says of what is computed, in JSON types; None without one."""
    config: Any = getattr(module, "config", None)
    return _without(config.to_dict(), OF_CONFIG) if hasattr(config, "to_dict") else None


def _parts(config: Any) -> Iterator[Any]:
    """The configs in a config."""
    for value in vars(config).values() if hasattr(config, "to_dict") else ():
        if hasattr(value, "to_dict"):
            yield value
            yield from _parts(value)


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return value


def _kept(part: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes that were put on a module, without those of torch and of its bookkeeping."""
    notes = getattr(part, "config", None) is not None and of_library(type(part).__module__)
    for name, value in sorted(vars(part).items()):
        if name in OF_TORCH or name in PASSING or name.startswith("__"):
            continue
        if name == "forward" and of_library(_maker(value)):
            continue  # nnsight's and accelerate's stand in for the module's own
        if notes and name.startswith("_") and not torch.is_tensor(value):
            continue  # transformers' notes on a model
        yield name, value
    # bitsandbytes' state changes at every pass; this alone is a setting.
    threshold = getattr(getattr(part, "state", None), "threshold", None)
    if threshold is not None:
        yield "state.threshold", threshold


def _maker(forward: Any) -> str | None:
    """Name of the module that has the code of a forward."""
    made = forward.func if isinstance(forward, partial) else forward
    plain = inspect.isfunction(made) or inspect.ismethod(made)
    return made.__module__ if plain else type(made).__module__


def _said(value: Any, known: Known) -> Any:
    """A value in JSON types; what is not alike is not said alike."""
    if value is None or (isinstance(value, bool | int | float | str)):
        return value
    if torch.is_tensor(value):
        return f"{value.dtype} {tuple(value.shape)} {tensor_digest(value)}"
    if id(value) in known:
        return f"<{known[id(value)]}>"
    if isinstance(value, Mapping | Sequence | Set) and not isinstance(value, bytes | bytearray):
        known[id(value)] = "itself"
        found = _inside(value, known)
        del known[id(value)]  # another may come to lie where it was
        return found
    if isinstance(value, torch.dtype | np.dtype | PurePath | slice | bytes | bytearray | complex):
        return repr(value)
    if isinstance(value, torch.ScriptObject):
        return _said(value.__getstate__(), known)
    if isinstance(value, partial):
        return ["partial", *(_said(one, known) for one in (value.func, value.args, value.keywords))]
    if inspect.ismethod(value):
        return [_said(value.__func__, known), _said(value.__self__, known)]
    if inspect.isfunction(value):
        return _function(value, known)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, enum.Enum):
        return f"{name}.{value.name}"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    return _object(value, name, known)


def _inside(value: Any, known: Known) -> Any:
    if isinstance(value, Mapping):
        return {"pairs": [[_said(one, known) for one in pair] for pair in value.items()]}
    said = [_said(one, known) for one in value]
    return sorted(said, key=repr) if isinstance(value, Set) else said


def _object(value: Any, name: str, known: Known) -> Any:
    known[id(value)] = name
    if isinstance(value, torch.nn.Module):  # one that is not registered as a part of another
        held = {kind: vars(value)[kind] for kind in HELD}
        kept = {key: _said(one, known) for key, one in (*_kept(value), *held.items())}
        return [_class(type(value), known), kept]
    if hasattr(value, "to_dict") and of_library(type(value).__module__):  # a config of its own
        return _said(_without(value.to_dict(), OF_CONFIG), known)
    if hasattr(value, "__array__"):
        try:
            return digest_of(np.asarray(value))
        except UnknownContent:
            return [name, [_said(one, known) for one in np.asarray(value).ravel().tolist()]]
    if of_library(type(value).__module__):
        return name
    slots = [one for kind in type(value).__mro__ for one in getattr(kind, "__slots__", ())]
    inside = {key: getattr(value, key) for key in slots if hasattr(value, key)}
    return [name, _said({**inside, **getattr(value, "__dict__", {})}, known)]


def _function(function: Any, known: Known) -> Any:
    name = f"{function.__module__}.{function.__qualname__}"
    if of_library(function.__module__):
        return name
    known[id(function)] = name
    cells = [_content(cell) for cell in function.__closure__ or ()]
    beside = [cells, function.__defaults__, function.__kwdefaults__, globals_of(function)]
    return [name, code_digest(function.__code__), *(_said(one, known) for one in beside)]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _class(kind: type, known: Known) -> Any:
    """A class: its name; of one that no library wrote, or changed by hand, its code."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if id(kind) in known:
        return name
    known[id(kind)] = name
    written: dict[str, Any] = {}
    for base in kind.__mro__:
        for key, value in vars(base).items():
            if key.startswith("__") and key != "__call__":
                continue
            inner = getattr(value, "fget", None) or getattr(value, "__func__", value)
            maker = getattr(inner, "__module__", None) if callable(inner) else base.__module__
            if not of_library(base.__module__, maker) or key in written:
                written.setdefault(key, inner)
            elif inspect.isfunction(inner) and not of_library(inner.__module__):
                written.setdefault(key, inner)  # put in the place of the library's own
    return [name, _said(written, known)] if written else name
