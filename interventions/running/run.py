"""Running a prompt with values written into it and read out of it, in one forward pass."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from interventions.architectures.wrapped import weightless, where_the_model_is
from interventions.errors import PatchError, PromptError, RemoteError, SiteError
from interventions.given import all_of_kind, flag, names, of_kind
from interventions.model.cache_names import cache_argument, returned_cache, with_cache_named
from interventions.model.model import Model
from interventions.model.prefix_attention import SHORT, attending_apart
from interventions.model.sites import (
    ANY,
    ATTENDING,
    Component,
    Site,
    check_place,
    check_sites,
    depth_of,
    layer_list,
    layers_of,
    of_head,
    rank_of,
    stage_of,
)
from interventions.model.streams import stacked
from interventions.model.vision import stream_of
from interventions.prompt.positions import Positions, Readout, answered_at
from interventions.prompt.prompt import Prompt
from interventions.returnable import returnable
from interventions.running.attention_memory import check_attention_fits
from interventions.running.checking import check_asked, check_numbers, check_start, start_of
from interventions.running.coordinates import write_within
from interventions.running.knockout import Knockout, check_knockouts, cut_edges
from interventions.running.last_block import only_wanted
from interventions.running.patches import Patch, check_patches

LANGUAGE = stage_of("resid_pre")
MASK = ANY.index("resid_pre") + 0.5
"""Place of a block's attention mask, which its attention is given before it projects anything."""


@returnable
@dataclass(frozen=True)
class Run:
    """What one forward pass gave.

    Attributes
    ----------
    logits : Tensor [row, vocab] or None
        At each row's last token; [row, position, vocab] where positions were asked for.
    reads : list of Tensor
        One per site, in the order asked: [layer, row, position, d_model], without the layer axis
        for an int layer and without the position axis for one position per row.
    cache : transformers Cache or None
        Keys and values of the rows. Those of a shared prefix may be kept once, in front of what
        each row added: :class:`interventions.model.prefix_attention.SharedLayer`.
    prompt : Prompt
        What was run.
    """

    logits: torch.Tensor | None
    reads: list[torch.Tensor]
    cache: Any
    prompt: Prompt


def run(
    model: Model,
    prompt: Prompt,
    *,
    patches: Sequence[Patch] = (),
    knockouts: Sequence[Knockout] = (),
    reads: Sequence[Site] = (),
    logits: bool | Positions = True,
    keep_cache: bool = False,
    start: tuple[int, torch.Tensor] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Run:
    """Run a prompt once, writing ``patches`` and reading ``reads``.

    Reads and writes are put in the order in which the model computes them; at the same site the
    write comes first, so a read sees what was written. Without ``logits`` the forward pass stops
    after the last site.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    patches : sequence of Patch
        Written in the prefill. Later patches overwrite earlier ones at the same place.
    knockouts : sequence of Knockout
        Attention edges to cut.
    reads : sequence of Site
    logits : bool or Positions
        Compute the logits of each row's last token, or of these positions.
    keep_cache : bool
        Keep keys and values, to go on from (see :mod:`interventions.running.complete`).
    start : (int, Tensor [row, position, d_model]), optional
        A block, and the ``resid_pre`` it had in a run in which nothing below it was patched. The
        blocks below are skipped: what they would compute is known; ``n_layers`` skips all. Ignored
        where something else is added between blocks, which skipping would add twice; the numbers
        are the same.
    inputs : mapping, optional
        More arguments for the model's forward. A cache may have the name that any version of
        transformers has for it: ``cache``, or ``past_key_values``.

    Returns
    -------
    Run

    Raises
    ------
    SiteError, PatchError
        Before anything runs, if a site or value does not fit.
    PatchError
        If, with what is written, the model gives no numbers (NaN).
    """
    check_asked(model, prompt)
    patches = all_of_kind(patches, Patch, "patches", error=PatchError)
    knockouts = all_of_kind(knockouts, Knockout, "knockouts", error=SiteError)
    reads = all_of_kind(reads, Site, "reads", error=SiteError)
    check_patches(model, prompt, patches)
    check_knockouts(model, prompt, knockouts)
    check_sites(model, prompt, reads)
    check_attention_fits(model, prompt, patches, reads)
    keep_cache = flag(keep_cache, "keep_cache")
    logits = logits if isinstance(logits, Positions) else flag(logits, "logits (or Positions)")
    if isinstance(logits, Positions):
        check_place(model, prompt, "logits", 0, logits)
    if start is not None:
        start = start_of(model, prompt, start)
        check_start(model, start[0], (*patches, *knockouts, *reads), keep_cache=keep_cache)
    if inputs is not None:
        names([*of_kind(inputs, Mapping, "inputs", error=PromptError)], "the names of inputs")
    asked = {
        "patches": patches,
        "knockouts": knockouts,
        "reads": reads,
        "logits": logits,
        "start": start,
        "inputs": inputs,
    }
    if not model.remote:
        return run_checked(model, prompt, **asked, keep_cache=keep_cache)
    if keep_cache:
        raise RemoteError(
            "keys and values stay on the server, so keep_cache=True gives nothing to go on from. "
            "Use iv.complete, or model.job(f, ...) with a function f that does all of it."
        )
    last, values = _logits_and_reads(model, prompt, **asked)
    return Run(last, values, None, prompt)


@where_the_model_is
def _logits_and_reads(model: Model, prompt: Prompt, **asked: Any) -> tuple[Any, list[Any]]:
    """What comes back from a server: neither keys and values nor the prompt."""
    done = run_checked(model, prompt, **asked)
    return done.logits, done.reads


@dataclass(frozen=True)
class Step:
    """One thing that is done in one block while a prompt runs.

    Attributes
    ----------
    stage : int
        What it is done in: the vision tower, the projector, or the language model.
    layer : int
    rank : float
        Its place in the block: that of its component, or of the attention mask.
    what : Knockout, Patch or Site
        A patch is of this layer alone.
    source : str or None
        What the coordinates of a patch are read off, where that is elsewhere: it is kept for it.
    kept : (int, int) or None
        Where what is read is kept: which of the sites, and which of its layers.
    """

    stage: int
    layer: int
    rank: float
    what: Knockout | Patch | Site
    source: Component | None = None
    kept: tuple[int, int] | None = None


def steps_of(
    model: Model,
    patches: Sequence[Patch],
    knockouts: Sequence[Knockout],
    reads: Sequence[Site],
) -> list[Step]:
    """Everything that is done in a run, in the order in which the model gets there.

    At one place edges are cut first, then values written, then read; and what was named first
    comes first.
    """
    steps = [
        Step(LANGUAGE, layer, MASK, cut)
        for cut in knockouts
        for layer in layer_list(cut.layers, model.n_layers)
    ]
    for patch in patches:
        for single in patch.split(depth_of(model, patch.component)):
            assert isinstance(single.layers, int)
            rank = rank_of(model, single.component, single.layers)
            stage = stage_of(single.component)
            steps.append(Step(stage, single.layers, rank, single))
            if single.within is not None and (source := single.within.source) is not None:
                rank = rank_of(model, source, single.layers)
                steps.append(Step(stage, single.layers, rank, single, source))
    for which, site in enumerate(reads):
        for i, layer in enumerate(layers_of(model, site)):
            rank = rank_of(model, site.component, layer)
            steps.append(Step(stage_of(site.component), layer, rank, site, kept=(which, i)))
    return sorted(
        steps, key=lambda step: (step.stage, step.layer, step.rank, step.source is not None)
    )


def edit(
    model: Model,
    step: Step,
    number_format: torch.dtype,
    seen: dict[int, torch.Tensor],
    *,
    later: int = 0,
) -> None:
    """Write or cut inside a trace, what is not only read.

    ``seen``: what the coordinates of a patch are read off, by the patch, until it is written;
    ``later`` as of :func:`cut_edges`.
    """
    what, layer = step.what, step.layer
    if isinstance(what, Knockout):
        cut_edges(model, replace(what, layers=layer), later=later)
        return
    assert isinstance(what, Patch)
    if step.source is not None:
        seen[id(what)] = stream_of(model, step.source).live(layer)
        return
    if what.within is not None:
        stream, given = stream_of(model, what.component), seen.get(id(what))
        before, at = stream.live(layer), what.positions
        after = write_within(before, at, what.within, what.value, what.mode, seen=given)
        stream.replace(layer, after)
        return
    stream_of(model, what.component).put(
        layer,
        what.positions,
        what.flat_value,
        mode=what.mode,
        checked=number_format,
        **({"heads": what.heads} if of_head(what.component) else {}),
    )


def read_step(model: Model, step: Step) -> Any:
    """Read inside a trace."""
    site = step.what
    assert isinstance(site, Site)
    heads = (site.heads,) if of_head(site.component) else ()
    return stream_of(model, site.component)[(step.layer, site.positions, *heads)]


def _begin(model: Model, prompt: Prompt, first: int, resid: torch.Tensor) -> None:
    """Begin a trace in a block with what it was given in another run: skip those below it."""
    below = range(first) if prompt.has_images else model.anatomy.self_blocks
    numbers = {block: model.anatomy.parts[block].n_given for block in below if block < first}
    if numbers and None not in numbers.values():
        for block, n in numbers.items():
            model.blocks[block].skip((resid, *[None] * (n - 1)) if n else resid)
    elif first == model.n_layers:
        model.resid_post.put(first - 1, None, resid, checked=model.dtype)
    else:
        model.resid_pre.put(first, None, resid, checked=model.dtype)


def run_checked(
    model: Model,
    prompt: Prompt,
    *,
    patches: Sequence[Patch] = (),
    knockouts: Sequence[Knockout] = (),
    reads: Sequence[Site] = (),
    logits: bool | Positions = True,
    keep_cache: bool = False,
    start: tuple[int, torch.Tensor] | None = None,
    inputs: Mapping[str, Any] | None = None,
    gradients: bool = False,
    narrow: bool = False,
) -> Run:
    """Run a prompt as :func:`run` does, here, when all it is given was looked at before.

    ``gradients``: logits and reads have those of what patches are within, where it asks for them.
    ``narrow``: the last block may leave out what wanted logits do not need; the numbers are then
    as they are to rounding, and not to the bit.
    """
    if model.anatomy.added_between and prompt.has_images:
        start = None
    steps = steps_of(model, patches, knockouts, reads)
    seen: dict[int, torch.Tensor] = {}
    kept: list[list[Any]] = [[None] * len(layers_of(model, site)) for site in reads]
    output: Any = None
    cache: Any = None
    last: Any = None
    final: Any = None
    keep = 1
    if isinstance(logits, Positions):
        keep = prompt.length - int(logits.index[logits.mask].min())
    cache_name = cache_argument(model.module)
    given = with_cache_named(cache_name, inputs or {})
    # What is put together of two softmaxes has no right gradient.
    shared = None if gradients else given.get(cache_name)
    if given.get(cache_name) is None and (before := model.prefix_cache(prompt)) is not None:
        given[cache_name] = before
        whole = (
            gradients
            or knockouts
            or any(place.component in ATTENDING for place in (*patches, *reads))
        )
        shared = before if prompt.length <= SHORT and not whole else None
    # A server's sandbox answers a stop twice, and takes the second answer for the next trace's.
    sandboxed = weightless(model)
    number_format = model.dtype
    behind = LANGUAGE, model.n_layers - 1, rank_of(model, "resid_pre", model.n_layers - 1)
    alone = (
        not narrow
        or gradients
        or sandboxed
        or logits is False
        or keep >= prompt.length
        or model.anatomy.dependent_rows is not None
        or any((step.stage, step.layer, step.rank) > behind for step in steps)
    )
    last_block = nullcontext() if alone else only_wanted(model, prompt.length, keep, shared)
    with torch.set_grad_enabled(gradients), attending_apart(model, shared), last_block:  # noqa: SIM117 - nnsight runs the inner
        with model.trace(prompt, inputs=given, logits_to_keep=keep, use_cache=keep_cache) as tracer:
            if start is not None:
                _begin(model, prompt, *start)
            for step in steps:
                if step.kept is None:
                    edit(model, step, number_format, seen)
                    continue
                which, i = step.kept
                kept[which][i] = read_step(model, step).save()
            if isinstance(logits, Readout):
                final = model.final_norm.input.save()
            if logits is not False or keep_cache:
                # A slice of positions reaches the head with gaps between rows, for which a linear
                # layer falls back to one product per row: several times slower on a CPU.
                model.head.input = model.head.input.contiguous()
                output = model.nn.output
                wide = torch.promote_types(output.logits.dtype, torch.float32)
                last = output.logits.to(wide).save()
                if keep_cache:
                    cache = returned_cache(output).save()
            elif not sandboxed:
                tracer.stop()
    values = [
        parts[0] if isinstance(site.layers, int) else stacked(parts)
        for site, parts in zip(reads, kept, strict=True)
    ]
    if isinstance(logits, Positions):
        last = answered_at(last, logits, prompt.length - keep, final)
    elif last is not None:
        last = last[:, -1]
    if last is not None and (patches or start is not None):
        asked = last[logits.mask.to(last.device)] if isinstance(logits, Positions) else last
        check_numbers(asked.detach(), number_format)
    return Run(last, values, cache, prompt)


def read(model: Model, prompt: Prompt, sites: Sequence[Site]) -> list[torch.Tensor]:
    """Read several sites in one forward pass, which stops after the deepest of them.

    Returns
    -------
    list of Tensor
        As :attr:`Run.reads`.

    Examples
    --------
    >>> [name] = read(llm, named, [Site("mlp_out", slice(0, 6), named.at("entity", -1))])
    >>> name.shape  # [layer, row, d_model]
    torch.Size([6, 1, 64])
    """
    return run(model, prompt, reads=sites, logits=False).reads
