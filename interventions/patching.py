"""Running a prompt with values written into it and read out of it, in one forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interventions.cache_names import cache_argument, returned_cache, with_cache_named
from interventions.checking import check_asked, check_start, check_value, start_of
from interventions.errors import PatchError, PromptError, RemoteError, SiteError
from interventions.given import (
    all_of_kind,
    flag,
    index_of,
    names,
    of_kind,
    one_of,
)
from interventions.given_arrays import tensor_of
from interventions.knockout import Knockout, check_knockouts, knockout
from interventions.model import Model
from interventions.placing import MODES, Mode, gather
from interventions.positions import Positions
from interventions.prompts import Prompt
from interventions.returnable import returnable
from interventions.shared_prefix import SHORT, attending_apart
from interventions.streams import (
    COMPONENTS,
    Component,
    Heads,
    Layers,
    check_component,
    check_runs,
    index_list,
    layer_list,
    stacked,
    written_once,
)
from interventions.wrapped import weightless

HEADS = COMPONENTS.index("head_out")
MASK = HEADS - 0.5  # a block's attention mask is used before its heads have a result


@dataclass(frozen=True)
class Site:
    """A place to read: component x layers x positions.

    Attributes
    ----------
    component : str
        ``"resid_pre"``, ``"head_out"``, ``"attn_out"``, ``"mlp_out"`` or ``"resid_post"``.
    layers : int, slice or list of int
    positions : Positions, optional
        From :meth:`interventions.Prompt.at`. None: every position.
    heads : int, slice or list of int, optional
        For ``"head_out"``. None: every query head.
    """

    component: Component
    layers: Layers
    positions: Positions | None = None
    heads: Heads = None

    def __post_init__(self) -> None:
        _make_plain(self)
        if self.positions is not None:
            of_kind(self.positions, Positions, "the positions of a site", error=SiteError)


@returnable
@dataclass(frozen=True)
class Patch:
    """A value to be written at a site while a prompt runs.

    Attributes
    ----------
    component, layers, positions
        Where, as in :class:`Site`.
    value : Tensor
        [layer, row, position, d_model]; without the layer axis for an int layer; without the
        position axis for one position per row, or to spread one value over all positions of a row.
        For ``"head_out"`` [..., head, head_dim] in the place of d_model. A single number or a
        vector [d_model] holds for all.
    mode : {"set", "add", "scale"}
        Overwrite with the value, add it (steering), or multiply by it (0: ablation).
    heads : int, slice or list of int, optional
        For ``"head_out"``. None: every query head.
    """

    component: Component
    layers: Layers
    positions: Positions
    value: torch.Tensor
    mode: Mode = "set"
    heads: Heads = None

    def __post_init__(self) -> None:
        _make_plain(self)
        of_kind(self.positions, Positions, "the positions of a patch", error=SiteError)
        value = tensor_of(self.value)
        object.__setattr__(self, "value", value.detach() if value.requires_grad else value)
        object.__setattr__(self, "mode", one_of(self.mode, "mode", MODES, error=PatchError))

    @property
    def _last_axes(self) -> int:
        """Number of axes that one layer, row and position has: d_model, or head and head_dim."""
        return 2 if self.component == "head_out" and not isinstance(self.heads, int) else 1

    @property
    def for_all(self) -> bool:
        """Whether the value is one number or vector for every layer, row and position."""
        return self.value.ndim <= self._last_axes

    @property
    def has_layer_axis(self) -> bool:
        """Whether the value's first axis is the layer."""
        return not isinstance(self.layers, int) and not self.for_all

    def of_rows(self, rows: torch.Tensor | list[int]) -> "Patch":
        """Return the patch for some rows of its prompt."""
        positions = self.positions.rows(rows)
        if self.for_all:
            return replace(self, positions=positions)
        axis = int(self.has_layer_axis)
        if self.value.ndim == axis + self._last_axes or self.value.shape[axis] == 1:
            return replace(self, positions=positions)  # the same for every row
        value = self.value[:, rows] if axis else self.value[rows]
        return replace(self, positions=positions, value=value)


def _make_plain(place: Site | Patch) -> None:
    """Hold layers and heads as Python's own numbers: an int of numpy is one layer too."""
    object.__setattr__(place, "layers", index_of(place.layers, "layer"))
    if place.heads is not None:
        object.__setattr__(place, "heads", index_of(place.heads, "head"))


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
        each row added: :class:`interventions.shared_prefix.SharedLayer`.
    prompt : Prompt
        What was run.
    """

    logits: torch.Tensor | None
    reads: list[torch.Tensor]
    cache: Any
    prompt: Prompt


def check_heads(model: Model, site: Site | Patch) -> None:
    """Refuse heads of a component that has none, or that do not exist."""
    if site.heads is None:
        return
    if site.component != "head_out":
        raise SiteError(
            f"{site.component} is summed over heads and cannot be split into them. Use head_out."
        )
    index_list(site.heads, model.anatomy.n_heads, "head")


def check_place(model: Model, prompt: Prompt, what: str, layers: Layers, at: Any) -> None:
    """Refuse blocks that do not run, and positions of another prompt."""
    for layer in layer_list(layers, model.n_layers):
        check_runs(model, layer, images=prompt.has_images)
    if isinstance(at, Positions) and (at.n_rows, at.length) != (len(prompt), prompt.length):
        raise SiteError(
            f"{what} at {at.role!r} was made for {at.n_rows} rows x {at.length} tokens; the prompt "
            f"has {len(prompt)} x {prompt.length}. Use positions of the prompt that runs."
        )


def check_sites(model: Model, prompt: Prompt, sites: Sequence[Site]) -> None:
    """Refuse, before anything runs, sites that the model or the prompt does not have."""
    for site in sites:
        check_component(site.component)
        check_place(model, prompt, "a site", site.layers, site.positions)
        check_heads(model, site)
        if site.positions is not None and site.positions.ragged:
            gather(torch.empty(len(prompt), prompt.length, 0), site.positions)  # says what to do


def check_patches(model: Model, prompt: Prompt, patches: Sequence[Patch]) -> None:
    """Refuse, before anything runs, patches that do not fit the model or the prompt."""
    for patch in patches:
        check_component(patch.component)
        check_place(model, prompt, "a patch", patch.layers, patch.positions)
        check_heads(model, patch)
        written_once(layer_list(patch.layers, model.n_layers), "layer")
        if patch.heads is not None:
            written_once(index_list(patch.heads, model.anatomy.n_heads, "head"), "head")
        check_value(model, patch)


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
        Keep keys and values, to go on from (see :mod:`interventions.answers`).
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
    """
    check_asked(model, prompt)
    patches = all_of_kind(patches, Patch, "patches", error=PatchError)
    knockouts = all_of_kind(knockouts, Knockout, "knockouts", error=SiteError)
    reads = all_of_kind(reads, Site, "reads", error=SiteError)
    check_patches(model, prompt, patches)
    check_knockouts(model, prompt, knockouts)
    check_sites(model, prompt, reads)
    keep_cache = flag(keep_cache, "keep_cache")
    logits = logits if isinstance(logits, Positions) else flag(logits, "logits (or Positions)")
    if isinstance(logits, Positions):
        check_place(model, prompt, "logits", 0, logits)
    if start is not None:
        start = start_of(model, prompt, start)
        check_start(model, start[0], (*patches, *knockouts, *reads), keep_cache=keep_cache)
    if inputs is not None:
        names([*of_kind(inputs, Mapping, "inputs", error=PromptError)], "the names of inputs")
    if model.remote:
        return _run_remotely(
            model,
            prompt,
            patches=patches,
            knockouts=knockouts,
            reads=reads,
            logits=logits,
            keep_cache=keep_cache,
            start=start,
            inputs=inputs,
        )
    if model.anatomy.added_between and prompt.has_images:
        start = None
    streams = {name: getattr(model, name) for name in COMPONENTS}
    # A step is (layer, place in the block, kind, which of its kind, which of its layers).
    steps: list[tuple[int, float, int, int, int]] = []
    for which, one in enumerate(knockouts):
        for i, layer in enumerate(layer_list(one.layers, model.n_layers)):
            steps.append((layer, MASK, 0, which, i))
    for kind, wanted in enumerate((patches, reads), start=1):
        for which, one in enumerate(wanted):
            rank = COMPONENTS.index(check_component(one.component))
            chosen = layer_list(one.layers, model.n_layers)
            steps += [(layer, rank, kind, which, i) for i, layer in enumerate(chosen)]
    steps.sort()
    found: list[list[Any]] = [[None] * len(layer_list(s.layers, model.n_layers)) for s in reads]
    output: Any = None
    kept: Any = None
    last: Any = None
    keep = 1
    if isinstance(logits, Positions):
        keep = prompt.length - int(logits.index[logits.mask].min())
    cache_name = cache_argument(model.module)
    given = with_cache_named(cache_name, inputs or {})
    shared = given.get(cache_name)
    if shared is None and (before := model.prefix_cache(prompt)) is not None:
        given[cache_name] = before
        shared = before if prompt.length <= SHORT and not knockouts else None
    # A server's sandbox answers a stop twice, and takes the second answer for the next trace's.
    sandboxed = weightless(model)
    with torch.no_grad(), attending_apart(model, shared):  # noqa: SIM117 - nnsight runs the inner
        with model.trace(prompt, inputs=given, logits_to_keep=keep, use_cache=keep_cache) as tracer:
            if start is not None:
                if start[0] == 0:
                    model.resid_pre.write(0, None, start[1])
                for block in range(start[0]):
                    if prompt.has_images or not model.anatomy.parts[block].cross:
                        model.blocks[block].skip(start[1])
            for layer, rank, kind, which, i in steps:
                if kind == 0:
                    cut = knockouts[which]
                    knockout(model, layer, queries=cut.queries, keys=cut.keys)
                    continue
                stream = streams[COMPONENTS[int(rank)]]
                extra = {} if rank != HEADS else {"heads": (patches, reads)[kind - 1][which].heads}
                if kind == 1:
                    patch = patches[which]
                    value = patch.value[i] if patch.has_layer_axis else patch.value
                    stream.write(layer, patch.positions, value, mode=patch.mode, **extra)
                else:
                    read = stream[(layer, reads[which].positions, *extra.values())]
                    found[which][i] = read.save()
            if logits is not False or keep_cache:
                # A slice of positions reaches the head with gaps between rows, for which a linear
                # layer falls back to one product per row: several times slower on a CPU.
                model.head.input = model.head.input.contiguous()
                output = model.nn.output
                wide = torch.promote_types(output.logits.dtype, torch.float32)
                last = output.logits.to(wide).save()
                if keep_cache:
                    kept = returned_cache(output).save()
            elif not sandboxed:
                tracer.stop()
    values = [
        parts[0] if isinstance(site.layers, int) else stacked(parts)
        for site, parts in zip(reads, found, strict=True)
    ]
    if isinstance(logits, Positions):
        index = logits.index.to(last.device) - (prompt.length - keep)
        last = last[torch.arange(len(prompt), device=last.device)[:, None], index.clamp(min=0)]
    elif last is not None:
        last = last[:, -1]
    return Run(last, values, kept, prompt)


def _run_remotely(model: Model, prompt: Prompt, *, keep_cache: bool, **asked: Any) -> Run:
    """Run a prompt on the server; only its logits and reads come back."""
    if keep_cache:
        raise RemoteError(
            "keys and values stay on the server, so keep_cache=True gives nothing to go on from. "
            "Use iv.complete, or model.job(f, ...) with a function f that does all of it."
        )
    last, values = model.job(_logits_and_reads, prompt, **asked)
    return Run(last, values, None, prompt)


def _logits_and_reads(model: Model, prompt: Prompt, **asked: Any) -> tuple[Any, list[Any]]:
    done = run(model, prompt, **asked)
    return done.logits, done.reads


def read(model: Model, prompt: Prompt, sites: Sequence[Site]) -> list[torch.Tensor]:
    """Read several sites in one forward pass, which stops after the deepest of them.

    Returns
    -------
    list of Tensor
        As :attr:`Run.reads`.

    Examples
    --------
    >>> [name] = read(llm, named, [Site("mlp_out", slice(0, 6), named.at("entity", -1))])
    ... # doctest: +SKIP
    """
    return run(model, prompt, reads=sites, logits=False).reads
