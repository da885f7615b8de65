"""Where hop 2 reads: the recall windows of the backbone, on its own text run.

*Enrichment*: which blocks' MLPs are needed at the entity's last token. They are replaced by their
mean over the other items from block ``l`` up; the window ends where accuracy no longer suffers.
*Read-out*: until when the answer is still read from the entity's token. The state there is swapped
for another entity's after block ``l``; the window ends where the answer no longer follows it.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from interventions import Patch, Positions, Site
from interventions.answers import following
from twohop.asking import Study, another, by_relation, item_coords, mean_of_others, text_prompt
from twohop.cells import answer_ids, answered_cells
from twohop.entities.items import Item
from twohop.memory import read

KEEPS = 0.9
FOLLOWS_NO_MORE = 0.1
MAX_ITEMS = 36


def known_items(
    items: Sequence[Item], right: np.ndarray, *, seed: int, limit: int = MAX_ITEMS
) -> list[Item]:
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
        all MLPs give, which noise moves less.
    """
    model, benchmark = study.backbone, study.benchmark
    items = known_items(benchmark.items, right, seed=study.seed)
    n_layers = model.n_layers
    survives = np.zeros((n_layers + 1, len(items)), dtype=bool)
    follows = np.full((n_layers, len(items)), np.nan)
    others = another(study, items)
    for relation, rows in by_relation(items):
        some = [items[i] for i in rows]
        prompt = text_prompt(model, benchmark.templates[relation], [one.entity for one in some])
        own = answer_ids(model, prompt, some)
        last = prompt.at("entity", -1)
        [mlp] = read(model, prompt, [Site("mlp_out", slice(0, n_layers), last)])
        asked = following(prompt, own, pad_id=model.tokenizer.pad_token_id)
        names = asked.at("entity", -1)
        average = mean_of_others(mlp, some)

        def ablate(
            batch: torch.Tensor,
            layers: torch.Tensor,
            names: Positions = names,
            average: torch.Tensor = average,
        ) -> list[Patch]:
            there = names.rows(batch)
            return [
                Patch("mlp_out", block, there.only(layers <= block), average[block, batch])
                for block in range(int(layers.min()), n_layers)
            ]

        survives[:, rows] = answered_cells(
            study, model, asked, own, first_blocks=range(n_layers + 1), patches_of=ablate
        )
        swap_rows = [i for i in rows if others[i] is not None]
        rivals = [other for i in rows if (other := others[i]) is not None]
        if not rivals:
            continue
        template = benchmark.templates[relation]
        source = text_prompt(model, template, [one.entity for one in rivals])
        [other] = read(
            model, source, [Site("resid_post", slice(0, n_layers), source.at("entity", -1))]
        )
        target = text_prompt(model, template, [items[i].entity for i in swap_rows])
        theirs = answer_ids(model, target, rivals)
        swapped = following(target, theirs, pad_id=model.tokenizer.pad_token_id)
        place = swapped.at("entity", -1)

        def swap(
            batch: torch.Tensor,
            layers: torch.Tensor,
            place: Positions = place,
            other: torch.Tensor = other,
        ) -> list[Patch]:
            there = place.rows(batch)
            return [
                Patch(
                    "resid_post", int(block), there.only(layers == block), other[int(block), batch]
                )
                for block in layers.unique()
            ]

        follows[:, swap_rows] = answered_cells(
            study, model, swapped, theirs, first_blocks=range(n_layers), patches_of=swap
        )
    kept = survives.mean(1) if items else np.zeros(n_layers + 1)
    could_follow = ~np.isnan(follows).any(0)
    followed = follows[:, could_follow].mean(1) if could_follow.any() else np.zeros(n_layers)
    above = followed >= max(FOLLOWS_NO_MORE * followed.max(), 1e-12)
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
            "enrichment_end": last_below(kept, KEEPS * kept[-1]),
            "enrichment_half": last_below(kept, (kept[0] + kept[-1]) / 2),
            "readout_end": int(np.nonzero(above)[0].max()) if above.any() else -1,
        },
    )


def last_below(curve: np.ndarray, level: float) -> int:
    """Last index at which a curve is below a level: the last block that is needed. -1: none."""
    below = np.nonzero(curve < level - 1e-12)[0]
    return int(below.max()) if below.size else -1
