"""A pair's plan, here: from its configs and prompts, or from what is published of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from interventions import Model, load
from interventions.errors import LoadError
from twohop.ask.study import Study
from twohop.items.items import Benchmark
from twohop.pairs import PUBLISHED, Pair, published_bytes
from twohop.running.loading import Loading
from twohop.running.pair_run import PairRun, Settings, study_on
from twohop.running.plan import Plan, planned
from twohop.running.published_plans import published_plan
from twohop.running.rates import Rate, rate_of
from twohop.running.weighing import Machine, Weights
from twohop.stages.asked import Counts, scope_of
from twohop.stages.table import STAGES
from twohop.stages.work import Role

LOG = logging.getLogger(__name__)
HALF = 2
"""Bytes of a number in most checkpoints."""
INDEXES = ("model.safetensors", "model.safetensors.index.json")
"""Files of which a checkpoint has one."""


def plan_of(
    pair: Pair,
    settings: Settings,
    *,
    stages: Sequence[str] = STAGES,
    counts: Counts | None = None,
    benchmark: Benchmark | None = None,
    same: bool = False,
    timing: bool = False,
    machines: Sequence[Machine] = (),
) -> Plan:
    """Plan a pair's study here, from configs and prompts.

    Parameters
    ----------
    pair : Pair
    settings : Settings
    stages : sequence of str
        Those that are still to be run.
    counts : Counts, optional
        Items, where stages that are done have counted them. Default: the most there can be.
    benchmark : Benchmark, optional
        The pair's, where it has been made.
    same : bool
        Whether the VLM's decoder is known to be the backbone's.
    timing : bool
        Load the models whose weights are here, one after the other, and time forward passes; else
        no weight is read.
    machines : sequence of Machine
        Where it is to run: on the first of these that it fits on. Default: here.
    """
    places = pair.places(remote=settings.remote)
    alone = places["vlm"] == places["backbone"]
    roles: tuple[Role, ...] = ("vlm",) if alone else ("vlm", "backbone")
    models: dict[Role, Model] = {
        role: load(places[role], remote=settings.remote or "local") for role in roles
    }
    asked_of = pair.benchmark().limited(settings.limit) if benchmark is None else benchmark
    study = study_on(asked_of, models["vlm"], models.get("backbone", models["vlm"]), settings)
    here = machines[0] if machines else Machine.here(settings.loading)
    weights: dict[Role, Weights] = {
        role: Weights.of(models[role], settings.loading, on_cpu=here.kind == "cpu")
        for role in roles
    }
    scope = scope_of(study, counts=counts, same=same or alone)
    asked: dict[str, Any] = {"protocol": settings.protocol, "stages": stages}
    asked["remote"] = bool(settings.remote)
    plan = planned(pair.key, scope, weights, here, **asked)
    for larger in machines[1:]:
        if plan.remedy:
            plan = planned(pair.key, scope, weights, larger, **asked)
    if plan.remedy and not machines:  # only now, as looking at other GPUs begins something on each
        plan = planned(pair.key, scope, weights, here, spare=spare_of(here), **asked)
    missing = {} if settings.remote else downloads(places, weights)
    if timing and not plan.remedy and not missing and not settings.remote:
        rates = timed(places, study, settings)
        plan = planned(pair.key, scope, weights, here, rates=rates, **asked)
    sure = all(as_counted(model, settings.loading) for model in models.values())
    return replace(plan, downloads=missing, sure=sure)


def as_counted(model: Model, loading: Loading) -> bool:
    """Whether a model's weights will take what its config tells, on one device.

    Not if a map may leave some on the CPU or the disk, or they are packed already, or the config
    does not say in which format they are.
    """
    config = model.module.config
    text = config.get_text_config(decoder=True)
    packed = any(getattr(part, "quantization_config", None) for part in (config, text))
    said = loading.dtype or config.dtype or text.dtype
    return loading.device_map is None and not packed and said is not None


def timed(places: Mapping[str, Path | str], study: Study, settings: Settings) -> dict[Role, Rate]:
    """Load each model and time it, one after the other."""
    rates: dict[Role, Rate] = {}
    roles: tuple[Role, ...] = ("backbone", "vlm")
    for role in roles:
        if role == "vlm" or places["vlm"] != places["backbone"]:
            model = load(places[role], **settings.loading.of(role))
            rates[role] = rate_of(model, study)
            del model
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return rates


def spare_of(machine: Machine) -> Machine | None:
    """All GPUs here, where fewer are to be used."""
    n = torch.cuda.device_count() if machine.kind == "cuda" else 0
    if n <= len(machine.free):
        return None
    free = tuple(torch.cuda.mem_get_info(i)[0] for i in range(n))
    return Machine("cuda", free, tuple(f"cuda:{i}" for i in range(n)), True)


def downloads(places: Mapping[str, Path | str], weights: Mapping[Role, Weights]) -> dict[str, int]:
    """Bytes of the checkpoints that are not here, by repo id: as published, else by the config."""
    from huggingface_hub import try_to_load_from_cache

    missing = {}
    for role, of in weights.items():
        repo = str(places[role])
        if Path(repo).is_dir():
            continue
        if any(isinstance(try_to_load_from_cache(repo, name), str) for name in INDEXES):
            continue
        missing[repo] = published_bytes(repo) or stored_bytes(of)
    return missing


def stored_bytes(weights: Weights) -> int:
    """Bytes of a checkpoint's files, which are packed only if they were before they are loaded."""
    return replace(weights, n_bytes=HALF, packing=None).nbytes


def plan_before(
    pair: Pair,
    settings: Settings,
    *,
    stages: Sequence[str] = STAGES,
    timing: bool = False,
    machines: Sequence[Machine] = (),
) -> Plan:
    """Plan a study anew; of a published pair whose config cannot be had, from what is published.

    Parameters
    ----------
    pair : Pair
    settings : Settings
    stages, timing, machines
        As in :func:`plan_of`; from what is published, of all stages.

    Raises
    ------
    LoadError
        If a config cannot be had, and nothing is published of the pair.
    """
    try:
        return plan_of(pair, settings, stages=stages, timing=timing, machines=machines)
    except LoadError as error:
        place = pair.places(remote=settings.remote)["vlm"]
        known = [key for key, of in PUBLISHED.items() if of.vlm == place]
        if not known:
            raise
        here = machines[0] if machines else Machine.here(settings.loading)
        spare = spare_of(here) if not machines else machines[1] if machines[1:] else None
        plan = published_plan(
            known[0],
            here,
            protocol=settings.protocol,
            packing=settings.loading.quantization,
            n_bytes=width_of(settings.loading, here),
            spare=spare,
            remote=bool(settings.remote),
        )
        why = str(error).split("\n")[0]
        note = (
            f"from published sizes, asked about flags in a chat, as the config is not here: {why}"
        )
        places = pair.places(remote=settings.remote)
        missing = {} if settings.remote else downloads(places, plan.weights)
        return replace(plan, downloads=missing, notes=(note,))


def width_of(loading: Loading, machine: Machine) -> int:
    """Bytes of a number: of those asked for, else float32 on a CPU and 16 bits elsewhere."""
    dtype = getattr(torch, loading.dtype or "", None)
    if dtype is None:
        dtype = torch.float32 if machine.kind == "cpu" else torch.bfloat16
    return torch.empty(0, dtype=dtype).element_size()


def plan_of_rest(
    run: PairRun, to_run: Sequence[str], machines: Sequence[Machine] = ()
) -> Plan | None:
    """Plan what is left of a run, with the items that its stages have counted.

    ``machines`` as in :func:`plan_of`.

    None where its configs cannot be had: what is amiss is said when they are opened.
    """
    stored = run.own.stages()
    counts = None
    try:
        if not {"recall", "backbone_text"} & {*to_run} and "recall" in stored:
            counts = Counts.of(run.own.get("recall"), run.own.get("backbone_text"))
        return plan_of(
            run.pair,
            run.settings,
            stages=to_run,
            counts=counts,
            benchmark=run.benchmark,
            machines=machines,
        )
    except LoadError:
        return None
    except Exception:  # a plan is said, and stops no run
        LOG.warning("what is left could not be planned", exc_info=True)
        return None
