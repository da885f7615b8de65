"""What a careful reader would object to in these very numbers, found from the numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from interventions.results import read_provenance
from twohop.protocol import Protocol
from twohop.report import wording
from twohop.report.estimates import estimate, short, whole, written
from twohop.report.summary import image_hits, whole_arm
from twohop.stages.maps.agreement import ATTRIBUTION_STAGES, doubtful
from twohop.stages.maps.exact import MAP_COMPONENTS
from twohop.stages.provenance import protocol_of
from twohop.stages.recovery.arms import WHOLE
from twohop.statistics import estimates


def cautions(tree: xr.DataTree, summary: Mapping[str, Any]) -> list[str]:
    """Return sentences that a reader should know before believing the verdict.

    Parameters
    ----------
    tree : DataTree
        Of a finished run.
    summary : mapping
    """
    protocol, summary = protocol_of(tree), estimates(summary)
    return [
        *_about_gates(summary, protocol),
        *_about_cut_answers(summary),
        *_about_default(tree, protocol),
        *_about_probes(tree, summary, protocol),
        *_about_verdicts(tree, summary, protocol),
        *_about_recovery(summary, protocol),
        *_about_attribution(tree, summary, protocol),
        *_about_versions(tree),
    ]


def _about_versions(tree: xr.DataTree) -> list[str]:
    """What stages were computed with, where it is not the same for all."""
    seen: dict[str, dict[str, list[str]]] = {}
    for stage, node in tree.children.items():
        for package, version in read_provenance(node).get("versions", {}).items():
            seen.setdefault(package, {}).setdefault(version, []).append(str(stage))
    return [
        f"Stages were computed under different versions of {package}: "
        + "; ".join(f"{version} ({', '.join(stages)})" for version, stages in versions.items())
        + ". Numbers may differ for that alone: compute them all again with --force."
        for package, versions in seen.items()
        if len(versions) > 1
    ]


def _about_gates(summary: Mapping[str, Any], protocol: Protocol) -> list[str]:
    sentences = []
    blank, image = summary["vlm_blank"], summary["vlm_image"]
    if image.low <= blank.value:
        sentences.append(
            f"The VLM is not clearly better with the image ({written(summary['vlm_image'])}) than "
            "with "
            f"a blank one ({written(summary['vlm_blank'])})."
        )
    weak = [
        name for name, numbers in summary["by_relation"].items() if not numbers["above_constant"]
    ]
    if weak:
        sentences.append(
            "In text, these relations are not clearly above the best constant answer, so they say "
            f"little about recall: {', '.join(weak)}."
        )
    free, forced = summary["gap_points"], summary["gap_points_forced"]
    if abs(free.value - forced.value) >= protocol.caution_scorers:
        sentences.append(
            f"The two scorers differ: the gap is {whole(free.value)} points in free answers and "
            f"{whole(forced.value)} in forced choice. The difference is format or echo, not recall."
        )
    named = summary["recognised"]
    if named.measured and named.value < protocol.caution_recognised:
        sentences.append(
            f"The VLM names only {short(summary['recognised'])} of the entities. The gap is about "
            "those."
        )
    return sentences


def _about_cut_answers(summary: Mapping[str, Any]) -> list[str]:
    gates = [
        f"{wording.GATES[gate]}: {counts['n']}, {counts['wrong']} of them not right"
        for gate, counts in summary["answers_cut"].items()
        if counts["wrong"]
    ]
    if not gates:
        return []
    return [
        "Some free answers were cut at the limit of tokens before they ended, and what was cut off "
        f"may have been right ({'; '.join(gates)}). Forced choices are not cut."
    ]


def _about_default(tree: xr.DataTree, protocol: Protocol) -> list[str]:
    gates = tree["recall"].to_dataset()
    counted = ~gates["surface"].values.astype(bool)
    wrong = counted & ~gates["right"].sel(gate="vlm_image").values.astype(bool)
    same = gates["text"].sel(gate="vlm_image").values == gates["text"].sel(gate="vlm_blank").values
    n, share = int(wrong.sum()), float(same[wrong].mean()) if wrong.any() else 0.0
    if n < protocol.caution_blank_items or share < protocol.caution_blank_share:
        return []
    return [
        f"Of the {n} wrong image answers, {100 * share:.0f} % are word for word what the VLM says "
        "to a "
        "blank image: there, the image may have left no trace in the answer."
    ]


def _about_probes(tree: xr.DataTree, summary: Mapping[str, Any], protocol: Protocol) -> list[str]:
    sentences = []
    data = tree["resolution"].to_dataset()
    plain = image_hits(data, "plain").mean(1)
    if plain[0] >= protocol.caution_plain * plain.max() and plain.max() > 0:
        sentences.append(
            "The plain probe reads the entity from the image tokens at layer 0 already. It tells "
            "nothing about when the entity is formed; only the transfer probe can."
        )
    transfer = image_hits(data, "transfer").mean(1)
    if reason := summary["not_available"].get("lateness_layers"):
        sentences.append(
            f"Lateness, and the verdicts “late” and “never in the circuit”, are not available: "
            f"{reason}. Transplants and back-patching write at the question's tokens instead, and "
            "the map has no row for the entity."
        )
    elif summary["enrichment_end"] >= 0 and not summary["lateness_layers"].measured:
        sentences.append(
            f"The transfer probe peaks at {100 * transfer.max():.0f} % on the image tokens and "
            "does not "
            "clearly beat shuffled labels, so there is no lateness to report. This is a test that "
            "did "
            f"not pass with {data.sizes['entity']} entities. It does not prove that the form is "
            "absent."
        )
    elif transfer.max() < protocol.caution_transfer:
        sentences.append(
            f"The transfer probe reads at most {100 * transfer.max():.0f} % of the entities, so "
            "the "
            "lateness is about a weak curve."
        )
    own = data["backbone_accuracy"].values
    if own.size and float(np.nanmax(own)) < protocol.caution_transfer:
        sentences.append(
            f"The transfer probe reads at most {100 * np.nanmax(own):.0f} % on the backbone's own "
            "text, "
            "so it could not have found more in the VLM."
        )
    if summary["enrichment_end"] < 0:
        sentences.append(
            "No enrichment window was found in the backbone, so lateness has no anchor."
        )
    if not tree["windows"].to_dataset().sizes["item"]:
        sentences.append(
            "No item's free answer in text is its canonical answer word for word, which is where "
            "windows and maps are measured: there are none. A model that answers in sentences has "
            "to be asked to be brief."
        )
    return sentences


def _about_verdicts(tree: xr.DataTree, summary: Mapping[str, Any], protocol: Protocol) -> list[str]:
    recovery, diagnosis = tree["recovery"].to_dataset(), tree["diagnosis"].to_dataset()
    end = summary["enrichment_end"]
    counted = ~tree["recall"].to_dataset()["surface"].values.astype(bool)
    rows = counted & (diagnosis["verdict"].values == "unexplained")
    unexplained = diagnosis["item"].values[rows]
    few = len(unexplained) < protocol.caution_unexplained
    if end < 0 or not recovery.sizes["lost"] or few:
        return []
    regained = recovery["recovered"].sel(arm=recovery.attrs["whole_arm"]).values > 0
    back = dict(zip(recovery["lost"].values, regained, strict=True))
    onset = dict(zip(diagnosis["item"].values, diagnosis["onset"].values, strict=True))
    early = sum(bool(back.get(item)) and 0 <= onset[item] <= end for item in unexplained)
    luck = image_hits(tree["resolution"].to_dataset(), "shuffled")[: end + 1].any(0).mean()
    if not early:
        return []
    return [
        f"{early} of the {len(unexplained)} unexplained items are so only because the transfer "
        "probe named the entity at least once inside the window. With shuffled labels that "
        f"happens to {100 * luck:.0f} % of the entities by luck."
    ]


def _about_recovery(summary: Mapping[str, Any], protocol: Protocol) -> list[str]:
    sentences = []
    arms = summary["recovered"]
    arm = whole_arm(summary)
    moved, placebo = (estimate(arms.get(name)) for name in (arm, "transplant_random_position"))
    if moved.measured and placebo.measured:
        near = placebo.value >= protocol.caution_random * moved.value > 0
        if placebo.high >= moved.low or near:
            sentences.append(
                f"Random positions recover {written(placebo)}, next to {written(moved)} for "
                f"the {'image' if arm == WHOLE else 'question'} "
                "tokens. The transplant shows that the values suffice, not that the place matters."
            )
    average = estimate(arms.get("mean_entity"))
    if average.measured and average.low > protocol.caution_mean_entity:
        sentences.append(
            f"The mean over entities, which names none, gives back {written(average)}: that much "
            "of any "
            "recovery is guessing the relation's usual answers."
        )
    minus = estimate(summary.get("back_patching_minus_null"))
    if minus.measured and minus.low <= 0:
        sentences.append(
            f"Back-patching does not clearly beat its null: {short(arms['back_patching'])} against "
            f"{short(arms['back_patching_null'])}, difference {written(minus)} (n {minus.n})."
        )
    if moved.measured and moved.n < protocol.caution_lost:
        sentences.append(f"Only {moved.n} items were lost. Every share of them is rough.")
    return sentences


def _about_attribution(
    tree: xr.DataTree, summary: Mapping[str, Any], protocol: Protocol
) -> list[str]:
    sentences = []
    for medium, stage in ATTRIBUTION_STAGES.items():
        name = wording.MAPS[medium]
        if reason := tree[stage].attrs["refused"]:
            sentences.append(
                f"There is no map by attribution ({name}), only the exact one: {reason}"
            )
            continue
        numbers = summary["attribution_agreement"][medium]
        said = [
            f"{wording.COMPONENTS[component]} {written(numbers[component], 'correlation')}"
            for component in MAP_COMPONENTS
            if numbers[component].measured and doubtful(numbers[component].low, protocol=protocol)
        ]
        if said:
            sentences.append(
                f"The map by attribution ({name}) does not clearly agree with exact patching "
                f"(correlation: {', '.join(said)}). Do not trust it there; the exact map stands."
            )
    return sentences
