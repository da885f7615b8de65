"""Where chosen tokens look: attention by layer and token, as blocks give it or rolled out."""

from collections.abc import Sequence

import torch
import xarray as xr

from interventions.errors import RoleError, SiteError
from interventions.given import flag, shown, text_of
from interventions.model.model import Model
from interventions.model.sites import Heads, Layers, Site, check_sites, layer_list, spot_of
from interventions.prompt.columns import role_tokens
from interventions.prompt.positions import Positions, from_lists, index_list
from interventions.prompt.prompt import Prompt
from interventions.running.attention_memory import check_attention_fits
from interventions.running.checking import check_asked
from interventions.running.rollout import attended_at, rolled_out
from interventions.sweeping.labels import token_coords
from interventions.sweeping.lens_map import places_in, spread, token_columns, with_origin

PATTERN = "attn_pattern"


def attention_map(
    model: Model,
    prompt: Prompt,
    *,
    queries: str = "last",
    layers: Layers | None = None,
    heads: Heads = None,
    roles: Sequence[str] | None = None,
    rollout: bool = False,
) -> xr.Dataset:
    """How much chosen tokens attend to each token, by layer, in one forward pass.

    Attention is what a block mixes, not what its outcome hangs on (Jain and Wallace, "Attention is
    not Explanation", NAACL 2019): whether an answer needs what is looked at, a knockout or a patch
    shows.

    Parameters
    ----------
    model : Model
    prompt : Prompt
        A row is an item.
    queries : str
        Who looks: a role, or one of its tokens, ``"entity[-1]"``. Of several tokens the mean.
    layers : int, slice or list of int, optional
        Default: all whose blocks attend to the prompt's tokens.
    heads : int, slice or list of int, optional
        A map for each of these. Default: the mean over heads.
    roles : sequence of str, optional
        What is looked at: a column for each token of these, such as ``["image"]``. Default: every
        token.
    rollout : bool
        Follow attention down to the first block, by the mean over heads and with half of each token
        left as it is: how much of each token is mixed into the queries behind each layer (Abnar and
        Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020). It takes all values for
        alike, whatever they are.

    Returns
    -------
    Dataset
        ``weight`` (item, layer, [head], position), or ``rollout`` (item, layer, position): shares
        that sum to 1 over all tokens and a shared prefix, less what a sink takes. NaN where a row
        has no such token. Coordinates and attributes as of :func:`interventions.lens_map`, for
        :func:`interventions.overlay`.

    Raises
    ------
    RoleError, SiteError
        If there are no such tokens; for a block that attends to no tokens of the prompt, being of
        cross-attention or with a recurrent state, which rollout cannot follow either; or where
        requests run in a process of their own.
    BudgetTooSmall
        If there is no memory for a number for each pair of tokens.

    Examples
    --------
    >>> seen = iv.attention_map(vlm, shown, roles=["image"])
    >>> seen["weight"].sizes
    Frozen({'item': 1, 'layer': 8, 'position': 4})
    >>> iv.attention_map(vlm, shown, heads=[0, 1])["weight"].sizes["head"]
    2
    >>> iv.overlay(iv.attention_map(vlm, shown, rollout=True), flag).save("rollout.png").name
    'rollout.png'
    """
    check_asked(model, prompt)
    rollout = flag(rollout, "rollout")
    queries = text_of(queries, "queries")
    asking = _asking(prompt, queries)
    columns = token_columns(prompt, roles)
    chosen = attending(model, layers)
    if rollout and heads is not None:
        raise SiteError("rollout takes the mean over heads. Leave heads= out.")
    named = None if heads is None else index_list(heads, model.anatomy.n_heads, "head")
    site = Site(PATTERN, chosen, asking.filled(), named)
    check_sites(model, prompt, [site])
    if rollout:
        attending(model, slice(0, max(chosen) + 1), why="rollout follows attention through it")
        check_attention_fits(model, prompt, (), [Site(PATTERN, chosen[:1])])
        values = rolled_out(model, prompt, asking.filled(), chosen)
    else:
        check_attention_fits(model, prompt, (), [site])
        values = attended_at(model, prompt, site, mean=named is None)
    values = values.transpose(3, -1)  # [layer, row, query, key, (head)]
    mine = asking.mask.reshape(1, *asking.mask.shape, *[1] * (values.ndim - 3))
    values = torch.where(mine, values, 0).sum(2) / mine.sum(2)

    index, where = places_in(columns, prompt)
    rows = torch.arange(len(prompt))[:, None]
    grid = spread(values[:, rows, index.index], where, len(columns.names))
    dims, coords = ["item", "layer", "position"], token_coords(model, prompt, columns)
    if named is not None:
        dims.append("head")
        coords["head"] = named
    name = "rollout" if rollout else "weight"
    about = {"units": "share of the whole", "long_name": "attention"}
    dataset = xr.Dataset(
        {name: (dims, grid.double().numpy(), about)}, coords={"layer": chosen, **coords}
    )
    usual = ["item", "layer", *dims[3:], "position"]
    settings = {"queries": queries, "rollout": rollout}
    return with_origin(dataset.transpose(*usual, ...), model, prompt, settings)


def _asking(prompt: Prompt, name: str) -> Positions:
    """The queries of each row."""
    tokens = role_tokens(prompt, name)
    if lacking := [row for row, own in enumerate(tokens) if not own]:
        raise RoleError(
            f"row(s) {lacking[:8]} have no token of {shown(name)}. Leave them out with "
            "prompt.select(rows), or name other queries."
        )
    return from_lists(tokens, length=prompt.length, single=False, role=name)


def attending(model: Model, layers: Layers | None, *, why: str = "") -> list[int]:
    """Blocks that attend to the prompt's tokens; a named one that does not is refused."""
    parts = model.anatomy.parts
    every = [
        layer
        for layer in range(model.n_layers)
        if parts[layer].spot(PATTERN).path is not None and not parts[layer].cross
    ]
    chosen = every if layers is None else layer_list(layers, model.n_layers)
    for layer in sorted({*chosen} - {*every}):
        spot_of(model, PATTERN, layer)  # says why there is none
        raise SiteError(
            f"block {layer} of {model.name} attends to the image's own tokens, which are none of "
            f"the prompt{f'; {why}' if why else ''}. Blocks that attend to the prompt: {every}."
        )
    return sorted({*chosen})
