"""Run calls on the pretend device and compare them with the CPU; a process of its own.

    python tests/support/on_pretend_device.py calls llava@one llama@two gemma3@two:bfloat16
    python tests/support/on_pretend_device.py checks

One line of JSON for each call: [case, call, what differs (empty: nothing), seconds]. ``@one``: on
one device; ``@two``: the lower blocks on one and the upper ones on another, as
``device_map="auto"`` puts them.
"""

import argparse
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pretend_device
import torch
import xarray as xr

CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 1e-2}
"""Differences that are rounding, as a share of the largest value."""


def say(*what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def difference(ours: Any, theirs: Any, close: float) -> str:
    """What differs beyond rounding; empty if nothing does."""
    if isinstance(theirs, xr.Dataset):
        if {*ours.variables} != {*theirs.variables}:
            return f"variables {sorted({*ours.variables} ^ {*theirs.variables})}"
        parts = [(name, ours[name].values, theirs[name].values) for name in theirs.variables]
        found = (f"{name}: {text}" for name, *both in parts if (text := difference(*both, close)))
        return next(found, "")
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
        return f"{side} {where} {type(error).__name__}: {error}"[:600]


def spread(module: Any, blocks: str, upper: tuple[str, ...]) -> Any:
    """Put the upper half of the blocks, and what is named, on the second device.

    As transformers does it with a ``device_map``. Tied weights lie with the embeddings.
    """
    from accelerate import dispatch_model

    places: dict[str, str] = {}
    n_blocks = len(module.get_submodule(blocks))

    def visit(name: str, part: Any) -> None:
        if name == blocks:
            for i in range(n_blocks):
                places[f"{name}.{i}"] = f"fake:{int(i >= n_blocks // 2)}"
        elif not name or blocks.startswith(f"{name}."):
            for own in part.parameters(recurse=False):  # no hook moves these
                own.data = own.data.to("fake:0")
            for child, inner in part.named_children():
                visit(f"{name}.{child}" if name else child, inner)
        else:
            places[name] = f"fake:{int(name in upper)}"

    visit("", module)
    return dispatch_model(module, device_map=places, main_device="fake:0")


def model_on(name: str, where: str, dtype: torch.dtype, attn: str) -> Any:
    """A family's tiny model on one pretend device, or on both."""
    import tiny

    import interventions as iv
    from interventions.architectures.anatomy import find_anatomy

    module, given = tiny.build(name, dtype=dtype, attn_implementation=attn)
    if where == "one":
        module.to("fake:0")  # type: ignore[arg-type]
    else:
        anatomy = find_anatomy(module)
        tied = module.get_output_embeddings().weight is module.get_input_embeddings().weight
        upper = (anatomy.final_norm,) if tied else (anatomy.final_norm, anatomy.head)
        module = spread(module, anatomy.blocks, upper)
    kind = "processor" if name in tiny.VLMS else "tokenizer"
    return iv.load(module, **{kind: given})


def run_calls(case_name: str) -> Iterator[tuple[str, str, float]]:
    """Every call of :mod:`device_calls` on the device and on the CPU."""
    from device_calls import CALLS
    from families import PATHS, case_of

    name, _, how = case_name.partition("@")
    where, _, kind = how.partition(":")
    dtype = getattr(torch, kind or "float32")
    attn = "eager" if PATHS[name].no_sdpa else "sdpa"
    case = case_of(name, dtype, attn)
    model = model_on(name, where, dtype, attn)
    devices = {str(weight.device) for weight in model.module.parameters()}
    expected = {"fake:0"} if where == "one" else {"fake:0", "fake:1"}
    yield "stays where it is", "" if devices == expected else f"it is on {devices}", 0.0
    for label, call in CALLS.items():
        begun = time.perf_counter()
        text = compared(partial(call, model, case), partial(call, case.model, case), CLOSE[dtype])
        yield label, text, round(time.perf_counter() - begun, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("calls").add_argument("cases", nargs="+")
    commands.add_parser("checks")
    given = parser.parse_args()
    pretend_device.switch_on()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    if given.command == "checks":
        from pretend_device.checks import REFUSED, SAME, refused, same

        for name in REFUSED:
            say("refused", name, refused(name), 0.0)
        for name in SAME:
            say("same", name, same(name), 0.0)
        return
    for case in given.cases:
        try:
            for line in run_calls(case):
                say(case, *line)
        except Exception:
            say(case, "all calls", traceback.format_exc()[-1500:], 0.0)


if __name__ == "__main__":
    main()
