"""Writing what one model computed at some tokens into another model at others."""

from collections.abc import Sequence
from typing import Literal

import torch

from interventions.errors import PatchError
from interventions.given import of_kind, one_of
from interventions.given_arrays import tensor_of
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
from interventions.prompt.positions import MODES, Mode, Positions
from interventions.prompt.prompt import Prompt
from interventions.running.checking import check_asked
from interventions.running.patches import Patch, check_value
from interventions.running.run import read

How = Literal["one-to-one", "last-to-all", "mean-to-all"]
HOWS: tuple[How, ...] = ("one-to-one", "last-to-all", "mean-to-all")


def transplant(
    pair: ModelPair,
    source: Prompt | torch.Tensor,
    *,
    component: Component = "resid_post",
    layers: Layers = 0,
    read_at: Positions | None = None,
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
    source : Prompt, or Tensor [layer, row, d_model] or [layer, row, position, d_model]
        Of the backbone; or what is written in place of what it computes there: values that were
        read before, a mean of them, noise.
    component : str
        ``"resid_pre"``, ``"attn_out"``, ``"mlp_out"`` or ``"resid_post"``.
    layers : int, slice or list of int
        The backbone's.
    read_at : Positions
        Tokens of the prompt that is read; left out with a Tensor.
    write_at : Positions
        Tokens of the prompt that the VLM will run, row for row.
    how : {"one-to-one", "last-to-all", "mean-to-all"}
        Token for token, or one value for all tokens of the row: that of the last token read, or
        their mean. A Tensor says itself which it is.
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
        If rows, positions or layers differ in number, a Tensor does not fit where it is to go or
        holds NaN, or a layer is a cross-attention block.

    Examples
    --------
    >>> patches = transplant(
    ...     iv.pair(vlm, llm), named, layers=slice(0, 3),
    ...     read_at=named.at("entity"), write_at=shown.at("image"))
    >>> iv.complete(vlm, shown, stop=" .").texts
    ['Tessin']
    >>> iv.complete(vlm, shown, patches=patches, stop=" .").texts
    ['Marlow']

    The same size, any direction, is a control that must not help:

    >>> drawn = torch.randn(3, 1, llm.d_model, generator=torch.Generator().manual_seed(0))
    >>> control = transplant(
    ...     iv.pair(vlm, llm), drawn, layers=slice(0, 3), write_at=shown.at("image"))
    >>> iv.complete(vlm, shown, patches=control, stop=" .").texts
    ['Tessin']
    """
    of_kind(pair, ModelPair, "the pair", error=PatchError)
    component = one_of(component, "component", RESIDUAL, error=PatchError)
    how = one_of(how, "how", HOWS, error=PatchError)
    mode = one_of(mode, "mode", MODES, error=PatchError)
    of_kind(write_at, Positions, "write_at", error=PatchError)
    chosen = written_once(layer_list(layers, pair.backbone.n_layers), "layer")
    blocks = pair.backbone.anatomy.self_blocks
    if crossing := sorted({*chosen} - {*blocks}):
        raise PatchError(
            f"blocks {crossing} of {pair.backbone.name} are cross-attention blocks, which no "
            "block of a language model corresponds to. Leave them out: "
            "pair.backbone.anatomy.self_blocks are the others."
        )
    there = [pair.layer_map[blocks.index(layer)] for layer in chosen]
    if to_layers is not None:
        there = written_once(layer_list(to_layers, pair.vlm.n_layers), "layer")
    if len(there) != len(chosen):
        raise PatchError(
            f"{len(chosen)} layers are read, but {len(there)} are written. Name as many."
        )
    if isinstance(source, Prompt):
        value = _read(pair.backbone, source, component, chosen, read_at, write_at, how)
        return [Patch(component, there, write_at, value, mode)]
    value = tensor_of(source, "the source, given in place of a Prompt,")
    if read_at is not None:
        raise PatchError("a Tensor is not read anywhere. Leave read_at= out, or give a Prompt.")
    patch = Patch(component, there, write_at, value, mode)
    check_value(pair.vlm, patch)
    return [patch]


def _read(
    model: Model,
    source: Prompt,
    component: Component,
    layers: list[int],
    read_at: Positions | None,
    write_at: Positions,
    how: How,
) -> torch.Tensor:
    """What a prompt has at its tokens, [layer, row, d_model] or [layer, row, position, d_model]."""
    check_asked(model, source)
    at: Positions = of_kind(read_at, Positions, "read_at", error=PatchError)
    check_place(model, source, "a transplant", layers, at)
    if at.n_rows != write_at.n_rows:
        raise PatchError(
            f"{at.n_rows} rows are read, but {write_at.n_rows} are written. The prompts need "
            "the same rows in the same order."
        )
    if how == "one-to-one" and not torch.equal(at.counts.cpu(), write_at.counts.cpu()):
        raise PatchError(
            f"role {at.role!r} has {at.counts.tolist()[:8]} positions per row, "
            f"{write_at.role!r} has {write_at.counts.tolist()[:8]}. One-to-one needs as many; "
            'use how="last-to-all" or "mean-to-all".'
        )
    place = at.last() if how == "last-to-all" else at.filled()
    [value] = read(model, source, [Site(component, layers, place)])
    if how == "mean-to-all" and not at.single:
        mask = at.mask.to(value.device)[None, :, :, None]
        value = (value * mask).sum(2) / mask.sum(2)
    return value
