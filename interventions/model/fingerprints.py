"""What a model computes with, told by content: its weights as they are now, and what acts on them.

Names, versions of tensors and files all stay the same while weights change (``weight.data += x``),
so the weights themselves are read: once, at the speed of memory, which is less than one forward
pass takes to read them.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from interventions.architectures.quantisation import quantisation_of
from interventions.architectures.wrapped import Wrapped
from interventions.architectures.wrapping import adapters_of
from interventions.digests import (
    SETTLED,
    UnknownContent,
    digest_of,
    globals_of,
    tensor_digest,
)
from interventions.model.beside_weights import config_of, settings_of

HEX = 16  # characters
MOVED = ("CB", "idx", "subB")
"""Of bitsandbytes: a second name for the weights, given up at the first pass, and what a pass
found, which is no part of the model."""
OF_A_CALL = ("padding", "truncation")


def fingerprint(model: Wrapped) -> dict[str, Any]:
    """What a model is at this moment; equal for two that compute the same numbers.

    Everything is read anew at every call, but once in a block of :class:`Unchanged`: weights and
    buffers, bit for bit; the numbers, vectors and functions that modules keep beside them, and the
    config; the code of classes that no library wrote; adapters, with which are active, merged or
    switched off; quantisation; ``torch.autocast``.

    Parameters
    ----------
    model : Wrapped

    Returns
    -------
    dict
        JSON types. ``weights``, ``modules`` and ``config`` are digests; ``adapters``,
        ``quantisation`` and ``autocast`` are said in words, where there are any. Of a model on a
        server:
        ``{"weights": "as the server has them"}``.
    """
    if model.held is not None:
        return model.held
    if model.remote:
        return {"weights": "as the server has them"}
    module = model.module
    content = {
        "weights": weights_digest(module),
        "modules": _digest(dict(settings_of(module))),
        "config": _digest(config_of(module)),
    }
    beside = {
        "adapters": [asdict(adapter) for adapter in adapters_of(module)],
        "quantisation": quantisation_of(module),
        "autocast": _autocast(model.device.type),
    }
    return {**content, **{name: value for name, value in beside.items() if value}}


def _autocast(device: str) -> str | None:
    """The number format to which torch brings what is computed now; None if to none."""
    if not torch.is_autocast_enabled(device):
        return None
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.")


class Unchanged:
    """A ``with`` block in which models do not change: what they are is read once, on entering it.

    For what runs a model many times in one call; the caller's models cannot change meanwhile.
    Blocks may be nested.

    Parameters
    ----------
    *models : Wrapped
    """

    def __init__(self, *models: Wrapped) -> None:
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
    for name, tensor, stays in _tensors(module):
        shape = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
        if inner := _inner(tensor):
            said = [f"{key} {tensor_digest(part)}" for key, part in inner]
            digest.update(shape + json.dumps(said, default=str).encode())
            continue
        if not stays or tensor.layout != torch.strided or tensor.device.type == "meta":
            # Where one that was fetched lay, the next one may come to lie.
            digest.update(shape + tensor_digest(tensor).encode())
            continue
        key = (tensor.data_ptr(), tensor.device, tensor.shape, tensor.stride(), tensor.dtype)
        key = (*key, tensor.is_conj(), tensor.is_neg())
        if key not in known:
            known[key] = tensor_digest(tensor)
        digest.update(shape + known[key].encode())
    return digest.hexdigest()[:HEX]


def _inner(tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The tensors that one of a class of its own is made of, each with what is said of it."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return []
    composed: Any = tensor
    names, about = composed.__tensor_flatten__()
    parts = []
    for name in names:
        inner = getattr(tensor, name)
        parts += [(f"{name}.{key}", part) for key, part in _inner(inner)] or [(name, inner)]
    kind = type(tensor)
    return [(f"{kind.__module__}.{kind.__qualname__} {about} {key}", part) for key, part in parts]


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Every tensor that a module computes with, by name, and whether it stays where it is.

    Those kept elsewhere are fetched.
    """
    for path, part in module.named_modules():
        own = {**part._parameters, **part._buffers}
        away = getattr(getattr(part, "_hf_hook", None), "weights_map", None)
        for name, tensor in own.items():
            if tensor is None:
                continue
            stays = True
            if away is not None and tensor.device.type == "meta":
                stays = False
                tensor = away[name]  # on the disk or in memory, fetched by accelerate when needed
            yield f"{path}.{name}", tensor, stays
            # What a quantised weight is scaled by is kept on it, behind it, or on its module.
            state = getattr(part, "state", None)
            for holder in (tensor, getattr(tensor, "quant_state", None), state):
                for key, value in sorted(getattr(holder, "__dict__", {}).items()):
                    if torch.is_tensor(value) and key not in MOVED:
                        yield f"{path}.{name}.{key}", value, stays


def processing_of(model: Wrapped) -> str:
    """Digest of what makes prompts of texts and pictures: tokenizer, template, image processor.

    What a call sets anew, padding and truncation, does not count.

    Parameters
    ----------
    model : Wrapped
    """
    tokenizer: Any = model.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {
        "tokens": {key: value for key, value in state.items() if key not in OF_A_CALL},
        "special": [tokenizer.special_tokens_map, tokenizer.padding_side],
        "template": tokenizer.chat_template,
    }
    processor: Any = model.processor
    if processor is not None:
        parts["processor"] = [processor.to_dict(), processor.chat_template]
    return _digest(parts)


def _digest(value: Any) -> str:
    text = json.dumps(value, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:HEX]


def hooks_of(model: Wrapped) -> list[str]:
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
        seen = list(globals_of(hook).values()) if inspect.isfunction(hook) else []
        return f"{name} {digest_of(hook, seen)}"
    except UnknownContent:
        import secrets

        return f"{name} {secrets.token_hex(6)}"
