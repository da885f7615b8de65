"""TransformerLens' activation patching demo on a model of ours, its maps beside our own.

``make demo``: the maps of that demo (the stream that enters each block, what attention and MLPs
write, by layer and position; heads over all positions) of the micro backbone, from a prompt about
another country to one about the country itself. Every cell of theirs is held against ours, and both
are timed. The metric is the demo's: the logit difference, 0 in the run that is patched and 1 in the
other.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from floors import FLOOR32
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import interventions as iv
from benchmarks.models import plain
from benchmarks.report import machine
from twohop.micro import TEMPLATES, micro_folder

CLEAN, CORRUPT = "Belmora", "Corvenia"
ANSWER, FOIL = "Marlow", "Brenn"
MAPS = {
    "resid_pre": "get_act_patch_resid_pre",
    "attn_out": "get_act_patch_attn_out",
    "mlp_out": "get_act_patch_mlp_out",
    "head_out": "get_act_patch_attn_head_out_all_pos",
}
TURNS = 5
WHOSE = ("TransformerLens", "interventions")
SHARE = "0: the other prompt, 1: this one"
Maps = dict[str, torch.Tensor]


def timed(call: Callable[[], Maps]) -> tuple[Maps, float]:
    """What a call gives, and the least seconds that it takes."""
    made, took = call(), []
    for _ in range(TURNS):
        begun = time.perf_counter()
        made = call()
        took.append(time.perf_counter() - begun)
    return made, min(took)


def theirs(model: iv.Model, texts: tuple[str, str], ids: tuple[int, int]) -> Callable[[], Maps]:
    """The demo's calls, on a bridge."""
    lens, patching = import_module("transformer_lens"), import_module("transformer_lens.patching")
    module = plain(model)
    module.config.architectures = ["LlamaForCausalLM"]
    with tempfile.TemporaryDirectory() as folder:
        model.tokenizer.save_pretrained(folder)
        bridge = lens.TransformerBridge.boot_transformers(
            folder,
            hf_model=module,
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device="cpu",
            dtype=torch.float32,
        )
    clean, corrupt = (model.prompt(text).inputs["input_ids"] for text in texts)

    def difference(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, ids[0]] - logits[0, -1, ids[1]]

    def call() -> Maps:
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(clean)
            high, low = difference(logits), difference(bridge(corrupt))

            def metric(logits: torch.Tensor) -> torch.Tensor:
                return (difference(logits) - low) / (high - low)

            return {
                name: getattr(patching, function)(bridge, corrupt, cache, metric)
                for name, function in MAPS.items()
            }

    return call


def ours(model: iv.Model, texts: tuple[str, str]) -> Callable[[], Maps]:
    """The same maps as sweeps."""
    clean, corrupt = map(model.prompt, texts)
    asked = {"answers": ANSWER, "foils": FOIL, "metrics": "logit_diff", "progress": False}

    def call() -> Maps:
        components = ["resid_pre", "attn_out", "mlp_out"]
        by_token = iv.sweep(model, corrupt, clean, components=components, **asked)
        heads = iv.sweep(
            model,
            corrupt,
            clean,
            components="head_out",
            heads=slice(None),
            roles=["question"],
            **asked,
        )
        low, high = by_token["clean_logit_diff"].item(), by_token["source_logit_diff"].item()
        maps = {name: by_token["logit_diff"].sel(component=name, item=0) for name in components}
        maps["head_out"] = heads["logit_diff"].isel(component=0, item=0, role=0)
        maps = {name: (found - low) / (high - low) for name, found in maps.items()}
        return {name: torch.from_numpy(found.values) for name, found in maps.items()}

    return call


def draw(both: dict[str, tuple[torch.Tensor, torch.Tensor]], words: list[str], out: Path) -> None:
    """Their maps above ours."""
    figure, panels = plt.subplots(2, len(both), figsize=(12, 6), layout="constrained")
    for column, (name, pair) in enumerate(both.items()):
        for row, (whose, found) in enumerate(zip(WHOSE, pair, strict=True)):
            panel = panels[row, column]
            panel.imshow(found, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
            panel.set_title(f"{name}: {whose}", fontsize=9)
            panel.set_ylabel("layer")
            by_head = name == "head_out"
            panel.set_xlabel("head" if by_head else "")
            if not by_head:
                panel.set_xticks(range(len(words)), words, rotation=60, fontsize=7)
        figure.colorbar(panels[1, column].images[0], ax=panels[:, column], shrink=0.6, label=SHARE)
    figure.savefig(out, dpi=90)
    plt.close(figure)


def main() -> int:
    """Run both, compare every cell, write table and picture; 1 if they differ."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = iv.load(micro_folder("micro-backbone"))
    clean, corrupt = (TEMPLATES["capital"].fill(name) for name in (CLEAN, CORRUPT))
    texts = (clean, corrupt)
    prompt = model.prompt(texts[1])
    answer, foil = (int(model.tokenizer.convert_tokens_to_ids(word)) for word in (ANSWER, FOIL))
    its, seconds_its = timed(theirs(model, texts, (answer, foil)))
    mine, seconds_mine = timed(ours(model, texts))
    table = Table(title="TransformerLens' activation patching demo, on the micro backbone")
    for name in ("map", "cells", "largest", "largest difference"):
        table.add_column(name, justify="left" if name == "map" else "right")
    worst = 0.0
    rows: dict[str, Any] = {}
    for name in MAPS:
        a, b = its[name].double(), mine[name].double()
        difference, largest = float((a - b).abs().max()), float(a.abs().max())
        worst = max(worst, difference / largest)
        rows[name] = {"cells": a.numel(), "largest": largest, "difference": difference}
        table.add_row(name, str(a.numel()), f"{largest:.2f}", f"{difference:.1e}")
    table.caption = f"{seconds_its:.2f} s and {seconds_mine:.2f} s"
    console = Console()
    console.print(table)
    seconds = {"TransformerLens": seconds_its, "interventions": seconds_mine}
    about = {"machine": machine(model), "maps": rows, "seconds": seconds}
    (out / "demo.json").write_text(json.dumps(about, indent=1))
    words = [model.tokenizer.decode([i]) for i in prompt.inputs["input_ids"][0].tolist()]
    draw({name: (its[name], mine[name]) for name in MAPS}, words, out / "demo.png")
    return int(worst > FLOOR32)


if __name__ == "__main__":
    raise SystemExit(main())
