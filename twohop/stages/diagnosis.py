"""Why an item is lost: the differential diagnosis, one verdict per item, in a fixed order."""

import numpy as np
import xarray as xr

from twohop.ask.roles import IMAGE_ROLES
from twohop.protocol import DEFAULT, Protocol
from twohop.statistics import Estimate, difference

VERDICTS = (
    "right",
    "knowledge_missing",
    "not_recognised",
    "echo_or_format",
    "never_in_circuit",
    "late",
    "unexplained",
)


def beats_its_null(recovery: xr.Dataset, *, protocol: Protocol = DEFAULT) -> Estimate:
    """Back-patching minus its null, on the items that did not choose the layers.

    Not measured on fewer entities than the protocol's ``least_clusters``.
    """
    test = ~recovery["dev"].values.astype(bool) & recovery["has_null"].values.astype(bool)
    entities = recovery["tried_entity"].values[test]
    if len(set(entities)) < protocol.least_clusters:
        return Estimate(np.nan, np.nan, np.nan, int(test.sum()))
    own = recovery["own"].values[int(recovery.attrs["chosen"]), test]
    null = recovery["null"].values[int(recovery.attrs["chosen_null"]), test]
    return difference(own, null, entities)


def read_at_image(resolution: xr.Dataset, kind: str) -> xr.DataArray:
    """Whether a probe reads each entity off each image role; no role, where it has no tokens."""
    there = [role for role in IMAGE_ROLES if role in resolution["role"].values]
    return resolution["probe"].sel(kind=kind, role=there)


def sustained(resolution: xr.Dataset, kind: str, *, protocol: Protocol = DEFAULT) -> xr.DataArray:
    """Whether a probe reads each entity off one image role, here and at the layers after.

    At as many layers as the protocol's ``onset_layers``: a single hit can be luck. Never, where an
    image has no tokens. Dims ``layer`` and ``entity``.
    """
    hits = read_at_image(resolution, kind)
    lasting = hits
    for ahead in range(1, protocol.onset_layers):
        lasting = lasting & hits.shift(layer=-ahead, fill_value=False)
    return lasting.any("role")


def transfer_onset(resolution: xr.Dataset, *, protocol: Protocol = DEFAULT) -> xr.DataArray:
    """First layer from which the transfer probe reads each entity; -1 for never."""
    hits = sustained(resolution, "transfer", protocol=protocol)
    return hits.argmax("layer").where(hits.any("layer"), -1)


def diagnosis(
    gates: xr.Dataset,
    resolution: xr.Dataset,
    recovery: xr.Dataset,
    *,
    window_end: int,
    protocol: Protocol = DEFAULT,
) -> xr.Dataset:
    """Give every item its verdict.

    In this order, the first that holds:

    - ``right``: the VLM answers from the image.
    - ``knowledge_missing``: the backbone does not know it.
    - ``not_recognised``: the VLM does not name the entity.
    - ``echo_or_format``: the forced choice is right; the free answer is no answer of the relation.
    - ``never_in_circuit``: the entity can be decoded from the image tokens, but not by the transfer
      probe at any layer in the window; transplanting the backbone's entity gives the answer back,
      and back-patching does not beat its null, though it could be measured, and the transfer probe
      never reads the entity deeper than back-patching took states from.
    - ``late``: the transfer probe first reads the entity after the window has closed; transplanting
      gives the answer back, and back-patching beats its null.
    - ``unexplained``: everything else, items whose recovery failed included; and where an image
      has no tokens, all that the two verdicts before would have to be told apart by.

    Parameters
    ----------
    gates, resolution, recovery : Dataset
        From the stages of these names.
    window_end : int
        Last block of the backbone's enrichment window.
    protocol : Protocol

    Returns
    -------
    Dataset
        ``verdict`` (item); ``onset`` (item): first layer of the transfer probe, -1 for never.
    """
    right = {gate: gates["right"].sel(gate=gate).values for gate in gates["gate"].values}
    forced = gates["choice_right"].sel(gate="vlm_image").values
    said = gates["outcome"].sel(gate="vlm_image").values
    known_window = window_end >= 0
    back_patched = beats_its_null(recovery, protocol=protocol)
    beats = back_patched.low > 0
    onset_of = transfer_onset(resolution, protocol=protocol)
    plain = sustained(resolution, "plain", protocol=protocol).any("layer")
    entities = gates["entity"].values
    onset = onset_of.sel(entity=entities).values
    decodable = plain.sel(entity=entities).values
    never = ~((onset >= 0) & (onset <= window_end))
    # Back-patching that was not measured, or took nothing from so deep, has not failed.
    deeper = resolution["layer"] > recovery["later"].values.max()
    beyond = read_at_image(resolution, "transfer").sel(layer=deeper).any(["role", "layer"])
    tested = not np.isnan(back_patched.value) and not beats
    failed = tested & ~beyond.sel(entity=entities).values
    regained: dict[str, bool] = {}
    if recovery.sizes["lost"]:
        won = recovery["recovered"].sel(arm=recovery.attrs["whole_arm"]).values > 0
        regained = dict(zip(recovery["lost"].values, won, strict=True))

    verdicts = []
    for i, item in enumerate(gates["item"].values):
        back = regained.get(item, False)
        if right["vlm_image"][i]:
            verdict = "right"
        elif not right["backbone_text"][i]:
            verdict = "knowledge_missing"
        elif not right["recognised"][i]:
            verdict = "not_recognised"
        elif forced[i] and said[i] not in ("same_type", "right"):
            verdict = "echo_or_format"
        elif known_window and decodable[i] and never[i] and back and failed[i]:
            verdict = "never_in_circuit"
        elif known_window and onset[i] > window_end and back and beats:
            verdict = "late"
        else:
            verdict = "unexplained"
        verdicts.append(verdict)
    return xr.Dataset(
        {
            "verdict": ("item", np.array(verdicts, dtype=object)),
            "onset": ("item", onset),
        },
        coords={name: gates[name] for name in ("item", "entity", "relation", "surface")},
        attrs={"back_patching_beats_null": int(beats)},
    )
