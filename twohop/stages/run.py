"""Stages of a study run on one pair: one of them, or several and what they need."""

from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr

from interventions.errors import InterventionsError
from interventions.model.fingerprints import Unchanged
from interventions.results import provenance, read_provenance, with_provenance
from twohop.ask.residence import home_of
from twohop.ask.study import Study
from twohop.stages.heights import Heights
from twohop.stages.provenance import check_same_models, check_same_study
from twohop.stages.table import NEEDS, TABLE, Selection


def run_stage(stage: str, study: Study, done: Mapping[str, xr.Dataset] | None = None) -> xr.Dataset:
    """Run one stage.

    Parameters
    ----------
    stage : str
        One of :data:`twohop.stages.table.STAGES`.
    study : Study
        From :func:`twohop.running.study.study_of`, or made of any two models and a benchmark.
    done : mapping of str to Dataset
        The results of those it needs (:data:`twohop.stages.table.NEEDS`): from :func:`run_stages`,
        or of a stored run, ``read_tree(folder)[stage].to_dataset()``.

    Returns
    -------
    Dataset
        As the function documents that the stage is: :func:`twohop.stages.recall.text_gate`,
        :func:`~twohop.stages.recall.recall`, :func:`twohop.stages.windows.windows`,
        :func:`~twohop.stages.windows.windows_vlm`,
        :func:`twohop.stages.maps.exact.patching_map`,
        :func:`twohop.stages.maps.attributed.attribution_map`,
        :func:`twohop.stages.resolution.resolution.resolution`,
        :func:`twohop.stages.recovery.recovery.recovery`,
        :func:`twohop.stages.diagnosis.diagnosis`. The attribute ``provenance``, JSON, says what it
        was made with: models, versions, and the study's benchmark, seed and protocol.

    Raises
    ------
    InterventionsError
        If there is no such stage, or ``done`` lacks one that it needs.
    ResultsError
        If what it needs was measured by another protocol, with another seed, on other items or on
        other models.
    """
    Selection.of([stage], force=False)
    done = done or {}
    if lacking := [need for need in NEEDS[stage] if need not in done]:
        raise InterventionsError(
            f"{stage} is given the results of {', '.join(NEEDS[stage])}; without "
            f"{', '.join(lacking)} it cannot run. run_stages([{stage!r}], study) runs them all."
        )
    check_same_study(stage, study.settings, _made(stage, done))
    return measured(stage, study, done, settings=study.settings)


def measured(
    stage: str,
    study: Study,
    done: Mapping[str, xr.Dataset],
    *,
    settings: Mapping[str, Any],
) -> xr.Dataset:
    """Run a stage that is given all that it needs; the result says what it was made with.

    Parameters
    ----------
    stage : str
    study : Study
    done : mapping of str to Dataset
    settings : mapping
        What the results depend on, besides the models; JSON types.

    Raises
    ------
    ResultsError
        If what it needs was measured on other models.
    """
    models = {"vlm": study.vlm, "backbone": study.backbone}
    origins = provenance(**models)
    for role, model in models.items():
        if not model.remote:  # which may wait elsewhere meanwhile
            origins[role]["device"] = str(home_of(model))
    check_same_models(stage, origins, _made(stage, done))
    with Unchanged(*models.values()), Heights(*models.values()) as heights:
        result = TABLE[stage].run(study, done)
    origins["memory"] = heights.said()
    for role, model in models.items():
        if "requests" in origins[role]:  # of this stage alone
            origins[role]["requests"] = model.requests - origins[role]["requests"]
    return with_provenance(result, origins, settings=settings, seed=study.seed)


def _made(stage: str, done: Mapping[str, xr.Dataset]) -> dict[str, dict[str, Any]]:
    """What the results that a stage needs were made with."""
    return {need: read_provenance(done[need]) for need in NEEDS[stage]}


def run_stages(
    stages: Iterable[str], study: Study, done: Mapping[str, xr.Dataset] | None = None
) -> dict[str, xr.Dataset]:
    """Run stages and what they need, without storing anything.

    Parameters
    ----------
    stages : iterable of str
    study : Study
    done : mapping of str to Dataset
        Results that are there already.

    Returns
    -------
    dict of str to Dataset
        ``done`` and what was run.

    Examples
    --------
    >>> from twohop.running.study import Settings, study_of
    >>> study = study_of("micro-naming", Settings(limit=2))
    >>> results = run_stages(["recall"], study)
    >>> list(results)
    ['backbone_text', 'recall']
    >>> results["recall"]["right"].sel(gate="recognised").mean().item()
    1.0
    """
    results = dict(done or {})
    for stage in Selection.of([*stages], force=False).to_run(results):
        results[stage] = run_stage(stage, study, results)
    return results
