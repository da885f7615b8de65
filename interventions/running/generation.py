"""Patches and knockouts in a trace of generation, each at the steps that it names.

They are laid down as nnsight's own edits of a copy of the model, which run beside the block that
the user writes and ahead of it: at a place that both touch, the block sees what was written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.iterator import Iterations

from interventions.errors import PatchError, SiteError
from interventions.given import MOST_TOKENS, shown
from interventions.model.model import Model
from interventions.prompt.prompt import Prompt
from interventions.running.knockout import Knockout
from interventions.running.later_steps import (
    LaterEdits,
    checked_edits,
    in_prefill,
    later_edits,
    why_not_there,
)
from interventions.running.patches import Patch
from interventions.running.run import edit, steps_of
from interventions.running.steps import Steps

OF_ROWS = ("num_beams", "num_return_sequences")
OF_PASSES: dict[str, Any] = {
    "use_cache": True,
    "guidance_scale": 1,
    **dict.fromkeys(("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_model")),
    **dict.fromkeys(("assistant_early_exit", "penalty_alpha", "dola_layers", "custom_generate")),
}
"""Settings that change which passes there are, with the value that does not."""


def generate(
    model: Model,
    prompt: Prompt,
    *,
    patches: Sequence[Patch] = (),
    knockouts: Sequence[Knockout] = (),
    max_new_tokens: int | None = None,
    **kwargs: Any,
) -> Any:
    """Open a trace of generation, as :meth:`Model.generate` does, under edits.

    The tokens are those of :func:`interventions.complete` under the same edits. What the block
    reads is read behind them.

    Parameters
    ----------
    model : Model
        On a server, the trace is one request, with its edits.
    prompt : Prompt
    patches : sequence of Patch
        Written in the prefill, or at the ``steps`` they name: behind the prefill on each new token.
    knockouts : sequence of Knockout
        Attention edges to cut, at the ``steps`` they name.
    max_new_tokens : int, optional
        As of :meth:`Model.generate`.
    **kwargs
        As of :meth:`Model.generate`. Of settings that run more rows than the prompt has, such as
        ``num_beams``, or other passes than the prompt's and one for each new token, such as
        ``guidance_scale``, none.

    Returns
    -------
    nnsight tracer
        Use as ``with iv.generate(model, prompt, patches=...) as tracer:``.

    Raises
    ------
    PatchError, SiteError
        If an edit fits neither the model nor the prompt, or cannot act on a new token. For
        knockouts, when it runs, on a server whose requests run in a process of their own.

    Examples
    --------
    >>> towards = iv.steering(3, named.at("last"), torch.ones(llm.d_model), steps="all")
    >>> with iv.generate(llm, named, patches=[towards], max_new_tokens=3) as tracer:
    ...     ids = tracer.result.save()
    >>> answered = iv.complete(llm, named, patches=[towards], max_new_tokens=3, stop=None)
    >>> [text.strip() for text in llm.completions(ids, named)] == answered.texts
    True
    """
    patches, knockouts = checked_edits(model, prompt, patches, knockouts)
    if not patches and not knockouts:
        return model.generate(prompt, max_new_tokens=max_new_tokens, **kwargs)
    inputs, settings = model.generation(prompt, max_new_tokens=max_new_tokens, **kwargs)
    _check_passes(settings)
    most = settings.get("max_new_tokens") or MOST_TOKENS
    n_steps = min(most, max(_end(what.steps, most) for what in (*patches, *knockouts)))
    edited = _edited(model, len(prompt), patches, knockouts, n_steps)
    return edited.trace(inputs, **settings)


def _check_passes(settings: Mapping[str, Any]) -> None:
    """Refuse settings by which a pass is fed other than one new token of each row."""
    for name in OF_ROWS:
        if (value := settings.get(name)) not in (None, 1):
            raise PatchError(
                f"{name}={value!r} runs more rows than the prompt has, and edits are at "
                "positions of its rows. Leave it out, or give rows more than once: "
                "prompt.select([0] * 5)."
            )
    for name, without in OF_PASSES.items():
        if (value := settings.get(name)) is not None and value != without:
            raise PatchError(
                f"{name}={shown(value)} makes forward passes that are fed something else than the "
                "prompt, and then one new token of each row, so there is no telling which are the "
                "steps of an edit. Leave it out."
            )


def _end(steps: Steps, most: int) -> int:
    """How many passes there are up to the last at which an edit acts."""
    if isinstance(steps, slice):
        return most if steps.stop is None else steps.stop
    return most if steps == "all" else 1 if steps == "prefill" else int(steps) + 1


def _edited(
    model: Model,
    n_rows: int,
    patches: Sequence[Patch],
    knockouts: Sequence[Knockout],
    n_steps: int,
) -> Any:
    """A copy of nnsight's model that edits whatever is generated from ``n_rows`` rows."""
    with model.nn.edit() as (_, edited):  # pyright: ignore[reportGeneralTypeIssues]
        edit_steps(model, n_rows, patches, knockouts, n_steps)
    return edited


def edit_steps(
    model: Model,
    n_rows: int,
    patches: Sequence[Patch],
    knockouts: Sequence[Knockout],
    n_steps: int,
) -> None:
    """Write and cut, inside a trace of generation, what acts at each of its first steps."""
    if (why := why_not_there(model, patches, knockouts)) is not None:
        raise SiteError(why)
    later = later_edits(patches, knockouts)
    for step in Iterations(stop=n_steps):  # a tracer's own, which do not travel
        if not step:
            steps = steps_of(model, reads=(), **in_prefill(patches, knockouts))
        else:
            steps = steps_of(model, *behind(later, n_rows, step), ())
        if step and steps and _ended(model):
            return
        seen: dict[int, torch.Tensor] = {}
        for single in steps:
            edit(model, single, model.dtype, seen, later=step)


def behind(later: LaterEdits | None, n_rows: int, step: int) -> tuple[list[Patch], list[Knockout]]:
    """Edits of a step that is fed one token of each row."""
    return ([], []) if later is None else later.of(torch.arange(n_rows), step, 1)


def _ended(model: Model) -> bool:
    """Wait for the step that is asked for; whether there is none, as all rows have ended.

    What a block is given would do as well, but for a server's own process: it gives that back as a
    copy, keys and values with it.
    """
    try:
        _ = model.nn.get(model.anatomy.embeddings).output
    except OutOfOrderError:
        return True
    return False
