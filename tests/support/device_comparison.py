"""What a call gives on a device, beside what it gives on the CPU."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from device_calls import CALLS
from families import Case

import interventions as iv

CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 1e-2}
"""Differences that are rounding, as a share of the largest value."""


def difference(ours: Any, theirs: Any, close: float) -> str:
    """What differs beyond rounding; empty if nothing does."""
    if isinstance(theirs, xr.Dataset):
        if {*ours.variables} != {*theirs.variables}:
            return f"variables {set(ours.variables) ^ set(theirs.variables)}"
        parts = [(name, ours[name].values, theirs[name].values) for name in theirs.variables]
        texts = ((name, difference(mine, other, close)) for name, mine, other in parts)
        return next((f"{name}: {text}" for name, text in texts if text), "")
    if isinstance(theirs, torch.Tensor):
        return difference(ours.cpu().float().numpy(), theirs.float().numpy(), close)
    if isinstance(theirs, np.ndarray) and theirs.dtype.kind == "f":
        if ours.shape != theirs.shape:
            return f"shapes {ours.shape} and {theirs.shape}"
        scale = max(1.0, float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0)))
        if not np.allclose(ours / scale, theirs / scale, rtol=0, atol=close, equal_nan=True):
            return f"numbers differ by {float(np.nanmax(np.abs(ours - theirs))):.3g} of {scale:.3g}"
        return ""
    if isinstance(theirs, np.ndarray):
        return "" if (ours == theirs).all() else f"{ours.tolist()} is not {theirs.tolist()}"
    if isinstance(theirs, float):
        return difference(np.array(ours), np.array(theirs), close)
    if isinstance(theirs, list):
        if len(ours) != len(theirs):
            return f"{len(ours)} and {len(theirs)} results"
        found = (difference(*both, close) for both in zip(ours, theirs, strict=True))
        return next((text for text in found if text), "")
    return "" if ours == theirs else f"{ours!r} is not {theirs!r}"


def compared(ours: Callable[[], Any], theirs: Callable[[], Any], close: float) -> str:
    """What differs, or which error there was on the device alone."""
    try:
        expected = theirs()
    except Exception as error:
        return f"on the CPU too: {type(error).__name__}: {error}"[:600]
    try:
        return difference(ours(), expected, close)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "interventions" in frame.filename]
        where = f"{own[-1].filename}:{own[-1].lineno}" if own else ""
        return f"{where} {type(error).__name__}: {error}"[:600]


def all_compared(
    model: iv.Model, case: Case, labels: Sequence[str]
) -> Iterator[tuple[str, str, float]]:
    """Each call on a model elsewhere and on the case's: its name, what differs, and seconds."""
    for label in labels:
        begun, call = time.perf_counter(), CALLS[label]
        close = CLOSE[model.dtype]
        text = compared(partial(call, model, case), partial(call, case.model, case), close)
        yield label, text, round(time.perf_counter() - begun, 2)
