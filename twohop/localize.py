"""A small exact patching map: which sublayers, at which tokens, carry the fact.

The prompt is run about one entity (clean) and about another (corrupt). A clean value is put into
the corrupt run; the effect is the share of the clean-corrupt difference that comes back, in the
logit of the clean entity's answer minus that of the other's, as a ratio of means over items. 0 is
no effect, 1 is all of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from interventions import Model, Patch, Positions, Prompt, Site
from interventions.positions import from_lists
from interventions.streams import Component
from twohop.asking import Study, another, by_relation, first_token, image_prompt, text_prompt
from twohop.cells import run_cells
from twohop.entities.items import Item
from twohop.memory import read
from twohop.places import last_ones, padded, question_tokens
from twohop.window import known_items

MAX_ITEMS = 9
MAX_WINDOWS = 10
MAP_COMPONENTS: tuple[Component, ...] = ("attn_out", "mlp_out", "resid_post")
LEAST_SPAN = 0.1  # logits; below it a ratio says nothing
MAP_ROLES = ("entity", "between", "last")


def window_edges(n_layers: int) -> np.ndarray:
    """Edges of at most :data:`MAX_WINDOWS` windows of blocks, [window + 1]."""
    return np.linspace(0, n_layers, min(n_layers, MAX_WINDOWS) + 1).round().astype(int)


def map_positions(prompt: Prompt) -> dict[str, Positions]:
    """Entity tokens (image, or the name's last), the last token, and what lies between.

    Where an image has no tokens, the question's are between.
    """
    if prompt.has_images and prompt.cross_attention:
        return {"last": prompt.at("last"), "between": question_tokens(prompt)}
    entity = prompt.at("image") if prompt.has_images else prompt.at("entity", -1)
    last = prompt.length - 1
    ends = entity.last().index[:, 0].tolist()
    between = [list(range(end + 1, last)) for end in ends]
    found = {"entity": entity, "last": prompt.at("last")}
    if all(between):
        found["between"] = from_lists(between, length=prompt.length, single=False, role="between")
    return found


def patching_map(study: Study, model: Model, right: np.ndarray, *, shown: bool) -> xr.Dataset:
    """Measure the map of one model.

    Parameters
    ----------
    study : Study
    model : Model
    right : ndarray of bool [item]
        Items to draw from.
    shown : bool
        Whether it is asked about pictures, as the VLM is, or about names, as the backbone is.

    Returns
    -------
    Dataset
        ``effect`` (component, window, role): share of the logit difference restored, NaN where
        clean and corrupt runs do not differ, and at roles that the model does not have;
        ``restored`` (component, window, role, map_item) and
        ``span`` (map_item): the same before the ratio, in logits; ``first_block`` and
        ``last_block`` (window). ``resid_post`` is patched after the window's last block, the
        sublayers in all its blocks.
    """
    items = known_items(study.benchmark.items, right, seed=study.seed, limit=MAX_ITEMS)
    pairs = [(a, b) for a, b in zip(items, another(study, items), strict=True) if b is not None]
    items = [item for item, _ in pairs]
    edges = window_edges(model.n_layers)
    n_windows = len(edges) - 1
    shape = (len(MAP_COMPONENTS), n_windows, len(MAP_ROLES), len(items))
    restored, span = np.full(shape, np.nan), np.zeros(len(items))
    for relation, rows in by_relation(items):
        some = [pairs[i] for i in rows]
        restored[..., rows], span[rows] = _map_of_relation(
            study, model, relation, some, edges, shown=shown
        )
    whole = span.mean() if len(items) else 0.0
    effect = restored.mean(-1) / whole if abs(whole) > LEAST_SPAN else np.full(shape[:-1], np.nan)
    return xr.Dataset(
        {
            "effect": (("component", "window", "role"), effect),
            "restored": (("component", "window", "role", "map_item"), restored),
            "span": ("map_item", span),
            "first_block": ("window", edges[:-1]),
            "last_block": ("window", edges[1:] - 1),
        },
        coords={
            "component": list(MAP_COMPONENTS),
            "role": list(MAP_ROLES),
            "map_item": [item.id for item in items],
        },
    )


def _map_of_relation(
    study: Study,
    model: Model,
    relation: str,
    pairs: Sequence[tuple[Item, Item]],
    edges: np.ndarray,
    *,
    shown: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """What each cell restores, [component, window, role, item], and the whole span, [item]."""
    template = study.benchmark.templates[relation]

    def prompt_of(which: int) -> Prompt:
        entities = [pair[which].entity for pair in pairs]
        if shown:
            own = [pair[0].entity for pair in pairs]
            return image_prompt(study, template, entities, sized_as=own)
        return text_prompt(model, template, entities)

    clean, corrupt = prompt_of(0), prompt_of(1)
    here, there = map_positions(clean), map_positions(corrupt)
    for name in here:  # token by token, from the end, should a row's two differ in number
        counts = here[name].counts.minimum(there[name].counts).tolist()
        here[name], there[name] = last_ones(here[name], counts), last_ones(there[name], counts)
    n_windows = len(edges) - 1
    sites = [
        Site(component, slice(0, model.n_layers), padded(here[name]))
        for component in MAP_COMPONENTS
        for name in here
    ]
    values = dict(
        zip([(c, n) for c in MAP_COMPONENTS for n in here], read(model, clean, sites), strict=True)
    )
    cells: list[tuple[Component, int, str]] = [
        (c, w, n) for c in MAP_COMPONENTS for w in range(n_windows) for n in here
    ]
    tokens, others = (
        torch.tensor([first_token(model, clean, pair[which].answers[0]) for pair in pairs])
        for which in (0, 1)
    )

    def difference(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        last = logits[:, 0].cpu()
        return (last.gather(1, tokens[rows, None]) - last.gather(1, others[rows, None]))[:, 0]

    def first_block(component: Component, window: int) -> int:
        return int(edges[window + 1]) - 1 if component == "resid_post" else int(edges[window])

    def patches_of(rows: torch.Tensor, which: torch.Tensor) -> list[Patch]:
        patches = []
        for cell in which.unique().tolist():
            component, window, name = cells[cell]
            place = there[name].rows(rows).only(which == cell)
            for block in range(first_block(component, window), int(edges[window + 1])):
                patches.append(Patch(component, block, place, values[component, name][block, rows]))
        return patches

    def bare(prompt: Prompt) -> np.ndarray:
        return run_cells(
            model,
            prompt,
            first_blocks=[0],
            patches_of=lambda _rows, _cells: (),
            positions=prompt.at("last"),
            measure=difference,
            tick=study.tick,
        )[0]

    top, bottom = bare(clean), bare(corrupt)
    table = run_cells(
        model,
        corrupt,
        first_blocks=[first_block(component, window) for component, window, _ in cells],
        patches_of=patches_of,
        positions=corrupt.at("last"),
        measure=difference,
        tick=study.tick,
    )
    restored = np.full((len(MAP_COMPONENTS), n_windows, len(MAP_ROLES), len(pairs)), np.nan)
    for cell, (component, window, name) in enumerate(cells):
        place = (MAP_COMPONENTS.index(component), window, MAP_ROLES.index(name))
        restored[place] = table[cell] - bottom
    return restored, top - bottom
