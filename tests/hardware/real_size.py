"""LLaVA-1.5-7B's true shape without a GPU: ``make real-size``.

Each step runs in a process of its own, so that its peak is its own.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import interventions as iv
from hardware.measuring import GIB, Taken, table, taken
from hardware.shapes import (
    knowing_study,
    llava_config,
    logits_of,
    pair_in_memory,
    shown,
    write_checkpoint,
)
from twohop.pairs import own_pair, with_flags
from twohop.protocol import Protocol
from twohop.running.known import Known
from twohop.running.loading import Loading
from twohop.running.pair_run import Settings
from twohop.running.planning import plan_of
from twohop.stages.run import run_stages

BLOCKS = 4  # of those of the true width that is computed with in float32
CELLS = 10
TEXT = "the capital of the country is"

Step = Callable[[Path, bool], Taken]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    """Put a function into the table, under its name."""
    STEPS[function.__name__.replace("_", " ")] = function
    return function


@step
def checkpoint_written(folder: Path, small: bool) -> Taken:
    with taken() as took:
        size = write_checkpoint(llava_config(small=small), folder, torch.bfloat16)
        took.told["GiB of weights"] = size / GIB
    return took


@step
def planned(folder: Path, small: bool) -> Taken:
    """The study of this checkpoint, as its own backbone, asked about flags."""
    pair = with_flags(own_pair(folder, folder))
    settings = Settings(protocol=Protocol.preset("quick"), loading=Loading(dtype="bfloat16"))
    with taken() as took:
        plan = plan_of(pair, settings)
        took.told["GiB at the least"] = plan.least / GIB
        took.told["tokens x blocks"] = sum(sum(stage.tokens.values()) for stage in plan.stages)
    return took


@step
def loaded_whole(folder: Path, small: bool) -> Taken:
    with taken() as took:
        model = iv.load(folder, dtype="bfloat16", device="cpu")
        took.told["parameters"] = sum(weight.numel() for weight in model.module.parameters())
    return took


@step
def loaded_with_upper_half_on_disk(folder: Path, small: bool) -> Taken:
    n_blocks = llava_config(small=small).text_config.num_hidden_layers
    blocks = {
        f"model.language_model.layers.{i}": "disk" if i >= n_blocks // 2 else "cpu"
        for i in range(n_blocks)
    }
    rest = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    inner = ("embed_tokens", "norm", "rotary_emb")
    places = blocks | dict.fromkeys(
        (*rest, *(f"model.language_model.{name}" for name in inner)), "cpu"
    )
    with taken() as took:
        model = iv.load(folder, dtype="bfloat16", device_map=places)
        logits = logits_of(model, model.prompt(TEXT))
        took.expect("finite", bool(torch.isfinite(logits).all()))
    return took


@step
def one_trace_at_full_depth(folder: Path, small: bool) -> Taken:
    model = iv.load(folder, dtype="bfloat16", device="cpu")
    prompt = shown(model)
    with taken() as took:
        with model.trace(prompt):
            states = model.resid_post[:, prompt.at("last")].save()
            logits = model.logits[prompt.at("last")].save()
        took.told["tokens"] = prompt.length
        took.told["blocks"] = len(states)
        took.expect("finite", bool(torch.isfinite(states).all() and torch.isfinite(logits).all()))
    return took


def _narrow(small: bool) -> tuple[iv.Model, iv.Model]:
    return pair_in_memory(llava_config(blocks=BLOCKS, small=small), dtype=torch.float32)


@step
def transplant(folder: Path, small: bool) -> Taken:
    vlm, backbone = _narrow(small)
    prompt, told = shown(vlm), backbone.prompt(TEXT)
    layers = slice(0, 2)
    with taken() as took:
        [values] = iv.read(backbone, told, [iv.Site("resid_post", layers, told.at("last"))])
        before = logits_of(vlm, prompt)
        patch = iv.Patch("resid_post", layers, prompt.at("image"), values)
        after = logits_of(vlm, prompt, [patch])
        took.told["logits moved by"] = float((after - before).abs().max())
    return took


@step
def sweep(folder: Path, small: bool) -> Taken:
    vlm, _ = _narrow(small)
    prompt, other = shown(vlm), shown(vlm, "the river of the country is")
    roles = [f"question[{i}]" for i in range(CELLS // 2)]
    with taken() as took:
        found = iv.sweep(
            vlm, prompt, other, answers="Paris", layers=[1, 2], roles=roles, progress=False
        )
        took.told["cells"] = found["logprob"].size
    return took


@step
def three_items_asked(folder: Path, small: bool) -> Taken:
    """The study's first stages, with what the models happen to say as the right answers."""
    vlm, backbone = _narrow(small)
    study = knowing_study(vlm, backbone, folder, 2, Protocol.preset("quick"))
    with taken() as took:
        known = Known.of(run_stages(["recall"], study)["recall"])
        took.told |= asdict(known)
        took.expect("all known", known.known == known.items)
    return took


def run(name: str, folder: Path, *, small: bool) -> Taken:
    """Run a step in a process of its own.

    Raises
    ------
    subprocess.CalledProcessError
    """
    command = [sys.executable, "-m", "hardware.real_size", "--step", name, "--folder", str(folder)]
    done = subprocess.run(
        [*command, *(["--small"] if small else [])], check=True, stdout=subprocess.PIPE, text=True
    )
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run every step, print a table, write the file."""
    parser = argparse.ArgumentParser(prog="make real-size", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/real-size"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help="tiny sizes: a check, not a result")
    given = parser.parse_args()
    if given.step:
        sys.stdout.write(json.dumps(asdict(STEPS[given.step](given.folder, given.small))) + "\n")
        return
    rows: dict[str, Taken] = {}
    checkpoint = given.folder / "checkpoint"
    for name in STEPS:
        rows[name] = run(name, checkpoint, small=given.small)
        sys.stderr.write(f"{name}: {rows[name].seconds:.1f} s\n")
        told: dict[str, Any] = {name: asdict(row) for name, row in rows.items()}
        (given.folder / "real-size.json").write_text(json.dumps(told, indent=1))
    text = table("LLaVA-1.5-7B's shape, random weights, on a CPU", rows)
    (given.folder / "real-size.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
