"""What a GPU gives and takes: ``make gpu``; at most 12 minutes, one JSON and one table.

Parts run in order until the time is over; a part that fails says so and the others go on.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hardware.measuring import GIB, Taken, table, taken

LIMIT = 12 * 60.0  # seconds
FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "mllama", "llava_next", "idefics3", "qwen3_vl")
FORMATS = ("float32", "bfloat16")
CONFORMANCE = 200.0  # seconds that it may take of the limit
SMALL_CALLS = ("traced_reads", "traced_writes", "plain_run")
ENTITIES = 9  # two questions each, but one: 17 items
BLOCKS = 4  # where eager and sdpa are compared
NOISE = 0.06  # of the largest logit, in 16 bits
NO_GPU = "no GPU here: PyTorch sees no CUDA device. Nothing was run.\n"


@dataclass
class Day:
    """One run: where, how large, and until when."""

    device: str
    small: bool
    folder: Path
    ends: float
    rows: dict[str, Taken] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.small else torch.bfloat16

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    @cached_property
    def config(self) -> Any:
        from hardware.shapes import llava_config

        return llava_config(small=self.small)

    @cached_property
    def models(self) -> tuple[Any, Any]:
        """The pair over the same weights, once the checkpoint has been written."""
        import interventions as iv
        from hardware.shapes import backbone_of

        vlm = iv.load(self.folder, device=self.device, dtype=self.dtype)
        return vlm, backbone_of(vlm, shared=True)

    @cached_property
    def bench(self) -> Any:
        from benchmarks.models import SHAPES, of_models

        return of_models(SHAPES["quick" if self.small else "cuda"], *self.models)

    @contextmanager
    def row(self, name: str) -> Iterator[Taken]:
        """Measure what the block does, under a name."""
        with taken(self.device) as took:
            yield took
        self.rows[name] = took
        sys.stderr.write(f"{name}: {took.seconds:.1f} s, {took.peak / GIB:.2f} GiB\n")


Part = Callable[[Day], None]
PARTS: dict[str, Part] = {}


def part(function: Part) -> Part:
    """Put a function into the table, under its name."""
    PARTS[function.__name__.replace("_", " ")] = function
    return function


@part
def conformance(day: Day) -> None:
    """Every call on tiny models, beside the CPU."""
    import tiny
    from device_calls import CALLS
    from device_comparison import all_compared
    from families import case_of

    import interventions as iv

    begun = time.monotonic()
    for family in FAMILIES[:1] if day.small else FAMILIES:
        for kind in FORMATS[:1] if day.small else FORMATS:
            if time.monotonic() - begun > CONFORMANCE:
                return
            dtype = getattr(torch, kind)
            with day.row(f"{family} beside the CPU, {kind}") as took:
                module: Any
                module, processor = tiny.build(family, dtype=dtype, attn_implementation="sdpa")
                model = iv.load(module.to(day.device), processor=processor)
                labels = SMALL_CALLS if day.small else tuple(CALLS)
                case = case_of(family, dtype, "sdpa")
                differ = {name: text for name, text, _ in all_compared(model, case, labels) if text}
                took.told["calls"] = len(labels)
                took.wrong += [f"{name} as on the CPU: {text}" for name, text in differ.items()]


@part
def loading(day: Day) -> None:
    """A checkpoint is written, and read to the device."""
    from hardware.shapes import write_checkpoint

    with day.row("checkpoint written") as took:
        size = write_checkpoint(
            day.config, day.folder, day.dtype, device="cpu" if day.small else day.device
        )
        took.told["GiB of weights"] = size / GIB
    with day.row("loaded"):
        _ = day.models


@part
def one_pass(day: Day) -> None:
    """A picture and a question."""
    from hardware.shapes import logits_of, shown

    vlm, _ = day.models
    prompt = shown(vlm)
    logits_of(vlm, prompt)
    with day.row("one forward pass") as took:
        logits = logits_of(vlm, prompt)
        took.told["tokens"] = prompt.length
        took.expect("finite", bool(torch.isfinite(logits).all()))


@part
def two_models_on_one_card(day: Day) -> None:
    """A transplant between two models that share no weight."""
    import interventions as iv
    from hardware.shapes import backbone_of, logits_of, shown

    vlm, shared = day.models
    prompt, told = shown(vlm), shared.prompt("the capital of the country is")
    site = iv.Site("resid_post", slice(0, 2), told.at("last"))
    with day.row("transplant from a second model") as took:
        own = backbone_of(vlm, shared=False)
        [values] = iv.read(own, told, [site])
        [same] = iv.read(shared, told, [site])
        patch = iv.Patch("resid_post", slice(0, 2), prompt.at("image"), values)
        logits = logits_of(vlm, prompt, [patch])
        took.expect("values as from shared weights", torch.equal(values, same))
        took.expect("finite", bool(torch.isfinite(logits).all()))


@part
def attention_kernels(day: Day) -> None:
    """What attends to a shared prefix."""
    from hardware.kernels import SMALL, Sizes, compare_kernels

    with day.row("attention to a shared prefix") as took:
        took.told |= compare_kernels(day.device, day.dtype, SMALL if day.small else Sizes())


@part
def eager_against_sdpa(day: Day) -> None:
    """The same weights by either attention."""
    from hardware.shapes import llava_config, logits_of, pair_in_memory, shown

    sdpa, eager = (
        pair_in_memory(
            llava_config(blocks=BLOCKS, small=day.small),
            dtype=day.dtype,
            device=day.device,
            attn=attn,
        )[0]
        for attn in ("sdpa", "eager")
    )
    eager.module.load_state_dict(sdpa.module.state_dict())
    with day.row("sdpa"):
        first = logits_of(sdpa, shown(sdpa)).float()
    with day.row("eager") as took:
        second = logits_of(eager, shown(eager)).float()
        share = float((first - second).abs().max() / first.abs().max())
        took.told["differs by, of the largest logit"] = share
        took.expect(f"within {NOISE} of the largest logit", share < NOISE)


@part
def operations(day: Day) -> None:
    """The benchmark's cases at 7B shapes, as far as its peers are here."""
    from benchmarks import analyses, grids, report
    from benchmarks.contest import contest
    from floors import FLOOR16, FLOOR32

    floor = FLOOR32 if day.small else FLOOR16
    cases: dict[str, Callable[[], Any]] = {
        "sweep of text roles": lambda: grids.grid_case(
            "text-roles", "layers x tokens", grids.text_roles(day.bench), 40, floor
        ),
        "sweep of image positions": lambda: grids.grid_case(
            "image-positions", "layers x image", grids.image_positions(day.bench), 3, floor
        ),
        "attribution": lambda: analyses.attribution_case(day.bench, floor),
        "collection": lambda: analyses.collection_case(day.bench, floor),
        "probes": lambda: analyses.probe_case(day.bench),
    }
    for name, case in cases.items():
        with day.row(name) as took:
            asked = case()
            found = report.summary(asked, contest(asked, repeats=2, seconds=20))
            ours = next(one.name for one in reversed(asked.contestants) if one.ours)
            took.told["all"] = f"{found[ours]['seconds']['total']:.3f} s"
            if found["ratio"]:
                took.told[f"times {found['against']}"] = float(found["ratio"])


@part
def a_study(day: Day) -> None:
    """Every stage on 17 items that these models answer, as long as there is time."""
    from hardware.shapes import knowing_study
    from twohop.protocol import Protocol
    from twohop.running.known import Known
    from twohop.stages.run import run_stage
    from twohop.stages.table import STAGES

    vlm, backbone = day.models
    with tempfile.TemporaryDirectory() as folder:
        study = knowing_study(
            vlm, backbone, Path(folder), 3 if day.small else ENTITIES, Protocol.preset("quick")
        )
        done: dict[str, Any] = {}
        for stage in STAGES:
            if day.left <= 0:
                return
            with day.row(f"study: {stage}") as took:
                done[stage] = run_stage(stage, study, done)
                if stage == "recall":
                    took.told |= asdict(Known.of(done[stage]))


def machine(device: str) -> dict[str, Any]:
    """Which card and which versions."""
    import transformers

    memory: Any = torch.get_device_module(device)
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {
        "card": card,
        "GiB": round(memory.mem_get_info(device)[1] / GIB, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def run(device: str, out: Path, *, small: bool) -> int:
    """Run the parts, write the file and the table; 1 if a part failed or numbers differ."""
    torch.backends.cudnn.allow_tf32 = False  # float32 is to be float32
    out.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        day = Day(device, small, Path(folder), time.monotonic() + LIMIT)
        left_out = []
        for name, function in PARTS.items():
            if day.left <= 0:
                left_out.append(name)
                continue
            try:
                function(day)
            except Exception:
                failed[name] = traceback.format_exc()[-1500:]
                sys.stderr.write(f"{name} FAILED\n{failed[name]}\n")
    told = {
        "machine": machine(device),
        "rows": {name: asdict(row) for name, row in day.rows.items()},
        "failed": failed,
        "left_out_for_time": left_out,
    }
    (out / "gpu.json").write_text(json.dumps(told, indent=1))
    text = table(f"{told['machine']['card']}, PyTorch {torch.__version__}", day.rows)
    (out / "gpu.md").write_text(text + "\n")
    sys.stdout.write(f"{text}\n{out / 'gpu.json'}\n")
    return int(bool(failed) or any(row.wrong for row in day.rows.values()))


def main() -> int:
    """Say why nothing runs where there is no GPU; that is no failure."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a check, not a result")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    given = parser.parse_args()
    if given.device.startswith("fake"):
        import pretend_device

        pretend_device.switch_on()
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        sys.stdout.write(NO_GPU)
        return 0
    return run(given.device, given.out, small=given.small)


if __name__ == "__main__":
    sys.exit(main())
