"""One pair's run: what is asked of whom, and where its results are kept."""

import errno
import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from interventions import Model
from interventions.errors import InterventionsError, LoadError, ResultsError
from interventions.results import STORE, Store, read_provenance, read_tree, write_atomically
from twohop.ask.memory import MemoryTooSmall, ran_out, remedy
from twohop.ask.on_server import SILENT, Progress
from twohop.ask.residence import at_home
from twohop.ask.study import Study, image_prompt, longest_answer, text_prompt
from twohop.items.digest import asked_parts, named
from twohop.items.items import Benchmark, check_items
from twohop.pairs import Pair, model_name
from twohop.protocol import DEFAULT, Protocol
from twohop.report.sentence import verdict_sentence
from twohop.report.summary import summarise
from twohop.running.checkpoints import Digests
from twohop.running.devices import DeviceFailed, explained, failed
from twohop.running.loading import Loading, Models, Role
from twohop.running.reporter import Reporter
from twohop.running.soundness import check_sound
from twohop.stages.provenance import check_same_formats, check_same_models
from twohop.stages.run import measured
from twohop.stages.table import BACKBONE_STAGES, NEEDS, STAGES, derived
from twohop.statistics import as_json

LEAST_ENTITIES = 2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Settings:
    """What a study's results depend on, besides the models and the benchmark.

    Attributes
    ----------
    limit : int or None
        Number of entities; None for all.
    seed : int
        Of every random choice.
    remote : bool or str
        Run on NDIF, or on the NDIF server at a URL; see :meth:`twohop.pairs.Pair.places`.
    protocol : Protocol
        Every number that decides what is measured, such as how many lost items are tried.
    loading : Loading
        How the models are loaded: :class:`twohop.running.loading.Loading`.

    Examples
    --------
    >>> Settings(protocol=Protocol(lost_items=48)).protocol.lost_items
    48
    """

    limit: int | None = None
    seed: int = 0
    remote: bool | str = False
    protocol: Protocol = DEFAULT
    loading: Loading = field(default_factory=Loading)


def study_on(benchmark: Benchmark, vlm: Model, backbone: Model, settings: Settings) -> Study:
    """What stages work with, on two models."""
    return Study(
        vlm=vlm,
        backbone=backbone,
        benchmark=benchmark,
        seed=settings.seed,
        max_new_tokens=longest_answer(backbone, benchmark, protocol=settings.protocol),
        protocol=settings.protocol,
    )


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
    checkpoints : dict
        What is there, by :class:`twohop.running.checkpoints.Digests`; empty of what a server has.
    given : dict
        Results of its store that stages were given: each is read once.
    """

    pair: Pair
    benchmark: Benchmark
    settings: Settings
    folders: dict[str, Path | str]
    own: Store
    common: Store
    checkpoints: dict[str, dict[str, str]]
    given: dict[str, xr.Dataset] = field(default_factory=dict, repr=False)

    def store(self, stage: str) -> Store:
        """Where a stage is kept."""
        return self.common if stage in BACKBONE_STAGES else self.own

    def stored(self) -> list[str]:
        """The stages that are there already; the backbone's are copied to the pair's store."""
        mine, shared = self.own.stages(), self.common.stages()
        for stage in BACKBONE_STAGES:
            if stage in shared and stage not in mine:
                result = self.common.get(stage)
                self.check_models(stage, result)
                self.own.put(stage, result)
                mine.append(stage)
        return mine

    def needed(self, stage: str) -> dict[str, xr.Dataset]:
        """The results that a stage is given."""
        for name in NEEDS[stage]:
            if name not in self.given:
                self.given[name] = self.own.get(name)
        return {name: self.given[name].copy() for name in NEEDS[stage]}

    def study(self, stage: str, *, models: Models, progress: Progress = SILENT) -> Study:
        """What a stage works with; the backbone stands in for a VLM that it does not need."""
        alone = stage in BACKBONE_STAGES
        backbone = self.model("backbone", models)
        vlm = backbone if alone else self.model("vlm", models)
        study = study_on(self.benchmark, vlm, backbone, self.settings)
        return replace(study, kept=models.results, progress=progress)

    def model(self, role: Role, models: Models) -> Model:
        """One of the two; a VLM that is its own backbone is loaded once, where the VLM goes."""
        same = self.folders["vlm"] == self.folders["backbone"]
        return models.get(
            self.folders[role],
            remote=self.settings.remote,
            checkpoint=self.checkpoints.get(role),
            loading=self.settings.loading.of("vlm" if same else role),
        )

    def compute(
        self,
        stage: str,
        done: dict[str, xr.Dataset],
        *,
        models: Models,
        progress: Progress,
        again: Collection[str] = (),
    ) -> xr.Dataset:
        """Run a stage, given those it needs; the result carries its provenance.

        Parameters
        ----------
        stage : str
        done : dict
        models : Models
        progress : Progress
        again : collection of str
            Stages that are to be computed again and will not stay.

        Raises
        ------
        MemoryTooSmall
            If memory runs out.
        DeviceFailed
            If a device does, such as a GPU that is gone.
        BrokenModel
            If a model computes NaN.
        ResultsError
            If models are in another number format than those of stages that stay.
        """
        try:
            study = self.study(stage, models=models, progress=progress)
            if not self.settings.remote:
                formats = {"vlm": str(study.vlm.dtype), "backbone": str(study.backbone.dtype)}
                check_same_formats(stage, formats, self._beside(stage, again))
            self.check(study, models)
            return measured(stage, study, done, settings=self.store(stage).settings)
        except Exception as error:
            if ran_out(error):
                raise MemoryTooSmall(f"memory ran out in {stage}. {remedy(error)}") from error
            if failed(error):
                asked = [torch.device(device) for device in self.settings.loading.device]
                said = explained(error, models.devices() or asked)
                raise DeviceFailed(f"a device failed in {stage}. {said}") from error
            raise

    def check(self, study: Study, models: Models) -> None:
        """Refuse models that compute NaN: each answers one question before it is measured."""
        item = self.benchmark.items[0]
        template = self.benchmark.templates[item.relation]
        for model in (study.backbone, study.vlm):
            if model in models.sound:
                continue
            if model is study.backbone:
                prompt = text_prompt(model, template, [item.entity])
            else:
                prompt = image_prompt(study, template, [item.entity])
            at_home(model)
            check_sound(model, prompt)
            models.sound.add(model)

    def check_models(self, stage: str, result: xr.Dataset, *, again: Collection[str] = ()) -> None:
        """Refuse a stage's result if stages that it will lie beside are of other models.

        Weights, an adapter, a number format or an attention implementation may differ under one
        name.

        Parameters
        ----------
        stage : str
        result : Dataset
        again : collection of str
            Stages that are to be computed again and will not stay.

        Raises
        ------
        ResultsError
            With what differs.
        """
        check_same_models(stage, read_provenance(result), self._beside(stage, again))

    def _beside(self, stage: str, again: Collection[str]) -> dict[str, dict[str, Any]]:
        """Provenance of the stages that a stage's result will lie beside."""
        gone = {stage, *derived(stage), *again}
        stores = (self.own, self.common) if stage in BACKBONE_STAGES else (self.own,)
        return {
            other: provenance
            for store in stores
            for other, provenance in store.provenances().items()
            if other not in gone
        }

    @contextmanager
    def left_if_empty(self) -> Iterator[None]:
        """Where models cannot be loaded, leave no folder that is bound to how they were asked for.

        Unless something is stored in it.
        """
        try:
            yield
        except LoadError:
            for store in (self.own, self.common):
                if not store.stages():
                    store.leave()
            raise

    def keep(
        self,
        stage: str,
        result: xr.Dataset,
        *,
        computed: bool = True,
        again: Collection[str] = (),
    ) -> list[str]:
        """Store a stage's result, and give up what tells of an older one.

        Those are the stages derived from it, in the same write, and before it the summary and the
        report: whenever this is killed, what is there goes together.

        Parameters
        ----------
        stage : str
        result : Dataset
        computed : bool
            Whether this run computed it; else another has, and stored it for all pairs.
        again : collection of str
            Stages that are still to be computed again.

        Returns
        -------
        list of str
            The stages given up.

        Raises
        ------
        ResultsError
            If the disk is full, or stages that stay are of other models.
        """
        self.check_models(stage, result, again=again)
        try:
            return self._keep(stage, result, computed=computed)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise ResultsError(
                f"{stage} cannot be stored: {error.strerror}, {self.own.folder}. Free some "
                f"{2 * result.nbytes / 2**20 + 1:.0f} MiB there; the stages stored before are "
                "kept, and the same command goes on behind them."
            ) from error

    def _keep(self, stage: str, result: xr.Dataset, *, computed: bool) -> list[str]:
        for name in ("summary.json", "report.html"):
            (self.own.folder / name).unlink(missing_ok=True)
        outdated, stored = derived(stage), self.own.stages()
        gone = [other for other in outdated if other in stored]
        if computed and stage in BACKBONE_STAGES:
            self.common.put(stage, result, drop=outdated)
        self.own.put(stage, result, drop=outdated)
        for name in (stage, *outdated):
            self.given.pop(name, None)
        return gone

    def finish(self, reporter: Reporter) -> dict[str, Any] | None:
        """Write the summary and the report, if all stages are there; else say which are not."""
        from twohop.report.page import write_report

        tree = self.own.tree()
        if missing := [stage for stage in STAGES if stage not in tree.children]:
            there = [stage for stage in STAGES if stage in tree.children]
            reporter.say(
                f"  {self.own.folder / STORE} holds {', '.join(there)}. Summary and report are "
                f"written when {', '.join(missing)} are there too: run it without --stage."
            )
            return None
        numbers = summarise(tree, pair=self.pair.key, seed=self.settings.seed)
        numbers["verdict"] = verdict_sentence(numbers)
        summary = as_json(numbers)
        write_atomically(
            self.own.folder / "summary.json",
            json.dumps(summary, indent=2, allow_nan=False).encode(),
        )
        with reporter.stage("report") as progress:
            progress.expect(1)
            write_report(self.own.folder, tree, numbers, self.benchmark)
            progress.tick(1)
        return summary


def read_run(folder: Path | str) -> xr.DataTree:
    """Read the results of a run that is stored: a Dataset for each stage that is there.

    Raises
    ------
    ResultsError
        If the folder holds none, or they cannot be read.

    Notes
    -----
    ``read_run("runs/micro-late")["recall"]["right"]`` is which items were right, by gate.
    """
    return read_tree(Path(folder))


def open_run(pair: Pair, *, out: Path, settings: Settings) -> PairRun:
    """Open a pair's folder in ``out``, or make it.

    Raises
    ------
    ResultsError
        If it holds a run with other settings.
    LoadError
        If the models cannot be loaded as it is asked for.
    InterventionsError
        If the items are not fit for a study: ids that occur twice, or one entity only.
    """
    settings.loading.check(remote=settings.remote)
    benchmark = pair.benchmark().limited(settings.limit)
    check_items(benchmark.items)
    if len(benchmark.entities) < LEAST_ENTITIES:
        raise InterventionsError(
            f"the items of {pair.key} are about one entity, {benchmark.entities[0].name!r}. A "
            f"study puts others in its place: give items of at least {LEAST_ENTITIES} entities."
        )
    folders = pair.places(remote=settings.remote)
    digests = Digests(out)
    # What a server has is not on this machine; its results say what it was.
    content = (
        {} if settings.remote else {role: digests.of(folder) for role, folder in folders.items()}
    )
    names = {role: model_name(folder) for role, folder in folders.items()}
    vlm, backbone = (
        {role: names[role]} | ({f"{role}_checkpoint": content[role]} if content else {})
        for role in ("vlm", "backbone")
    )
    parts = asked_parts(benchmark, protocol=settings.protocol)
    shared = {
        "twohop": version("twohop"),
        **backbone,
        "benchmark": named(benchmark, parts),
        "asked": parts,
        "limit": settings.limit,
        "seed": settings.seed,
        "protocol": settings.protocol.as_settings(),
        **({"remote": True} if settings.remote else {}),
        **settings.loading.as_settings(),
    }
    own = Store(out / pair.key, {"pair": pair.key, **vlm, **shared})
    digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:12]
    common = Store(out / "backbones" / digest, shared)
    digests.save()
    return PairRun(pair, benchmark, settings, folders, own, common, content)
