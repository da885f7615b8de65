"""A small exact patching map: which sublayers, at which tokens, carry the fact.

The prompt is run about one entity (clean) and about another (corrupt). A clean value is put into
the corrupt run; the effect is what comes back of the clean-corrupt difference, the span, in the
logit of the clean entity's answer minus that of the other's. It is measured apart on items that are
answered right, where there is recall to be found, and on items that are lost.
"""

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr

from interventions import Model, Patch, Prompt, Site
from interventions.model.sites import Component
from twohop.ask.memory import read
from twohop.ask.on_server import Tick
from twohop.ask.questions import Questions, side_by_side
from twohop.ask.study import Study
from twohop.stages.maps.contrasts import MAP_ROLES, Swap, swapped_items, swaps
from twohop.stages.maps.effects import group_effects
from twohop.stages.patched import Cells, run_cells

MAP_COMPONENTS: tuple[Component, ...] = ("attn_out", "mlp_out", "resid_post")
GROUPS = ("right", "lost")
"""Groups of items: answered right, and lost though the entity is named and the fact is known."""


def window_edges(n_layers: int, *, most: int) -> np.ndarray:
    """Edges of at most ``most`` windows of blocks, [window + 1]."""
    return np.linspace(0, n_layers, min(n_layers, most) + 1).round().astype(int)


def patching_map(
    study: Study, model: Model, groups: Mapping[str, np.ndarray], *, shown: bool
) -> xr.Dataset:
    """Measure the map of one model on each group of items.

    Parameters
    ----------
    study : Study
    model : Model
    groups : mapping of str to ndarray of bool [item]
        Which items belong to each of :data:`GROUPS`, or to some of them; no item to two.
    shown : bool
        Whether it is asked about pictures, as the VLM is, or about names, as the backbone is.

    Returns
    -------
    Dataset
        ``effect`` (group, component, window, role): logits restored, the mean over items, with
        ``effect_low`` and ``effect_high``, Student's interval over entities; NaN at roles that the
        model does not have. ``span_mean``, ``span_low``, ``span_high`` (group): the whole
        difference, likewise. ``share`` (group, component, window, role): the effect as a part of
        the span, NaN where the span's interval does not begin above the protocol's ``least_span``.
        ``restored`` (component, window, role, map_item) and ``span`` (map_item): the same of each
        item; ``first_block`` and ``last_block`` (window). Coordinates of ``map_item``:
        ``map_group``, ``map_entity`` (its code) and ``swapped_with``. ``resid_post`` is patched
        after the window's last block, the sublayers in all its blocks.
    """
    of_groups = {
        group: swapped_items(study, model, mine, shown=shown) for group, mine in groups.items()
    }
    pairs = [pair for of_group in of_groups.values() for pair in of_group]
    item_groups = [group for group, of_group in of_groups.items() for _ in of_group]
    entities = [item.entity.code for item, _ in pairs]
    edges = window_edges(model.n_layers, most=study.protocol.map_windows)
    questions = Questions(study, [item for item, _ in pairs])
    swap_of = {swap.rows[0]: swap for swap in swaps(study, model, pairs, shown=shown)}
    n_cells = {
        row: (len(edges) - 1) * len(MAP_COMPONENTS) * len(swap.roles)
        for swap in swap_of.values()
        for row in swap.rows
    }
    of_items = questions.map(
        map_of_relation,
        lambda rows: (swap_of[rows[0]], edges.tolist()),
        model=model,
        passes=[n_cells[row] + 2 for row in range(len(pairs))],
        most=None,
    )
    shape = (len(MAP_COMPONENTS), len(edges) - 1, len(MAP_ROLES))
    restored = side_by_side([cells for cells, _ in of_items], shape)
    span = side_by_side([whole for _, whole in of_items], ())
    return xr.Dataset(
        {
            **group_effects(
                restored,
                span,
                entities=entities,
                item_groups=item_groups,
                groups=[*groups],
                cell_dims=("component", "window", "role"),
                least=study.protocol.least_span,
            ),
            "restored": (("component", "window", "role", "map_item"), restored),
            "span": ("map_item", span),
            "first_block": ("window", edges[:-1]),
            "last_block": ("window", edges[1:] - 1),
        },
        coords={
            "group": [*groups],
            "component": list(MAP_COMPONENTS),
            "role": list(MAP_ROLES),
            "map_item": [item.id for item, _ in pairs],
            "map_group": ("map_item", np.array(item_groups, dtype=object)),
            "map_entity": ("map_item", np.array(entities, dtype=object)),
            "swapped_with": ("map_item", [other.id for _, other in pairs]),
        },
    )


def map_of_relation(
    model: Model, swap: Swap, edges: list[int], *, tick: Tick
) -> list[tuple[np.ndarray, float]]:
    """Of each item, what each cell restores, [component, window, role], and the whole span.

    ``edges`` are those of the windows of blocks, :func:`window_edges`.
    """
    clean, corrupt = swap.clean, swap.corrupt
    here, there = ({name: side.at(name) for name in swap.roles} for side in (clean, corrupt))
    n_windows = len(edges) - 1
    sites = [
        Site(component, slice(0, model.n_layers), here[name].filled())
        for component in MAP_COMPONENTS
        for name in here
    ]
    values = dict(
        zip(
            [(component, role) for component in MAP_COMPONENTS for role in here],
            read(model, clean, sites),
            strict=True,
        )
    )
    places: list[tuple[Component, int, str]] = [
        (component, window, role)
        for component in MAP_COMPONENTS
        for window in range(n_windows)
        for role in here
    ]
    tokens, others = torch.tensor(swap.answers), torch.tensor(swap.foils)

    def difference(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        last = logits[:, 0].cpu()
        return (last.gather(1, tokens[rows, None]) - last.gather(1, others[rows, None]))[:, 0]

    def first_block(component: Component, window: int) -> int:
        return edges[window + 1] - 1 if component == "resid_post" else edges[window]

    cells: list[list[Patch]] = []
    for component, window, name in places:
        blocks = slice(first_block(component, window), edges[window + 1])
        cells.append([Patch(component, blocks, there[name], values[component, name][blocks])])

    def measured(prompt: Prompt, cells: Cells) -> np.ndarray:
        at = prompt.at("last")
        return run_cells(model, prompt, cells, positions=at, measure=difference, tick=tick)

    [top] = measured(clean, [()])
    bottom, *table = measured(corrupt, [(), *cells])
    restored = np.full((len(MAP_COMPONENTS), n_windows, len(MAP_ROLES), len(clean)), np.nan)
    for cell, (component, window, name) in enumerate(places):
        place = (MAP_COMPONENTS.index(component), window, MAP_ROLES.index(name))
        restored[place] = table[cell] - bottom
    return [(restored[..., row], float(top[row] - bottom[row])) for row in range(len(clean))]
