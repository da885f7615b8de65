"""What a picture's tokens are to an answer: attributed to, attended to, patched, cut off, probed.

For the examples of a report, beside the lens; nothing is measured on them, as each is of one
picture. What is compared is the logit of the first token of the own answer minus that of another
entity's: positive numbers are what is lost of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interventions import Knockout, Model, Patch, Positions, Prompt, Site
from interventions.architectures.quantisation import without_gradients
from interventions.architectures.wrapped import weightless
from interventions.attribution.estimates import Method, scores
from interventions.attribution.passes import Place
from interventions.errors import InterventionsError, SiteError
from interventions.model.sites import Component
from interventions.prompt.positions import from_lists
from interventions.running.rollout import attended_at, rolled_out
from interventions.sweeping.contrast import Contrast
from interventions.sweeping.schedule import Edit
from twohop.ask.memory import ran_out, read, remedy
from twohop.ask.on_server import no_tick
from twohop.stages.patched import run_cells

MEASURES = ("attribution", "attention", "rollout", "patched", "cut", "probe")
"""Maps of a picture, beside the lens."""
AGAINST = ("other", "same")
"""Whose picture states are taken from: another entity's, and as a control another of the own."""
CUT = ("region", "random")
"""What is cut off: a region, and as a control as many tokens of all regions."""
PROBES = ("own", "null")
"""A probe, and its null."""
PATTERN: Component = "attn_pattern"
STREAM: Component = "resid_pre"


@dataclass(frozen=True)
class Axis:
    """The difference of a probe's scores of two entities, which is linear in a state.

    Attributes
    ----------
    direction : Tensor [probe, layer, d_model]
        Of :data:`PROBES`.
    offset : Tensor [probe, layer]
    """

    direction: torch.Tensor
    offset: torch.Tensor

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """Differences [probe, layer, token] of states [layer, token, d_model]."""
        along = torch.einsum("ltd,pld->plt", states.double(), self.direction.double())
        return along + self.offset[..., None].double()


@dataclass(frozen=True)
class Beside:
    """A pictured entity beside another, as it goes to where the model runs.

    Attributes
    ----------
    shown : Prompt
        One row: the own picture.
    others : list of Prompt
        The same with the pictures of :data:`AGAINST`; empty where there is no other.
    contrasts : list of Contrast
        Of ``shown``, with values of each of these.
    wanted : list of int
        First token of the own answer, and of the other's.
    regions, random : list of list of int
        Tokens of each region, which may have none; and as many of all regions.
    windows : list of list of int
        Blocks, of which the first one's input is patched.
    cut : list of list of int
        Those of each window that can be cut.
    attending, rolled : list of int
        Blocks whose attention is read, and behind which it is rolled out.
    axis : Axis, optional
    methods : list of str
        Ways to attribute; the first that can be gone is.
    steps : int
        Of integrated gradients.
    refused : dict of str to str
        Measures that are not made, and why.
    """

    shown: Prompt
    others: list[Prompt]
    contrasts: list[Contrast]
    wanted: list[int]
    regions: list[list[int]]
    random: list[list[int]]
    windows: list[list[int]]
    cut: list[list[int]]
    attending: list[int]
    rolled: list[int]
    axis: Axis | None
    methods: list[Method]
    steps: int
    refused: dict[str, str]


Maps = dict[str, np.ndarray]
"""By measure, what there is of one picture."""
Said = dict[str, str]
"""By measure, why there is nothing, empty where there is."""


Made = tuple[Maps, Said, str]
"""Maps, why there are no others, and by which method was attributed, if it was."""


def maps_of(model: Model, beside: Beside) -> Made:
    """Make every map of a picture that is not refused.

    Returns
    -------
    maps : dict of str to ndarray
        ``attribution`` [against, layer, token], ``attention`` and ``rollout`` [layer, token],
        ``patched`` [against, window, region], ``cut`` [cut, window, region], ``probe``
        [probe, layer, token].
    said : dict of str to str
        Of the others, why there is none.
    method : str
        Of attribution; empty if there is none.
    """
    methods: list[str] = []

    def estimated(model: Model, beside: Beside) -> np.ndarray:
        lost, method = attributed(model, beside)
        methods.append(method)
        return lost

    makers: dict[str, Callable[[Model, Beside], np.ndarray]] = {
        "attribution": estimated,
        "attention": attention,
        "rollout": rollout,
        "patched": patched,
        "cut": cut_off,
        "probe": probed,
    }
    maps: Maps = {}
    said = dict(beside.refused)
    for measure in MEASURES:
        if measure in said:
            continue
        try:
            maps[measure] = makers[measure](model, beside)
        except Exception as error:
            if not isinstance(error, InterventionsError) and not ran_out(error):
                raise
            said[measure] = remedy(error) if ran_out(error) else str(error)
    return maps, said, "".join(methods)


def attributed(model: Model, beside: Beside) -> tuple[np.ndarray, Method]:
    """Estimated loss if a token had another picture's state at the input of a block; and how."""
    if weightless(model):
        raise SiteError("requests run in a process without the weights, which has no gradients.")
    if kind := without_gradients(model.module):
        raise SiteError(f"{model.name} is quantised ({kind}), which lets no gradient through.")
    places: list[Place] = [(STREAM, layer) for layer in range(model.n_layers)]
    refused: InterventionsError | None = None
    for method in beside.methods:
        try:
            parts = [
                scores(model, contrast, places, method, beside.steps)["score"][1][0, 0]
                for contrast in beside.contrasts
            ]
        except InterventionsError as error:
            if ran_out(error):
                raise
            refused = error
        else:
            return -np.stack(parts), method
    raise refused or SiteError("no way to attribute is allowed here.")


def attention(model: Model, beside: Beside) -> np.ndarray:
    """Share of the last token's attention, mean over heads."""
    site = Site(PATTERN, beside.attending, beside.shown.at("last").filled())
    shares = attended_at(model, beside.shown, site, mean=True).flatten(1, -2)
    return _of_image(beside.shown, shares).numpy()


def rollout(model: Model, beside: Beside) -> np.ndarray:
    """Share in the last token, by attention that is followed down."""
    shares = rolled_out(model, beside.shown, beside.shown.at("last").filled(), beside.rolled)
    return _of_image(beside.shown, shares.flatten(1, -2)).numpy()


def _of_image(prompt: Prompt, shares: torch.Tensor) -> torch.Tensor:
    return shares.reshape(len(shares), -1)[:, prompt.at("image").index[0]]


def patched(model: Model, beside: Beside) -> np.ndarray:
    """Loss if a region has another picture's states at the input of a window."""
    image = beside.shown.at("image")
    layers = [blocks[0] for blocks in beside.windows]
    place = {token: k for k, token in enumerate(image.index[0].tolist())}
    cells = []
    for other in beside.others:
        [values] = read(model, other, [Site(STREAM, layers, other.at("image"))])
        for k, layer in enumerate(layers):
            for tokens in filter(None, beside.regions):
                of_region = values[k][:, [place[token] for token in tokens]]
                cells.append([Patch(STREAM, layer, _at(beside.shown, tokens), of_region)])
    kept = np.array([bool(tokens) for tokens in beside.regions])
    table = np.full((len(beside.others), len(layers), len(kept)), np.nan)
    table[..., kept] = _lost(model, beside, cells).reshape(*table.shape[:2], -1)
    return table


def cut_off(model: Model, beside: Beside) -> np.ndarray:
    """Loss if nothing behind the picture may attend to a region in a window."""
    image, n = beside.shown.at("image"), beside.shown.length
    later = _at(beside.shown, [*range(int(image.index.max()) + 1, n)])
    attending = [k for k, blocks in enumerate(beside.cut) if blocks]
    kept = [k for k, tokens in enumerate(beside.regions) if tokens]
    cells = [
        [Knockout(beside.cut[k], later, _at(beside.shown, sets[region]), keep_self=True)]
        for sets in (beside.regions, beside.random)
        for k in attending
        for region in kept
    ]
    table = np.full((len(CUT), len(beside.cut), len(beside.regions)), np.nan)
    lost = _lost(model, beside, cells).reshape(len(CUT), len(attending), len(kept))
    table[:, np.array(attending)[:, None], np.array(kept)] = lost
    return table


def probed(model: Model, beside: Beside) -> np.ndarray:
    """By how much a probe's score of the entity is above the other's, at each token."""
    assert beside.axis is not None
    image = beside.shown.at("image")
    sites = [
        Site(STREAM, [*range(model.n_layers)], image),
        Site("resid_post", [model.n_layers - 1], image),
    ]
    states = torch.cat(read(model, beside.shown, sites))[:, 0]
    return beside.axis.of(states).numpy()


def _lost(model: Model, beside: Beside, cells: Sequence[Sequence[Edit]]) -> np.ndarray:
    """What each cell takes off the difference of logits, [cell]."""
    own, other = beside.wanted

    def difference(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return (logits[:, 0, own] - logits[:, 0, other]).float()

    [row] = run_cells(
        model,
        beside.shown,
        [[], *cells],
        positions=beside.shown.at("last"),
        measure=difference,
        tick=no_tick,
    ).T
    return row[0] - row[1:]


def _at(prompt: Prompt, tokens: list[int]) -> Positions:
    return from_lists([tokens], length=prompt.length, single=False, role="part of the picture")
