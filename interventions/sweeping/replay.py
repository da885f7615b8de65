"""Many patches of one prompt, at the cost of what each of them changes.

A patch in block l at position p leaves every block below l and, in a causal decoder, every token
before p as they were. So the prompt is run once; each cell (a set of patches) then starts in its
first block, with its first position, from the keys and values that this run left; and cells are
rows of one forward pass. Where tokens see each other in both directions whole rows are run, from
the first patched block on; and where even that would change the numbers, each cell is run in full.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from transformers.cache_utils import DynamicCache

from interventions.architectures.wrapped import where_the_model_is
from interventions.errors import PatchError, SiteError
from interventions.given import all_of_kind, callback, of_kind, several, shown, whole
from interventions.given_arrays import check_range
from interventions.model.cache_names import cache_argument
from interventions.model.fingerprints import Unchanged
from interventions.model.model import Model
from interventions.model.prefix_attention import is_shared, shared_cache
from interventions.model.sites import ATTENDING, Site, check_place
from interventions.prompt.positions import Positions
from interventions.prompt.prompt import Prompt
from interventions.prompt.rows import SEQUENCE_KEYS
from interventions.running.budget import Budget
from interventions.running.checking import check_asked
from interventions.running.knockout import Knockout, check_knockouts
from interventions.running.patches import Patch, check_patches
from interventions.running.run import run_checked
from interventions.sweeping.folding import folded, layer_of, scale_of
from interventions.sweeping.schedule import (
    Cell,
    Edit,
    Group,
    Path,
    cell,
    first_block,
    groups,
    in_tower,
    is_behind,
    path_of,
)
from interventions.sweeping.sizes import Sizes


@dataclass(frozen=True)
class Clean:
    """The unpatched run of a prompt: what cells start from.

    Attributes
    ----------
    prompt : Prompt
    at : Positions
        Where logits are wanted.
    logits : Tensor [row, token, vocab]
        There.
    resid : dict of int to Tensor [row, position, d_model]
        What enters each block in which cells start (``n_layers``: what the last block gives); from
        position ``first`` on.
    mlp_out : dict of int to Tensor [row, position, d_model]
        Of the blocks whose MLP output is patched; from position ``first`` on.
    layers : list of (Tensor, Tensor)
        Keys and values of every block [row, head, prefix + position, width]; empty if not used.
    first : int
    """

    prompt: Prompt
    at: Positions
    logits: torch.Tensor
    resid: dict[int, torch.Tensor]
    mlp_out: dict[int, torch.Tensor]
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    first: int


def run_clean(
    model: Model,
    prompt: Prompt,
    at: Positions,
    cells: Sequence[Cell],
    path: Path,
    *,
    apart: bool = False,
) -> Clean:
    """Run a prompt once, and keep what ``cells`` start from; ``apart`` as in :func:`replayed`."""
    n = model.n_layers
    first = 0 if path != "suffix" else min([cell.position for cell in cells] + [prompt.length - 1])
    written = sorted(
        {
            layer_of(patch)
            for cell in cells
            for patch in cell.patches
            if patch.component == "mlp_out"
            and is_behind(patch)
            and (patch.mode != "add" or model.anatomy.parts[layer_of(patch)].scale)
            and first_block(patch) == cell.block
        }
    )
    if path == "plain":
        return Clean(
            prompt,
            at,
            _plain(model, prompt, at, Edits(patches=[], knockouts=[]), apart=apart),
            {},
            {},
            [],
            0,
        )
    where = _from(prompt, first)
    running = range(n) if prompt.has_images else model.anatomy.self_blocks
    blocks = sorted({cell.block for cell in cells})
    reads = []
    for block in blocks:
        below = [layer for layer in running if layer < block]
        # What enters a block that does not run is what the one below it gives.
        reads.append(
            Site("resid_pre", block, where)
            if block in running
            else Site("resid_post", below[-1], where)
        )
    if written:
        reads.append(Site("mlp_out", written, where))
    suffix = path == "suffix"
    inputs: dict[str, Any] = {}
    if suffix and not len(prompt.prefix_ids):
        # This one keeps all, in blocks with windows too.
        inputs = {cache_argument(model.module): DynamicCache()}
    run = run_checked(model, prompt, reads=reads, logits=at, keep_cache=suffix, inputs=inputs)
    resid = dict(zip(blocks, run.reads, strict=False))
    for value in resid.values():
        check_range(value, model.dtype, "what enters a block of the run without patches")
    mlp_out = dict(zip(written, run.reads[-1], strict=True)) if written else {}
    layers = []
    if suffix:
        whole = is_shared(run.cache)
        layers = [
            layer.whole() if whole else (layer.keys, layer.values) for layer in run.cache.layers
        ]
    return Clean(prompt, at, _logits(run), resid, mlp_out, layers, first)


def _logits(run: Any) -> torch.Tensor:
    assert run.logits is not None
    return run.logits


def _from(prompt: Prompt, first: int) -> Positions:
    index = torch.arange(first, prompt.length).expand(len(prompt), -1)
    mask = torch.ones_like(index, dtype=torch.bool)
    return Positions(index, mask, prompt.length, False, "suffix")


def replayed(
    model: Model,
    clean: Clean,
    cells: Sequence[Cell],
    path: Path,
    todo: Sequence[Group],
    *,
    apart: bool = False,
    gradients: bool = False,
) -> Generator[tuple[Group, torch.Tensor], None, None]:
    """Run groups of cells; ``apart``: each row of the prompt in a forward pass of its own;
    ``gradients``: as :func:`interventions.running.run.run_checked` takes it.

    Yields
    ------
    group : Group
    logits : Tensor [cell, row, token, vocab]
        At ``clean.at``.
    """
    n = len(clean.prompt)
    for group in todo:
        chosen = [cells[i] for i in group.cells]
        # Rows of one prompt row are next to each other: they share its prefix.
        rows = torch.arange(n).repeat_interleave(len(chosen))
        if path == "plain":
            repeated = clean.prompt.select(rows)
            edits = _merged(model, chosen, group.position, clean.prompt.length)
            at = clean.at.rows(rows)
            logits = _plain(model, repeated, at, edits, apart=apart, gradients=gradients)
        else:
            suffix = path == "suffix"
            logits = _continued(
                model, clean, group, chosen, rows, suffix=suffix, gradients=gradients
            )
        yield group, logits.unflatten(0, (n, len(chosen))).transpose(0, 1)


class Edits(TypedDict):
    """What a forward pass is given of edits."""

    patches: list[Patch]
    knockouts: list[Knockout]


def _plain(
    model: Model,
    prompt: Prompt,
    at: Positions,
    edits: Edits,
    *,
    apart: bool,
    gradients: bool = False,
) -> torch.Tensor:
    """Logits of whole rows, together or one after the other."""
    if not apart or len(prompt) == 1:
        return _logits(run_checked(model, prompt, **edits, logits=at, gradients=gradients))
    logits = []
    for row in torch.arange(len(prompt)).split(1):
        own = Edits(
            patches=[patch.of_rows(row) for patch in edits["patches"]],
            knockouts=[cut.of_rows(row) for cut in edits["knockouts"]],
        )
        run = run_checked(
            model, prompt.select(row), **own, logits=at.rows(row), gradients=gradients
        )
        logits.append(_logits(run))
    return torch.cat(logits)


def _continued(
    model: Model,
    clean: Clean,
    group: Group,
    chosen: list[Cell],
    rows: torch.Tensor,
    *,
    suffix: bool,
    gradients: bool,
) -> torch.Tensor:
    """Logits of cells as rows that start in a block, at a position."""
    at, length = group.position, clean.prompt.length - group.position
    resid = clean.resid[group.block][:, at - clean.first :]
    resid = resid.repeat_interleave(len(chosen), 0)
    inside: list[Cell] = []
    for which, chosen_cell in enumerate(chosen):
        mine = slice(which, None, len(chosen))
        behind, left = [], []
        for patch in chosen_cell.patches:
            skipped = first_block(patch) == group.block and is_behind(patch)
            (behind if skipped else left).append(patch)
        if behind:
            layer = layer_of(behind[0])
            given = clean.mlp_out.get(layer)
            given = None if given is None else given[:, at - clean.first :]
            scale = scale_of(model, layer)
            resid[mine] = folded(resid[mine], behind, given, at, scale)
        inside.append(replace(chosen_cell, patches=tuple(left)))
    edits = _merged(model, inside, at, length)
    before_it = at + len(clean.prompt.prefix_ids)
    inputs: dict[str, Any] = {}
    if suffix:
        before = [
            (keys[:, :, :before_it], values[:, :, :before_it]) for keys, values in clean.layers
        ]
        cache = shared_cache(model, before, n_rows=len(rows), growing=False)
        inputs[cache_argument(model.module)] = cache
    return _logits(
        run_checked(
            model,
            _suffix(clean.prompt, rows, at, prefix=not suffix),
            **edits,
            logits=clean.at.rows(rows).shifted(at, length),
            start=(group.block, resid),
            inputs=inputs,
            gradients=gradients,
            narrow=True,
        )
    )


def _merged(model: Model, chosen: Sequence[Cell], at: int, length: int) -> Edits:
    """Edits of cells, each for its own rows, as few as places and modes allow."""
    patches: dict[Any, dict[int, Patch]] = {}
    cuts: dict[Any, dict[int, Knockout]] = {}
    for which, own in enumerate(chosen):
        for order, patch in enumerate(own.patches):
            heads = None if patch.heads is None else repr(patch.heads)
            key = (order, patch.component, patch.layers, patch.mode, heads, id(patch.within))
            patches.setdefault(key, {})[which] = patch.shifted(at, length)
        for order, cut in enumerate(own.knockouts):
            key = (order, cut.layers, repr(cut.heads), cut.keep_self)
            cuts.setdefault(key, {})[which] = cut.shifted(at, length)
    # Each cell's in its own order: a later cell's first may be of a kind that comes up last.
    return Edits(
        patches=[
            Patch.merge(model, patches[key], len(chosen)) for key in sorted(patches, key=_turn)
        ],
        knockouts=[Knockout.merge(cuts[key], len(chosen)) for key in sorted(cuts, key=_turn)],
    )


def _turn(key: Any) -> int:
    """Which of a cell's edits those of a kind are."""
    return key[0]


def _suffix(prompt: Prompt, rows: torch.Tensor, at: int, *, prefix: bool) -> Prompt:
    """Rows of a prompt from a position on, without their images: what they gave is known."""
    inputs = {key: value[rows] for key, value in prompt.inputs.items() if key not in prompt.entries}
    for key in ("input_ids", *SEQUENCE_KEYS):
        if key in inputs:
            inputs[key] = inputs[key][:, at:]
    inputs["position_ids"] = inputs["position_ids"][..., at:]
    suffix = Prompt(inputs, roles=[{}] * len(rows), texts=[""] * len(rows))
    return replace(suffix, prefix_ids=prompt.prefix_ids) if prefix else suffix


def _reduced(kept: Any, n_cells: int) -> torch.Tensor:
    if not isinstance(kept, torch.Tensor) or not kept.ndim or len(kept) != n_cells:
        raise PatchError(f"reduce= gave {shown(kept)}. Expected a tensor [{n_cells}, ...].")
    return kept


def replay(
    model: Model,
    prompt: Prompt,
    cells: Sequence[Sequence[Edit]],
    *,
    logits: Positions | None = None,
    budget: int | None = None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Run a prompt once for each set of patches and knockouts, at the cost of what it changes.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    cells : sequence of sequences of Patch or Knockout
        Each an intervention of its own, over all rows of the prompt.
    logits : Positions, optional
        Where logits are wanted. Default: each row's last token.
    budget : int, optional
        Bytes that may be used. Default: part of what is free.
    reduce : callable, optional
        Given the logits [cell, row, token, vocab] of the cells of one forward pass; what it makes
        of them, [cell, ...], is kept in their place.

    Returns
    -------
    Tensor [cell, row, token, vocab], or [cell, ...] as reduced
        Logits, as so many calls of :func:`interventions.run` would give, to rounding.

    Examples
    --------
    >>> place = named.at("entity", -1)
    >>> cells = [[iv.ablated("mlp_out", layer, place)] for layer in range(llm.n_layers)]
    >>> iv.replay(llm, named, cells).shape  # [cell, row, token, vocab]
    torch.Size([8, 1, 1, 109])
    """
    check_asked(model, prompt)
    at = prompt.at("last") if logits is None else logits
    check_place(model, prompt, "logits", 0, of_kind(at, Positions, "logits", error=SiteError))
    budget = None if budget is None else whole(budget, "budget", least=1)
    reduce = callback(reduce, "reduce", error=PatchError)
    expected = "a list of lists of Patch or Knockout"
    cells = [
        all_of_kind(edits, (Patch, Knockout), f"cell {i}", error=PatchError)
        for i, edits in enumerate(several(cells, "cells", error=PatchError, expected=expected))
    ]
    if not cells:
        raise PatchError("cells is empty, so there is nothing to run. Give at least one.")
    for edits in cells:
        patches = [edit for edit in edits if isinstance(edit, Patch)]
        check_patches(model, prompt, patches)
        check_knockouts(model, prompt, [edit for edit in edits if isinstance(edit, Knockout)])
    return _replay(model, prompt, cells, at, budget, reduce)


def _check_behind(at: Positions, cells: Sequence[Cell]) -> None:
    """Refuse logits of tokens that a cell does not run: those before what it patches."""
    earliest = int(at.index[at.mask].min()) if bool(at.mask.any()) else at.length
    for i, prepared in enumerate(cells):
        if earliest < prepared.position:
            raise SiteError(
                f"logits of position {earliest} were asked for, but cell {i} patches nothing "
                f"before position {prepared.position}, and what comes earlier does not change. "
                "Ask for later positions, and take those from iv.run(model, prompt, logits=...)."
            )


@where_the_model_is
def _replay(
    model: Model,
    prompt: Prompt,
    cells: Sequence[Sequence[Edit]],
    at: Positions,
    budget: int | None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None,
) -> torch.Tensor:
    """Run cells that were looked at."""
    prepared = [cell(model, edits) for edits in cells]
    path, _ = path_of(
        model, prompt, tower=any(in_tower(p) for own in prepared for p in own.patches)
    )
    if any(patch.component in ATTENDING for own in prepared for patch in own.patches):
        path = "plain"  # a pattern is of the whole row
    if path == "suffix":
        _check_behind(at, prepared)
    allowed = Budget.of(model, budget)
    length, before = prompt.length, len(prompt.prefix_ids)
    needed = len(prompt) * Sizes.of(model).clean(length, before)
    allowed.fit(needed, len(prompt) * length, "the clean run")
    result: list[Any] = [None] * len(prepared)
    with Unchanged(model):
        clean = run_clean(model, prompt, at, prepared, path)
        todo = groups(model, prompt, prepared, path, allowed)
        for group, logits in replayed(model, clean, prepared, path, todo):
            kept = logits if reduce is None else _reduced(reduce(logits), len(group.cells))
            for i, value in zip(group.cells, kept, strict=True):
                result[i] = value
    return torch.stack(result)
