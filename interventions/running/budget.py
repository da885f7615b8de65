"""How many rows go through a model at once, from the memory that they need."""

from dataclasses import dataclass
from typing import Any

import torch

from interventions.errors import BudgetTooSmall
from interventions.model.model import Model

SHARE = 0.4  # of the memory that is free
SHARED = {"processes": 1}
"""How many processes run models in this memory: each counts on its part of what is free."""
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
            n_bytes = int(free_on(model) * SHARE)
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


def share_memory(processes: int) -> None:
    """Leave others of a machine, or of a GPU, their part of the memory that is free.

    Parameters
    ----------
    processes : int
        How many run models there, this one included.
    """
    SHARED["processes"] = processes


def free_on(model: Model) -> int:
    """Bytes that can still be had where a model is; of several devices, on that with the least.

    Of what is free, the part of this process, see :func:`share_memory`.
    """
    return min(map(free_bytes, _devices(model))) // SHARED["processes"]


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had on a device: what PyTorch holds there unused is free as well."""
    module: Any = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):  # such as MPS, whose memory is the CPU's
        import psutil

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
