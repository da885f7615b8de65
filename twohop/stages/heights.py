"""The most memory that is taken while something runs, on every device that it runs on."""

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any, Self

import torch

from interventions import Model
from twohop.ask.residence import home_of

MB = 10**6
RESET = "5"
"""What a process writes to forget the most that it has held (proc(5), ``clear_refs``)."""


class Heights:
    """A ``with`` block whose height of memory is measured.

    Of a GPU, what PyTorch has allocated on it, weights included; of the CPU, what the process
    holds (where the system lets it be reset; else the most that it has held so far).

    Parameters
    ----------
    *models : Model
        On whose devices.

    Attributes
    ----------
    n_bytes : dict of str to int
        By device, once the block is left.

    Examples
    --------
    >>> with Heights() as heights:
    ...     [*range(1000)][-1]
    999
    >>> [*heights.n_bytes]
    ['cpu']
    """

    def __init__(self, *models: Model) -> None:
        devices = {home_of(model) for model in models if not model.remote}
        for model in models:
            if not model.remote:
                devices |= {weight.device for weight in model.module.parameters()}
        self.devices = sorted(
            (device for device in devices if device.type not in ("cpu", "meta")), key=str
        )
        self.n_bytes: dict[str, int] = {}

    def __enter__(self) -> Self:
        forget()
        for device in self.devices:
            if reset := getattr(_module(device), "reset_peak_memory_stats", None):
                reset(device)
        return self

    def __exit__(self, *_: object) -> None:
        for device in self.devices:
            if height := getattr(_module(device), "max_memory_allocated", None):
                self.n_bytes[str(device)] = height(device)
        self.n_bytes["cpu"] = held()

    def said(self) -> dict[str, str]:
        """By device, in words: ``{"cuda:0": "17240 MB"}``."""
        return {device: f"{n_bytes / MB:.0f} MB" for device, n_bytes in self.n_bytes.items()}


def forget() -> None:
    """Let the most that this process has held be counted anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(RESET, encoding="ascii")


def held() -> int:
    """The most bytes that this process has held since it was reset, or ever."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        height = next(line for line in lines if line.startswith("VmHWM:"))
        return int(height.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device)
