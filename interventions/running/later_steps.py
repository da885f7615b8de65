"""Edits at the steps of a generation that follow on its prefill: on the token that is new.

What an edit wrote in the prefill is in the keys and values that later tokens see, and stays there.
A later step runs its new token alone, so an edit touches that; for a known answer, whose tokens run
together, each is the new token of a step of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interventions.architectures.wrapped import put_planes, weightless, without_planes
from interventions.errors import PatchError, SiteError
from interventions.given import all_of_kind
from interventions.model.cache_names import returned_cache
from interventions.model.model import Model
from interventions.model.prefix_attention import attending_apart
from interventions.model.sites import ATTENDING
from interventions.model.streams import COPIED_KEYS
from interventions.prompt.positions import Positions
from interventions.prompt.prompt import Prompt
from interventions.running.checking import check_asked, check_numbers
from interventions.running.knockout import Knockout, check_knockouts
from interventions.running.patches import Patch, check_patches
from interventions.running.run import Step, edit, steps_of
from interventions.running.steps import acts_at, only_in_prefill

Edit = Patch | Knockout
WITHOUT_KEYS = (
    "requests for {} run in a process of their own on this server, where an attention whose edges "
    "are cut is given no keys that later tokens could go on from. Cut them in one forward pass, "
    "which needs none: iv.run(model, prompt, knockouts=...). Or load the model here."
)


def why_not_there(
    model: Model, patches: Sequence[Patch], knockouts: Sequence[Knockout]
) -> str | None:
    """Why edits cannot act where keys are kept for later tokens, on such a server; None if so."""
    if not weightless(model):
        return None
    if knockouts:
        return WITHOUT_KEYS.format(model.name)
    written = any(patch.component == "resid_pre" for patch in patches)
    return COPIED_KEYS.format(model.name) if written else None


@dataclass(frozen=True)
class LaterEdits:
    """Patches and knockouts of a prompt's rows that act behind the prefill.

    Attributes
    ----------
    patches : list of Patch
    knockouts : list of Knockout
    """

    patches: Sequence[Patch]
    knockouts: Sequence[Knockout]

    def of(self, rows: torch.Tensor, first: int, n: int) -> tuple[list[Patch], list[Knockout]]:
        """Edits of the pass that is fed tokens ``first`` to ``first + n - 1`` of the answers.

        Parameters
        ----------
        rows : Tensor [row]
            Which rows of the prompt run; one may run more than once.
        first : int
            Counted from 1.
        n : int
        """
        rows = rows.cpu()
        patches, knockouts = [], []
        for patch in self.patches:
            if (at := _new_tokens(patch, patch.positions, rows, first, n)) is not None:
                patches.append(replace(patch.of_rows(rows), positions=at))
        for knockout in self.knockouts:
            if (at := _new_tokens(knockout, knockout.queries, rows, first, n)) is not None:
                knockouts.append(replace(knockout.of_rows(rows), queries=at))
        return patches, knockouts


def later_edits(patches: Sequence[Patch], knockouts: Sequence[Knockout]) -> LaterEdits | None:
    """What acts behind the prefill; None where nothing does."""
    later = LaterEdits(
        [patch for patch in patches if not only_in_prefill(patch.steps)],
        [knockout for knockout in knockouts if not only_in_prefill(knockout.steps)],
    )
    return later if later.patches or later.knockouts else None


def in_prefill(patches: Sequence[Patch], knockouts: Sequence[Knockout]) -> dict[str, Any]:
    """What acts in the prefill, as arguments of a run."""
    return {
        "patches": [patch for patch in patches if acts_at(patch.steps, 0)],
        "knockouts": [knockout for knockout in knockouts if acts_at(knockout.steps, 0)],
    }


def checked_edits(
    model: Model, prompt: Prompt, patches: Any, knockouts: Any
) -> tuple[list[Patch], list[Knockout]]:
    """Edits of a generation, looked at before anything runs.

    Raises
    ------
    PatchError, SiteError
    """
    check_asked(model, prompt)
    patches = all_of_kind(patches, Patch, "patches", error=PatchError)
    check_patches(model, prompt, patches, generating=True)
    _check_later(patches)
    knockouts = all_of_kind(knockouts, Knockout, "knockouts", error=SiteError)
    check_knockouts(model, prompt, knockouts, generating=True)
    return patches, knockouts


def _check_later(patches: Sequence[Patch]) -> None:
    """Refuse patches that cannot act on one new token.

    Raises
    ------
    PatchError
    """
    for patch in patches:
        if only_in_prefill(patch.steps):
            continue
        if patch.component in ATTENDING:
            raise PatchError(
                f"{patch.component} has a number for each key, of which every step has one more, "
                f"so it cannot be written at steps {patch.steps!r}. Cut edges there with "
                "iv.Knockout(..., steps=...), or write the pattern with steps='prefill'."
            )
        if _differs_between_positions(patch):
            raise PatchError(
                f"a patch at steps {patch.steps!r} meets one new token of each row, and its value "
                f"of shape {tuple(patch.value.shape)} has one for each of "
                f"{patch.positions.index.shape[1]} positions of {patch.positions.role!r}. Give one "
                "per row [row, d_model], one for all [d_model], or a number; or give two patches, "
                "one with steps='prefill' and one with steps=slice(1, None)."
            )


def _differs_between_positions(patch: Patch) -> bool:
    if patch.for_all:
        return False
    last = patch.flat_value.ndim - int(patch.has_layer_axis)
    return last > 2 and patch.flat_value.shape[-2] > 1


def _new_tokens(
    asked: Edit, at: Positions, rows: torch.Tensor, first: int, n: int
) -> Positions | None:
    """Which of the tokens that run an edit touches; None where none."""
    acting = [i for i in range(n) if acts_at(asked.steps, first + i)]
    mask = at.mask[rows].any(-1, keepdim=True).expand(-1, len(acting))
    if not acting or not bool(mask.any()):
        return None
    index = torch.tensor(acting).expand(len(rows), -1)
    return Positions(index, mask, n, False, at.role)


def edited_step(
    model: Model,
    inputs: dict[str, Any],
    patches: Sequence[Patch],
    knockouts: Sequence[Knockout],
    *,
    cache: Any,
    later: int,
    images: bool,
) -> tuple[torch.Tensor, Any]:
    """Run new tokens with edits; return logits [row, token, vocab] and the cache.

    Parameters
    ----------
    model : Model
    inputs : dict
        What its forward takes; ``input_ids`` [row, token] are new.
    patches, knockouts
        As :meth:`LaterEdits.of` gives them.
    cache : transformers Cache
        That of ``inputs``.
    later : int
        How many tokens the answer has with those that run.
    images : bool
        Whether the prompt has pictures, so that blocks that attend to them run.
    """
    model.running_rows, model.running_images = len(inputs["input_ids"]), images
    steps: list[Step] = steps_of(model, patches, knockouts, ())
    number_format = model.dtype
    seen: dict[int, torch.Tensor] = {}
    flat, planes = without_planes(inputs)
    whole = None if knockouts else cache  # cut masks are of all keys
    with torch.no_grad(), attending_apart(model, whole):  # noqa: SIM117 - nnsight runs the inner
        with model.nn.trace(flat):
            put_planes(model, planes)
            for step in steps:
                edit(model, step, number_format, seen, later=later)
            output = model.nn.output
            logits = output.logits.save()
            kept = returned_cache(output).save()
    if patches:
        check_numbers(logits, number_format)
    return logits, kept
