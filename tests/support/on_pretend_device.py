"""Run calls on the pretend device and compare them with the CPU; a process of its own.

    python tests/support/on_pretend_device.py calls llava@one llama@two gemma3@two:bfloat16
    python tests/support/on_pretend_device.py calls llama@two#lens
    python tests/support/on_pretend_device.py stages micro-aligned@0/1:0.5,0.1:recall
    python tests/support/on_pretend_device.py checks
    python tests/support/on_pretend_device.py demands

One line of JSON for each call: [case, call, what differs (empty: nothing), seconds]. ``@one``: on
one device; ``@narrow``: on one that refuses float64, as Apple's do; ``@two``: the lower blocks on
one and the upper ones on another, as ``device_map="auto"`` puts them.
"""

import argparse
import gc
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pretend_device
import torch
import xarray as xr


def say(*what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def run_calls(case_name: str) -> Iterator[tuple[str, str, float]]:
    """Every call of :mod:`device_calls` on the device and on the CPU."""
    from device_calls import CALLS
    from device_comparison import all_compared
    from families import PATHS, case_of
    from spreading import model_on

    name, _, how = case_name.partition("@")
    how, _, wanted = how.partition("#")
    where, _, kind = how.partition(":")
    labels = [wanted] if wanted else [*CALLS]
    if where == "narrow":  # as Apple's; probes are fitted in float64 where the activations lie
        where = "one"
        labels = [label for label in labels if label != "probed_where_they_lie"]
        torch.get_device_module("fake:0").refuse_float64(True)
    dtype = getattr(torch, kind or "float32")
    attn = "eager" if PATHS[name].no_sdpa else "sdpa"
    case = case_of(name, dtype, attn)
    model = model_on(name, where, dtype, attn)
    devices = {str(weight.device) for weight in model.module.parameters()}
    expected = {"fake:0"} if where == "one" else {"fake:0", "fake:1"}
    yield "stays where it is", "" if devices == expected else f"it is on {devices}", 0.0
    yield from all_compared(model, case, labels)
    torch.get_device_module("fake:0").refuse_float64(False)


def run_stages_there(asked: str) -> Iterator[tuple[str, str, float]]:
    """Stages of a small study with its models elsewhere, and with less memory than they took.

    ``asked``: PAIR@VLM/BACKBONE:SHARES:STAGES, such as ``micro-aligned@0/1:0.5,0.1:recall``. Each
    stage is given what the stages before it gave on the CPU.
    """
    from device_comparison import compared, difference

    import interventions as iv
    from twohop.ask.memory import ran_out
    from twohop.pairs import find_pair
    from twohop.protocol import Protocol
    from twohop.running.pair_run import Settings
    from twohop.running.study import study_of
    from twohop.stages.run import run_stage, run_stages
    from twohop.stages.table import STAGES

    key, _, how = asked.partition("@")
    places, shares, stages = how.split(":")
    study = study_of(key, Settings(limit=6, protocol=Protocol.preset("quick")))
    wanted = stages.split(",") if stages else STAGES
    here = run_stages(wanted, study)
    there = {
        role: iv.load(folder, device=f"fake:{index}" if index != "cpu" else "cpu")
        for (role, folder), index in zip(
            find_pair(key).places(remote=False).items(), places.split("/"), strict=True
        )
    }
    fake: Any = torch.get_device_module("fake:0")

    def ours(stage: str) -> xr.Dataset:
        return run_stage(stage, replace(study, **there, kept={}), here)

    for stage in wanted:
        begun, before = time.perf_counter(), fake.memory_allocated(0)
        fake.reset_peak_memory_stats(0)
        text = compared(partial(ours, stage), partial(here.__getitem__, stage), 1e-4)
        yield stage, text, round(time.perf_counter() - begun, 2)
        taken = fake.max_memory_allocated(0) - before
        for share in filter(None, shares.split(",")):
            begun = time.perf_counter()
            fake.set_memory_limit(int(before + float(share) * taken))
            said, ends = "", "the same numbers"
            try:
                result = ours(stage)
            except Exception as error:
                ends = f"{type(error).__name__}: {error}"[:90]
                said = "" if ran_out(error) else traceback.format_exc()[-900:]
            else:
                said = difference(result, here[stage], 1e-4)
            finally:
                fake.set_memory_limit(0)
            gc.collect()
            took = round(time.perf_counter() - begun, 2)
            yield f"{stage} with {share} of {taken}: {ends}", said, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("calls").add_argument("cases", nargs="+")
    commands.add_parser("stages").add_argument("cases", nargs="+")
    commands.add_parser("checks")
    commands.add_parser("demands").add_argument("names", nargs="*")
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
    if given.command == "demands":
        import device_failures  # noqa: F401  # whose demands are in the same table
        from device_demands import DEMANDS, complaint

        for name in given.names or DEMANDS:
            begun = time.perf_counter()
            say("demands", name, complaint(name), round(time.perf_counter() - begun, 2))
        return
    for case in given.cases:
        try:
            for line in run_calls(case) if given.command == "calls" else run_stages_there(case):
                say(case, *line)
        except Exception:
            say(case, "all calls", traceback.format_exc()[-1500:], 0.0)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # PyTorch does not wait for the threads of backward passes: at times that aborts
