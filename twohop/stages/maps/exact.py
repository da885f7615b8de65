"""A small exact patching map: which sublayers, at which tokens, carry the fact.

The prompt is run about one entity (clean) and about another (corrupt). A clean value is put into
the corrupt run; the effect is the share of the clean-corrupt difference that comes back, in the
logit of the clean entity's answer minus that of the other's, as a ratio of means over items. 0 is
no effect, 1 is all of it.
"""

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
from twohop.stages.patched import Cells, run_cells

MAP_COMPONENTS: tuple[Component, ...] = ("attn_out", "mlp_out", "resid_post")


def window_edges(n_layers: int, *, most: int) -> np.ndarray:
    """Edges of at most ``most`` windows of blocks, [window + 1]."""
    return np.linspace(0, n_layers, min(n_layers, most) + 1).round().astype(int)


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
    pairs = swapped_items(study, model, right, shown=shown)
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
    )
    shape = (len(MAP_COMPONENTS), len(edges) - 1, len(MAP_ROLES))
    restored = side_by_side([cells for cells, _ in of_items], shape)
    span = side_by_side([whole for _, whole in of_items], ())
    effect = share_of(restored, span, least=study.protocol.least_span)
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
            "map_item": [item.id for item, _ in pairs],
            "swapped_with": ("map_item", [other.id for _, other in pairs]),
        },
    )


def share_of(restored: np.ndarray, span: np.ndarray, *, least: float) -> np.ndarray:
    """Restored logits [..., item] as a share of the whole difference [item], a ratio of means.

    NaN where clean and corrupt runs differ by no more than ``least``, in logits.
    """
    whole = span.mean() if len(span) else 0.0
    if abs(whole) <= least:
        return np.full(restored.shape[:-1], np.nan)
    return restored.mean(-1) / whole


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
