"""What is asked about edges, looked at before anything runs."""

import json
from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr

from interventions.attribution.attribute import GRADIENT_METRICS, TOKENS_AT_ONCE
from interventions.attribution.sides import (
    Given,
    contrast_digest,
    contrast_of,
    same_metric,
    side_digest,
)
from interventions.errors import PromptError, ResultsError, RoleError, SiteError
from interventions.given import flag, names, of_kind, one_or_several, plain, shown
from interventions.model.model import Model
from interventions.results import differences, provenance, read_provenance
from interventions.sweeping.contrast import Contrast, prompt_of
from interventions.sweeping.metrics import Answers, Metric
from interventions.sweeping.own_metrics import is_own, metric_name

HELD_BYTES = 2**31
"""Of what senders write, in one pass."""


def edge_contrast(
    model: Model,
    prompt: Given,
    source: Given,
    *,
    answers: Answers | None,
    foils: Answers | None,
    metric: Metric,
    roles: Sequence[str] | None = None,
    read_roles: Sequence[str] | None = None,
    by_role: bool = False,
) -> tuple[Contrast, dict[str, Any]]:
    """Put two runs side by side, and say what was asked, in JSON types.

    Raises
    ------
    PromptError, RoleError, PatchError
        As of :func:`interventions.attribute`.
    SiteError
        If pictures differ that do not enter the residual stream.
    """
    of_kind(model, Model, "the model", error=PromptError)
    named = plain(metric)
    if not is_own(metric) and not (isinstance(named, str) and named in GRADIENT_METRICS):
        raise PromptError(
            f"metric {shown(metric)} is none that edges are measured by. Use one of "
            f"{', '.join(GRADIENT_METRICS)}, a function of logits or an iv.Direction."
        )
    answers = None if answers is None else one_or_several(answers, "answers")
    foils = None if foils is None else one_or_several(foils, "foils")
    asked: dict[str, Any] = {
        "roles": None if roles is None else names(roles, "roles=", error=RoleError),
        "read_roles": None
        if read_roles is None
        else names(read_roles, "read_roles=", error=RoleError),
        "by_role": flag(by_role, "by_role"),
    }
    contrast = contrast_of(
        model, prompt, source, answers=answers, foils=foils, metric=metric, each=False, **asked
    )
    _check_pictures(model, contrast)
    called = metric_name(contrast.metrics[0])
    return contrast, {**asked, "answers": answers, "foils": foils, "metric": called}


def _check_pictures(model: Model, contrast: Contrast) -> None:
    """Refuse pictures that differ and are read beside the residual stream."""
    source: Any = contrast.source
    sides = [contrast.prompt, prompt_of(source)]
    if not model.anatomy.cross_blocks or not any(side.has_images for side in sides):
        return
    images = [{key: side.inputs[key] for key in side.entries} for side in sides]
    same = {*images[0]} == {*images[1]} and all(
        torch.equal(images[0][key], images[1][key]) for key in images[0]
    )
    if not same:
        raise SiteError(
            f"in {model.name} pictures are read by cross-attention blocks, beside the residual "
            "stream, so what differs between two pictures flows along no edge. Give prompts with "
            "the same pictures that differ in their texts, or sweep (iv.sweep)."
        )


def batches_of(model: Model, contrast: Contrast, batch_size: int | None) -> list[Contrast]:
    """Rows that run together."""
    n, repeats = len(contrast.items), contrast.target.repeats
    length, anatomy = contrast.prompt.length, model.anatomy
    senders = anatomy.n_layers * (anatomy.n_heads + 1) + 1
    held = HELD_BYTES // (3 * 4 * senders * anatomy.d_model)
    size = batch_size or max(1, min(TOKENS_AT_ONCE, held) // (length * repeats))
    if anatomy.dependent_rows is not None:
        size = 1
    return [contrast.rows(range(n)[i : i + size]) for i in range(0, n, size)]


def settings_of(contrast: Contrast, asked: dict[str, Any]) -> dict[str, Any]:
    """What a result depends on, but the model."""
    return {
        "contrast": contrast_digest(contrast),
        "prompt": side_digest(contrast.run),
        "source": side_digest(contrast.source),
        **asked,
    }


def as_asked(
    model: Model,
    data: xr.Dataset,
    prompt: Given,
    source: Given,
    *,
    answers: Answers | None,
    foils: Answers | None,
    metric: Metric | None,
) -> tuple[Contrast, dict[str, Any]]:
    """The contrast that scores were made with; refuse another.

    Raises
    ------
    ResultsError
        Says what differs.
    """
    about = read_provenance(data)
    settings = about.get("settings", {})
    asked = {name: settings.get(name) for name in ("roles", "read_roles", "by_role")}
    same = same_metric(settings.get("metric"), metric, made_by="iv.attribute_edges")
    contrast, asked = edge_contrast(
        model, prompt, source, answers=answers, foils=foils, metric=same, **asked
    )
    fingerprint = about.get("model", {}).get("fingerprint", {})
    lines = differences(fingerprint, provenance(model=model)["model"]["fingerprint"])
    sides = [side_digest(contrast.run), side_digest(contrast.source)]
    if sides[0] != sides[1] and sides[::-1] == [settings.get("prompt"), settings.get("source")]:
        lines.append("prompt and source, which are the other way round")
    elif settings.get("contrast") != contrast_digest(contrast):
        lines.append("the prompts, answers, foils or metric")
    if lines:
        raise ResultsError(
            "these edges were scored with something else than what is given now:\n  "
            + "\n  ".join(json.loads(json.dumps(lines)))
            + "\nGive what iv.attribute_edges was given, or score the edges again."
        )
    return contrast, asked
