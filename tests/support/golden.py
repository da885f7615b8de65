"""Whether two states of the code give the same numbers: ``make golden BEFORE=<commit>``.

``make`` runs studies of three micro pairs, a part of ``flags-naming``, and the engine's operations
on the micro pair, and keeps what they gave. ``compare`` puts two such folders side by side: arrays
and summaries number by number, the reports' tables word by word.
"""

import argparse
import html
import inspect
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console

STUDIES = (
    ("micro-naming",),
    ("micro-aligned",),
    ("micro-late",),
    ("flags-naming", "--limit", "24"),
)
say = Console(highlight=False, soft_wrap=True).print
PASSING = ("provenance", "created", "seconds")  # says when and with which versions
TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
ASSEMBLED = re.compile(r"\b(flags-\w+)-[0-9a-f]{12}\b")
"""The folder of an embedded pair, which is named after the code that assembles it."""


def make(out: Path) -> None:
    """Run what a folder is to hold; what it holds already stays."""
    for pair, *options in STUDIES:
        command = [sys.executable, "-m", "twohop", "study", pair, *options]
        subprocess.run([*command, "--out", str(out / "studies")], check=True)
    (out / "engine").mkdir(parents=True, exist_ok=True)
    for name, dataset in operations(out):
        dataset.to_netcdf(out / "engine" / f"{name}.nc")


def operations(out: Path) -> Iterator[tuple[str, xr.Dataset]]:
    """What the engine's operations give on the micro pair, by text and by image."""
    import interventions as iv
    from twohop.micro.folders import micro_folder
    from twohop.micro.world import EVALUATION_START, view

    codes = ("ava", "bel", "cor", "que")
    names = ["Avaria", "Belmora", "Corvenia", "Quenlo"]
    llm, vlm = iv.load(micro_folder("micro-backbone")), iv.load(micro_folder("micro-aligned"))
    question = "Question : What is the capital of {} ? Answer :"
    named, swapped = (
        llm.prompt([question.format(name) for name in order], spans={"entity": order})
        for order in (names, names[2:] + names[:2])
    )
    pictures = [view(code, EVALUATION_START) for code in codes]
    asked = [question.format(vlm.image_token)] * len(pictures)
    shown = vlm.prompt(asked, images=pictures)
    turned = vlm.prompt(asked, images=pictures[2:] + pictures[:2])
    words = sorted(word for word in llm.tokenizer.get_vocab() if word.isalpha())
    told: Any = {"answers": words[:4], "foils": words[4:8]}
    for kind, model, clean, corrupt in (
        ("text", llm, named, swapped),
        ("image", vlm, shown, turned),
    ):
        swept: Any = {**told, "progress": False}
        yield (
            f"sweep-{kind}",
            iv.sweep(
                model,
                corrupt,
                clean,
                **swept,
                metrics=["logprob", "logit_diff", "kl"],
                components=["resid_post", "attn_out", "mlp_out"],
            ),
        )
        heads: Any = {"components": "head_out", "heads": slice(None), "layers": [2, 3]}
        yield f"heads-{kind}", iv.sweep(model, corrupt, 0.0, **swept, **heads)
        yield f"windows-{kind}", iv.sweep(model, corrupt, clean, **swept, roles=["last"], window=3)
        noise = iv.Noise(0.5)
        yield f"noise-{kind}", iv.sweep(model, clean, noise, **swept, roles=["last"], each=True)
        back = iv.FromLayers()
        yield f"layers-{kind}", iv.sweep(model, clean, back, **swept, roles=["last"])
        for method in ("patching", "ig", "relp"):
            settings: Any = {**told, "method": method, "by_role": method != "ig"}
            yield f"attribute-{method}-{kind}", attributed(iv, model, corrupt, clean, **settings)
        every = iv.Site("resid_post", slice(None), clean.at("last"))
        [last] = iv.read(model, clean, [every])
        logits = iv.run(model, clean).logits
        assert logits is not None
        tokens = logits.topk(5).indices
        logprob, rank = iv.lens(model, last, tokens)
        axes = ("layer", "row", "token")
        yield f"lens-{kind}", xr.Dataset({"logprob": (axes, logprob), "rank": (axes, rank)})
    across = iv.FromModel(iv.pair(vlm, llm), named)
    yield (
        "across",
        iv.sweep(vlm, shown, across, **told, roles=["last"], read_roles=["last"], progress=False),
    )
    sites = {"states": iv.RoleSite("resid_post", slice(None), "last", index=-1)}
    rows = [question.format(name) for name in names * 6]
    collected = iv.collect(llm, rows, sites, out=out / "collection", progress=False).load()
    yield "collected", collected
    for method in ("logistic", "ridge"):
        yield f"probe-{method}", iv.probe(collected["states"], codes * 6, method=method)


def attributed(iv: Any, model: Any, prompt: Any, source: Any, **asked: Any) -> xr.Dataset:
    """Scores of values of ``source`` put into the run of ``prompt``, by either form of the call.

    The form before names the source first. What tells the two forms apart is left out.
    """
    earlier = "clean" in inspect.signature(iv.attribute).parameters
    scores = iv.attribute(model, *((source, prompt) if earlier else (prompt, source)), **asked)
    if earlier and "corrupt_token" in scores.coords:
        scores = scores.rename(token="source_token", corrupt_token="token")
    told = ("direction", "meaning", "prompt", "source", "read_roles", "each", "unit")
    scores.attrs = {name: value for name, value in scores.attrs.items() if name not in told}
    return scores


def numbers(path: Path) -> dict[str, Any]:
    """What a file holds, by name, without what says when it was made."""
    if path.suffix == ".nc":
        with xr.open_datatree(path) as tree:
            return {
                f"{node.path}/{name}": values
                for node in tree.subtree
                for name, values in (
                    *((name, array.values) for name, array in node.dataset.variables.items()),
                    *((f"@{k}", value) for k, value in node.attrs.items() if k not in PASSING),
                )
            }
    text = ASSEMBLED.sub(r"\1", path.read_text())
    if path.suffix == ".json":
        return dict(_leaves(json.loads(text)))
    tables = [html.unescape(TAG.sub(" ", table)).split() for table in TABLE.findall(text)]
    return {f"table {i}": np.array(words) for i, words in enumerate(tables)}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    inside = value.items() if isinstance(value, dict) else None
    inside = enumerate(value) if isinstance(value, list) else inside
    if inside is None:
        yield path, value
    else:
        for key, part in inside:
            yield from _leaves(part, f"{path}/{key}")


def difference(before: Any, after: Any) -> float:
    """Largest difference of two values, as a share of the largest; infinite if not comparable."""
    first, second = np.asarray(before), np.asarray(after)
    if first.shape != second.shape:
        return math.inf
    if first.dtype.kind in "fiu" and second.dtype.kind in "fiu":
        first, second = first.astype(np.float64), second.astype(np.float64)
        if not first.size or np.array_equal(first, second, equal_nan=True):
            return 0.0
        if not np.array_equal(np.isfinite(first), np.isfinite(second)):
            return math.inf
        off = np.nanmax(np.abs(first - second), initial=0.0, where=np.isfinite(first))
        return float(
            off / max(np.nanmax(np.abs(first), where=np.isfinite(first), initial=0), 1e-300)
        )
    return 0.0 if first.astype(str).tolist() == second.astype(str).tolist() else math.inf


def compare(before: Path, after: Path, tolerance: float) -> int:
    """Say what differs in two folders; return how many values do by more than a tolerance."""
    kinds = ("engine/*.nc", "studies/*/results.nc", "studies/*/summary.json", "studies/*/*.html")
    files = sorted(
        {
            str(path.relative_to(side))
            for side in (before, after)
            for kind in kinds
            for path in side.glob(kind)
        }
    )
    if not files:
        sys.exit(f"There is nothing to compare in {before} and {after}.")
    wrong = 0
    for name in files:
        missing = [str(side) for side in (before, after) if not (side / name).exists()]
        if missing:
            say(f"{name}: not in {missing[0]}")
            wrong += 1
            continue
        old, new = numbers(before / name), numbers(after / name)
        worst = {
            key: difference(old[key], new[key]) if key in old and key in new else math.inf
            for key in sorted({*old, *new})
        }
        off = {key: value for key, value in worst.items() if value > tolerance}
        wrong += len(off)
        largest = max(worst.values(), default=0.0)
        say(f"{name}: {len(worst)} values, largest difference {largest:.2g}")
        for key, value in list(off.items())[:20]:
            was, became = (f"{side.get(key, 'none')!r:.80}" for side in (old, new))
            say(f"    {key}: {value:.2g}  {was} -> {became}")
    say(f"{wrong} values differ by more than {tolerance:g}." if wrong else "The same.")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("out", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--tolerance", type=float, default=0.0, help="as a share of the largest")
    given = parser.parse_args()
    if given.command == "make":
        make(given.out)
    elif compare(given.before, given.after, given.tolerance):
        sys.exit(1)


if __name__ == "__main__":
    main()
