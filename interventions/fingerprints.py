"""What a model computes with, told by content: its weights as they are now, and what acts on them.

Names, versions of tensors and files all stay the same while weights change (``weight.data += x``),
so the weights themselves are read: once, at the speed of memory, which is less than one forward
pass takes to read them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from interventions.architectures.quantisation import quantisation_of
from interventions.architectures.wrapping import adapters_of
from interventions.digests import UnknownContent, digest_of

if TYPE_CHECKING:
    from interventions.model import Model

HEX = 16  # characters
WIDTH = 4096  # numbers of eight bytes in a line of which sums are taken
PASSING = (
    *("training", "gradient_checkpointing", "kernel_config", "loss_type", "name_or_path"),
    *("max_seq_len_cached", "original_max_seq_len", "rope_deltas", "warnings_issued"),
    "all_tied_weights_keys",
)
"""Attributes of modules that change without a change of what is computed, or say nothing of it."""
OF_TORCH = frozenset(vars(torch.nn.Module()))
OF_CONFIG = ("_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype")
SETTLED = (
    "nnsight.",
    "accelerate.",
    "transformers.",
    "torch.",
    "interventions.",
)  # whose hooks are no edits
MOVED = ("CB",)  # bitsandbytes' second name for the weights, given up at the first pass


def fingerprint(model: "Model") -> dict[str, Any]:
    """What a model is at this moment; equal for two that compute the same numbers.

    Everything is read anew at every call, but once in a block of :class:`Unchanged`: weights and
    buffers, bit for bit; the numbers that modules and the config keep beside them; adapters, with
    which are active, merged or switched off; quantisation; hooks put on by hand.

    Parameters
    ----------
    model : Model

    Returns
    -------
    dict
        JSON types. ``weights``, ``modules`` and ``config`` are digests; ``adapters`` and
        ``quantisation`` are said in words, where there are any. Of a model on a server:
        ``{"weights": "as the server has them"}``.
    """
    if model.held is not None:
        return model.held
    if model.remote:
        return {"weights": "as the server has them"}
    module = model.module
    found = {
        "weights": weights_digest(module),
        "modules": _digest(dict(_settings(module))),
        "config": _digest(_config(module)),
    }
    beside = {
        "adapters": [asdict(adapter) for adapter in adapters_of(module)],
        "quantisation": quantisation_of(module),
    }
    return {**found, **{name: value for name, value in beside.items() if value}}


class Unchanged:
    """A ``with`` block in which models do not change: what they are is read once, on entering it.

    For what runs a model many times in one call; the caller's models cannot change meanwhile.
    Blocks may be nested.

    Parameters
    ----------
    *models : Model
    """

    def __init__(self, *models: "Model") -> None:
        self.models = models
        self.outer: list[dict[str, Any] | None] = []

    def __enter__(self) -> None:
        self.outer = [model.held for model in self.models]
        for model in self.models:
            model.held = model.held or fingerprint(model)

    def __exit__(self, *_: object) -> None:
        for model, held in zip(self.models, self.outer, strict=True):
            model.held = held


def weights_digest(module: torch.nn.Module) -> str:
    """Digest of every parameter and buffer of a module: names, number formats, bits.

    A tensor that is there twice, as tied weights are, is read once.
    """
    known: dict[tuple[Any, ...], str] = {}
    digest = hashlib.sha256()
    for name, tensor in _tensors(module):
        key = (tensor.data_ptr(), tensor.device, tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.device.type == "meta" or key not in known:
            known[key] = _of_tensor(tensor)
        shape = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
        digest.update(shape + known[key].encode())
    return digest.hexdigest()[:HEX]


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that a module computes with, by name; those kept elsewhere are fetched."""
    for path, part in module.named_modules():
        own = {**part._parameters, **part._buffers}
        away = getattr(getattr(part, "_hf_hook", None), "weights_map", None)
        for name, tensor in own.items():
            if tensor is None:
                continue
            if tensor.device.type == "meta" and away is not None:
                tensor = away[name]  # on the disk or in memory, fetched by accelerate when needed
            yield f"{path}.{name}", tensor
            # What a quantised weight is scaled by is kept on it, behind it, or on its module.
            state = getattr(part, "state", None)
            for holder in (tensor, getattr(tensor, "quant_state", None), state):
                for key, value in sorted(getattr(holder, "__dict__", {}).items()):
                    if torch.is_tensor(value) and key not in MOVED:
                        yield f"{path}.{name}.{key}", value


def _of_tensor(tensor: torch.Tensor) -> str:
    """Digest of a tensor's bits, computed where they are."""
    if tensor.device.type == "meta" or not tensor.numel():
        return "none"
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    digest = fast_digest() if flat.device.type == "cpu" else None
    if digest is not None:
        return digest(flat.numpy().data)
    whole = flat.numel() // (8 * WIDTH) * 8 * WIDTH
    lines = flat[:whole].view(torch.int64).view(-1, WIDTH)
    rest = torch.nn.functional.pad(flat[whole:], (0, 8 * WIDTH - (flat.numel() - whole)))
    # Sums wrap around. Those along both axes, each weighed by its place, tell of any exchange.
    both = [rest.view(torch.int64).view(1, WIDTH).sum(0)]
    both += [lines.sum(0), lines.sum(1)] if whole else []
    return ".".join(f"{int((one * _weights(len(one), one.device)).sum()):x}" for one in both)


def fast_digest() -> Callable[[Any], str] | None:
    """A digest of bytes at the speed of memory; None on a server that has no such library."""
    try:
        from xxhash import xxh3_128_hexdigest

        xxh3_128_hexdigest(b"")  # a stand-in may have been imported
    except ImportError:
        return None
    return xxh3_128_hexdigest


def _weights(n: int, device: torch.device) -> torch.Tensor:
    """Odd numbers, one for each place, that are unlike each other in all their bits."""
    places = torch.arange(1, n + 1, device=device, dtype=torch.int64)
    mixed = places * -7046029254386353131
    return (mixed ^ (mixed >> 29)) * -4658895280553007687 | 1


def _settings(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Numbers, words and functions that modules keep beside their tensors, by name."""
    for path, part in module.named_modules():
        yield path, f"{type(part).__module__}.{type(part).__qualname__}"
        config = getattr(part, "config", None)
        for name, value in sorted(vars(part).items()):
            if name in OF_TORCH or name in PASSING or name.startswith("__"):
                continue
            if config is not None and name.startswith("_"):
                continue  # transformers' notes on a model
            if _is_simple(value):
                yield f"{path}.{name}", value
            elif callable(value) and hasattr(value, "__qualname__"):
                yield f"{path}.{name}", f"{value.__module__}.{value.__qualname__}"


def _is_simple(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_simple(one) for pair in value.items() for one in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_simple(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)


def _config(module: torch.nn.Module) -> Any:
    config: Any = getattr(module, "config", None)
    return _without(config.to_dict(), OF_CONFIG) if hasattr(config, "to_dict") else None


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return value


def _digest(value: Any) -> str:
    text = json.dumps(value, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:HEX]


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def hooks_of(model: "Model") -> list[str]:
    """Hooks, and forwards put in the place of a module's own, that libraries did not put there.

    Each with its module, its name and a digest of its code and of what that closes over; where
    this cannot be compared, with one that is never the same again.
    """
    return [] if model.remote else list(_hooks(model.module))


def _hooks(module: torch.nn.Module) -> Iterator[str]:
    for path, part in module.named_modules():
        kinds = {
            "before": part._forward_pre_hooks,
            "behind": part._forward_hooks,
            "instead": {0: vars(part)["forward"]} if "forward" in vars(part) else {},
        }
        for kind, hooks in kinds.items():
            for hook in hooks.values():
                # nnsight's stand in for a forward calls itself what that is called.
                made_in = (type(hook).__module__, str(getattr(hook, "__module__", "")))
                if not any(f"{name}.".startswith(SETTLED) for name in made_in):
                    yield f"{kind} {path or 'the model'}: {_told_apart(hook)}"


def _told_apart(hook: Any) -> str:
    name = getattr(hook, "__qualname__", type(hook).__qualname__)
    try:
        return f"{name} {digest_of(hook)}"
    except UnknownContent:
        import secrets

        return f"{name} {secrets.token_hex(6)}"
