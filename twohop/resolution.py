"""How deep hop 1 resolves: at which layer the entity, and the answer, can be read.

Layer ``l`` is the input of block ``l``; the last one is the output of the last block. Two kinds
of linear probe are fitted per layer. The *plain* probe is fitted and tested on the VLM's own
states, on different pictures of the same entities: is the entity decodable at all? The *transfer*
probe is fitted on the backbone's states at the entity's name and applied, unchanged, to the VLM's:
is the entity there in the form that the backbone's recall layers read?
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from interventions import Model, Positions, Prompt, Site, read
from interventions.alignment import layer_map
from interventions.lens import lens
from interventions.probing.probes import fit_probe, fit_probes
from twohop.asking import (
    Study,
    by_relation,
    first_token,
    image_prompt,
    sendable,
    text_prompt,
)
from twohop.entities.items import PLACE, Benchmark, Entity, Template
from twohop.places import IMAGE_ROLES, backbone_layers, has_image_tokens, padded
from twohop.protocol import DEFAULT, Protocol
from twohop.running import Task, Tick, on_each
from twohop.statistics import cluster_sums, interval

ROLES = (*IMAGE_ROLES, "last")
BATCH_TOKENS = 3072
RAGGED_ROWS = 32  # of like length, so that little padding is run

Roles = dict[str, Positions]


def text_states(study: Study, asked: Sequence[tuple[Prompt, Positions]]) -> list[torch.Tensor]:
    """Backbone states at one token of every row of prompts, [layer, row, d_model] each.

    What the backbone makes of a text is the same for every pair on it, so it is kept.
    """
    keys = [(study.backbone, at.role, *prompt.texts) for prompt, at in asked]
    tasks = {
        key: (prompt, {"it": at})
        for key, (prompt, at) in zip(keys, asked, strict=True)
        if key not in study.kept
    }
    found = on_each(study.backbone, states_at, tasks.values(), tick=study.tick)
    study.kept.update((key, one["it"]) for key, one in zip(tasks, found, strict=True))
    study.tick(sum(len(key) - 2 for key in keys if key not in tasks))
    return [study.kept[key] for key in keys]


def states_at(model: Model, prompt: Prompt, roles: Roles, *, tick: Tick) -> dict[str, torch.Tensor]:
    """Residual stream at roles of every row of one prompt, [layer, row, d_model] each."""
    parts: dict[str, list[torch.Tensor]] = {role: [] for role in roles}
    order = prompt.lengths.argsort(stable=True)  # rows of like length together: little padding
    most = max(1, BATCH_TOKENS // prompt.length)
    ragged = len(prompt.lengths.unique()) > 1
    for rows in order.split(min(most, RAGGED_ROWS) if ragged else most):
        some, left = prompt.select(rows).trimmed()
        sites = []
        for positions in roles.values():
            there = padded(positions.rows(rows).shifted(left, some.length))
            sites.append(Site("resid_pre", slice(0, model.n_layers), there))
            sites.append(Site("resid_post", model.n_layers - 1, there))
        values = read(model, some, sites)
        for i, role in enumerate(roles):
            value = torch.cat([values[2 * i], values[2 * i + 1][None]]).float().cpu()
            parts[role].append(averaged(value, roles[role].rows(rows)))
        tick(len(rows))
    back = order.argsort()
    return {role: torch.cat(some, dim=1)[:, back] for role, some in parts.items()}


def averaged(value: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Mean of [layer, row, position, d_model] over each row's own positions."""
    if value.ndim < 4:
        return value
    if not positions.ragged:
        return value.mean(2)
    mask = positions.mask[:, :, None].to(value)
    return torch.where(mask > 0, value, 0).sum(2) / mask.sum(1)


def probed_relation(benchmark: Benchmark) -> str:
    """The relation whose answers are probed for: the one with the fewest different ones.

    Only answers that recur can be probed for, on entities that the probe was not fitted on.
    """
    groups = dict(by_relation(benchmark.items))
    return min(groups, key=lambda one: len(benchmark.answer_set(one)) / len(groups[one]))


def own_relations(benchmark: Benchmark) -> dict[str, list[int]]:
    """The relation by which each entity is asked about: relation to entities' rows.

    The probed one where an entity has it, so that its states serve both probes; else its first.
    """
    probed = probed_relation(benchmark)
    first: dict[str, str] = {}
    for relation, rows in sorted(by_relation(benchmark.items), key=lambda one: one[0] != probed):
        for i in rows:
            first.setdefault(benchmark.items[i].entity.code, relation)
    groups: dict[str, list[int]] = {}
    for row, entity in enumerate(benchmark.entities):
        groups.setdefault(first[entity.code], []).append(row)
    return groups


def image_states(study: Study, views: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """VLM states at its roles, for pictures of every entity, [layer, row, d_model] each.

    One dict per view.
    """
    entities = study.benchmark.entities
    asked = [
        (view, relation, part)
        for view in views
        for relation, rows in own_relations(study.benchmark).items()
        for part in sendable(study.vlm, rows)
    ]

    def task(view: int, relation: str, rows: list[int]) -> Task:
        template = study.benchmark.templates[relation]
        prompt = image_prompt(study, template, [entities[i] for i in rows], views=view)
        roles = {"last": prompt.at("last")}
        if has_image_tokens(study.vlm):
            roles = {"image": prompt.at("image"), "last_image": prompt.at("image", -1)} | roles
        return prompt, roles

    tasks = (task(*one) for one in asked)
    made = on_each(study.vlm, states_at, tasks, tick=study.tick)
    found: dict[int, dict[str, torch.Tensor]] = {view: {} for view in views}
    for (view, _, rows), states in zip(asked, made, strict=True):
        for role, value in states.items():
            shape = (len(value), len(entities), value.shape[-1])
            found[view].setdefault(role, torch.zeros(shape))[:, rows] = value
    return list(found.values())


def name_states(
    study: Study, asked: Sequence[tuple[Template, Sequence[Entity]]]
) -> list[torch.Tensor]:
    """Backbone states at the last token of the entities' names, [layer, row, d_model] each.

    The prompts are cut after the name, as nothing behind it reaches there.
    """
    prompts = []
    for template, entities in asked:
        ahead = template.question[: template.question.index(PLACE)]
        prompts.append(
            text_prompt(study.backbone, Template(template.prefix, ahead + PLACE), entities)
        )
    return text_states(study, [(prompt, prompt.at("entity", -1)) for prompt in prompts])


def depth(curve: np.ndarray, *, protocol: Protocol = DEFAULT) -> np.ndarray:
    """First layer at a share of a curve's maximum, the protocol's ``resolved_share``.

    Works on [layer] or [resample, layer].
    """
    reached = curve >= protocol.resolved_share * curve.max(-1, keepdims=True) - 1e-12
    return reached.argmax(-1)


def depth_interval(
    hits: np.ndarray, clusters: Sequence[str], *, seed: int, protocol: Protocol = DEFAULT
) -> tuple[float, float]:
    """95 % interval of the depth of a curve of hits [layer, row], resampling entities."""
    sums, counts = cluster_sums(hits.T.astype(float), clusters, seed=seed, protocol=protocol)
    return interval(depth(sums / counts[:, None], protocol=protocol))


def resolution(study: Study) -> xr.Dataset:
    """Probe every layer of the VLM for the entity and the answer.

    Every entity is asked about by a relation that it has. The backbone's layers are matched with
    the VLM's: where cross-attention blocks were put in, the stream behind one still counts as the
    backbone's before it.

    Returns
    -------
    Dataset
        ``probe`` (kind, role, layer, entity): whether the probe reads each entity right in its
        held-out picture, with kind ``plain``, ``transfer`` or ``shuffled`` (labels shuffled: the
        control); roles of an image only where it has tokens; ``accuracy`` (kind, role, layer): its
        mean; ``depth``, ``depth_low`` and ``depth_high`` (kind, role); ``backbone_accuracy``
        (layer): the transfer probe on the backbone itself, on a prompt it was not fitted on;
        ``lens_entity`` and ``lens_answer`` (role, layer): probability that the head would give to
        the first token of the name and of the answer; ``answer_probe`` (model, layer): held-out
        accuracy of a probe for the answer at the last token, entities disjoint between fit and
        test, with ``answer_chance``. Attribute ``vlm_blocks``: the VLM's block for each of the
        backbone's.
    """
    benchmark, vlm, protocol = study.benchmark, study.vlm, study.protocol
    entities = benchmark.entities
    n = len(entities)
    labels = torch.arange(n)

    test, *fit_parts = image_states(study, (protocol.test_view, *protocol.fit_views))
    roles = [role for role in ROLES if role in test]
    fit_labels = labels.repeat(len(protocol.fit_views))
    matched = backbone_layers(vlm, study.backbone)
    row_of = {entity.code: row for row, entity in enumerate(entities)}
    asked = [
        (benchmark.templates[relation], [row_of[benchmark.items[i].entity.code] for i in some])
        for relation, some in by_relation(benchmark.items)
    ]
    names = [(template, [entities[row] for row in rows]) for template, rows in asked]
    named = [found[matched] for found in name_states(study, [*names, (benchmark.naming, entities)])]
    name_labels = torch.tensor([row for _, rows in asked for row in rows] + [*range(n)])
    ridge = protocol.probe_ridge
    transfer = fit_probe(torch.cat(named, dim=1), name_labels, n_classes=n, ridge=ridge)
    kept_out = fit_probe(torch.cat(named[:-1], dim=1), name_labels[:-n], n_classes=n, ridge=ridge)
    own = (kept_out.predict(named[-1]) == labels).double().mean(-1)

    generator = torch.Generator().manual_seed(study.seed)
    hits: dict[str, list[torch.Tensor]] = {"plain": [], "transfer": [], "shuffled": []}
    for role in roles:
        fitted = torch.cat([part[role] for part in fit_parts], dim=1)
        mixed = fit_labels[torch.randperm(len(fit_labels), generator=generator)]
        plain, shuffled = fit_probes(fitted, [fit_labels, mixed], n_classes=n, ridge=ridge)
        hits["plain"].append(plain.predict(test[role]) == labels)
        hits["transfer"].append(transfer.predict(test[role]) == labels)
        hits["shuffled"].append(shuffled.predict(test[role]) == labels)
    table = torch.stack([torch.stack(some) for some in hits.values()]).numpy()
    accuracy = table.mean(-1)
    codes = [entity.code for entity in entities]
    intervals = np.array(
        [
            [depth_interval(one, codes, seed=study.seed, protocol=protocol) for one in kind]
            for kind in table
        ]
    )

    lens_entity, lens_answer = lens_curves(study, [test[role] for role in roles])
    curves, chance, probed = answer_curves(study, test["last"])
    return xr.Dataset(
        {
            "probe": (("kind", "role", "layer", "entity"), table),
            "accuracy": (("kind", "role", "layer"), accuracy),
            "depth": (("kind", "role"), depth(accuracy, protocol=protocol)),
            "depth_low": (("kind", "role"), intervals[..., 0]),
            "depth_high": (("kind", "role"), intervals[..., 1]),
            "backbone_accuracy": ("layer", own.numpy()),
            "lens_entity": (("role", "layer"), lens_entity),
            "lens_answer": (("role", "layer"), lens_answer),
            "answer_probe": (("model", "layer"), curves),
        },
        coords={
            "kind": list(hits),
            "role": roles,
            "layer": np.arange(vlm.n_layers + 1),
            "entity": [entity.name for entity in entities],
            "model": ["vlm", "backbone"],
        },
        attrs={
            "relation": ", ".join(own_relations(benchmark)),
            "vlm_blocks": layer_map(vlm, study.backbone),
            "answer_relation": probed,
            "answer_chance": chance,
            "chance": 1 / n,
            "fit_views": list(protocol.fit_views),
            "test_view": protocol.test_view,
        },
    )


def lens_curves(study: Study, hidden: Sequence[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean lens probability of the name's and of the answer's first token, [role, layer] each.

    On no more entities than the protocol's ``lens_entities``: the head is the dearest part of a
    small model.
    """
    benchmark, vlm = study.benchmark, study.vlm
    entities = benchmark.entities
    answers = {(item.entity.code, item.relation): item.answers[0] for item in benchmark.items}
    tokens = torch.zeros(len(entities), 2, dtype=torch.long)
    for relation, rows in own_relations(benchmark).items():
        asked = text_prompt(vlm, benchmark.templates[relation], [entities[rows[0]]])
        for i in rows:
            said = (entities[i].name, answers[entities[i].code, relation])
            tokens[i] = torch.tensor([first_token(vlm, asked, one) for one in said])
    some = [*range(0, len(entities), -(-len(entities) // study.protocol.lens_entities))]
    logprobs, _ = lens(vlm, torch.cat([one[:, some] for one in hidden]), tokens[some])
    curves = logprobs.exp().mean(1).unflatten(0, (len(hidden), -1))
    return curves[..., 0].cpu().numpy(), curves[..., 1].cpu().numpy()


def answer_curves(study: Study, seen: torch.Tensor) -> tuple[np.ndarray, float, str]:
    """Probe the last token for the answer, on entities that the probe was not fitted on.

    Parameters
    ----------
    study : Study
    seen : Tensor [layer, entity, d_model]
        The VLM's states there, each entity asked about by :func:`own_relations`.

    Returns
    -------
    curves : ndarray [model, layer]
        Held-out accuracy, for the VLM (image) and the backbone (text), on the VLM's layers.
    chance : float
        Share of the commonest answer.
    relation : str
    """
    benchmark = study.benchmark
    relation = probed_relation(benchmark)
    items = [benchmark.items[i] for i in dict(by_relation(benchmark.items))[relation]]
    kinds = benchmark.answer_set(relation)
    labels = torch.tensor([kinds.index(item.answers[0]) for item in items])
    entities = [item.entity for item in items]
    template = benchmark.templates[relation]
    row_of = {entity.code: row for row, entity in enumerate(benchmark.entities)}
    named = text_prompt(study.backbone, template, entities)
    n_folds, ridge = study.protocol.answer_folds, study.protocol.answer_ridge
    folds = torch.tensor(np.random.default_rng(study.seed).permutation(len(items)) % n_folds)
    curves = []
    mine = seen[:, [row_of[entity.code] for entity in entities]]
    for last in (mine, *text_states(study, [(named, named.at("last"))])):
        right = torch.zeros(last.shape[:2])
        for fold in folds.unique().tolist():
            probe = fit_probe(
                last[:, folds != fold], labels[folds != fold], n_classes=len(kinds), ridge=ridge
            )
            here = probe.predict(last[:, folds == fold]) == labels[folds == fold]
            right[:, folds == fold] = here.float()
        curves.append(right.mean(-1).numpy())
    curves[1] = curves[1][backbone_layers(study.vlm, study.backbone)]
    chance = float(torch.bincount(labels).max() / len(labels))
    return np.stack(curves), chance, relation
