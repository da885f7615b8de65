"""Seconds and peak memory of a piece of work."""

import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

GIB = 2**30


@dataclass
class Taken:
    """What a piece of work took.

    Attributes
    ----------
    seconds : float
    peak : int
        Bytes: on a GPU the most that tensors took meanwhile; else the most that the process has
        held so far, files it has mapped included.
    told : dict
        What else is to be said about it; JSON types.
    wrong : list of str
        What should not have come out.
    """

    seconds: float = 0.0
    peak: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def expect(self, what: str, holds: bool) -> None:
        """Note what does not hold."""
        if not holds:
            self.wrong.append(what)


@contextmanager
def taken(device: str = "cpu") -> Iterator[Taken]:
    """Measure what the block does."""
    gc.collect()
    memory: Any = None if device == "cpu" else torch.get_device_module(device)
    result = Taken()
    if memory is not None:
        memory.reset_peak_memory_stats(device)
        memory.synchronize()
    begun = time.perf_counter()
    yield result
    if memory is not None:
        memory.synchronize()
    result.seconds = time.perf_counter() - begun
    if memory is not None:
        result.peak = memory.max_memory_allocated(device)
    else:
        result.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(title: str, rows: dict[str, Taken]) -> str:
    """Rows for people and for the documentation, in Markdown."""
    lines = [f"| {title} | s | peak GiB | |", "|---|---|---|---|"]
    for name, row in rows.items():
        told = ", ".join(f"{key} {_said(value)}" for key, value in row.told.items())
        told = "; ".join([*filter(None, [told]), *(f"WRONG: not {text}" for text in row.wrong)])
        lines.append(f"| {name} | {row.seconds:.1f} | {row.peak / GIB:.2f} | {told} |")
    return "\n".join(lines)


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
