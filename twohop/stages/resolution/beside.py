"""Pictures beside others: what is sent to where maps of them are made, and what is stored of these.

What the maps are: :mod:`twohop.stages.resolution.picture_maps`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from interventions import Model, Prompt, Site
from interventions.attribution.attribute import check_input_line
from interventions.attribution.estimates import METHODS as METHOD_NAMES
from interventions.attribution.estimates import Method
from interventions.attribution.sides import contrast_of
from interventions.errors import InterventionsError, SiteError
from interventions.model.sites import check_sites
from interventions.running.attention_memory import check_attention_fits
from interventions.sweeping.attention_map import attending
from interventions.sweeping.contrast import Contrast
from twohop.ask.questions import Questions
from twohop.ask.study import first_tokens
from twohop.items.items import Item
from twohop.protocol import Protocol
from twohop.stages.resolution.picture_maps import (
    AGAINST,
    CUT,
    MEASURES,
    PATTERN,
    PROBES,
    Axis,
    Beside,
    Made,
    Said,
)

Between = Callable[[Item, Item], Axis]
"""What tells one item's entity from another's in a state."""
OF_TWO = ("attribution", "patched", "cut", "probe")
METHODS_SAID: dict[str, str] = {**METHOD_NAMES}
FOLLOWED = "rollout follows attention through it"
NO_OTHER = "no other entity of this relation has an answer that begins with another token."
NOT_ALIKE = "the other pictures have not as many tokens, so tokens do not correspond."


def windows_of(n_layers: int, protocol: Protocol) -> list[list[int]]:
    """Blocks in windows that are as even as can be, at most the protocol's ``picture_windows``."""
    n = min(n_layers, protocol.picture_windows)
    edges = np.linspace(0, n_layers, n + 1).astype(int).tolist()
    return [[*range(first, stop)] for first, stop in pairwise(edges)]


def regions_of(grid: xr.Dataset, n: int) -> np.ndarray:
    """Which of ``n`` x ``n`` equal regions each image token shows the middle of, line by line.

    Parameters
    ----------
    grid : Dataset
        Of one row: :meth:`interventions.Prompt.image_grid`.
    n : int

    Returns
    -------
    ndarray of int [token]
        -1 where it is not known what a token shows.
    """
    x, y = ((grid[f"{axis}0"].values + grid[f"{axis}1"].values) / 2 for axis in "xy")
    column, line = (
        np.clip(np.nan_to_num(n * middle / grid[side].values), 0, n - 1).astype(int)
        for middle, side in ((x, "width"), (y, "height"))
    )
    return np.where(np.isfinite(x), n * line + column, -1)


def mixed_regions(regions: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """Regions of as many tokens each, drawn from all regions; -1 where a token is of none."""
    mixed = regions.copy()
    known = regions >= 0
    mixed[known] = np.random.default_rng(seed).permutation(regions[known])
    return mixed


def put_beside(
    questions: Questions,
    row: int,
    other: Item | None,
    *,
    shown: Prompt,
    regions: np.ndarray,
    between: Between | None,
) -> Beside:
    """Put the picture of a row beside another entity's, and beside another of its own.

    Parameters
    ----------
    questions : Questions
    row : int
    other : Item or None
        None: there is none.
    shown : Prompt
        Of the row, marked.
    regions : ndarray of int [token]
        From :func:`regions_of`.
    between : callable, optional
        ``between(own, other)`` of items; without it, nothing is probed.
    """
    study, item = questions.study, questions.items[row]
    vlm, protocol = study.vlm, study.protocol
    refused: Said = {}
    others, wanted = _others(questions, row, other, shown, refused) if other else ([], [])
    if other is None:
        refused |= dict.fromkeys(OF_TWO, NO_OTHER)
    contrasts = _contrasts(vlm, shown, others, wanted, refused)
    axis = None if between is None or other is None else between(item, other)
    if axis is None:
        refused.setdefault("probe", "no probe was fitted.")
    blocks, rolled = _attending(vlm, shown, refused)
    windows = windows_of(vlm.n_layers, protocol)
    parts, able = vlm.anatomy.parts, {*vlm.anatomy.self_blocks}
    tokens, n = shown.at("image").index[0].numpy(), protocol.picture_regions**2
    mixed = mixed_regions(regions, [study.seed, row])
    return Beside(
        shown=shown,
        others=others,
        contrasts=contrasts,
        wanted=wanted,
        regions=[tokens[regions == k].tolist() for k in range(n)],
        random=[tokens[mixed == k].tolist() for k in range(n)],
        windows=windows,
        cut=[[b for b in of if b in able and not parts[b].recurrent] for of in windows],
        attending=blocks,
        rolled=rolled,
        axis=axis,
        methods=_methods(vlm, contrasts, protocol),
        steps=protocol.attribution_steps,
        refused=refused,
    )


def _others(
    questions: Questions, row: int, other: Item, shown: Prompt, refused: Said
) -> tuple[list[Prompt], list[int]]:
    """The prompts of AGAINST and the first tokens of both answers; none if they do not compare."""
    study, item = questions.study, questions.items[row]
    views = (study.protocol.test_view, study.protocol.fit_views[0])
    others = [
        Questions(study, [who], view).shown([0], like=questions.only([row]), marked=True)
        for who, view in zip((other, item), views, strict=True)
    ]
    wanted = first_tokens(study.vlm, shown, [item.answers[0], other.answers[0]])
    if wanted[0] == wanted[1]:
        refused |= dict.fromkeys(OF_TWO, NO_OTHER)
        return [], []
    counts = {int(prompt.at("image").counts[0]) for prompt in (shown, *others)}
    if len(counts) > 1:
        refused |= dict.fromkeys(("attribution", "patched"), NOT_ALIKE)
        return [], wanted
    return others, wanted


def _contrasts(
    model: Model,
    shown: Prompt,
    others: Sequence[Prompt],
    wanted: Sequence[int],
    refused: Said,
) -> list[Contrast]:
    """The picture with each of the others, for attribution; none where they do not compare."""
    try:
        return [
            contrast_of(
                model,
                shown,
                other,
                answers=[[wanted[0]]],
                foils=[[wanted[1]]],
                metric="logit_diff",
                roles=["image"],
                read_roles=None,
                each=True,
                by_role=False,
            )
            for other in others
        ]
    except InterventionsError as error:
        refused.setdefault("attribution", str(error))
        return []


def _methods(model: Model, contrasts: Sequence[Contrast], protocol: Protocol) -> list[Method]:
    """The protocol's ways to attribute, less integrated gradients where there is no line."""
    try:
        for contrast in contrasts:
            check_input_line(model, contrast)
    except InterventionsError:
        return [method for method in protocol.attribution_methods if method != "ig"]
    return [*protocol.attribution_methods]


def _attending(model: Model, shown: Prompt, refused: Said) -> tuple[list[int], list[int]]:
    """Blocks whose attention is read, and rolled out; with why there are none."""
    blocks: list[int] = []
    rolled: list[int] = []
    try:
        blocks = attending(model, None)
        if not blocks:
            raise SiteError(f"no block of {model.name} tells what its tokens attend to.")
        site = Site(PATTERN, blocks, shown.at("last").filled())
        check_sites(model, shown, [site])
        check_attention_fits(model, shown, (), [site])
    except InterventionsError as error:
        refused |= dict.fromkeys(("attention", "rollout"), str(error))
        return [], []
    try:
        rolled = attending(model, slice(0, model.n_layers), why=FOLLOWED)
        check_attention_fits(model, shown, (), [Site(PATTERN, rolled[:1])])
    except InterventionsError as error:
        refused["rollout"] = str(error)
        return blocks, []
    return blocks, rolled


def stored_maps(
    results: Sequence[Made],
    besides: Sequence[Beside],
    regions: Sequence[np.ndarray],
    items: Sequence[Item],
    others: Sequence[Item | None],
    *,
    most: int,
) -> xr.Dataset:
    """Put the maps of some pictures together.

    Parameters
    ----------
    results : sequence of (dict, dict, str)
        Of each: :func:`twohop.stages.resolution.picture_maps.maps_of`.
    besides : sequence of Beside
    regions : sequence of ndarray of int [token]
    items : sequence of Item
    others : sequence of Item or None
    most : int
        Image tokens of the picture that has the most of all that are stored.

    Returns
    -------
    Dataset
        As :func:`twohop.stages.resolution.pictured.read_pictures` says.
    """
    first = besides[0]
    windows = [blocks[0] for blocks in first.windows]
    n_layers = first.windows[-1][-1] + 1
    n_regions = len(first.regions)
    shapes: dict[str, tuple[int, ...]] = {
        "attribution": (len(AGAINST), n_layers, most),
        "attention": (n_layers, most),
        "rollout": (n_layers, most),
        "patched": (len(AGAINST), len(windows), n_regions),
        "cut": (len(CUT), len(windows), n_regions),
        "probe": (len(PROBES), n_layers + 1, most),
    }
    dims = {
        "attribution": ("against", "block", "image_token"),
        "attention": ("block", "image_token"),
        "rollout": ("block", "image_token"),
        "patched": ("against", "picture_window", "region"),
        "cut": ("cut_off", "picture_window", "region"),
        "probe": ("which_probe", "layer", "image_token"),
    }
    every = {measure: np.full((len(results), *shape), np.nan) for measure, shape in shapes.items()}
    for k, ((maps, *_), beside) in enumerate(zip(results, besides, strict=True)):
        there = {"attention": beside.attending, "rollout": beside.rolled}
        for measure, values in maps.items():
            whole = every[measure][k]
            n = values.shape[-1]
            if measure in there:
                whole[there[measure], :n] = values
            else:
                whole[..., :n] = values
    names = [item.entity.name for item in items]
    said = [[of_it.get(measure, "") for measure in MEASURES] for _, of_it, _ in results]
    place = np.full((len(results), most), -1)
    for k, of_tokens in enumerate(regions):
        place[k, : len(of_tokens)] = of_tokens
    return xr.Dataset(
        {
            **{
                f"picture_{measure}": (("mapped", *dims[measure]), values.astype("float32"))
                for measure, values in every.items()
            },
            "picture_region": (("mapped", "image_token"), place),
            "picture_refused": (("mapped", "measure"), np.array(said, dtype=object)),
        },
        coords={
            "mapped": names,
            "mapped_other": (
                "mapped",
                [other.entity.name if other is not None else "" for other in others],
            ),
            "mapped_answer": ("mapped", [item.answers[0] for item in items]),
            "mapped_foil": (
                "mapped",
                [other.answers[0] if other is not None else "" for other in others],
            ),
            "attributed_by": (
                "mapped",
                [METHODS_SAID.get(method, "") for *_, method in results],
            ),
            "measure": [*MEASURES],
            "against": [*AGAINST],
            "cut_off": [*CUT],
            "which_probe": [*PROBES],
            "block": np.arange(n_layers),
            "picture_window": windows,
            "picture_window_last": ("picture_window", [blocks[-1] for blocks in first.windows]),
        },
    )
