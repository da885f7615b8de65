"""Where hop 2 reads: the recall windows of the backbone, on its own text run.

*Enrichment*: which blocks' MLPs are needed at the entity's last token. They are replaced by their
mean over the other items from block ``l`` up; the window ends where accuracy no longer suffers.
*Read-out*: until when the answer is still read from the entity's token. The state there is swapped
for another entity's after block ``l``; the window ends where the answer no longer follows it.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from interventions import Model, Patch, Prompt, Site
from interventions.answers import following
from twohop.asking import Study, another, by_relation, item_coords, mean_of_others, text_prompt
from twohop.cells import answer_ids, answered_cells
from twohop.entities.items import Item
from twohop.memory import read
from twohop.running import Task, Tick, on_each


def known_items(items: Sequence[Item], right: np.ndarray, *, seed: int, limit: int) -> list[Item]:
    """At most ``limit`` of the items answered right, as many of each relation if possible."""
    generator = np.random.default_rng(seed)
    groups = [
        [rows[i] for i in generator.permutation(len(rows)) if right[rows[i]]]
        for _, rows in by_relation(items)
    ]
    picked: list[int] = []
    while len(picked) < limit and any(groups):
        for group in groups:
            if group and len(picked) < limit:
                picked.append(group.pop(0))
    return [items[i] for i in sorted(picked)]


def windows(study: Study, right: np.ndarray) -> xr.Dataset:
    """Measure both recall windows of the backbone.

    Parameters
    ----------
    study : Study
    right : ndarray of bool [item]
        Which items the backbone answers in text.

    Returns
    -------
    Dataset
        ``enrichment`` (edge, item): the answer survives mean-ablation of the MLPs from this block
        up, at the entity's last token; edge ``n_layers`` is no ablation. ``readout`` (block,
        item): the answer follows another entity, whose state is swapped in after this block; NaN
        where there is no other. Attributes
        ``enrichment_end`` and ``readout_end``: the last block of each window (-1: none);
        ``enrichment_half``: the last block of the first blocks that together give half of what
        all MLPs give (the protocol's ``transplant_share``), which noise moves less.
    """
    model, benchmark, protocol = study.backbone, study.benchmark, study.protocol
    items = known_items(benchmark.items, right, seed=study.seed, limit=protocol.window_items)
    n_layers = model.n_layers
    survives = np.zeros((n_layers + 1, len(items)), dtype=bool)
    follows = np.full((n_layers, len(items)), np.nan)
    others = another(study, items)
    groups = list(by_relation(items))

    def task(relation: str, rows: list[int]) -> Task:
        template = benchmark.templates[relation]
        some = [items[i] for i in rows]
        prompt = text_prompt(model, template, [one.entity for one in some])
        swapped = [(items[i], other) for i in rows if (other := others[i]) is not None]
        if not swapped:
            return prompt, some, None
        target, source = (
            text_prompt(model, template, [pair[which].entity for pair in swapped])
            for which in (0, 1)
        )
        return prompt, some, (target, source, [other for _, other in swapped])

    tasks = (task(*group) for group in groups)
    found = on_each(model, relation_windows, tasks, tick=study.tick)
    for (_, rows), (kept_right, followed_it) in zip(groups, found, strict=True):
        survives[:, rows] = kept_right
        if followed_it is not None:
            follows[:, [i for i in rows if others[i] is not None]] = followed_it
    kept = survives.mean(1) if items else np.zeros(n_layers + 1)
    could_follow = ~np.isnan(follows).any(0)
    followed = follows[:, could_follow].mean(1) if could_follow.any() else np.zeros(n_layers)
    above = followed >= max(protocol.readout_follows * followed.max(), 1e-12)
    return xr.Dataset(
        {
            "enrichment": (("edge", "item"), survives),
            "readout": (("block", "item"), follows),
        },
        coords={
            "edge": np.arange(n_layers + 1),
            "block": np.arange(n_layers),
            **item_coords(items),
        },
        attrs={
            "enrichment_end": last_below(kept, protocol.window_keeps * kept[-1]),
            "enrichment_half": last_below(
                kept, kept[0] + protocol.transplant_share * (kept[-1] - kept[0])
            ),
            "readout_end": int(np.nonzero(above)[0].max()) if above.any() else -1,
        },
    )


def relation_windows(
    model: Model,
    prompt: Prompt,
    items: Sequence[Item],
    swaps: tuple[Prompt, Prompt, list[Item]] | None,
    *,
    tick: Tick,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Run both measurements on the items of one relation.

    Parameters
    ----------
    model : Model
    prompt : Prompt
        About all items.
    items : sequence of Item
    swaps : (Prompt, Prompt, list of Item) or None
        About the items that have a rival, about their rivals, and these; None if none has one.
    tick : callable

    Returns
    -------
    survives : ndarray of bool [edge, item]
    follows : ndarray of bool [block, rival] or None
    """
    survives = enrichment(model, prompt, items, tick=tick)
    return survives, None if swaps is None else readout(model, *swaps, tick=tick)


def enrichment(model: Model, prompt: Prompt, items: Sequence[Item], *, tick: Tick) -> np.ndarray:
    """Whether each answer survives without the MLPs from each block up, [edge, item]."""
    n_layers = model.n_layers
    own = answer_ids(model, prompt, items)
    [mlp] = read(model, prompt, [Site("mlp_out", slice(0, n_layers), prompt.at("entity", -1))])
    asked = following(prompt, own, pad_id=model.tokenizer.pad_token_id)
    names = asked.at("entity", -1)
    average = mean_of_others(mlp, items)

    cells = [
        [Patch("mlp_out", slice(edge, n_layers), names, average[edge:])] if edge < n_layers else []
        for edge in range(n_layers + 1)
    ]
    return answered_cells(model, asked, own, cells, tick=tick)


def readout(
    model: Model, prompt: Prompt, source: Prompt, rivals: Sequence[Item], *, tick: Tick
) -> np.ndarray:
    """Whether the answer becomes the rival's, whose state is put in, [block, rival]."""
    n_layers = model.n_layers
    [other] = read(model, source, [Site("resid_post", slice(0, n_layers), source.at("entity", -1))])
    theirs = answer_ids(model, prompt, rivals)
    asked = following(prompt, theirs, pad_id=model.tokenizer.pad_token_id)
    place = asked.at("entity", -1)

    cells = [[Patch("resid_post", block, place, other[block])] for block in range(n_layers)]
    return answered_cells(model, asked, theirs, cells, tick=tick)


def last_below(curve: np.ndarray, level: float) -> int:
    """Last index at which a curve is below a level: the last block that is needed. -1: none."""
    below = np.nonzero(curve < level - 1e-12)[0]
    return int(below.max()) if below.size else -1
