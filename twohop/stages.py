"""The stages of a study: their names, what each is given, and each as a function of a study."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from interventions.errors import InterventionsError, did_you_mean
from interventions.fingerprints import Unchanged
from interventions.results import provenance, with_provenance
from twohop.asking import Study
from twohop.attribution_map import attribution_map
from twohop.diagnosis import diagnosis
from twohop.localize import patching_map
from twohop.provenance import BACKBONE_STAGES, check_same_models, check_same_study, made_with
from twohop.recall import recall, text_gate
from twohop.recovery import recovery
from twohop.resolution import resolution
from twohop.scoring import normalise
from twohop.window import windows

STAGES = (
    *BACKBONE_STAGES,
    "recall",
    "resolution",
    "map_image",
    "attribution_image",
    "recovery",
    "diagnosis",
)
NEEDS: dict[str, tuple[str, ...]] = {
    "backbone_text": (),
    "windows": ("backbone_text",),
    "map_text": ("backbone_text", "windows"),
    "attribution_text": ("map_text",),
    "recall": ("backbone_text",),
    "resolution": (),
    "map_image": ("backbone_text", "windows", "recall"),
    "attribution_image": ("map_image",),
    "recovery": ("backbone_text", "windows", "recall"),
    "diagnosis": ("backbone_text", "windows", "recall", "resolution", "recovery"),
}
"""The stages that each stage is given."""


def with_needs(stages: Iterable[str]) -> list[str]:
    """Stages and all that they need, in the order in which they run."""
    found = set(stages)
    for stage in reversed(STAGES):
        if stage in found:
            found.update(NEEDS[stage])
    return [stage for stage in STAGES if stage in found]


def derived(stage: str) -> list[str]:
    """The stages that were given a stage's result, or the result of one that was."""
    return [one for one in STAGES if one != stage and stage in with_needs([one])]


@dataclass(frozen=True)
class Selection:
    """Which stages are to be there in the end, and which of them are computed again.

    Attributes
    ----------
    stages, force : tuple of str
    """

    stages: tuple[str, ...] = STAGES
    force: tuple[str, ...] = ()

    @classmethod
    def of(cls, stages: Sequence[str] | None, force: bool | Sequence[str]) -> "Selection":
        """Return the selection that these names make.

        Parameters
        ----------
        stages : sequence of str, optional
            Default: all.
        force : bool or sequence of str
            True: the ``stages``.

        Raises
        ------
        InterventionsError
            If there is no stage of a name.
        """
        asked = STAGES if stages is None else tuple(stages)
        again = (asked if force else ()) if isinstance(force, bool) else tuple(force)
        for name in (*asked, *again):
            if name not in STAGES:
                raise InterventionsError(f"no stage {name!r}. {did_you_mean(name, STAGES)}")
        return cls(asked, again)

    def usable(self, stored: Collection[str]) -> list[str]:
        """Which of the stored stages are used as they are.

        Not those forced, nor any whose needs are not usable: they were derived from what is gone.
        """
        found: list[str] = []
        for stage in STAGES:
            if stage in stored and stage not in self.force and {*NEEDS[stage]} <= {*found}:
                found.append(stage)
        return found

    def wanted(self) -> list[str]:
        """The stages selected and all that they need, in order."""
        return with_needs((*self.stages, *self.force))

    def to_run(self, stored: Collection[str]) -> list[str]:
        """The stages to be computed, in order, where some are stored."""
        usable = self.usable(stored)
        return [stage for stage in self.wanted() if stage not in usable]


def canonical(gate: xr.Dataset) -> np.ndarray:
    """Whether each free answer of a gate is the canonical one, [item]."""
    pairs = zip(gate["text"].values[0], gate["answer"].values, strict=True)
    return np.array([normalise(said) == normalise(answer) for said, answer in pairs], dtype=bool)


def in_circuit(stage: str, done: Mapping[str, xr.Dataset]) -> np.ndarray:
    """The items on which ``windows`` and the maps may be measured, [item].

    There the answer is checked token by token, so it must be the canonical one that the model
    gives by itself.
    """
    known = canonical(done["backbone_text"])
    if stage != "map_image":
        return known
    return known & done["recall"]["right"].sel(gate="recognised").values


def run_stage(stage: str, study: Study, done: Mapping[str, xr.Dataset] | None = None) -> xr.Dataset:
    """Run one stage.

    Parameters
    ----------
    stage : str
        One of :data:`STAGES`.
    study : Study
        From :func:`twohop.study.study_of`, or made of any two models and a benchmark.
    done : mapping of str to Dataset
        The results of those it needs (:data:`NEEDS`): from :func:`run_stages`, or of a stored run,
        ``read_tree(folder)[stage].to_dataset()``.

    Returns
    -------
    Dataset
        As the function documents that the stage is: :func:`twohop.recall.text_gate`,
        :func:`~twohop.recall.recall`, :func:`twohop.window.windows`,
        :func:`twohop.localize.patching_map`, :func:`twohop.attribution_map.attribution_map`,
        :func:`twohop.resolution.resolution`, :func:`twohop.recovery.recovery`,
        :func:`twohop.diagnosis.diagnosis`. The attribute ``provenance``, JSON, says what it was
        made with: models, versions, and the study's benchmark, seed and protocol.

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
    made = provenance(**models)
    check_same_models(stage, made, _made(stage, done))
    with Unchanged(*models.values()):
        found = _measure(stage, study, done)
    for role, model in models.items():
        if "requests" in made[role]:  # of this stage alone
            made[role]["requests"] = model.requests - made[role]["requests"]
    return with_provenance(found, made, settings=settings, seed=study.seed)


def _made(stage: str, done: Mapping[str, xr.Dataset]) -> dict[str, dict[str, Any]]:
    """What the results that a stage needs were made with."""
    return {need: made_with(done[need].attrs) for need in NEEDS[stage]}


def _measure(stage: str, study: Study, done: Mapping[str, xr.Dataset]) -> xr.Dataset:
    if stage == "backbone_text":
        found = text_gate(study, study.backbone, gate="backbone_text")
        found.attrs["n_layers"] = study.backbone.n_layers
        return found
    if stage == "resolution":
        return resolution(study)
    if stage == "recall":
        return recall(study, done["backbone_text"])
    if stage == "windows":
        return windows(study, in_circuit(stage, done))
    if stage == "map_text":
        return patching_map(study, study.backbone, in_circuit(stage, done), shown=False)
    if stage == "map_image":
        return patching_map(study, study.vlm, in_circuit(stage, done), shown=True)
    if stage == "attribution_text":
        return attribution_map(study, study.backbone, done["map_text"], shown=False)
    if stage == "attribution_image":
        return attribution_map(study, study.vlm, done["map_image"], shown=True)
    window_end = int(done["windows"].attrs["enrichment_end"])
    if stage == "recovery":
        half = int(done["windows"].attrs["enrichment_half"])
        return recovery(study, done["recall"], last_block=half, last_mlp=window_end)
    return diagnosis(
        done["recall"],
        done["resolution"],
        done["recovery"],
        window_end=window_end,
        seed=study.seed,
        protocol=study.protocol,
    )


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
    >>> from twohop.study import Settings, study_of
    >>> study = study_of("micro-naming", Settings(limit=2))
    >>> found = run_stages(["recall"], study)
    >>> list(found)
    ['backbone_text', 'recall']
    >>> found["recall"]["right"].sel(gate="recognised").mean().item()
    1.0
    """
    found = dict(done or {})
    for stage in Selection.of([*stages], force=False).to_run(found):
        found[stage] = run_stage(stage, study, found)
    return found
