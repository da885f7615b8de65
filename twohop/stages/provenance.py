"""What stages carry of how they were made: how it is read, and what must be alike."""

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr

from interventions.errors import ResultsError
from interventions.results import differences, read_provenance
from twohop.protocol import DEFAULT, Protocol
from twohop.stages.table import BACKBONE_STAGES

SHARED = ("benchmark", "asked", "seed", "max_new_tokens", "protocol")
"""Settings that the results of stages have in common wherever they were made."""


def settings_of(tree: xr.DataTree) -> dict[str, Any]:
    """A run's own settings, as in ``settings.json``."""
    several = (read_provenance(node).get("settings", {}) for node in tree.children.values())
    return next((settings for settings in several if "vlm" in settings), {})


def protocol_of(tree: xr.DataTree) -> Protocol:
    """The protocol that a run was made with; the default one if its stages carry none."""
    settings = settings_of(tree)
    return Protocol.of(settings) if "protocol" in settings else DEFAULT


def fingerprints(stage: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a stage's models from others, by role, where its provenance says so."""
    roles = ("backbone",) if stage in BACKBONE_STAGES else ("vlm", "backbone")
    prints = {role: provenance.get(role, {}).get("fingerprint") for role in roles}
    return {role: fingerprint for role, fingerprint in prints.items() if fingerprint is not None}


def check_same_models(
    stage: str, provenance: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse a stage that is of other models than stages it would lie beside.

    Parameters
    ----------
    stage : str
    provenance : mapping
        Its provenance.
    others : mapping of str to mapping
        Provenance of the stages that are there.

    Raises
    ------
    ResultsError
        With what differs, such as ``vlm weights: stored .., found ..``.
    """
    mine = fingerprints(stage, provenance)
    for other, its in others.items():
        theirs = fingerprints(other, its)
        lines = [
            f"{role} {line}"
            for role in mine
            if role in theirs
            for line in differences(_named(theirs[role]), _named(mine[role]), verb="found")
        ]
        if lines:
            raise ResultsError(
                f"{stage} and the stored {other} are not of the same models:\n  "
                + "\n  ".join(lines)
                + "\nGive another --out, or compute all stages again: --force."
            )


def check_same_formats(
    stage: str, formats: Mapping[str, str], others: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse models in another number format than those of stages their results would lie beside.

    Parameters
    ----------
    stage : str
    formats : mapping of str to str
        Number format by role.
    others : mapping of str to mapping
        Provenance of the stages that are there.

    Raises
    ------
    ResultsError
        With the formats, and the option that makes them alike.
    """
    for other, its in others.items():
        roles = ("backbone",) if {stage, other} & {*BACKBONE_STAGES} else ("vlm", "backbone")
        for role in roles:
            stored = str(its.get(role, {}).get("dtype", formats[role]))
            if stored != formats[role]:
                raise ResultsError(
                    f"{stage} would be computed in {formats[role]} ({role}), and the stored "
                    f"{other} is in {stored}. Give --dtype {stored.removeprefix('torch.')} to go "
                    "on, another --out, or compute all stages again: --force."
                )


def check_same_study(
    stage: str, study: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse results that a stage is given, if they were measured by another protocol.

    Or on other items, or with another seed.

    Parameters
    ----------
    stage : str
    study : mapping
        Settings of the study that is to run it.
    done : mapping of str to mapping
        Provenance of the results; of those that carry none nothing is known.

    Raises
    ------
    ResultsError
        With what differs.
    """
    asked = {key: study[key] for key in SHARED if key in study}
    for other, its in done.items():
        settings = its.get("settings", {})
        stored = {key: settings[key] for key in asked if key in settings}
        if not stored:
            continue
        if lines := differences(stored, {key: asked[key] for key in stored}):
            raise ResultsError(
                f"{stage} was given {other} of another study:\n  "
                + "\n  ".join(lines)
                + f"\nRun {other} again, or make the study as that one was."
            )


def _named(fingerprint: Any) -> dict[str, Any]:
    """A fingerprint as it is after it was stored."""
    plain = json.loads(json.dumps(fingerprint))
    return plain if isinstance(plain, dict) else {"fingerprint": plain}
