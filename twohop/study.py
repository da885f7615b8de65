"""The stages of a study, in order: each is stored as it is done, and not run again."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from interventions import Model, load
from interventions.results import Store, provenance, write_atomically
from twohop.asking import Study, longest_answer
from twohop.back_patching import layer_pairs
from twohop.diagnosis import diagnosis
from twohop.entities.items import Benchmark, Template, check_items
from twohop.localize import MAP_COMPONENTS, MAP_ROLES, MAX_ITEMS, patching_map, window_edges
from twohop.pairs import Pair, find_pair, model_name
from twohop.recall import recall, text_gate
from twohop.recovery import MAX_KEPT, MAX_LOST, recovery
from twohop.resolution import FIT_VIEWS, resolution
from twohop.scoring import normalise
from twohop.summary import summarise, verdict_sentence
from twohop.transplant import RANDOM_SEEDS
from twohop.window import MAX_ITEMS as MAX_WINDOW_ITEMS
from twohop.window import windows

BACKBONE_STAGES = ("backbone_text", "windows", "map_text")
STAGES = (*BACKBONE_STAGES, "recall", "resolution", "map_image", "recovery", "diagnosis")


@dataclass(frozen=True)
class Settings:
    """What a study's results depend on, besides the models and the benchmark.

    Attributes
    ----------
    limit : int or None
        Number of entities; None for all.
    seed : int
        Of every random choice.
    """

    limit: int | None = None
    seed: int = 0


@dataclass
class Reporter:
    """Says what is going on: a bar per stage, and a line when it is done."""

    console: Console = field(default_factory=lambda: Console(stderr=True))

    @contextmanager
    def stage(self, name: str, rows: int) -> Iterator[Callable[[int], None]]:
        """Show a stage of about so many rows; give the function that advances its bar."""
        columns = (
            TextColumn("  {task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("prompts"),
            TimeRemainingColumn(),
        )
        started = time.monotonic()
        quiet = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=quiet) as bar:
            task = bar.add_task(name, total=rows)
            yield lambda done: bar.update(task, advance=done)
        self.console.print(f"  {name:<22} done in {time.monotonic() - started:.1f} s")

    def reused(self, name: str) -> None:
        """Say that a stage was there already."""
        self.console.print(f"  {name:<22} [dim]reused[/dim]")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text)


class Models:
    """Models that are loaded when a stage first needs them, and kept for the next pair.

    Attributes
    ----------
    results : dict
        What they gave that the next pair will ask for again.
    """

    def __init__(self) -> None:
        self._kept: dict[Path | str, Model] = {}
        self.results: dict[Any, Any] = {}

    def get(self, folder: Path | str) -> Model:
        """Return the model of a folder."""
        if folder not in self._kept:
            self._kept[folder] = load(folder)
        return self._kept[folder]

    def drop(self, folder: Path | str) -> None:
        """Forget a model."""
        self._kept.pop(folder, None)


def expected_rows(stage: str, benchmark: Benchmark, done: dict[str, xr.Dataset]) -> int:
    """About how many prompts a stage runs, for its progress bar."""
    n, n_entities = len(benchmark.items), len(benchmark.entities)
    relations = len(benchmark.relations)
    if stage == "backbone_text":
        return n
    if stage == "recall":
        return n_entities + n + relations
    if stage == "resolution":
        return n_entities * (len(FIT_VIEWS) + 1 + relations + 1) + 2 * n // relations
    if "windows" not in done and stage != "windows":
        return 0
    if stage == "windows":
        known = int(canonical(done["backbone_text"]).sum())
        layers = int(done["backbone_text"].attrs["n_layers"])
        return min(MAX_WINDOW_ITEMS, known) * (2 * layers + 1)
    layers = int(done["backbone_text"].attrs["n_layers"])
    if stage.startswith("map"):
        cells = (len(window_edges(layers)) - 1) * len(MAP_COMPONENTS) * len(MAP_ROLES)
        return MAX_ITEMS * (cells + 2)
    if stage == "recovery":
        gates = done["recall"]
        right = {gate: gates["right"].sel(gate=gate).values for gate in gates["gate"].values}
        able = right["recognised"] & right["backbone_text"] & ~gates["surface"].values
        lost = int((able & ~right["vlm_image"]).sum())
        kept = min(MAX_KEPT, int((able & right["vlm_image"]).sum()))
        tried = min(MAX_LOST, lost)
        return lost + tried * (8 + RANDOM_SEEDS // 2 + 2 * len(layer_pairs(layers))) + 3 * kept
    return 0


def canonical(gate: xr.Dataset) -> np.ndarray:
    """Whether each free answer of a gate is the canonical one, [item]."""
    pairs = zip(gate["text"].values[0], gate["answer"].values, strict=True)
    return np.array([normalise(said) == normalise(answer) for said, answer in pairs], dtype=bool)


def run_stage(stage: str, study: Study, done: dict[str, xr.Dataset]) -> xr.Dataset:
    """Run one stage, given the Datasets of the stages before it."""
    if stage == "backbone_text":
        found = text_gate(study, study.backbone, gate="backbone_text")
        found.attrs["n_layers"] = study.backbone.n_layers
        return found
    text = done["backbone_text"]
    # Where the circuit is measured, the answer is checked token by token, so it must be the
    # canonical one that the model gives by itself.
    known = canonical(text)
    if stage == "windows":
        return windows(study, known)
    if stage == "map_text":
        return patching_map(study, study.backbone, known)
    if stage == "recall":
        return recall(study, done["backbone_text"])
    if stage == "resolution":
        return resolution(study)
    gates = done["recall"]
    window_end = int(done["windows"].attrs["enrichment_end"])
    if stage == "map_image":
        return patching_map(study, study.vlm, known & gates["right"].sel(gate="recognised").values)
    if stage == "recovery":
        half = int(done["windows"].attrs["enrichment_half"])
        return recovery(study, gates, last_block=half, last_mlp=window_end)
    return diagnosis(
        gates, done["resolution"], done["recovery"], window_end=window_end, seed=study.seed
    )


def asked_as(template: Template) -> tuple[str, ...]:
    """Everything a template writes."""
    image = template.image_question
    return (template.prefix, template.question, *(() if image is None else (image,)))


def fingerprint(benchmark: Benchmark) -> str:
    """Short hash of everything a benchmark asks."""
    content: dict[str, Any] = {
        "items": [(i.id, i.entity.name, i.entity.aliases, i.answers) for i in benchmark.items],
        "templates": {k: asked_as(t) for k, t in benchmark.templates.items()},
        "naming": asked_as(benchmark.naming),
        "stop": benchmark.stop,
        "chain": benchmark.chain(benchmark.relations[0], "X").question,
    }
    if benchmark.pictures:
        content["pictures"] = benchmark.pictures
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def run_study(
    key: str | Pair,
    *,
    out: Path,
    settings: Settings | None = None,
    models: Models | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Run the whole study of one pair, or what is missing of it.

    Parameters
    ----------
    key : str or Pair
    out : Path
        Folder of runs; this one goes to ``out/<pair>``. Stages that are the backbone's alone are
        kept in ``out/backbones`` and shared by the pairs on it.
    settings : Settings, optional
    models : Models, optional
        Shared between calls, so that a backbone is loaded once.
    reporter : Reporter, optional

    Returns
    -------
    dict
        The summary, also written as ``summary.json``.

    Raises
    ------
    ResultsError
        If the folder holds a run with other settings.
    """
    from twohop.report.page import write_report

    pair = find_pair(key) if isinstance(key, str) else key
    settings = settings or Settings()
    models = models or Models()
    reporter = reporter or Reporter()
    benchmark = pair.benchmark().limited(settings.limit)
    check_items(benchmark.items)
    reporter.say(f"[bold]{pair.key}[/bold]: {len(benchmark.items)} items")
    folders = {"vlm": pair.vlm(), "backbone": pair.backbone()}
    shared = {
        "twohop": version("twohop"),
        "backbone": model_name(folders["backbone"]),
        "benchmark": f"{benchmark.name} {fingerprint(benchmark)}",
        "limit": settings.limit,
        "seed": settings.seed,
    }
    run = Store(out / pair.key, {"pair": pair.key, "vlm": model_name(folders["vlm"]), **shared})
    digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:12]
    common = Store(out / "backbones" / digest, shared)

    done: dict[str, xr.Dataset] = {}
    for stage in STAGES:
        store = common if stage in BACKBONE_STAGES else run
        if stage in store.stages():
            done[stage] = store.get(stage)
            reporter.reused(stage)
        else:
            backbone = models.get(folders["backbone"])
            vlm = backbone if stage in BACKBONE_STAGES else models.get(folders["vlm"])
            study = Study(
                vlm=vlm,
                backbone=backbone,
                benchmark=benchmark,
                seed=settings.seed,
                max_new_tokens=longest_answer(backbone, benchmark),
                kept=models.results,
            )
            rows = expected_rows(stage, benchmark, done)
            with reporter.stage(stage, rows) as tick:
                found = run_stage(stage, replace(study, tick=tick), done)
            found.attrs["provenance"] = {
                **provenance(vlm=vlm, backbone=backbone),
                "settings": store.settings,
            }
            store.put(stage, found)
            done[stage] = store.get(stage)
        if stage in BACKBONE_STAGES and stage not in run.stages():
            run.put(stage, done[stage])

    models.drop(folders["vlm"])
    tree = run.tree()
    summary = summarise(tree, pair=pair.key, seed=settings.seed)
    summary["verdict"] = verdict_sentence(summary)
    write_atomically(
        run.folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False).encode()
    )
    with reporter.stage("report", 1):
        write_report(run.folder, tree, summary, benchmark)
    return summary
