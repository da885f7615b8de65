"""The map by attribution: every sublayer of every block, from gradients, checked by patching.

An estimate from gradients can be badly wrong (for MLP outputs most of all), so it comes with its
agreement with the exact map on the same items, and without it is not shown.
"""

import numpy as np
import torch
import xarray as xr

from interventions import Model, attribute
from interventions.attribution.estimates import METHODS as METHOD_NAMES
from interventions.attribution.estimates import Method
from interventions.errors import InterventionsError
from twohop.ask.memory import Batches, limit_of, ran_out, rows_for
from twohop.ask.residence import at_home
from twohop.ask.study import Study
from twohop.stages.maps.agreement import MEASURES, agreement, in_windows
from twohop.stages.maps.contrasts import MAP_ROLES, Swap, swaps
from twohop.stages.maps.effects import group_effects
from twohop.stages.maps.exact import MAP_COMPONENTS

ROWS = 16  # of a backward pass, which holds their activations


def attribution_map(study: Study, model: Model, exact: xr.Dataset, *, shown: bool) -> xr.Dataset:
    """Estimate the effect of every component, block and role on the items of an exact map.

    By the first of the protocol's ``attribution_methods`` that this model allows, in the exact
    map's unit: the logit of the first token of the clean entity's answer minus that of the other's.

    Parameters
    ----------
    study : Study
    model : Model
    exact : Dataset
        From :func:`twohop.stages.maps.exact.patching_map` of the same model.
    shown : bool
        As it was there.

    Returns
    -------
    Dataset
        ``effect`` (group, component, layer, role) with ``effect_low`` and ``effect_high``:
        estimated logits that patching this place alone would restore, as in the exact map;
        ``share``, ``span_mean``, ``span_low`` and ``span_high`` as there; ``score`` (component,
        layer, role, map_item) and ``span`` (map_item): of each item. ``agreement`` (measure) with
        ``agreement_low`` and ``agreement_high``: see
        :func:`twohop.stages.maps.agreement.agreement`, over all items; ``group_agreement``
        (group, measure) with its ends: over those of a group.
        Attributes: ``method`` and ``method_name``, and ``refused``: why no method could be used,
        empty if one could; everything is NaN then.

    Notes
    -----
    Why integrated gradients first: on `micro-naming`, `micro-aligned` and `flags-aligned`, three
    steps correlated with the exact maps by .97 to 1.00, and by .95 or more for each component.
    RelP had .93 to .96 on the micro pairs; attribution patching .66 to .81, and .51 for the
    attention of the micro backbone. Where a map has little to show (the MLPs of `micro-late` with
    images, by construction) none agreed, which is why the agreement is always given.
    """
    by_id = {item.id: item for item in study.benchmark.items}
    ids = zip(exact["map_item"].values, exact["swapped_with"].values, strict=True)
    pairs = [(by_id[str(own)], by_id[str(other)]) for own, other in ids]
    at_home(model)
    study.progress.expect(len(pairs))
    used, refused = "", ""
    shape = (len(MAP_COMPONENTS), model.n_layers, len(MAP_ROLES), len(pairs))
    score, span = np.full(shape, np.nan), np.full(len(pairs), np.nan)
    told = 0
    protocol = study.protocol
    for method in protocol.attribution_methods:
        seen = 0
        try:
            for swap in swaps(study, model, pairs, shown=shown):
                score[..., swap.rows], span[swap.rows] = scores(
                    model, swap, method, steps=protocol.attribution_steps
                )
                seen += len(swap.rows)
                study.progress.tick(max(0, seen - told))  # a method before it may have come as far
                told = max(seen, told)
        except InterventionsError as error:
            if ran_out(error):  # says nothing of the method: the stage is to be run elsewhere
                raise
            refused = str(error)
        else:
            used, refused = method, ""
            break
    if refused:
        score[:], span[:] = np.nan, np.nan
    groups, of_items = exact["group"].values, exact["map_group"].values
    entities = np.array([item.entity.code for item, _ in pairs], dtype=object)
    windows = in_windows(score, exact["first_block"].values, exact["last_block"].values)
    restored = exact["restored"].transpose("component", "window", "role", "map_item").values

    def compared(rows: np.ndarray) -> list[list[float]]:
        """Value, low and high of each measure on some items."""
        estimates = agreement(
            windows[..., rows],
            restored[..., rows],
            entities[rows].tolist(),
            seed=study.seed,
            protocol=protocol,
        )
        return [
            [getattr(estimates[measure], bound) for measure in MEASURES]
            for bound in ("value", "low", "high")
        ]

    ends = ("agreement", "agreement_low", "agreement_high")
    of_all = compared(np.ones(len(pairs), dtype=bool))
    of_groups = [compared(of_items == group) for group in groups]
    return xr.Dataset(
        {
            **group_effects(
                score,
                span,
                entities=entities.tolist(),
                item_groups=of_items.tolist(),
                groups=groups.tolist(),
                cell_dims=("component", "layer", "role"),
                least=protocol.least_span,
            ),
            "score": (("component", "layer", "role", "map_item"), score),
            "span": ("map_item", span),
            **{name: ("measure", of_all[end]) for end, name in enumerate(ends)},
            **{
                f"group_{name}": (("group", "measure"), [numbers[end] for numbers in of_groups])
                for end, name in enumerate(ends)
            },
        },
        coords={
            "group": groups,
            "component": list(MAP_COMPONENTS),
            "layer": np.arange(model.n_layers),
            "role": list(MAP_ROLES),
            "map_item": exact["map_item"].values,
            "map_group": ("map_item", of_items),
            "map_entity": ("map_item", exact["map_entity"].values),
            "measure": list(MEASURES),
        },
        attrs={
            "method": used,
            "method_name": METHOD_NAMES[used] if used else "none",
            "steps": protocol.attribution_steps if used == "ig" else 0,
            "refused": refused,
        },
    )


def scores(
    model: Model, swap: Swap, method: Method, *, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one relation's items, [component, layer, role, item], and the span, [item].

    ``steps`` are those of integrated gradients.

    Raises
    ------
    InterventionsError
        If the model, or what it is asked, does not allow this method.
    """
    n = len(swap.rows)
    score = np.full((len(MAP_COMPONENTS), model.n_layers, len(MAP_ROLES), n), np.nan)
    span = np.full(n, np.nan)
    limit = limit_of(model, f"attribution by {method}")
    most = rows_for(model, limit, "backward", ROWS, swap.clean)
    batches = Batches(torch.arange(n), most, limit=limit, width=swap.clean.length)
    for rows in batches:
        with batches.attempt(rows):
            attribution = attribute(
                model,
                swap.corrupt.select(rows),
                swap.clean.select(rows),
                answers=[[swap.answers[row]] for row in rows],
                foils=[[swap.foils[row]] for row in rows],
                components=MAP_COMPONENTS,
                roles=swap.roles,
                method=method,
                steps=steps,
                verify=False,  # it is compared with the exact map
            )
            there = attribution["score"].sel(component=list(MAP_COMPONENTS), role=swap.roles)
            where = np.ix_(
                list(range(len(MAP_COMPONENTS))),
                attribution["layer"].values.tolist(),
                [MAP_ROLES.index(role) for role in swap.roles],
                rows.tolist(),
            )
            score[where] = there.transpose("component", "layer", "role", "item").values
            span[rows.numpy()] = (attribution["source_metric"] - attribution["run_metric"]).values
    return score, span
