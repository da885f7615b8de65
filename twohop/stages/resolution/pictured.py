"""A few pictures token by token: where the entity is read, and what tokens are to the answer.

For the examples of a report; nothing is measured on it. Layer ``l`` is the input of block ``l``;
the last one is the output of the last block.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import xarray as xr

from interventions import Model, Positions, Prompt, Site
from interventions.errors import RoleError
from interventions.running.lens import read_out
from twohop.ask.memory import read
from twohop.ask.on_server import Task, Tick
from twohop.ask.questions import Questions, Rows, draw_rivals
from twohop.ask.roles import has_image_tokens
from twohop.ask.study import Study, first_tokens
from twohop.stages.maps.contrasts import told_apart
from twohop.stages.resolution.beside import Between, put_beside, regions_of, stored_maps
from twohop.stages.resolution.picture_maps import Beside, Made, maps_of
from twohop.stages.resolution.states import BATCH_TOKENS, own_items, spread_rows

WHOSE = ("own", "other")
"""Whose name is looked for: the entity's, and as a control another's."""
EDGES = ("x0", "y0", "x1", "y1")


def lens_on_picture(
    model: Model, prompt: Prompt, image: Positions, names: torch.Tensor, *, tick: Tick
) -> list[torch.Tensor]:
    """Probability that the head gives to names' first tokens at each image token.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    image : Positions
        The image tokens of every row.
    names : Tensor [row, name]

    Returns
    -------
    list of Tensor [name, layer, token]
        For each row.
    """
    probabilities: list[torch.Tensor] = []
    for rows in torch.arange(len(prompt)).split(max(1, BATCH_TOKENS // prompt.length)):
        trimmed, left = prompt.select(rows).trimmed()
        there = image.rows(rows).shifted(left, trimmed.length)
        sites = [
            Site("resid_pre", [*range(model.n_layers)], there.filled()),
            Site("resid_post", [model.n_layers - 1], there.filled()),
        ]
        layers = [layer for states in read(model, trimmed, sites) for layer in states]
        logprob, _ = read_out(model, layers, names[rows])
        of_rows = logprob.exp().permute(1, 3, 0, 2)  # [row, name, layer, token]
        probabilities += [
            row[..., :n] for row, n in zip(of_rows, there.counts.tolist(), strict=True)
        ]
        tick(len(rows))
    return probabilities


def look_at(
    model: Model,
    prompt: Prompt,
    image: Positions,
    names: torch.Tensor,
    besides: Sequence[Beside | None],
    *,
    tick: Tick,
) -> list[tuple[torch.Tensor, Made | None]]:
    """The lens on every picture, :func:`lens_on_picture`, and all maps of some.

    ``besides`` has one for each row, or None.
    """
    lenses = lens_on_picture(model, prompt, image, names, tick=tick)
    maps: list[Made | None] = []
    for beside in besides:
        maps.append(None if beside is None else maps_of(model, beside))
        tick(int(beside is not None))
    return [*zip(lenses, maps, strict=True)]


def read_pictures(study: Study, between: Between | None = None) -> xr.Dataset:
    """Read some entities in every token of their pictures, and what these tokens are for.

    Parameters
    ----------
    study : Study
    between : callable, optional
        What a probe tells two items' entities by; without it, no token is probed.

    Returns
    -------
    Dataset
        ``picture_lens`` (whose, pictured, layer, image_token): probability of the first token of
        the entity's name, and of another's, NaN where a picture has no such token. Where tokens
        lie: ``picture_box`` (pictured, image_token, edge), pixels; ``picture_view`` (pictured,
        image_token), their kind, as :meth:`interventions.Prompt.image_grid` tells it;
        ``picture_size`` (pictured, side), pixels. Of the protocol's ``picture_entities``, spread
        over all of them, each asked about by its own item; coordinates ``pictured_relation`` and
        ``pictured_other``, whose name is the control. Empty where an image has no tokens, or it is
        not known where they lie.

        Of ``picture_maps`` of these entities, ``mapped``, what is lost of the logit of the first
        token of the answer, ``mapped_answer``, less that of ``mapped_foil``, which is another's,
        ``mapped_other``. ``picture_patched`` (mapped, against, picture_window, region): if the
        tokens of a region have, in what enters the first block of a window, the states of the
        other's picture, or as a control of another of the own; ``picture_attribution`` (mapped,
        against, block, image_token): an estimate of it token by token, ``attributed_by``.
        ``picture_cut`` (mapped, cut_off, picture_window, region): if nothing behind the picture
        attends to a region in the blocks of a window; as a control, to as many tokens drawn from
        all regions. ``picture_attention`` and ``picture_rollout`` (mapped, block, image_token): the
        last token's, as :func:`interventions.attention_map` has them. ``picture_probe`` (mapped,
        which_probe, layer, image_token): the transfer probe's score of the entity, centred, less
        that of the other; and its null's. ``picture_region`` (mapped, image_token): the region that
        each token is of, -1 none; ``picture_refused`` (mapped, measure): why there is none of a
        measure, or nothing.
    """
    vlm, protocol = study.vlm, study.protocol
    if not has_image_tokens(vlm):
        return xr.Dataset()
    every = own_items(study.benchmark)
    items = [every[row] for row in spread_rows(len(every), protocol.picture_entities)]
    questions = Questions(study, items, protocol.test_view)
    rivals = draw_rivals(study, items, alone=True)
    shown = [questions.shown([row], marked=True) for row in range(len(items))]
    try:
        grids = [prompt.image_grid().sortby("position") for prompt in shown]
    except RoleError:
        return xr.Dataset()
    names = torch.zeros(len(items), 2, dtype=torch.long)
    for rows in questions.parts():
        asked = questions.named(vlm, rows[:1])
        for row in rows:
            of_both = [(item or items[row]).entity.name for item in (items[row], rivals[row])]
            names[row] = torch.tensor(first_tokens(vlm, asked, of_both))
    told = told_apart(study, vlm)
    # Drawn from those that are told apart, if there are any.
    drawn = draw_rivals(study, items, alike=told, alone=True)
    others = [
        other if other is not None and told(item, other) else None
        for item, other in zip(items, drawn, strict=True)
    ]
    mapped = [*spread_rows(len(items), protocol.picture_maps)]
    regions = {row: regions_of(grids[row], protocol.picture_regions) for row in mapped}

    @cache
    def beside(row: int) -> Beside:
        return put_beside(
            questions,
            row,
            others[row],
            shown=shown[row],
            regions=regions[row],
            between=between,
        )

    def arguments(rows: Rows) -> Task:
        prompt = questions.shown(rows, marked=True)
        besides = [beside(row) if row in regions else None for row in rows]
        return prompt, prompt.at("image"), names[rows], besides

    passes = [1 + (row in regions) for row in range(len(items))]
    of_items = questions.map(look_at, arguments, model=vlm, passes=passes)
    most = max(grid.sizes["token"] for grid in grids)
    lens = np.stack([_padded(values.numpy(), most) for values, _ in of_items], axis=1)
    lens[1, [row for row, rival in enumerate(rivals) if rival is None]] = np.nan
    boxes = [np.stack([grid[edge].values for edge in EDGES]) for grid in grids]
    views = np.full((len(items), most), "", dtype=object)
    for row, grid in enumerate(grids):
        views[row, : grid.sizes["token"]] = grid["kind"].values
    sizes = [[float(grid[side][0]) for side in ("width", "height")] for grid in grids]
    lenses = xr.Dataset(
        {
            "picture_lens": (("whose", "pictured", "layer", "image_token"), lens.astype("float32")),
            "picture_box": (
                ("pictured", "image_token", "edge"),
                np.stack([_padded(box, most).T for box in boxes]),
            ),
            "picture_view": (("pictured", "image_token"), views),
            "picture_size": (("pictured", "side"), np.array(sizes)),
        },
        coords={
            "whose": [*WHOSE],
            "pictured": [item.entity.name for item in items],
            "pictured_relation": ("pictured", [item.relation for item in items]),
            "pictured_other": (
                "pictured",
                [rival.entity.name if rival is not None else "" for rival in rivals],
            ),
            "edge": [*EDGES],
            "side": ["width", "height"],
        },
    )
    maps = stored_maps(
        [of_items[row][1] for row in mapped],
        [beside(row) for row in mapped],
        [regions[row] for row in mapped],
        [items[row] for row in mapped],
        [others[row] for row in mapped],
        most=most,
    )
    return lenses.merge(maps)


def _padded(values: np.ndarray, most: int) -> np.ndarray:
    """Values [..., token] with NaN behind the last, up to as many tokens as the most."""
    ahead: Sequence[tuple[int, int]] = [(0, 0)] * (values.ndim - 1)
    return np.pad(values, [*ahead, (0, most - values.shape[-1])], constant_values=np.nan)
