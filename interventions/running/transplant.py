"""Writing what one model computed at some tokens into another model at others."""

from collections.abc import Sequence
from typing import Literal

import torch

from interventions.architectures.wrapped import where_the_model_is
from interventions.errors import PatchError
from interventions.given import of_kind, one_of
from interventions.model.model import Model
from interventions.model.pairing import ModelPair
from interventions.model.sites import (
    RESIDUAL,
    Component,
    Layers,
    Site,
    check_place,
    layer_list,
    written_once,
)
from interventions.prompt.positions import MODES, Mode, Positions, read_padded
from interventions.prompt.prompt import Prompt
from interventions.running.checking import check_asked
from interventions.running.patches import Patch
from interventions.running.run import read

How = Literal["one-to-one", "last-to-all", "mean-to-all"]
HOWS: tuple[How, ...] = ("one-to-one", "last-to-all", "mean-to-all")


def transplant(
    pair: ModelPair,
    source: Prompt,
    *,
    component: Component = "resid_post",
    layers: Layers = 0,
    read_at: Positions,
    write_at: Positions,
    how: How = "last-to-all",
    to_layers: Sequence[int] | None = None,
    mode: Mode = "set",
) -> list[Patch]:
    """Read the backbone on ``source`` and make the patches that write it into the VLM.

    Parameters
    ----------
    pair : ModelPair
        From :func:`interventions.pair`.
    source : Prompt
        Of the backbone.
    component : str
        ``"resid_pre"``, ``"attn_out"``, ``"mlp_out"`` or ``"resid_post"``.
    layers : int, slice or list of int
        The backbone's.
    read_at : Positions
        Tokens of ``source``.
    write_at : Positions
        Tokens of the prompt that the VLM will run, row for row.
    how : {"one-to-one", "last-to-all", "mean-to-all"}
        Token for token, or one value for all tokens of the row: that of the last token read, or
        their mean.
    to_layers : sequence of int, optional
        The VLM's, as many as ``layers``. Default: those that correspond.
    mode : {"set", "add"}
        Overwrite, or add.

    Returns
    -------
    list of Patch
        For :func:`interventions.run` or :func:`interventions.complete`.

    Raises
    ------
    PatchError
        If rows, positions or layers differ in number, or a layer is a cross-attention block.

    Examples
    --------
    >>> patches = transplant(
    ...     iv.pair(vlm, llm), named, layers=slice(0, 3),
    ...     read_at=named.at("entity"), write_at=shown.at("image"))
    >>> iv.complete(vlm, shown, stop=" .").texts
    ['Tessin']
    >>> iv.complete(vlm, shown, patches=patches, stop=" .").texts
    ['Marlow']
    """
    of_kind(pair, ModelPair, "the pair", error=PatchError)
    check_asked(pair.backbone, source)
    component = one_of(component, "component", RESIDUAL, error=PatchError)
    how = one_of(how, "how", HOWS, error=PatchError)
    mode = one_of(mode, "mode", MODES, error=PatchError)
    for at, what in ((read_at, "read_at"), (write_at, "write_at")):
        of_kind(at, Positions, what, error=PatchError)
    chosen = written_once(layer_list(layers, pair.backbone.n_layers), "layer")
    blocks = pair.backbone.anatomy.self_blocks
    if crossing := sorted({*chosen} - {*blocks}):
        raise PatchError(
            f"blocks {crossing} of {pair.backbone.name} are cross-attention blocks, which no "
            "block of a language model corresponds to. Leave them out: "
            "pair.backbone.anatomy.self_blocks are the others."
        )
    check_place(pair.backbone, source, "a transplant", chosen, read_at)
    there = [pair.layer_map[blocks.index(layer)] for layer in chosen]
    if to_layers is not None:
        there = written_once(layer_list(to_layers, pair.vlm.n_layers), "layer")
    if len(there) != len(chosen):
        raise PatchError(
            f"{len(chosen)} layers are read, but {len(there)} are written. Name as many."
        )
    if read_at.n_rows != write_at.n_rows:
        raise PatchError(
            f"{read_at.n_rows} rows are read, but {write_at.n_rows} are written. The prompts need "
            "the same rows in the same order."
        )
    if how == "one-to-one":
        if not torch.equal(read_at.counts.cpu(), write_at.counts.cpu()):
            raise PatchError(
                f"role {read_at.role!r} has {read_at.counts.tolist()[:8]} positions per row, "
                f"{write_at.role!r} has {write_at.counts.tolist()[:8]}. One-to-one needs as many; "
                'use how="last-to-all" or "mean-to-all".'
            )
        value = padded(pair.backbone, source, component, chosen, read_at)
    elif how == "last-to-all":
        [value] = read(pair.backbone, source, [Site(component, chosen, read_at.last())])
    else:
        values = padded(pair.backbone, source, component, chosen, read_at)
        mask = read_at.mask.to(values.device)[None, :, :, None]
        value = (values * mask).sum(2) / mask.sum(2)
    if how != "one-to-one":
        value = value[:, :, None].expand(-1, -1, write_at.index.shape[1], -1)
    elif read_at.single or write_at.single:
        value = value.reshape(len(chosen), read_at.n_rows, -1, value.shape[-1])
    return [Patch(component, there, write_at, value, mode)]


@where_the_model_is
def padded(
    model: Model, source: Prompt, component: Component, layers: Layers, at: Positions
) -> torch.Tensor:
    """Values [layer, row, position, d_model]; what the mask leaves out is meaningless."""
    [everything] = read(model, source, [Site(component, layers)])
    return read_padded(everything, at, layer_axis=True)
