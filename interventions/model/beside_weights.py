"""What modules compute with beside their weights: numbers, vectors, functions, and their own code.

Everything is told by its content, in JSON types that are the same in every process. What a library
wrote is told by its name: its version is another matter.
"""

import copyreg
import enum
import inspect
import secrets
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import PurePath
from types import ModuleType
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
from interventions.model.own_code import is_number, own_code

PASSING = (
    *("training", "gradient_checkpointing", "kernel_config", "loss_type", "name_or_path"),
    *("max_seq_len_cached", "original_max_seq_len", "rope_deltas", "warnings_issued"),
    *("all_tied_weights_keys", "_is_hf_initialized", "hf_device_map"),
    "_persistent_id",  # nnsight's, of a model that was sent somewhere once
)
"""Attributes of modules that change without a change of what is computed, or say nothing of it."""
OF_CONFIG = ("_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype")
OF_TORCH = frozenset(vars(torch.nn.Module()))
HELD = ("_parameters", "_buffers", "_modules")
BY_NAME = (
    *("nnsight.", "accelerate.", "transformers.", "interventions.", "peft.", "bitsandbytes."),
    *("tokenizers.", "logging.", "torch.device."),
)
"""Whose objects are told by their name: they keep notes of passes, or say where things are."""
Known = dict[int, tuple[str, Any]]  # what was said already, by identity; held, else it may be freed


def settings_of(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """What each module keeps beside its tensors, and the code of classes of no library, by name.

    Parameters
    ----------
    module : torch.nn.Module

    Yields
    ------
    (str, JSON type)
    """
    known: Known = {id(part): (path or "the model", part) for path, part in module.named_modules()}
    config = getattr(module, "config", None)
    known |= {id(part): ("config", part) for part in (config, *_parts(config))}
    yield "attention", _attention(config, known)
    for path, part in module.named_modules():
        yield path, _class(type(part), known)
        for name, value in _kept(part):
            yield f"{path}.{name}", _said(value, known)


def _attention(config: Any, known: Known) -> Any:
    """The function of a user's own that a config names for attention; None for a library's."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    names = {str(getattr(part, "_attn_implementation", "")) for part in (config, *_parts(config))}
    forwards = {name: ALL_ATTENTION_FUNCTIONS.get(name) for name in sorted(names)}
    own = {
        n: forward for n, forward in forwards.items() if forward and not of_library(_maker(forward))
    }
    return _said(own, known) if own else None


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
    notes = hasattr(part, "save_pretrained") and of_library(type(part).__module__)
    for name, value in sorted(vars(part).items()):
        if name in OF_TORCH or name in PASSING or name.startswith("__"):
            continue
        if (name == "_old_forward" or hasattr(torch.nn.Module, name)) and of_library(_maker(value)):
            continue  # nnsight's and accelerate's stand in for the module's own, as .to()
        if name == "_hf_hook" and type(value).__name__ == "AlignDevicesHook":
            continue  # accelerate's, which brings to a module what it needs
        number = is_number(value) or torch.is_tensor(value)
        if notes and name.startswith("_") and not number:
            continue  # transformers' notes on a model
        yield name, value
    # bitsandbytes' state changes at every pass; this alone is a setting.
    threshold = getattr(getattr(part, "state", None), "threshold", None)
    if threshold is not None:
        yield "state.threshold", threshold


def _maker(forward: Any) -> str | None:
    """Name of the module that has the code of a forward."""
    function = forward.func if isinstance(forward, partial) else forward
    plain = inspect.isfunction(function) or inspect.ismethod(function)
    return function.__module__ if plain else type(function).__module__


def _said(value: Any, known: Known) -> Any:
    """A value in JSON types; what is not alike is not said alike."""
    if value is None or (isinstance(value, bool | int | float | str)):
        return value
    if torch.is_tensor(value) and value.is_nested:
        return ["nested", [_said(part, known) for part in value.unbind()]]
    if torch.is_tensor(value):
        return f"{value.dtype} {tuple(value.shape)} {tensor_digest(value)}"
    if id(value) in known:
        return f"<{known[id(value)][0]}>"
    if isinstance(value, Mapping | Sequence | Set) and not isinstance(value, bytes | bytearray):
        known[id(value)] = ("itself", value)
        content = _inside(value, known)
        if not of_library(type(value).__module__, getattr(type(value), "__module__", None)):
            content = [_class(type(value), known), content, _said(_attributes(value), known)]
        del known[id(value)]
        return content
    if isinstance(value, torch.dtype | np.dtype | PurePath | slice | bytes | bytearray | complex):
        return repr(value)
    if isinstance(value, torch.ScriptObject):
        return _said(value.__getstate__(), known)
    if isinstance(value, partial):
        return [
            "partial",
            *(_said(part, known) for part in (value.func, value.args, value.keywords)),
        ]
    if inspect.ismethod(value):
        return [_said(value.__func__, known), _said(value.__self__, known)]
    if inspect.isfunction(value):
        return _function(value, known)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, enum.Enum):
        return f"{name}.{value.name}"
    if isinstance(value, type):
        return _class(value, known)
    if isinstance(value, np.ufunc) and "(vectorized)" in repr(value):
        return [name, secrets.token_hex(6)]  # of a user's function, which is out of reach
    if isinstance(value, torch.jit.ScriptFunction):
        return [name, digest_of(value.save_to_buffer())]  # pyright: ignore[reportCallIssue]
    if callable(value) and hasattr(value, "__qualname__"):
        return _callable(value, known)
    return _object(value, name, known)


def _inside(value: Any, known: Known) -> Any:
    if isinstance(value, Mapping):
        pairs = [[_said(part, known) for part in pair] for pair in value.items()]
        missing = getattr(value, "default_factory", None)  # gives what is not there
        return {"pairs": pairs, **({"missing": _said(missing, known)} if missing else {})}
    said = [_said(part, known) for part in value]
    return sorted(said, key=repr) if isinstance(value, Set) else said


def _callable(value: Any, known: Known) -> Any:
    """A method of something built in, by what it is bound to; a cached function, by what it is."""
    name = f"{getattr(value, '__module__', None)}.{value.__qualname__}"
    bound = getattr(value, "__self__", None)
    inner = getattr(value, "__wrapped__", None) if bound is None else bound
    return name if inner is None or isinstance(inner, ModuleType) else [name, _said(inner, known)]


def _noted(value: Any, name: str, known: Known) -> None:
    """Remember an object; two of one name are told apart by when they were come to."""
    known[id(value)] = (f"{name} {len(known)}", value)


def _object(value: Any, name: str, known: Known) -> Any:
    _noted(value, name, known)
    if isinstance(value, torch.nn.Module):  # one that is not registered as a part of another
        held = {kind: vars(value)[kind] for kind in HELD}
        kept = {key: _said(part, known) for key, part in (*_kept(value), *held.items())}
        return [_class(type(value), known), kept]
    if hasattr(value, "to_dict") and of_library(type(value).__module__):  # a config of its own
        return _said(_without(value.to_dict(), OF_CONFIG), known)
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
        try:
            return digest_of(array)
        except UnknownContent:
            return [name, [_said(part, known) for part in array.ravel().tolist()]]
    if f"{name}.".startswith(BY_NAME):
        return name
    return [_class(type(value), known), _said(_attributes(value) or _reduced(value), known)]


def _attributes(value: Any) -> dict[str, Any]:
    slots = [slot for kind in type(value).__mro__ for slot in _slots(kind)]
    inside = {key: getattr(value, key) for key in slots if hasattr(value, key)}
    return {**inside, **getattr(value, "__dict__", {})}


def _slots(kind: type) -> list[str]:
    """Names of what its instances keep without a dict, as they are known outside of it."""
    given = vars(kind).get("__slots__", ())
    names = [given] if isinstance(given, str) else [*given]
    private = f"_{kind.__name__.lstrip('_')}"
    return [f"{private}{n}" if n.startswith("__") and n[-2:] != "__" else n for n in names]


def _reduced(value: Any) -> Any:
    """What an object without attributes of Python's is made of, as a copy of it would be."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        return reduce(value) if reduce is not None else value.__reduce_ex__(4)
    except Exception:  # of whatever class: it cannot be copied
        # A lock or a file changes no number. What is called does, and is never known again.
        return secrets.token_hex(6) if callable(value) else None


def _function(function: Any, known: Known) -> Any:
    name = f"{function.__module__}.{function.__qualname__}"
    if of_library(function.__module__):
        return name
    _noted(function, name, known)
    cells = [_content(cell) for cell in function.__closure__ or ()]
    beside = [cells, function.__defaults__, function.__kwdefaults__, globals_of(function)]
    return [name, code_digest(function.__code__), *(_said(part, known) for part in beside)]


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
    _noted(kind, name, known)
    written = own_code(kind)
    return [name, _said(written, known)] if written else name
