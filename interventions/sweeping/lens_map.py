"""What the head would say at each token and layer: a map of a word."""

from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr

from interventions.errors import SiteError
from interventions.given import names, one_of
from interventions.model.model import Model
from interventions.model.sites import Component, Layers, Site, check_sites
from interventions.prompt.columns import Columns, columns_of, every_token
from interventions.prompt.positions import Positions, from_lists
from interventions.prompt.prompt import Prompt
from interventions.results import origin, with_provenance
from interventions.running.checking import check_asked
from interventions.running.lens import lens_at
from interventions.sweeping.grid import chosen_layers
from interventions.sweeping.labels import as_text, token_coords
from interventions.sweeping.metrics import Answers, tokens_of

READ_OUT = ("resid_pre", "resid_mid", "resid_post")
"""Where the residual stream is, which the head reads."""


def lens_map(
    model: Model,
    prompt: Prompt,
    words: Answers,
    *,
    component: Component = "resid_post",
    layers: Layers | None = None,
    roles: Sequence[str] | None = None,
) -> xr.Dataset:
    """Read a word out of every token at every layer by the model's own head (logit lens).

    One forward pass; on a server one request, of which the numbers come back and no states. What
    :func:`interventions.lens` says of states that were read is said here of tokens, with where
    they lie in a picture, for :func:`interventions.overlay` and :func:`interventions.heatmap`.

    Parameters
    ----------
    model : Model
    prompt : Prompt
        A row is an item.
    words : str, or sequence of str or of token ids
        What is looked for, by the first of its tokens: one text for all rows, or one per row, as a
        text or as the ids of its tokens.
    component : {"resid_pre", "resid_mid", "resid_post"}
        Where in a block the residual stream is read.
    layers : int, slice or list of int, optional
        Default: all that run.
    roles : sequence of str, optional
        A column for each token of these, such as ``["image"]``. Default: every token.

    Returns
    -------
    Dataset
        ``probability`` of the first token of the word; ``logprob``, its logarithm, nats; ``rank``,
        how many tokens are likelier; and ``reciprocal_rank``, 1 / (1 + rank), which is 1 for the
        likeliest: each (item, layer, position), NaN where a row has no such token. Coordinates
        ``token``, ``role`` and, of image tokens, where they lie (:meth:`Prompt.image_grid`);
        ``looked_for`` (item): the token that was looked for. Attributes as of a sweep.

    Raises
    ------
    PromptError, RoleError, SiteError
        Before anything runs, if a word has no tokens, or the model or the prompt no such place.

    Examples
    --------
    >>> seen = iv.lens_map(vlm, shown, "Belmora", roles=["image"])
    >>> seen["probability"].sizes
    Frozen({'item': 1, 'layer': 8, 'position': 4})
    >>> iv.overlay(seen, flag).save("belmora.html").name
    'belmora.html'
    """
    check_asked(model, prompt)
    component = one_of(component, "component", READ_OUT, error=SiteError)
    wanted = tokens_of(model, prompt, words, "word")
    chosen = sorted({*chosen_layers(model, layers, images=prompt.has_images)})
    columns = token_columns(prompt, roles)
    index, where = places_in(columns, prompt)
    site = Site(component, chosen, index.filled())
    check_sites(model, prompt, [site])
    first = torch.tensor([tokens[:1] for tokens in wanted])
    logprob, rank = (value[..., 0].double() for value in lens_at(model, prompt, [site], first))
    readings = {
        "probability": (logprob.exp(), {}),
        "logprob": (logprob, {"units": "nats"}),
        "rank": (rank, {}),
        "reciprocal_rank": (1 / (1 + rank), {}),
    }
    dims = ("item", "layer", "position")
    dataset = xr.Dataset(
        {
            name: (dims, spread(value, where, len(columns.names)).numpy(), attrs)
            for name, (value, attrs) in readings.items()
        },
        coords={
            "layer": chosen,
            **token_coords(model, prompt, columns),
            "looked_for": ("item", [model.tokenizer.decode(tokens[:1]) for tokens in wanted]),
        },
    )
    settings = {"words": as_text(model, wanted), "component": component}
    return with_origin(dataset, model, prompt, settings)


def token_columns(prompt: Prompt, roles: Sequence[str] | None) -> Columns:
    """A column for each token of roles, or of the prompt."""
    if roles is None:
        return every_token(prompt)
    return columns_of(prompt, names(roles, "roles"), each=True)[0]


def places_in(columns: Columns, prompt: Prompt) -> tuple[Positions, list[list[int]]]:
    """Positions of all columns, row by row; and which column each is of."""
    tokens, where = [], []
    for row in range(len(prompt)):
        there = [k for k, column in enumerate(columns.tokens) if column[row]]
        where.append(there)
        tokens.append([columns.tokens[k][row][0] for k in there])
    return from_lists(tokens, length=prompt.length, single=False, role="tokens of a map"), where


def spread(values: torch.Tensor, where: list[list[int]], n: int) -> torch.Tensor:
    """Values [layer, row, place, ...] at the columns they are of: [row, layer, column, ...].

    NaN where a row has none.
    """
    layers, rows, _, *rest = values.shape
    grid = torch.full((rows, layers, n, *rest), torch.nan, dtype=values.dtype)
    for row, columns in enumerate(where):
        grid[row][:, columns] = values[:, row, : len(columns)]
    return grid


def with_origin(
    dataset: xr.Dataset, model: Model, prompt: Prompt, settings: dict[str, Any]
) -> xr.Dataset:
    """The Dataset with how it was made."""
    return with_provenance(
        dataset, origin(model=model), settings={"prompt": prompt.digest, **settings}
    )
