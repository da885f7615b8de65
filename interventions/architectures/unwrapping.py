"""The transformers model inside the wrappers of other libraries, or why it cannot be taken out."""

import sys
from typing import Any

import torch
from torch import nn

from interventions.errors import LoadError

AROUND = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
IN_PIECES = ("FullyShardedDataParallel", "DeepSpeedEngine")


def unwrapped(module: nn.Module, name: str) -> nn.Module:
    """Return the transformers model inside compiled, parallel and PEFT wrappers.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode.
    name : str
        For messages.

    Raises
    ------
    LoadError
        If a wrapper does something that the model inside it does not do alone: tokens put in
        front, weights in pieces on several machines, compiled parts.
    """
    while True:
        kind = type(module).__name__
        if kind in IN_PIECES:
            raise LoadError(
                f"{name} is wrapped in {kind}, which keeps its weights in pieces on several "
                "devices. Save the whole model (save_pretrained) and load that; "
                'device_map="auto" spreads it over the devices of one machine.'
            )
        if kind in AROUND and isinstance(held := getattr(module, AROUND[kind], None), nn.Module):
            module = held
        elif (base := _inside_peft(module, name)) is not None:
            module = base
        else:
            break
    _check_not_compiled(module, name)
    return module


def _inside_peft(module: nn.Module, name: str) -> nn.Module | None:
    """The model that PEFT wrapped, if it computes what the wrapper does; None for no wrapper."""
    if "peft" not in sys.modules:  # then nothing can be of one of its classes
        return None
    from peft import PeftMixedModel, PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    if isinstance(module, PeftModel):
        check_adapters(module, name)
        base: Any = module.get_base_model()
    elif isinstance(module, PeftMixedModel):
        base = module.base_model.model
    elif isinstance(module, BaseTuner):
        base = module.model
    else:
        return None
    ids = torch.arange(1, 5)[None] % base.config.get_text_config(decoder=True).vocab_size
    ids = ids.to(next(base.get_input_embeddings().parameters()).device)
    with torch.no_grad():
        whole, alone = (model(input_ids=ids, use_cache=False).logits for model in (module, base))
    if whole.shape != alone.shape or not torch.allclose(
        whole.float(), alone.float(), rtol=1e-3, atol=1e-3 * float(alone.abs().max())
    ):
        raise LoadError(
            f"{name}: the model inside {type(module).__name__} computes something else than the "
            "wrapper does, so its adapter is not in its modules alone. Merge it into the weights "
            "(merge_and_unload) and load that."
        )
    return base


def check_adapters(module: Any, name: str) -> None:
    """Refuse adapters that act outside of a model's modules.

    Raises
    ------
    LoadError
        With which, and what is supported.
    """
    for adapter, config in module.peft_config.items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if getattr(config, "is_prompt_learning", False):
            raise LoadError(
                f"{name}: its adapter {adapter!r} ({kind}) puts vectors in front of every prompt, "
                "which have no tokens and no roles, so positions would not be those of the "
                "prompt. Only adapters inside the modules (LoRA and its like) are supported."
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise LoadError(
                f"{name}: its adapter {adapter!r} (activated LoRA) acts from some tokens of a "
                "prompt on, which only its wrapper sees to. Only adapters that act at every "
                "token are supported."
            )


def _check_not_compiled(module: nn.Module, name: str) -> None:
    for path, part in module.named_modules():
        where = f"its {path}" if path else "it"
        if type(part).__name__ == "OptimizedModule":
            raise LoadError(
                f"{name} cannot be read: {where} is compiled (torch.compile), and values inside "
                "compiled code cannot be touched. Put its _orig_mod back in its place, or load "
                "the model before it is compiled."
            )
        if getattr(part, "_compiled_call_impl", None) is not None:
            raise LoadError(
                f"{name} cannot be read: {where} is compiled (module.compile()), and values "
                "inside compiled code cannot be touched. Set its _compiled_call_impl to None, or "
                "load the model before it is compiled."
            )
        if type(part).__name__ in IN_PIECES or type(part).__name__.startswith("FSDP"):
            raise LoadError(
                f"{name} cannot be read: {where} is sharded ({type(part).__name__}), its weights "
                "are in pieces on several devices. Save the whole model and load that."
            )
