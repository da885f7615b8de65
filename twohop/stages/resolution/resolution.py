"""Where and from which layer on the entity of a picture can be read, and in which form it is there.

Layer ``l`` is the input of block ``l``; the last one is the output of the last block. Every place
of a grid of tokens is probed at every layer, none is privileged: the place at which onsets are told
is chosen on one half of the entities and used on the other. What the probes are:
:mod:`twohop.stages.resolution.probes`; what onsets say: :mod:`twohop.stages.resolution.onset`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from twohop.ask.halves import chosen_elsewhere, halves
from twohop.ask.questions import by_relation
from twohop.ask.roles import IMAGE_ROLES, backbone_layers
from twohop.ask.study import Study
from twohop.items.items import Item
from twohop.stages.recall import same_decoder
from twohop.stages.resolution.answers import answer_curves, lens_curves
from twohop.stages.resolution.onset import layers_running, onsets
from twohop.stages.resolution.picture_maps import Axis
from twohop.stages.resolution.pictured import read_pictures
from twohop.stages.resolution.probes import (
    NULLS,
    PLAIN,
    TRANSFERS,
    NameProbes,
    fit_on_names,
    mean_of_entities,
    nearest_form,
    plain_hits,
    read_by_either,
)
from twohop.stages.resolution.states import (
    at_names,
    image_states,
    own_items,
    read_texts,
    text_states,
)

KINDS = (PLAIN[0], *TRANSFERS, PLAIN[1], *NULLS.values())
"""Kinds of probe, the controls last."""
ROLES = (*IMAGE_ROLES, "last")
"""Roles that every report has; the head's own reading is looked at there."""


@dataclass(frozen=True)
class Names:
    """States at names, prompt by prompt: every relation's, and last the naming prompt's.

    Attributes
    ----------
    labels : list of Tensor [row]
        The entities in each.
    backbone : list of Tensor [backbone_layer, row, d_model]
    vlm : list of Tensor [layer, row, d_model]
        The VLM's own, in text, on its layers.
    matched : list of int
        For each layer of the VLM, the backbone's.
    """

    labels: list[torch.Tensor]
    backbone: list[torch.Tensor]
    vlm: list[torch.Tensor]
    matched: list[int]

    def probes(self, prompts: slice, *, study: Study) -> NameProbes:
        """Transfer probes for the VLM's layers, fitted on the backbone's names in some prompts."""
        return fit_on_names(
            [states[self.matched] for states in self.backbone[prompts]],
            self.labels[prompts],
            n_classes=len(study.benchmark.entities),
            ridge=study.protocol.probe_ridge,
            seed=study.seed,
        )


def names_of(study: Study, *, same: bool) -> Names:
    """Read both models' states at the entities' names; ``same``: the VLM's are the backbone's."""
    benchmark, entities = study.benchmark, study.benchmark.entities
    row_of = {entity.code: row for row, entity in enumerate(entities)}
    asked = [
        (benchmark.templates[relation], [row_of[benchmark.items[i].entity.code] for i in rows])
        for relation, rows in by_relation(benchmark.items)
    ]
    asked.append((benchmark.naming, [*range(len(entities))]))
    named = [(template, [entities[row] for row in rows]) for template, rows in asked]
    matched = backbone_layers(study.pair)
    backbone = text_states(study, at_names(study.backbone, named))
    own = backbone if same else read_texts(study, study.vlm, at_names(study.vlm, named))
    return Names(
        labels=[torch.tensor(rows) for _, rows in asked],
        backbone=backbone,
        vlm=[states[matched] for states in own],
        matched=matched,
    )


def drifted(names: Names, *, study: Study) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Read the entities off the VLM's own text by probes fitted on the backbone's.

    Fitted on the relations' prompts and tested on the naming prompt, the VLM's and the backbone's.

    Returns
    -------
    drift : dict of str to ndarray of bool [layer, entity]
        By kind of transfer. Centred: less the VLM's mean over the relations' prompts.
    own : ndarray of bool [layer, entity]
        The backbone's, as it is.
    """
    probes, labels = names.probes(slice(-1), study=study), names.labels[-1]
    middle = torch.cat(names.vlm[:-1], dim=1).double().mean(1, keepdim=True)
    hits = probes.hits(names.vlm[-1], labels, middle=middle)
    own = probes.own.predict(names.backbone[-1][names.matched]) == labels
    return {kind: right.numpy() for kind, right in hits.items()}, own.numpy()


def read_at_roles(
    names: Names,
    probes: NameProbes,
    tested: Mapping[str, torch.Tensor],
    fitted: Mapping[str, torch.Tensor],
    study: Study,
) -> tuple[np.ndarray, np.ndarray]:
    """Probe every role.

    Parameters
    ----------
    names : Names
    probes : NameProbes
        Of all the prompts.
    tested, fitted : mapping of str to Tensor [layer, row, d_model]
        The VLM's states by role, in the pictures tested on and in those fitted on.
    study : Study

    Returns
    -------
    hits : ndarray of bool [kind, role, layer, entity]
    form : ndarray of int [role, layer, entity]
    """
    n, protocol = len(study.benchmark.entities), study.protocol
    told = mean_of_entities(names.backbone, names.labels, n_classes=n)
    labels = torch.arange(n)
    fit_labels = labels.repeat(len(protocol.fit_views))
    generator = torch.Generator().manual_seed(study.seed)
    done: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # roles of one token share their tensors
    for role, states in tested.items():
        if id(states) in done:
            continue
        middle = fitted[role].double().mean(1, keepdim=True)
        transfer = probes.hits(states, labels, middle=middle)
        plain = plain_hits(
            fitted[role],
            fit_labels,
            states,
            labels,
            ridge=protocol.probe_ridge,
            generator=generator,
        )
        form = nearest_form(states, told, middle=middle.float())
        form = torch.where(read_by_either(transfer), form, -1)
        hits = torch.stack([(plain | transfer)[kind] for kind in KINDS])
        done[id(states)] = hits.numpy(), form.numpy()
    by_role = [done[id(states)] for states in tested.values()]
    return np.stack([hits for hits, _ in by_role], 1), np.stack([form for _, form in by_role])


def earliness(hits: np.ndarray) -> np.ndarray:
    """How early places are read, of hits [kind, role, layer, entity]: [role, entity].

    Share of the layers at which a transfer probe reads the entity, as it is or centred, minus that
    of their nulls. The earlier an entity is read, and the longer, the more.
    """
    by_kind = {kind: torch.from_numpy(right) for kind, right in zip(KINDS, hits, strict=True)}
    own, null = (read_by_either(by_kind, null=null).double().mean(1) for null in (False, True))
    return (own - null).numpy()


def onsets_at(
    hits: np.ndarray, place: np.ndarray, kinds: Sequence[str], *, running: int
) -> np.ndarray:
    """Onsets at one role per entity, of hits [kind, role, layer, entity]: [kind, entity]."""
    entities = np.arange(hits.shape[-1])
    there = np.stack([hits[KINDS.index(kind)][place, :, entities].T for kind in kinds])
    return onsets(there, running=running)


def resolution(study: Study) -> xr.Dataset:
    """Probe every layer of the VLM for the entity, at every place, and for the answer.

    Every entity is asked about by a relation that it has. The backbone's layers are matched with
    the VLM's: where cross-attention blocks were put in, the stream behind one still counts as the
    backbone's before it.

    Returns
    -------
    Dataset
        ``probe`` (kind, role, layer, entity): whether the probe reads each entity right in its
        held-out picture. Kinds (:data:`KINDS`): ``plain``; ``transfer``; ``transfer_centred``, of
        the state less the mean of the fit views' at that place and layer, plus the mean of the
        names; and the controls ``shuffled`` of the first, ``transfer_null`` and
        ``transfer_null_centred`` of the others. Roles: :func:`image_states`, the image's only where
        it has tokens. ``accuracy`` (kind, role, layer): its mean. ``drift`` (kind, layer, entity):
        the transfer probes, fitted without the naming prompt, on the VLM's own text states at the
        names there; NaN for the other kinds; ``backbone_probe`` (layer, entity) and
        ``backbone_accuracy`` (layer): the same on the backbone's. Attribute ``drift_copied`` is 1
        where the VLM's decoder is bit-equal to the backbone's, so that its states are.
        ``form`` (role, layer, entity): number of blocks that the backbone has done where its mean
        state of the entity is most like the VLM's here, :func:`nearest_form`; -1 where neither
        transfer probe reads the entity. ``half`` (entity): the half that it is in, and
        ``chosen_role`` (entity): the place at which it is told, of the greatest :func:`earliness`
        on the other half, one for both ways of transfer; attribute ``chosen_role``: that of either
        half. Who has no other half has the first role. ``onset`` (probe_kind, entity): first layer
        from which on the entity is read there at so many layers running as
        :func:`twohop.stages.resolution.onset.layers_running` says, -1: never; ``onset_null``: of
        the probe's null. ``lens_entity`` and ``lens_answer`` (role, layer): probability that the
        head would give to the first token of the name and of the answer, NaN at the grid's places;
        ``answer_probe`` (model, layer): held-out accuracy of
        a probe for the answer at the last token, entities disjoint between fit and test, with
        ``answer_chance``. Attribute ``vlm_blocks``: the VLM's block for each of the backbone's.
    """
    benchmark, vlm, protocol = study.benchmark, study.vlm, study.protocol
    codes = [entity.code for entity in benchmark.entities]
    tested, *others = image_states(study, (protocol.test_view, *protocol.fit_views))
    roles = [*tested]
    shared = {id(tested[role]): role for role in reversed(roles)}
    joined = {role: torch.cat([part[role] for part in others], dim=1) for role in shared.values()}
    fitted = {role: joined[shared[id(tested[role])]] for role in roles}
    same = same_decoder(vlm, study.backbone)
    names = names_of(study, same=same)
    probes = names.probes(slice(None), study=study)
    hits, form = read_at_roles(names, probes, tested, fitted, study)
    drift, backbone = drifted(names, study=study)
    nothing = np.full(hits.shape[2:], np.nan)

    half = halves(codes, seed=study.seed)
    chosen = np.maximum(chosen_elsewhere(earliness(hits), half), 0)
    onset, onset_null = (
        onsets_at(
            hits, chosen[half], kinds, running=layers_running(hits.shape[2], protocol=protocol)
        )
        for kinds in (TRANSFERS, [NULLS[kind] for kind in TRANSFERS])
    )

    looked_at = [role for role in ROLES if role in tested]
    lens = np.full((2, len(roles), vlm.n_layers + 1), np.nan)
    lens[:, [roles.index(role) for role in looked_at]] = np.stack(
        lens_curves(study, [tested[role] for role in looked_at])
    )
    curves, chance, probed = answer_curves(study, tested["last"])
    measured = xr.Dataset(
        {
            "probe": (("kind", "role", "layer", "entity"), hits),
            "accuracy": (("kind", "role", "layer"), hits.mean(-1)),
            "drift": (
                ("kind", "layer", "entity"),
                np.stack([drift.get(kind, nothing).astype(float) for kind in KINDS]),
            ),
            "backbone_probe": (("layer", "entity"), backbone),
            "backbone_accuracy": ("layer", backbone.mean(-1)),
            "form": (("role", "layer", "entity"), form),
            "half": ("entity", half),
            "chosen_role": ("entity", np.array(roles, dtype=object)[chosen[half]]),
            "onset": (("probe_kind", "entity"), onset),
            "onset_null": (("probe_kind", "entity"), onset_null),
            "lens_entity": (("role", "layer"), lens[0]),
            "lens_answer": (("role", "layer"), lens[1]),
            "answer_probe": (("model", "layer"), curves),
        },
        coords={
            "kind": [*KINDS],
            "probe_kind": [*TRANSFERS],
            "role": roles,
            "layer": np.arange(vlm.n_layers + 1),
            "entity": [entity.name for entity in benchmark.entities],
            "model": ["vlm", "backbone"],
        },
        attrs={
            "relation": ", ".join(dict.fromkeys(item.relation for item in own_items(benchmark))),
            "vlm_blocks": [*study.pair.layer_map],
            "answer_relation": probed,
            "answer_chance": chance,
            "chance": 1 / len(codes),
            "fit_views": list(protocol.fit_views),
            "test_view": protocol.test_view,
            "chosen_role": [roles[place] for place in chosen],
            "drift_copied": int(same),
        },
    )
    row_of = {code: row for row, code in enumerate(codes)}

    def between(own: Item, other: Item) -> Axis:
        pair = row_of[own.entity.code], row_of[other.entity.code]
        return probes.between(*pair, middle=fitted["image"].double().mean(1, keepdim=True))

    return measured.merge(read_pictures(study, between))
