"""What a careful reader would object to in these very numbers, found from the numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from interventions.results import read_provenance
from twohop.ask.roles import NO_IMAGE_TOKENS
from twohop.protocol import Protocol
from twohop.report import wording
from twohop.report.estimates import estimate, short, whole, written
from twohop.report.splits import Splits
from twohop.stages.diagnosis import read_at
from twohop.stages.evidence import EVIDENCE, MOST, of_all
from twohop.stages.maps.agreement import ATTRIBUTION_STAGES, doubtful
from twohop.stages.maps.exact import MAP_COMPONENTS
from twohop.stages.provenance import protocol_of
from twohop.stages.recovery.arms import KNOWN, arm_label
from twohop.stages.timing import blocks_done_at, timing
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
        *_about_windows(tree),
        *_about_verdicts(summary),
        *_about_unexplained(tree, protocol),
        *_about_recovery(summary, protocol),
        *_about_back_patching(tree, summary, protocol),
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
    plain = data["probe"].sel(kind="plain").mean("entity").max("role").values
    if plain[0] >= protocol.caution_plain * plain.max() and plain.max() > 0:
        sentences.append(
            "The plain probe reads the entity at layer 0 already. It tells nothing about when the "
            "entity is formed; only the transfer probe can."
        )
    if NO_IMAGE_TOKENS in summary["not_available"].values():
        sentences.append(
            f"{NO_IMAGE_TOKENS[0].upper()}{NO_IMAGE_TOKENS[1:]}. Transplants and back-patching "
            "write at the question's tokens instead, and the map has no row for the entity."
        )
    own = data["backbone_accuracy"].values
    if own.size and float(np.nanmax(own)) < protocol.caution_transfer:
        sentences.append(
            f"The transfer probe reads at most {100 * np.nanmax(own):.0f} % on the backbone's own "
            "text, so it could not have found more in the VLM."
        )
    text = summary["evidence"]["own_text"]
    if text["state"] != "shown":
        sentences.append(
            f"The transfer probes read {written(text['estimate'])} of the entities in the VLM's "
            "own text, where they must be: its states are not in the backbone's form, so nothing "
            "is said of when its entities come."
        )
    if not tree["windows"].to_dataset().sizes["item"]:
        sentences.append(
            "Of no item the backbone gives the canonical answer in text, which is where windows, "
            "the timetable and maps are measured: there are none. A model that answers in "
            "sentences has to be asked to be brief."
        )
    return sentences


def _about_windows(tree: xr.DataTree) -> list[str]:
    """Items on which no window could be measured; if on none could, what is patched is a guess."""
    windows = tree["windows"].to_dataset()
    n, left_out = windows.sizes["item"], int(windows.attrs["left_out"])
    if not left_out:
        return []
    sentence = (
        f"On {left_out} of {n} items no enrichment window was measured: "
        f"{windows.attrs['left_out_reason']}."
    )
    if left_out == n:
        sentence += " What transplants write, they write in the first block alone."
    return [sentence]


def _about_verdicts(summary: Mapping[str, Any]) -> list[str]:
    open_tests = [
        EVIDENCE[name]
        for name, test in summary["evidence"].items()
        if test["state"] == "open" and name in EVIDENCE
    ]
    untested = summary["diagnosis"]["not_tested"]
    if not open_tests or not untested.value > 0:
        return []
    return [
        f"{short(untested)} of the items are not tested enough for a verdict. On so many items it "
        f"cannot be told whether {'; or whether '.join(open_tests)}."
    ]


def _about_unexplained(tree: xr.DataTree, protocol: Protocol) -> list[str]:
    """How many of the unexplained items the transplant does not give back either."""
    recovery, diagnosis = tree["recovery"].to_dataset(), tree["diagnosis"].to_dataset()
    counted = ~diagnosis["surface"].values.astype(bool)
    unexplained = diagnosis["item"].values[counted & (diagnosis["verdict"] == "unexplained").values]
    back = dict(zip(recovery["lost"].values, recovery["whole"].values, strict=True))
    gone = sum(back.get(item) == 0 for item in unexplained)
    if len(unexplained) < protocol.caution_unexplained or not gone:
        return []
    return [
        f"Of the {len(unexplained)} unexplained items, the transplant does not give back {gone}: "
        "whatever they are lost for, the backbone's own state of the entity does not mend it."
    ]


RANDOM = {"span": "spans", "place": "places"}
"""Contrasts with what is drawn at random, and what that is."""


def _about_recovery(summary: Mapping[str, Any], protocol: Protocol) -> list[str]:
    sentences = []
    arms = summary["recovered"]
    for name, drawn in RANDOM.items():
        sides = summary["contrasts"].get(name, {})
        chosen, placebo = (estimate(arms.get(sides.get(side))) for side in ("first", "second"))
        if placebo.measured and placebo.value >= protocol.caution_random * chosen.value > 0:
            sentences.append(
                f"Random {drawn} give back {written(placebo)}, next to {written(chosen)} for the "
                "chosen ones. The transplant shows that the values suffice, not that the place "
                "matters."
            )
    average = estimate(arms.get("mean_entity"))
    if average.measured and average.low > protocol.caution_mean_entity:
        sentences.append(
            f"The mean over entities, which names none, gives back {written(average)}: that much "
            "of any recovery is guessing the relation's usual answers."
        )
    spoils = [
        arm_label(arm)
        for arm, effect in summary["net"].items()
        if effect["closed"].measured and effect["closed"].high < 0 and not KNOWN[arm].control
    ]
    if spoils:
        sentences.append(
            "These arms spoil more right answers than they give lost ones back: "
            f"{'; '.join(spoils)}."
        )
    n = summary["n_lost"]
    if 0 < n < protocol.caution_lost:
        sentences.append(f"Only {n} items were lost. Every share of them is rough.")
    return sentences


def _about_back_patching(
    tree: xr.DataTree, summary: Mapping[str, Any], protocol: Protocol
) -> list[str]:
    """Whether other halves of the entities show the same, and what was there where it reads."""
    sentences, tests = [], ("back_patching", "back_patching_change")
    state = of_all(summary["evidence"][test]["state"] for test in tests)
    splits = summary["back_patching_splits"]
    if splits is not None and Splits(**splits).share(state) < protocol.caution_splits:
        sentences.append(
            "Whether back-patching gives back more than both of its nulls depends on the halves of "
            f"the entities that cells were chosen on: of {splits['n']} ways to halve them it is "
            f"shown in {splits['shown']:.0%}, and shown not to in {splits['absent']:.0%}."
        )
    resolution, recovery = tree["resolution"].to_dataset(), tree["recovery"].to_dataset()
    read = timing(resolution, tree["timetable_vlm"].to_dataset(), protocol=protocol)
    late, layers = read.blocks[read.state == "late"], read_at(recovery)
    for layer, done in zip(layers, blocks_done_at(resolution, layers), strict=True):
        if layer >= 0 and len(late) and (formed := (late <= done).mean()) < MOST:
            sentences.append(
                f"In one half of the entities back-patching takes its states from layer {layer}, "
                f"where {formed:.0%} of those that come late are read already. Of the others none "
                "is called late."
            )
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
