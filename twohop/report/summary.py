"""The numbers of the verdict, under names that stay: ``summary.json``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from interventions.results import read_provenance
from twohop.ask.roles import IMAGE_ROLES, NO_IMAGE_TOKENS
from twohop.ask.study import SEPARATOR
from twohop.protocol import DEFAULT, Protocol
from twohop.published.architecture import Class, architecture_of
from twohop.report.strata import gaps_by_stratum
from twohop.scoring import OUTCOMES
from twohop.stages.diagnosis import VERDICTS, beats_its_null, read_at_image
from twohop.stages.maps.agreement import agreement_of_run, refusals
from twohop.stages.maps.similarity import similarity_of_run
from twohop.stages.provenance import protocol_of
from twohop.stages.recall import GATES
from twohop.stages.recovery.arms import ALL_ARMS, KNOWN, WHOLE, WITHOUT_IMAGE_TOKENS
from twohop.stages.resolution import depth
from twohop.statistics import (
    NOT_MEASURED,
    Estimate,
    cluster_sums,
    difference,
    estimates,
    interval,
    mcnemar,
    mean,
)

LOSSES = {
    "knowledge_missing": "not known in text",
    "not_recognised": "not named",
    "echo_or_format": "right in a forced choice only",
    "never_in_circuit": "never in the recall circuit",
    "late": "late",
    "unexplained": "unexplained",
}
AT_IMAGE_TOKENS = "this VLM's image has tokens, and the arms of these names are written there"


def image_hits(resolution: xr.Dataset, kind: str) -> np.ndarray:
    """Whether a probe reads each entity off some image role, [layer, entity].

    Nowhere, where an image has no tokens.
    """
    return read_at_image(resolution, kind).any("role").values


def vlm_block(resolution: xr.Dataset, block: int) -> int:
    """The VLM's block that corresponds to one of the backbone's; -1 stays -1."""
    return block if block < 0 else int(np.atleast_1d(resolution.attrs["vlm_blocks"])[block])


def not_available(resolution: xr.Dataset) -> dict[str, str]:
    """Numbers that this architecture cannot have, each with the reason."""
    if set(IMAGE_ROLES) & set(resolution["role"].values):
        none = WITHOUT_IMAGE_TOKENS.values()
        return {f"recovered/{arm}": AT_IMAGE_TOKENS for arm in none}
    at_image = [f"recovered/{arm}" for arm in WITHOUT_IMAGE_TOKENS]
    return dict.fromkeys(["lateness_layers", "lateness_layers_plain", *at_image], NO_IMAGE_TOKENS)


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


def window_ends(windows: xr.Dataset, *, seed: int, protocol: Protocol = DEFAULT) -> np.ndarray:
    """Bootstrap of the last block of the enrichment window, [resample]."""
    hits = windows["enrichment"].values.T.astype(float)
    sums, _ = cluster_sums(hits, windows["entity"].values, seed=seed, protocol=protocol)
    below = sums < protocol.window_keeps * sums[:, -1:] - 1e-9
    return np.where(below.any(1), below.shape[1] - 1 - below[:, ::-1].argmax(1), -1)


def lateness(
    resolution: xr.Dataset,
    windows: xr.Dataset,
    *,
    kind: str,
    seed: int,
    protocol: Protocol = DEFAULT,
) -> Estimate:
    """Layers between the end of the enrichment window and the entity's resolution.

    The first layer at which a probe reads the entity off the image tokens (the protocol's
    ``resolved_share`` of its maximum), minus the last block of the backbone's enrichment window,
    in the VLM's layers. Positive is too late. Not measured where there is no window, an image has
    no tokens, or the probe never does better than on shuffled labels.

    Parameters
    ----------
    resolution, windows : Dataset
        From the stages of these names.
    kind : str
        ``"plain"`` or ``"transfer"`` probe.
    seed : int
        Of the bootstrap over entities.
    protocol : Protocol
    """
    if int(windows.attrs["enrichment_end"]) < 0:
        return NOT_MEASURED
    hits, control = image_hits(resolution, kind), image_hits(resolution, "shuffled")
    entities = resolution["entity"].values
    best = hits.mean(1).argmax()
    reach = mean(hits[best], entities)
    luck = mean(control[control.mean(1).argmax()], entities)
    if reach.low <= luck.high:
        return NOT_MEASURED
    sums, counts = cluster_sums(hits.T.astype(float), entities, seed=seed, protocol=protocol)
    end = vlm_block(resolution, int(windows.attrs["enrichment_end"]))
    blocks = window_ends(windows, seed=seed + 1, protocol=protocol)
    ends = np.array([vlm_block(resolution, int(block)) for block in blocks])
    low, high = interval(depth(sums / counts[:, None], protocol=protocol) - ends)
    value = float(depth(hits.mean(1), protocol=protocol) - end)
    return Estimate(value, low, high, len(entities))


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
    verdict = verdicts["verdict"].values[counted]
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
        "lateness_layers": lateness(
            resolution, windows, kind="transfer", seed=seed, protocol=protocol
        ),
        "lateness_layers_plain": lateness(
            resolution, windows, kind="plain", seed=seed, protocol=protocol
        ),
        "outcomes": {outcome: share(outcomes == outcome, seen) for outcome in OUTCOMES},
        "diagnosis": {kind: share(verdict == kind) for kind in VERDICTS},
        "recovered": recovered(recovery),
        "followed": {
            str(arm): measured_mean(
                recovery["followed"].sel(follow_arm=arm).values,
                recovery["tried_entity"].values,
            )
            for arm in recovery["follow_arm"].values
        },
        "still_right": {
            str(arm): mean(
                recovery["still_right"].sel(harm_arm=arm).values,
                recovery["kept_entity"].values,
            )
            for arm in recovery["harm_arm"].values
        },
        "back_patching_minus_null": beats_its_null(recovery, protocol=protocol),
    }
    return {
        "pair": pair,
        "architecture": architecture(resolution),
        "n_items": int(counted.sum()),
        "n_surface": int((~counted).sum()),
        "n_entities": len(set(gates["entity"].values)),
        "enrichment_end": int(windows.attrs["enrichment_end"]),
        "enrichment_half": int(windows.attrs["enrichment_half"]),
        "readout_end": int(windows.attrs["readout_end"]),
        "n_layers": int(windows.sizes["block"]),
        "protocol": protocol.as_settings(),
        "not_available": {**not_available(resolution), **refusals(tree)},
        "attribution_agreement": agreement_of_run(tree),
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


def measured_mean(values: np.ndarray, entities: np.ndarray) -> Estimate:
    """Mean over the items on which something was tried (not NaN)."""
    rows = ~np.isnan(values)
    return mean(values[rows], entities[rows])


def recovered(recovery: xr.Dataset) -> dict[str, Estimate]:
    """Share of lost items that each arm gives back; back-patching on its test part only."""
    shares: dict[str, Estimate] = {}
    entity = recovery["lost_entity"].values
    dev = dict(zip(recovery["tried"].values, recovery["dev"].values.astype(bool), strict=True))
    chosen_on = np.array([dev.get(item, False) for item in recovery["lost"].values], dtype=bool)
    for arm in recovery["arm"].values:
        values = recovery["recovered"].sel(arm=arm).values
        chose = KNOWN[str(arm)].group == "back_patching"
        rows = ~chosen_on if chose else np.ones_like(chosen_on)
        shares[str(arm)] = measured_mean(values[rows], entity[rows])
    own, null = recovery["own"].values, recovery["null"].values
    tried = recovery["tried_entity"].values
    if own.shape[1]:
        for name, values in (
            ("back_patching_grid_mean", own.mean(0)),
            ("back_patching_oracle", own.any(0)),
            ("back_patching_null_oracle", null.any(0)),
        ):
            shares[name] = mean(np.asarray(values), tried)
    return shares


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


def verdict_sentence(summary: Mapping[str, Any]) -> str:
    """One sentence that says what was found, with its numbers."""
    summary = estimates(summary)
    pair, gap = summary["pair"], summary["gap_points"]
    if not gap.measured:
        return f"{pair}: the gap could not be measured, as no item was recognised."
    if gap.low <= 0 <= gap.high:
        lead = f"{pair} shows no clear gap ({gap.low:.0f} to {gap.high:.0f} points"
    elif gap.value > 0:
        lead = f"{pair} loses {gap.value:.0f} points of factual recall from the image"
        lead += f" ({gap.low:.0f} to {gap.high:.0f}"
    else:
        lead = f"{pair} gains {-gap.value:.0f} points from the image"
        lead += f" ({-gap.high:.0f} to {-gap.low:.0f}"
    lead += f", {gap.n} recognised items)"

    late = summary["lateness_layers"]
    if "lateness_layers" in summary["not_available"]:
        when = "lateness is not available: " + summary["not_available"]["lateness_layers"]
    elif not late.measured and summary["enrichment_end"] < 0:
        when = "lateness was not measured, as the backbone's recall has no window"
    elif not late.measured:
        when = "its image tokens were not shown to hold the entity in the form recall reads"
    else:
        when = _lateness_in_words(late)
    lost = [
        f"{100 * summary['diagnosis'][name].value:.0f} % {label}"
        for name, label in LOSSES.items()
        if summary["diagnosis"][name].value > 0
    ]
    tail = f"; lost, of {summary['n_items']} items: {', '.join(lost)}" if lost else ""
    arms = summary["recovered"]
    said = [
        f"{arm.verdict} {100 * arms[arm.name].value:.0f} %"
        for arm in ALL_ARMS
        if arm.verdict and arms.get(arm.name, NOT_MEASURED).measured
    ]
    return f"{lead}; {when}{tail}" + (f"; {', '.join(said)}." if said else ".")


def _lateness_in_words(late: Estimate) -> str:
    layers = f"{abs(late.value):.0f} layer{'' if abs(late.value) == 1 else 's'}"
    if late.low > 0:
        interval = f"({late.low:.0f} to {late.high:.0f})"
        return f"hop 1 resolves {layers} {interval} after the recall window closes"
    if late.high <= 0:
        interval = f"({abs(late.high):.0f} to {abs(late.low):.0f})"
        return f"hop 1 is not late: it resolves {layers} {interval} before the recall window closes"
    interval = f"({late.low:.0f} to {late.high:.0f} layers)"
    return f"whether hop 1 is late cannot be told {interval}"
