"""The numbers of the verdict, under names that stay: ``summary.json``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from interventions.results import read_provenance
from twohop.ask.roles import IMAGE_ROLES, NO_IMAGE_TOKENS
from twohop.ask.study import SEPARATOR
from twohop.protocol import Protocol
from twohop.published.architecture import Class, architecture_of
from twohop.report.effects import contrasts, contrasts_as_numbers, nets, of_arms
from twohop.report.splits import other_splits
from twohop.report.strata import gaps_by_stratum
from twohop.scoring import OUTCOMES
from twohop.stages.maps.agreement import agreement_of_run, refusals
from twohop.stages.maps.similarity import similarity_of_run
from twohop.stages.provenance import protocol_of
from twohop.stages.recall import GATES
from twohop.stages.recovery.arms import WHOLE, WITHOUT_IMAGE_TOKENS
from twohop.stages.timing import NULLS, STATES, median_delay, timing
from twohop.statistics import (
    NOT_MEASURED,
    Estimate,
    difference,
    mcnemar,
    mean,
)

AT_IMAGE_TOKENS = "this VLM's image has tokens, and the arms of these names are written there"


def vlm_block(resolution: xr.Dataset, block: int) -> int:
    """The VLM's block that corresponds to one of the backbone's; -1 stays -1."""
    return block if block < 0 else int(np.atleast_1d(resolution.attrs["vlm_blocks"])[block])


def not_available(resolution: xr.Dataset) -> dict[str, str]:
    """Numbers that this architecture cannot have, each with the reason."""
    if set(IMAGE_ROLES) & set(resolution["role"].values):
        none = WITHOUT_IMAGE_TOKENS.values()
        return {f"recovered/{arm}": AT_IMAGE_TOKENS for arm in none}
    at_image = [f"recovered/{arm}" for arm in WITHOUT_IMAGE_TOKENS]
    return dict.fromkeys(at_image, NO_IMAGE_TOKENS)


def whole_arm(summary: Mapping[str, Any]) -> str:
    """The transplant that writes into all tokens of the image, or of the question."""
    gone = f"recovered/{WHOLE}" in summary["not_available"]
    return WITHOUT_IMAGE_TOKENS[WHOLE] if gone else WHOLE


def architecture(resolution: xr.Dataset) -> Class:
    """Class of the run's pair, from its provenance."""
    provenance = read_provenance(resolution)
    settings = provenance.get("settings", {})
    return architecture_of(
        settings.get("vlm", "unknown VLM"),
        settings.get("backbone", "unknown backbone"),
        model_type=provenance.get("vlm", {}).get("model_type"),
        image_tokens=bool(set(IMAGE_ROLES) & set(resolution["role"].values)),
    )


def lateness(
    resolution: xr.Dataset, timetable: xr.Dataset, *, protocol: Protocol
) -> dict[str, Any]:
    """When the entities come, against the deadline of the form that each has.

    Parameters
    ----------
    resolution, timetable : Dataset
        From the stages of these names.
    protocol : Protocol

    Returns
    -------
    dict
        ``early``, ``between``, ``late``, ``never`` and ``unknown``: share of the entities, see
        :data:`twohop.stages.timing.STATES`; ``null_early`` and ``null_late``: the same of probes
        fitted on shuffled labels; ``blocks``: the median, over all entities, of the blocks from
        the deadline to where it is read, positive is too late; and ``reason``, if there is none.
    """
    read = timing(resolution, timetable, protocol=protocol)
    null = timing(resolution, timetable, kinds=NULLS, protocol=protocol)
    entities = resolution["entity"].values
    shares = {state: mean(read.state == state, entities) for state in STATES}
    luck = {f"null_{state}": mean(null.state == state, entities) for state in ("early", "late")}
    median = median_delay(read, timetable)
    return {**shares, **luck, "blocks": median.value, "reason": median.reason}


def summarise(tree: xr.DataTree, *, pair: str, seed: int) -> dict[str, Any]:
    """Reduce a run to the numbers of its verdict.

    Parameters
    ----------
    tree : DataTree
        Of a finished run.
    pair : str
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        Numbers with their intervals as :class:`~twohop.statistics.Estimate`;
        :func:`~twohop.statistics.as_json` of it is what is stored, where None stands for what could
        not be measured.
    """
    protocol = protocol_of(tree)
    gates = tree["recall"].to_dataset()
    resolution, windows = tree["resolution"].to_dataset(), tree["windows"].to_dataset()
    recovery, verdicts = tree["recovery"].to_dataset(), tree["diagnosis"].to_dataset()
    counted = ~gates["surface"].values.astype(bool)
    entity = gates["entity"].values[counted]
    right = {gate: gates["right"].sel(gate=gate).values[counted].astype(bool) for gate in GATES}
    forced = {
        gate: gates["choice_right"].sel(gate=gate).values[counted].astype(bool) for gate in GATES
    }
    seen = right["recognised"]

    def share(values: np.ndarray, of: np.ndarray | None = None) -> Estimate:
        rows = np.ones(len(entity), bool) if of is None else of
        return mean(values[rows].astype(float), entity[rows])

    def gap(first: str, by: dict[str, np.ndarray], *, relative: bool = False) -> Estimate:
        estimate = difference(
            by[first][seen],
            by["vlm_image"][seen],
            entity[seen],
            relative=relative,
        )
        return estimate if relative else estimate.scaled(100)

    outcomes = gates["outcome"].sel(gate="vlm_image").values[counted]
    only_text, only_image, p = mcnemar(
        list(right["backbone_text"][seen]), list(right["vlm_image"][seen])
    )
    numbers: dict[str, Estimate | dict[str, Estimate]] = {
        **{gate: share(right[gate]) for gate in GATES},
        "forced": {gate: share(forced[gate]) for gate in GATES if gate != "recognised"},
        "gap_points": gap("backbone_text", right),
        "gap_relative": gap("backbone_text", right, relative=True),
        "gap_points_vlm_text": gap("vlm_text", right),
        "gap_points_forced": gap("backbone_text", forced),
        "outcomes": {outcome: share(outcomes == outcome, seen) for outcome in OUTCOMES},
        "diagnosis": shares_of_verdicts(verdicts, n=int(counted.sum())),
        "recovered": recovered(recovery),
        "followed": of_arms(recovery, "followed", "tried", "follow_arm"),
        "still_right": of_arms(recovery, "still_right", "kept"),
    }
    return {
        "pair": pair,
        "architecture": architecture(resolution),
        "n_items": int(counted.sum()),
        "n_surface": int((~counted).sum()),
        "n_entities": len(set(gates["entity"].values)),
        "windows": of_windows(windows),
        "windows_vlm": of_windows(tree["windows_vlm"].to_dataset()),
        "n_layers": int(windows.sizes["block"]),
        "protocol": protocol.as_settings(),
        "not_available": {**not_available(resolution), **refusals(tree)},
        "attribution_agreement": agreement_of_run(tree),
        "lateness": lateness(resolution, tree["timetable_vlm"].to_dataset(), protocol=protocol),
        "evidence": evidence_of(verdicts),
        "net": {arm: vars(effect) for arm, effect in nets(recovery).items()},
        "contrasts": contrasts_as_numbers(contrasts(recovery, seed=seed, protocol=protocol)),
        "back_patching_splits": of_splits(recovery, seed=seed, protocol=protocol),
        "n_lost": int(recovery.attrs["n_lost"]),
        "n_kept": int(recovery.attrs["n_kept"]),
        "prediction": prediction_of(tree),
        "map_similarity": similarity_of_run(tree, seed=seed, protocol=protocol),
        "mcnemar": {"only_text": only_text, "only_image": only_image, "p": p},
        "answers_cut": answers_cut(gates),
        "forced_default": str(gates.attrs["forced_default"]),
        "forced_by_rule": {
            rule: {gate: share(chosen) for gate, chosen in by_gate.items()}
            for rule, by_gate in forced_by_rule(gates, counted).items()
        },
        "by_relation": accuracy_by_relation(gates),
        "gap_points_by": gaps_by_stratum(gates),
        **numbers,
    }


def of_splits(recovery: xr.Dataset, *, seed: int, protocol: Protocol) -> dict[str, Any] | None:
    """How often other halves of the entities show of back-patching what these do."""
    splits = other_splits(recovery, seed=seed, protocol=protocol)
    return None if splits is None else vars(splits)


def forced_by_rule(gates: xr.Dataset, counted: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Whether the forced choice is right under each rule, at the gates that have it, [item]."""
    by_rule: dict[str, dict[str, np.ndarray]] = {}
    for rule in gates["rule"].values:
        of_rule = gates.sel(rule=rule)
        by_rule[str(rule)] = {
            gate: of_rule["forced_right"].sel(gate=gate).values[counted].astype(bool)
            for gate in GATES
            if (of_rule["forced_choice"].sel(gate=gate).values != "").any()
        }
    return by_rule


def answers_cut(gates: xr.Dataset) -> dict[str, dict[str, int]]:
    """Free answers of each gate that were at the limit of tokens before they ended.

    ``n`` of all items, ``wrong`` of those whose answer was not right.
    """
    counts = {}
    for gate in GATES:
        cut = gates["cut"].sel(gate=gate).values.astype(bool)
        wrong = cut & ~gates["right"].sel(gate=gate).values.astype(bool)
        counts[gate] = {"n": int(cut.sum()), "wrong": int(wrong.sum())}
    return counts


def of_windows(windows: xr.Dataset) -> dict[str, Any]:
    """Numbers of a model's recall windows, in blocks."""

    def items_of(variable: str) -> int:
        measured = windows[variable].transpose("item", ...).notnull().values
        return int(measured.any(1).sum())

    def last(name: str, variable: str) -> Estimate:
        low, high = (float(windows.attrs.get(f"{name}{end}", np.nan)) for end in ("_low", "_high"))
        n = items_of(variable)  # it may be that there was no other entity to any of the items
        return Estimate(float(windows.attrs[name]), low, high, n) if n else NOT_MEASURED

    n = items_of("enrichment")
    half = windows[["half_point", "half_low", "half_high"]]
    return {
        "enrichment_end": last("enrichment_end", "enrichment"),
        **{
            f"{curve}_half": Estimate(*(float(half[name].sel(curve=curve)) for name in half), n=n)
            for curve in ("necessity", "sufficiency")
        },
        "enrichment_half": int(windows.attrs["enrichment_half"]),
        "readout_end": last("readout_end", "readout"),
        "same_as_backbone": bool(windows.attrs["same_as_backbone"]),
    }


def prediction_of(tree: xr.DataTree) -> dict[str, Any]:
    """How well the timetable tells the lost items from the others."""
    data = tree["prediction"].to_dataset()
    n, names = int(data.attrs["n_items"]), data["entity"].values

    def bounded(name: str) -> Estimate:
        return Estimate(*(float(data.attrs[f"{name}{end}"]) for end in ("", "_low", "_high")), n=n)

    onset = data.sel(predictor="onset_alone")
    return {
        "auc": bounded("auc"),
        "auc_onset_alone": Estimate(
            *(float(onset[f"auc{end}"]) for end in ("", "_low", "_high")), n=n
        ),
        "gain": bounded("gain"),
        "skill": bounded("skill"),
        "slope": bounded("slope"),
        "expected_loss": mean(1 - data["expected"].values, names),
        "lost": mean(~data["right"].values.astype(bool), names),
        "calibration": bounded("excess").scaled(100),
        "not_measured": str(data.attrs["not_measured"]),
    }


def shares_of_verdicts(verdicts: xr.Dataset, *, n: int) -> dict[str, Estimate]:
    """Share of each verdict, with what the tests behind it do not know in its interval."""
    return {
        str(kind): Estimate(
            *(
                float(verdicts[name].sel(kind=kind))
                for name in ("share", "share_low", "share_high")
            ),
            n=n,
        )
        for kind in verdicts["kind"].values
    }


def evidence_of(verdicts: xr.Dataset) -> dict[str, dict[str, Any]]:
    """What was shown of the pair as a whole, by name."""
    return {
        str(test): {
            "estimate": Estimate(
                *(
                    float(verdicts[name].sel(test=test))
                    for name in ("evidence", "evidence_low", "evidence_high")
                ),
                n=int(verdicts["evidence_n"].sel(test=test)),
            ),
            "state": str(verdicts["evidence_state"].sel(test=test).item()),
        }
        for test in verdicts["test"].values
    }


def recovered(recovery: xr.Dataset) -> dict[str, Estimate]:
    """Share of the lost items that each arm gives back, and of back-patching in its grid."""
    by_arm = of_arms(recovery, "recovered", "tried")
    own, null = recovery["own"].values, recovery["null"].values
    searched = recovery["searched_entity"].values
    has_null = recovery["has_null"].sel(tried=recovery["searched"].values).values.astype(bool)
    if own.shape[1]:
        for name, values in (
            ("back_patching_canonical", at_chosen(recovery, "own", "chosen_cell")),
            ("back_patching_grid_mean", own.mean(0)),
            ("back_patching_oracle", own.any(0).astype(float)),
            ("back_patching_null_oracle", np.where(has_null, null.any(0), np.nan)),
            (
                "back_patching_null_searched",
                np.where(has_null, at_chosen(recovery, "null", "chosen_cell_null"), np.nan),
            ),
        ):
            there = ~np.isnan(values)
            by_arm[name] = mean(values[there], searched[there])
    return by_arm


def at_chosen(recovery: xr.Dataset, source: str, chosen: str) -> np.ndarray:
    """The grid of a source in the cell that was chosen on the other half, [searched]."""
    items = recovery["searched"].values
    cell = recovery[chosen].values[recovery["half"].sel(tried=items).values]
    right = recovery[source].values[cell, np.arange(len(items))].astype(float)
    return np.where(cell >= 0, right, np.nan)


def accuracy_by_relation(gates: xr.Dataset) -> dict[str, Any]:
    """Text and image accuracy of each relation, beside its best constant answer."""
    table: dict[str, Any] = {}
    for relation in dict.fromkeys(gates["relation"].values):
        rows = (gates["relation"].values == relation) & ~gates["surface"].values.astype(bool)
        answers, entity = gates["answer"].values[rows], gates["entity"].values[rows]
        if not len(answers):
            continue
        accepted = [set(joined.split(SEPARATOR)) for joined in gates["accepted"].values[rows]]
        constant = max(
            float(np.mean([answer in known for known in accepted])) for answer in set(answers)
        )
        text, image = (
            mean(gates["right"].sel(gate=gate).values[rows], entity)
            for gate in ("backbone_text", "vlm_image")
        )
        table[str(relation)] = {
            "backbone_text": text,
            "vlm_image": image,
            "best_constant": constant,
            "above_constant": bool(text.low > constant),
        }
    return table
