"""What the models make of pictures and of names: states at token places, at every layer.

Layer ``l`` is the input of block ``l``; the last one is the output of the last block.
"""

from collections.abc import Sequence

import torch

from interventions import Model, Positions, Prompt, Site
from interventions.digests import digest_of
from twohop.ask.memory import read
from twohop.ask.on_server import Task, Tick, on_each
from twohop.ask.places import places
from twohop.ask.questions import Questions, Rows, by_relation
from twohop.ask.roles import IMAGE_ROLES, has_image_tokens
from twohop.ask.study import Study, text_prompt
from twohop.items.items import PLACE, Benchmark, Entity, Item, Template

BATCH_TOKENS = 3072
RAGGED_ROWS = 32  # of like length, so that little padding is run
LAST_BITS = 8  # steps of the number format by which rounding alone may move a state

Roles = dict[str, Positions]
Named = Sequence[tuple[Template, Sequence[Entity]]]
"""Prompts, each with the entities that are named in it."""


def states_at(model: Model, prompt: Prompt, roles: Roles, *, tick: Tick) -> torch.Tensor:
    """Residual stream at roles of every row of one prompt, [row, role, layer, d_model].

    In the model's number format. Cross-attention blocks do not run where there is no picture: they
    have no layer there. What several roles share is read once.
    """
    parts: list[list[torch.Tensor]] = []
    blocks = [*range(model.n_layers)] if prompt.has_images else model.anatomy.self_blocks
    order = prompt.lengths.argsort(stable=True)  # rows of like length together: little padding
    most = max(1, BATCH_TOKENS // prompt.length)
    ragged = len(prompt.lengths.unique()) > 1
    tokens = [(at.index[at.mask].tolist(), at.counts.tolist()) for at in roles.values()]
    first = [tokens.index(of_role) for of_role in tokens]
    different = sorted({*first})
    positions = [[*roles.values()][i] for i in different]
    for rows in order.split(min(most, RAGGED_ROWS) if ragged else most):
        trimmed, left = prompt.select(rows).trimmed()
        sites = []
        for at in positions:
            there = at.rows(rows).shifted(left, trimmed.length).filled()
            sites.append(Site("resid_pre", blocks, there))
            sites.append(Site("resid_post", blocks[-1], there))
        values = read(model, trimmed, sites)
        parts.append(
            [
                averaged(torch.cat([before, behind[None]]), at.rows(rows))
                for at, before, behind in zip(positions, values[::2], values[1::2], strict=True)
            ]
        )
        tick(len(rows))
    back = order.argsort()
    states = [torch.cat(of_role, dim=1)[:, back] for of_role in zip(*parts, strict=True)]
    return torch.stack([states[different.index(i)] for i in first]).movedim(2, 0)


def averaged(value: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Mean of [layer, row, position, d_model] over each row's own positions."""
    if value.ndim < 4:
        return value
    wide = value.float()
    if not positions.ragged:
        return wide.mean(2).to(value)
    mask = positions.mask[:, :, None].to(wide)
    return (torch.where(mask > 0, wide, 0).sum(2) / mask.sum(1)).to(value)


def settled(states: torch.Tensor) -> torch.Tensor:
    """States [layer, row, d_model], with one for all rows where they differ in last bits alone.

    Ahead of the picture there is one state. What a row's place in a batch does to its last bits is
    no more than rounding, but a probe scales it up.
    """
    first = states[:, :1]
    size = first.abs().maximum(first.abs().median(-1, keepdim=True).values)
    least = LAST_BITS * torch.finfo(states.dtype).eps * size
    alike = ((states - first).abs() <= least).all(-1).all(-1)
    return torch.where(alike[:, None, None], first, states)


def spread_rows(n: int, most: int) -> range:
    """No more than ``most`` of ``n`` rows, evenly spread over them.

    Examples
    --------
    >>> [*spread_rows(10, 4)]
    [0, 3, 6, 9]
    """
    return range(0, n, -(-n // most))


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
    """VLM states for pictures of every entity, [layer, entity, d_model] at each role.

    The roles are the mean over all image tokens (``image``), the last of them (``last_image``), the
    last token (``last``), and the grid of :func:`twohop.ask.places.places`; without the image's
    where it has no tokens. Roles that are the same token share their tensors. One dict per view.
    """
    vlm, items, grid = study.vlm, own_items(study.benchmark), places(study)
    questions = Questions(study, items * len(views), [view for view in views for _ in items])
    fixed = [*(IMAGE_ROLES if has_image_tokens(vlm) else ()), "last"]
    roles = [*dict.fromkeys([*fixed, *(str(place) for place in grid)])]

    def arguments(rows: Rows) -> Task:
        prompt = questions.shown(rows, marked=True)
        here = {role: prompt.at(role) for role in fixed}
        return prompt, here | {str(place): place.positions(prompt) for place in grid}

    of_items = questions.map(states_at, arguments, model=vlm)
    n = len(items)
    by_view: list[dict[str, torch.Tensor]] = [{} for _ in views]
    for i, role in enumerate(roles):
        own = settled(torch.stack([states[i] for states in of_items], dim=1)).split(n, dim=1)
        for other in [*by_view[0]]:
            if all(map(torch.equal, own, [states[other] for states in by_view])):
                own = [states[other] for states in by_view]
                break
        for states, tensor in zip(by_view, own, strict=True):
            states[role] = tensor
    return by_view


def text_states(study: Study, asked: Sequence[tuple[Prompt, Positions]]) -> list[torch.Tensor]:
    """Backbone states at one token of every row of prompts, [layer, row, d_model] each.

    What the backbone makes of a text is the same for every pair on it, so it is kept.
    """
    model = study.backbone.fingerprint()
    keys = [digest_of(model, dict(prompt.inputs), prompt.prefix_ids, at) for prompt, at in asked]
    missing = [(key, task) for key, task in zip(keys, asked, strict=True) if key not in study.kept]
    states = read_texts(study, study.backbone, [task for _, task in missing])
    study.kept.update((key, of_rows) for (key, _), of_rows in zip(missing, states, strict=True))
    return [study.kept[key] for key in keys]


def read_texts(
    study: Study, model: Model, asked: Sequence[tuple[Prompt, Positions]]
) -> list[torch.Tensor]:
    """States of a model at one token of every row of prompts, [layer, row, d_model] each."""
    study.progress.expect(sum(len(prompt) for prompt, _ in asked))
    tasks = [(prompt, {"it": at}) for prompt, at in asked]
    states = on_each(model, states_at, tasks, tick=study.progress.tick)
    return [of_rows[:, 0].movedim(0, 1).contiguous() for of_rows in states]


def at_names(model: Model, asked: Named) -> list[tuple[Prompt, Positions]]:
    """Prompts that are cut after the entities' names, and where the names end.

    Nothing behind a name reaches there.
    """
    prompts = []
    for template, entities in asked:
        ahead = template.question[: template.question.index(PLACE)]
        prompts.append(text_prompt(model, Template(template.prefix, ahead + PLACE), entities))
    return [(prompt, prompt.at("entity", -1)) for prompt in prompts]
