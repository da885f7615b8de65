"""How many rows go through a model at once, from the memory that they need."""

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from interventions.errors import BudgetTooSmall
from interventions.model.model import Model

SHARE = 0.4  # of the memory that is free
PASS_SECONDS = 1.5e-3  # that a block of a forward pass costs beside its arithmetic
FLOPS = {"cpu": 1e11, "cuda": 1.5e14}  # per second: what decides is the order of magnitude
MOST_TOKENS = {"cpu": 4096, "cuda": 65536}  # more per forward pass is not faster


@dataclass(frozen=True)
class Budget:
    """Bytes that may be used, the most tokens for one forward pass, and bytes already in use."""

    n_bytes: int
    n_tokens: int
    taken: int = 0

    @classmethod
    def of(cls, model: Model, n_bytes: int | None = None) -> "Budget":
        """Return the budget given, or a share of what is free where the model is.

        Of several devices, the one with the least sets it.
        """
        if n_bytes is None:
            n_bytes = int(min(map(free_bytes, _devices(model))) * SHARE)
        return cls(n_bytes, MOST_TOKENS.get(model.device.type, MOST_TOKENS["cpu"]))

    def less(self, n_bytes: int) -> "Budget":
        """Return what is left of it when so many bytes are in use."""
        return Budget(self.n_bytes - n_bytes, self.n_tokens, self.taken + n_bytes)

    def fit(self, needed: int, tokens: int, what: str) -> int:
        """How many of something that needs so many bytes and tokens go at once, at least one.

        Raises
        ------
        BudgetTooSmall
            If it is for one.
        """
        if needed > self.n_bytes:
            needed += self.taken
            raise BudgetTooSmall(
                f"{what} needs about {_megabytes(needed)}, but the budget is "
                f"{_megabytes(self.n_bytes + self.taken)}. Give budget={needed} or more, fewer "
                "rows, or a shorter prompt."
            )
        return max(1, min(self.n_bytes // needed, self.n_tokens // tokens))


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had on a device: what PyTorch holds there unused is free as well."""
    module: Any = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):  # such as MPS, whose memory is the CPU's
        return psutil.virtual_memory().available
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return module.mem_get_info(device)[0] + unused


def _devices(model: Model) -> set[torch.device]:
    """Where the blocks are; those whose weights are brought when needed run where the model is."""
    blocks = model.module.get_submodule(model.anatomy.blocks)
    devices = {weight.device for weight in blocks.parameters()}
    return {device for device in devices if device.type != "meta"} or {model.device}


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"


def _sizes(model: Model) -> tuple[int, Any]:
    config: Any = model.module.config.get_text_config(decoder=True)
    return torch.empty(0, dtype=model.dtype).element_size(), config


def kept_bytes(model: Model, length: int, before: int) -> int:
    """Bytes that the clean run of a row leaves: keys, values, residuals.

    ``length`` tokens go through the blocks, behind a shared prefix of ``before``.
    """
    size, _ = _sizes(model)
    anatomy = model.anatomy
    keys = 2 * anatomy.n_kv_heads * anatomy.head_dim * (length + before)
    return size * model.n_layers * (keys + 2 * model.d_model * length)


def row_bytes(model: Model, n_tokens: int, before: int, *, apart: bool) -> int:
    """Bytes that one row of a forward pass needs at its height.

    Parameters
    ----------
    model : Model
    n_tokens : int
        That go through the blocks.
    before : int
        That they go on from.
    apart : bool
        The prefix is attended to without a copy for each row.
    """
    size, config = _sizes(model)
    anatomy = model.anatomy
    inner = getattr(config, "intermediate_size", None) or 4 * model.d_model
    states = size * n_tokens * (8 * model.d_model + 3 * inner)
    scores = 2 * 4 * anatomy.n_heads * n_tokens * (n_tokens + before)
    copied = 0 if apart else 4 * size * anatomy.n_kv_heads * anatomy.head_dim * (n_tokens + before)
    return states + scores + copied + 3 * 4 * anatomy.vocab


def clean_bytes(model: Model, length: int, before: int) -> int:
    """Bytes that one row of the clean run needs at its height, what it leaves included."""
    return kept_bytes(model, length, before) + row_bytes(model, length, before, apart=False)


def pass_tokens(model: Model) -> int:
    """How many tokens through a block cost as much as one more forward pass does beside them."""
    block = model.module.get_submodule(model.anatomy.blocks)[0]
    per_token = 2 * sum(parameter.numel() for parameter in block.parameters())
    flops = FLOPS.get(model.device.type, FLOPS["cpu"])
    return int(PASS_SECONDS * flops / per_token)
