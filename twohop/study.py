"""The stages of a study, in order: each is stored as it is done, and not run again."""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interventions import Model, load
from interventions.results import Store, provenance, write_atomically
from twohop.asking import Study, Tick, longest_answer
from twohop.back_patching import layer_pairs
from twohop.diagnosis import diagnosis
from twohop.entities.items import Benchmark, Template, check_items
from twohop.localize import MAP_COMPONENTS, patching_map, window_edges
from twohop.memory import MemoryTooSmall, ran_out, remedy
from twohop.pairs import Pair, find_pair, model_name
from twohop.recall import recall, text_gate
from twohop.recovery import MAX_KEPT, MAX_LOST, recovery
from twohop.reporter import Reporter
from twohop.resolution import FIT_VIEWS, resolution
from twohop.scoring import normalise
from twohop.summary import summarise, verdict_sentence
from twohop.swaps import MAP_ROLES, MAX_ITEMS
from twohop.transplant import RANDOM_SEEDS
from twohop.window import MAX_ITEMS as MAX_WINDOW_ITEMS
from twohop.window import windows

BACKBONE_STAGES = ("backbone_text", "windows", "map_text")
STAGES = (*BACKBONE_STAGES, "recall", "resolution", "map_image", "recovery", "diagnosis")
NEEDS: dict[str, tuple[str, ...]] = {
    "backbone_text": (),
    "windows": ("backbone_text",),
    "map_text": ("backbone_text", "windows"),
    "recall": ("backbone_text",),
    "resolution": (),
    "map_image": ("backbone_text", "windows", "recall"),
    "recovery": ("backbone_text", "windows", "recall"),
    "diagnosis": ("backbone_text", "windows", "recall", "resolution", "recovery"),
}
"""The stages that each stage is given."""


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
        return n_entities * (len(FIT_VIEWS) + 2) + n + 2 * n // relations
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
    if stage == "resolution":
        return resolution(study)
    text = done["backbone_text"]
    # Where the circuit is measured, the answer is checked token by token, so it must be the
    # canonical one that the model gives by itself.
    known = canonical(text)
    if stage == "windows":
        return windows(study, known)
    if stage == "map_text":
        return patching_map(study, study.backbone, known, shown=False)
    if stage == "recall":
        return recall(study, text)
    gates = done["recall"]
    window_end = int(done["windows"].attrs["enrichment_end"])
    if stage == "map_image":
        seen = known & gates["right"].sel(gate="recognised").values
        return patching_map(study, study.vlm, seen, shown=True)
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
    if benchmark.end:
        content["end"] = benchmark.end
    if benchmark.pictures:
        content["pictures"] = benchmark.pictures
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class PairRun:
    """One pair's run: what is asked of whom, and where the results are kept.

    Attributes
    ----------
    pair : Pair
    benchmark : Benchmark
    settings : Settings
    folders : dict
        Where ``vlm`` and ``backbone`` are.
    own, common : Store
        Of this pair, and of the backbone's own stages, which pairs share.
    """

    pair: Pair
    benchmark: Benchmark
    settings: Settings
    folders: dict[str, Path | str]
    own: Store
    common: Store

    def store(self, stage: str) -> Store:
        """Where a stage is kept."""
        return self.common if stage in BACKBONE_STAGES else self.own

    def done(self) -> dict[str, xr.Dataset]:
        """The stages that are there already; the backbone's are copied to the pair's store."""
        found = {stage: node.to_dataset() for stage, node in self.own.tree().children.items()}
        for stage in BACKBONE_STAGES:
            if stage not in found and stage in self.common.stages():
                found[stage] = self.common.get(stage)
                self.own.put(stage, found[stage])
        return found

    def expected_rows(self, stage: str, done: dict[str, xr.Dataset]) -> int:
        """About how many prompts a stage runs."""
        return expected_rows(stage, self.benchmark, done)

    def compute(
        self, stage: str, done: dict[str, xr.Dataset], *, models: Models, tick: Tick
    ) -> xr.Dataset:
        """Run a stage, given those it needs; the result carries its provenance."""
        backbone = models.get(self.folders["backbone"])
        vlm = backbone if stage in BACKBONE_STAGES else models.get(self.folders["vlm"])
        study = Study(
            vlm=vlm,
            backbone=backbone,
            benchmark=self.benchmark,
            seed=self.settings.seed,
            max_new_tokens=longest_answer(backbone, self.benchmark),
            kept=models.results,
            tick=tick,
        )
        try:
            found = run_stage(stage, study, done)
        except Exception as error:
            if not ran_out(error):
                raise
            raise MemoryTooSmall(f"memory ran out in {stage}. {remedy(error)}") from error
        found.attrs["provenance"] = {
            **provenance(vlm=vlm, backbone=backbone),
            "settings": self.store(stage).settings,
        }
        return found

    def finish(self, reporter: Reporter) -> dict[str, Any]:
        """Write the summary and the report of a run whose stages are all done."""
        from twohop.report.page import write_report

        tree = self.own.tree()
        summary = summarise(tree, pair=self.pair.key, seed=self.settings.seed)
        summary["verdict"] = verdict_sentence(summary)
        write_atomically(
            self.own.folder / "summary.json",
            json.dumps(summary, indent=2, allow_nan=False).encode(),
        )
        with reporter.stage("report", 1):
            write_report(self.own.folder, tree, summary, self.benchmark)
        return summary


def open_run(pair: Pair, *, out: Path, settings: Settings) -> PairRun:
    """Open a pair's folder in ``out``, or make it.

    Raises
    ------
    ResultsError
        If it holds a run with other settings.
    """
    benchmark = pair.benchmark().limited(settings.limit)
    check_items(benchmark.items)
    folders = {"vlm": pair.vlm(), "backbone": pair.backbone()}
    shared = {
        "twohop": version("twohop"),
        "backbone": model_name(folders["backbone"]),
        "benchmark": f"{benchmark.name} {fingerprint(benchmark)}",
        "limit": settings.limit,
        "seed": settings.seed,
    }
    own = Store(out / pair.key, {"pair": pair.key, "vlm": model_name(folders["vlm"]), **shared})
    digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:12]
    common = Store(out / "backbones" / digest, shared)
    return PairRun(pair, benchmark, settings, folders, own, common)


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
    pair = find_pair(key) if isinstance(key, str) else key
    models = models or Models()
    reporter = reporter or Reporter()
    run = open_run(pair, out=out, settings=settings or Settings())
    reporter.say(f"[bold]{pair.key}[/bold]: {len(run.benchmark.items)} items")
    done = run.done()
    for stage in STAGES:
        if stage in done:
            reporter.reused(stage)
            continue
        with reporter.stage(stage, run.expected_rows(stage, done)) as tick:
            found = run.compute(stage, done, models=models, tick=tick)
        run.store(stage).put(stage, found)
        done = run.done()
    models.drop(run.folders["vlm"])
    return run.finish(reporter)
