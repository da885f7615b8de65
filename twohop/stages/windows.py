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
from interventions.sweeping.metrics import target
from twohop.ask.memory import read
from twohop.ask.on_server import Task, Tick
from twohop.ask.questions import Questions, Rivals, Rows, by_relation, side_by_side
from twohop.ask.study import Study, item_coords, mean_of_others
from twohop.items.items import Item
from twohop.scoring import normalise
from twohop.stages.patched import answered_cells


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


def in_circuit(gate: xr.Dataset) -> np.ndarray:
    """The items on which windows and maps may be measured, [item].

    There the answer is checked token by token, so the free answer at this gate must be the
    canonical one, which the model gives by itself.
    """
    pairs = zip(gate["text"].values[0], gate["answer"].values, strict=True)
    return np.array([normalise(said) == normalise(answer) for said, answer in pairs], dtype=bool)


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
    questions = Questions(study, items)

    def arguments(rows: Rows) -> Task:
        rivals = [questions.rivals[i] for i in rows]
        swapped = [i for i in rows if questions.rivals[i] is not None]
        if not swapped:
            return questions.named(model, rows), [items[i] for i in rows], rivals, None
        swap = questions.named(model, swapped), questions.others.named(model, swapped)
        return questions.named(model, rows), [items[i] for i in rows], rivals, swap

    passes = [n_layers + 1 + n_layers * bool(told) for told in questions.has_rival]
    of_items = questions.map(relation_windows, arguments, model=model, passes=passes)
    survives = side_by_side([survived for survived, _ in of_items], (n_layers + 1,), dtype=bool)
    follows = side_by_side([followed for _, followed in of_items], (n_layers,))
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
    rivals: Rivals,
    swap: tuple[Prompt, Prompt] | None,
    *,
    tick: Tick,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Run both measurements on the items of one relation.

    Parameters
    ----------
    model : Model
    prompt : Prompt
        About all items.
    items : sequence of Item
    rivals : list of Item or None
        Of each item.
    swap : (Prompt, Prompt) or None
        About the items that have a rival, and about their rivals; None if none has one.
    tick : callable

    Returns
    -------
    list of (ndarray of bool [edge], ndarray [block])
        Of each item, whether its answer survives, and whether it follows: NaN if it has no rival.
    """
    survives = enrichment(model, prompt, items, tick=tick)
    follows = np.full((model.n_layers, len(items)), np.nan)
    if swap is not None:
        there = np.array([rival is not None for rival in rivals])
        known = [rival for rival in rivals if rival is not None]
        follows[:, there] = readout(model, *swap, known, tick=tick)
    return list(zip(survives.T, follows.T, strict=True))


def enrichment(model: Model, prompt: Prompt, items: Sequence[Item], *, tick: Tick) -> np.ndarray:
    """Whether each answer survives without the MLPs from each block up, [edge, item]."""
    n_layers = model.n_layers
    own = target(model, prompt, [item.answers[0] for item in items])
    [mlp] = read(model, prompt, [Site("mlp_out", slice(0, n_layers), prompt.at("entity", -1))])
    asked = own.scored(prompt)
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
    theirs = target(model, prompt, [rival.answers[0] for rival in rivals])
    asked = theirs.scored(prompt)
    place = asked.at("entity", -1)

    cells = [[Patch("resid_post", block, place, other[block])] for block in range(n_layers)]
    return answered_cells(model, asked, theirs, cells, tick=tick)


def last_below(curve: np.ndarray, level: float) -> int:
    """Last index at which a curve is below a level: the last block that is needed. -1: none."""
    below = np.nonzero(curve < level - 1e-12)[0]
    return int(below.max()) if below.size else -1
