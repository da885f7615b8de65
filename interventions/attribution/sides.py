"""The two runs of an attribution, as they are put side by side and as they are run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from interventions.digests import digest_of
from interventions.errors import PatchError, PromptError, ResultsError
from interventions.given_arrays import check_range, tensor_of
from interventions.model.model import Model
from interventions.prompt.columns import Columns
from interventions.prompt.positions import Positions, Space, fits
from interventions.prompt.prompt import Prompt
from interventions.running.checking import check_asked
from interventions.running.patches import Patch
from interventions.sweeping.contrast import Contrast, Embedded, Side, make_contrast, prompt_of
from interventions.sweeping.metrics import METRICS, Answers, Metric
from interventions.sweeping.own_metrics import UNKNOWN, is_own, metric_digest, metric_name
from interventions.sweeping.sources import FromLayers, FromModel, Noise

Which = Literal["run", "source"]
Given = Prompt | torch.Tensor | float
"""A prompt; or what enters the first block, in place of its embeddings, on the other's tokens."""


def contrast_of(
    model: Model,
    prompt: Given,
    source: Given,
    *,
    answers: Answers | None,
    foils: Answers | None,
    metric: Metric,
    roles: Sequence[str] | None,
    read_roles: Sequence[str] | None,
    each: bool,
    by_role: bool,
    of: Space = "text",
) -> Contrast:
    """Put two runs of a model side by side: the rows that have all roles, token by token.

    Raises
    ------
    PromptError, PatchError
        If they do not belong together, or a baseline does not fit.
    RoleError
        If their tokens do not correspond, or no row has the roles asked for.
    """
    whole = make_contrast(
        model,
        *_sides(model, prompt, source),
        answers=answers,
        foils=foils,
        metrics=metric,
        roles=roles,
        read_roles=read_roles,
        each=each,
        by_role=by_role,
        gradient=True,
        of=of,
    )
    kept = whole.rows(whole.kept)
    return replace(kept, read_columns=_one_for_each(kept.columns, kept.read_columns))


def _sides(model: Model, prompt: Any, source: Any) -> tuple[Side, Side]:
    """Both runs, the baseline among them on the tokens of the other."""
    for given in (prompt, source):
        if isinstance(given, FromModel | FromLayers | Noise):
            raise PatchError(
                f"attribution compares two runs of one model, and {type(given).__name__} is none. "
                "Give a Prompt, or what enters the first block; or patch exactly (iv.sweep)."
            )
    check_asked(model, source if isinstance(source, Prompt) else prompt)
    if not isinstance(source, Prompt):
        return prompt, _embedded(model, prompt, source)
    if not isinstance(prompt, Prompt):
        return _embedded(model, source, prompt), source
    check_asked(model, prompt)
    if not torch.equal(prompt.prefix_ids, source.prefix_ids):
        raise PromptError(
            "the two prompts share different prefixes among their rows, so their positions differ. "
            "Make both without share_prefix, or with the same text as share_prefix=."
        )
    # Rows that were picked out keep the padding of longer ones, which shifts their positions.
    if prompt.length != source.length and torch.equal(prompt.lengths, source.lengths):
        return prompt.trimmed()[0], source.trimmed()[0]
    return prompt, source


def _embedded(model: Model, prompt: Prompt, given: Any) -> Embedded:
    """A prompt with a baseline in place of its embeddings."""
    value = tensor_of(given, "the baseline, given in place of a Prompt,").detach()
    check_range(value, model.dtype, "the baseline")
    # Its rows are picked out by the prompt's numbers, which lie on the CPU.
    value = value.cpu().to(torch.promote_types(model.dtype, torch.float32))
    shape = (len(prompt), prompt.length, model.d_model)
    if not fits(value, shape):
        raise PatchError(
            f"a baseline of shape {tuple(value.shape)} cannot stand for embeddings {list(shape)}. "
            "Give that shape, one vector [d_model], or a number."
        )
    return Embedded(prompt, value.expand(shape))


def _one_for_each(columns: Columns, read_columns: Columns) -> Columns:
    """Columns that are read, with as many tokens as are written: one is read for all of them."""
    tokens = [
        [
            there * len(here) if len(there) == 1 else there
            for here, there in zip(written, read, strict=True)
        ]
        for written, read in zip(columns.tokens, read_columns.tokens, strict=True)
    ]
    return replace(read_columns, tokens=tokens)


def side_digest(side: Any) -> str:
    """Digest of what is run, whatever class holds it."""
    if isinstance(side, Embedded):
        return digest_of(side.prompt.digest, side.value)
    return side.digest


def contrast_digest(contrast: Contrast) -> str:
    """Digest of all that scores depend on but the model, whatever classes hold it."""
    sides = [side_digest(side) for side in (contrast.run, contrast.source)]
    columns = [(part.names, part.tokens) for part in (contrast.columns, contrast.read_columns)]
    asked = (contrast.target.answers, contrast.target.foils, contrast.metric_names)
    own = [contrast.metric_digests] if contrast.metric_digests else []
    return digest_of(sides, columns, asked, contrast.items, *own)


def metric_of(contrast: Contrast, logits: torch.Tensor) -> torch.Tensor:
    """The one metric of an attribution, [item]."""
    [metric] = contrast.metrics
    return contrast.target.values(metric, logits)


def same_metric(name: Any, given: Metric | None, *, made_by: str, otherwise: str = "") -> Metric:
    """The metric of scores, which hold the name of a function and no code.

    Raises
    ------
    ResultsError
        If it is not given again, or it cannot be told whether it is the same.
    """
    again = given is None or (not is_own(given) and metric_name(given) == name)
    if again and name in METRICS:
        return name
    if given is None or metric_name(given) != name:
        called = "no metric" if given is None else repr(metric_name(given))
        raise ResultsError(
            f"the scores are of the metric {name!r}, and {called} was given. Results hold the name "
            f"of a metric: give what {made_by} was given as metric=."
        )
    if metric_digest(given) == UNKNOWN:
        raise ResultsError(
            f"the metric {name!r} uses a value of which it cannot be told whether it is the same "
            "as when the scores were made. Let it use tensors, arrays, numbers, text and functions "
            f"only{otherwise}."
        )
    return given


@dataclass(frozen=True)
class Scored:
    """A side as it is run: the answers' tokens are behind, and rows repeated for foils.

    Attributes
    ----------
    prompt : Prompt
    before : list of Patch
        What its baseline writes.
    at : Positions
        The tokens of all columns.
    """

    prompt: Prompt
    before: list[Patch]
    at: Positions


def scored(contrast: Contrast, which: Which) -> Scored:
    """Return one side as it is run to score the answers."""
    side: Any = contrast.run if which == "run" else contrast.source
    own = prompt_of(side)
    prompt, repeats = contrast.target.scored(own), contrast.target.repeats

    columns = contrast.columns if which == "run" else contrast.read_columns

    def positions(
        index: torch.Tensor, mask: torch.Tensor, name: str, of: Space = "text"
    ) -> Positions:
        length = prompt.length if of == "text" else columns.length_in(prompt)
        return Positions(index.repeat(repeats, 1), mask.repeat(repeats, 1), length, False, name, of)

    before = []
    if isinstance(side, Embedded):
        every = own.every()
        value = side.value.gather(1, every.index[..., None].expand(-1, -1, side.value.shape[-1]))
        at = positions(every.index, every.mask, "the baseline")
        before = [Patch("resid_pre", 0, at, value.repeat(repeats, 1, 1))]
    index, _, mask = columns.flat()
    return Scored(prompt, before, positions(index, mask, "the places", columns.of))
