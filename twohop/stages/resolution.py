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
from interventions.digests import digest_of
from interventions.probing.ridge import fit_probe, fit_probes
from interventions.running.lens import lens
from twohop.ask.answers import ASKED_ROWS
from twohop.ask.on_server import Task, Tick, on_each
from twohop.ask.questions import Questions, Rows, by_relation
from twohop.ask.roles import IMAGE_ROLES, backbone_layers, has_image_tokens
from twohop.ask.study import Study, first_tokens, text_prompt
from twohop.items.items import PLACE, Benchmark, Entity, Item, Template
from twohop.protocol import DEFAULT, Protocol
from twohop.statistics import cluster_sums, interval

ROLES = (*IMAGE_ROLES, "last")
BATCH_TOKENS = 3072
RAGGED_ROWS = 32  # of like length, so that little padding is run

Roles = dict[str, Positions]


def text_states(study: Study, asked: Sequence[tuple[Prompt, Positions]]) -> list[torch.Tensor]:
    """Backbone states at one token of every row of prompts, [layer, row, d_model] each.

    What the backbone makes of a text is the same for every pair on it, so it is kept.
    """
    model = study.backbone.fingerprint()
    keys = [digest_of(model, dict(prompt.inputs), prompt.prefix_ids, at) for prompt, at in asked]
    tasks = {
        key: (prompt, {"it": at})
        for key, (prompt, at) in zip(keys, asked, strict=True)
        if key not in study.kept
    }
    study.progress.expect(sum(len(prompt) for prompt, _ in tasks.values()))
    states = on_each(study.backbone, states_at, tasks.values(), tick=study.progress.tick)
    study.kept.update(
        (key, of_rows[:, 0].movedim(0, 1).contiguous())
        for key, of_rows in zip(tasks, states, strict=True)
    )
    return [study.kept[key] for key in keys]


def states_at(model: Model, prompt: Prompt, roles: Roles, *, tick: Tick) -> torch.Tensor:
    """Residual stream at roles of every row of one prompt, [row, role, layer, d_model]."""
    parts: dict[str, list[torch.Tensor]] = {role: [] for role in roles}
    order = prompt.lengths.argsort(stable=True)  # rows of like length together: little padding
    most = max(1, BATCH_TOKENS // prompt.length)
    ragged = len(prompt.lengths.unique()) > 1
    for rows in order.split(min(most, RAGGED_ROWS) if ragged else most):
        trimmed, left = prompt.select(rows).trimmed()
        sites = []
        for positions in roles.values():
            there = positions.rows(rows).shifted(left, trimmed.length).filled()
            sites.append(Site("resid_pre", slice(0, model.n_layers), there))
            sites.append(Site("resid_post", model.n_layers - 1, there))
        values = read(model, trimmed, sites)
        for i, role in enumerate(roles):
            value = torch.cat([values[2 * i], values[2 * i + 1][None]]).float().cpu()
            parts[role].append(averaged(value, roles[role].rows(rows)))
        tick(len(rows))
    back = order.argsort()
    states = torch.stack([torch.cat(of_role, dim=1)[:, back] for of_role in parts.values()])
    return states.movedim(2, 0)


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
    return min(
        groups, key=lambda relation: len(benchmark.answer_set(relation)) / len(groups[relation])
    )


def own_items(benchmark: Benchmark) -> list[Item]:
    """The item by which each entity is asked about, [entity].

    Of the probed relation where an entity has it, so that its states serve both probes; else of the
    first that it has.
    """
    probed = probed_relation(benchmark)
    relations = sorted(benchmark.relations, key=lambda relation: relation != probed)
    items = {(item.entity.code, item.relation): item for item in benchmark.items}
    return [
        next(items[key] for relation in relations if (key := (entity.code, relation)) in items)
        for entity in benchmark.entities
    ]


def image_states(study: Study, views: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """VLM states at its roles, for pictures of every entity, [layer, entity, d_model] each.

    One dict per view.
    """
    vlm, items = study.vlm, own_items(study.benchmark)
    there = ROLES if has_image_tokens(vlm) else ("last",)
    questions = Questions(study, items * len(views), [view for view in views for _ in items])

    def arguments(rows: Rows) -> Task:
        prompt = questions.shown(rows)
        at = {
            "image": lambda: prompt.at("image"),
            "last_image": lambda: prompt.at("image", -1),
            "last": lambda: prompt.at("last"),
        }
        return prompt, {role: at[role]() for role in there}

    # The pictures of thousands would make a request too large to send.
    most = ASKED_ROWS if vlm.remote else None
    of_items = questions.map(states_at, arguments, model=vlm, most=most)
    return [
        dict(zip(there, torch.stack(of_items[i : i + len(items)], dim=2), strict=True))
        for i in range(0, len(of_items), len(items))
    ]


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
    matched = backbone_layers(study.pair)
    row_of = {entity.code: row for row, entity in enumerate(entities)}
    asked = [
        (benchmark.templates[relation], [row_of[benchmark.items[i].entity.code] for i in rows])
        for relation, rows in by_relation(benchmark.items)
    ]
    names = [(template, [entities[row] for row in rows]) for template, rows in asked]
    named = [
        states[matched] for states in name_states(study, [*names, (benchmark.naming, entities)])
    ]
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
    table = torch.stack([torch.stack(by_role) for by_role in hits.values()]).numpy()
    accuracy = table.mean(-1)
    codes = [entity.code for entity in entities]
    intervals = np.array(
        [
            [depth_interval(curve, codes, seed=study.seed, protocol=protocol) for curve in by_role]
            for by_role in table
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
            "relation": ", ".join(dict.fromkeys(item.relation for item in own_items(benchmark))),
            "vlm_blocks": [*study.pair.layer_map],
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
    vlm, questions = study.vlm, Questions(study, own_items(study.benchmark))
    n = len(questions)
    tokens = torch.zeros(n, 2, dtype=torch.long)
    for rows in questions.parts():
        asked = questions.named(vlm, rows[:1])
        for i in rows:
            said = (questions.items[i].entity.name, questions.items[i].answers[0])
            tokens[i] = torch.tensor(first_tokens(vlm, asked, said))
    sampled = [*range(0, n, -(-n // study.protocol.lens_entities))]
    logprobs, _ = lens(vlm, torch.cat([states[:, sampled] for states in hidden]), tokens[sampled])
    curves = logprobs.exp().mean(1).unflatten(0, (len(hidden), -1))
    return curves[..., 0].cpu().numpy(), curves[..., 1].cpu().numpy()


def answer_curves(study: Study, seen: torch.Tensor) -> tuple[np.ndarray, float, str]:
    """Probe the last token for the answer, on entities that the probe was not fitted on.

    Parameters
    ----------
    study : Study
    seen : Tensor [layer, entity, d_model]
        The VLM's states there, each entity asked about by its :func:`own_items`.

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
    curves[1] = curves[1][backbone_layers(study.pair)]
    chance = float(torch.bincount(labels).max() / len(labels))
    return np.stack(curves), chance, relation
