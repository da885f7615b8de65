"""Two runs of the same rows, and which tokens of the one answer to which of the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from interventions.digests import digest_of
from interventions.errors import PatchError, PromptError, RoleError
from interventions.given import one_of
from interventions.given_arrays import check_range, tensor_of
from interventions.model.model import Model
from interventions.prompt.columns import (
    Columns,
    check_same_tokens,
    columns_of,
    every_token,
    narrowest_roles,
)
from interventions.prompt.positions import Positions, fits
from interventions.prompt.prompt import Prompt
from interventions.running.patches import Patch
from interventions.sweeping.metrics import Metric, Target

Which = Literal["run", "source"]
Direction = Literal["denoising", "noising"]
DIRECTIONS: dict[Direction, str] = {
    "denoising": "the corrupt prompt runs, and values of the clean run are put into it",
    "noising": "the clean prompt runs, and values of the corrupt run are put into it",
}


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes
    ----------
    prompt : Prompt
    baseline : Tensor [row, position, d_model] or None
        What is to enter the first block in place of the prompt's own embeddings.
    """

    prompt: Prompt
    baseline: torch.Tensor | None = None

    def rows(self, rows: Sequence[int]) -> "Side":
        """Return some rows."""
        value = None if self.baseline is None else self.baseline[list(rows)]
        return Side(self.prompt.select(rows), value)


@dataclass(frozen=True)
class Contrast:
    """What is compared: a run, the run its values are replaced from, and the metric.

    Attributes
    ----------
    run, source : Side
    columns, read_columns : Columns
        Tokens of the run that values are put at, and those of the source that they are from.
    each : bool
        A column is a position, not a role.
    target : Target
    metric : str
    items : list of int
        Which rows of the prompts given these are; some may have been left out.
    missing : dict of int to str
        Why each of the others was.
    """

    run: Side
    source: Side
    columns: Columns
    read_columns: Columns
    each: bool
    target: Target
    metric: Metric
    items: list[int]
    missing: dict[int, str]

    @property
    def digest(self) -> str:
        """Of all that scores depend on but the model, whatever classes hold it."""
        sides = [(side.prompt.digest, side.baseline) for side in (self.run, self.source)]
        columns = [(part.names, part.tokens) for part in (self.columns, self.read_columns)]
        target = (self.target.answers, self.target.foils, self.metric)
        return digest_of(sides, columns, target, self.items)

    def rows(self, rows: Sequence[int]) -> "Contrast":
        """Return some rows, counted among those that are left."""
        return replace(
            self,
            run=self.run.rows(rows),
            source=self.source.rows(rows),
            columns=self.columns.rows(rows),
            read_columns=self.read_columns.rows(rows),
            target=self.target.rows(rows),
            items=[self.items[row] for row in rows],
        )

    def scored(self, which: Which) -> "Scored":
        """Return one side as it is run to score the answers."""
        side = self.run if which == "run" else self.source
        prompt, repeats = self.target.scored(side.prompt), self.target.repeats

        def positions(index: torch.Tensor, mask: torch.Tensor, name: str) -> Positions:
            return Positions(
                index.repeat(repeats, 1), mask.repeat(repeats, 1), prompt.length, False, name
            )

        before = []
        if side.baseline is not None:
            every = side.prompt.every()
            value = side.baseline.gather(
                1, every.index[..., None].expand(-1, -1, side.baseline.shape[-1])
            )
            at = positions(every.index, every.mask, "the baseline")
            before = [Patch("resid_pre", 0, at, value.repeat(repeats, 1, 1))]
        columns = self.columns if which == "run" else self.read_columns
        index, _, mask = columns.flat()
        return Scored(prompt, before, positions(index, mask, "the places"))


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


def make_contrast(
    model: Model,
    clean: Prompt,
    corrupt: Prompt | torch.Tensor | float,
    *,
    target: Target,
    metric: Metric,
    direction: Direction,
    roles: Sequence[str] | None,
    by_role: bool,
) -> Contrast:
    """Put two runs side by side.

    Raises
    ------
    PromptError, PatchError
        If they have different numbers of rows, or a baseline does not fit.
    RoleError
        If their tokens do not correspond, or no row has the roles asked for.
    """
    direction = one_of(direction, "direction", DIRECTIONS)
    other = corrupt if isinstance(corrupt, Prompt) else clean
    if len(clean) != len(other):
        raise PromptError(
            f"{len(clean)} clean rows and {len(other)} corrupt ones. Give one for each."
        )
    if not torch.equal(clean.prefix_ids, other.prefix_ids):
        raise PromptError(
            "the two prompts share different prefixes among their rows, so their positions differ. "
            "Make both without share_prefix, or with the same text as share_prefix=."
        )
    baseline = None if isinstance(corrupt, Prompt) else _baseline(model, clean, corrupt)
    missing: dict[int, str] = {}
    if roles is None:
        check_same_tokens(clean, other)
        columns = narrowest_roles(clean) if by_role else every_token(clean, padding=True)
        ours = theirs = columns
    else:
        if by_role:
            raise PromptError("by_role=True sums all positions by role; leave out roles=.")
        ours, lacking = columns_of(clean, roles, each=False)
        theirs, missing = columns_of(other, roles, each=False)
        missing = missing | lacking
        _check_as_many(ours, theirs, missing)
    kept = [row for row in range(len(clean)) if row not in missing]
    if not kept:
        raise RoleError(f"no row has all of {', '.join(roles or ())}. Row 0 has {missing[0]}.")
    sides = ((Side(clean), ours), (Side(other, baseline), theirs))
    (source, read_columns), (run, columns) = sides if direction == "denoising" else sides[::-1]
    whole = Contrast(
        run=run,
        source=source,
        columns=columns,
        read_columns=read_columns,
        each=roles is None and not by_role,
        target=target,
        metric=metric,
        items=list(range(len(clean))),
        missing={},
    )
    return replace(whole.rows(kept), missing=missing)


def _check_as_many(clean: Columns, corrupt: Columns, missing: dict[int, str]) -> None:
    """Refuse roles that have more tokens in one prompt than in the other."""
    for name, ours, theirs in zip(clean.names, clean.tokens, corrupt.tokens, strict=True):
        for row, (here, there) in enumerate(zip(ours, theirs, strict=True)):
            if row not in missing and len(here) != len(there):
                raise RoleError(
                    f"role {name!r} of row {row} has {len(here)} tokens in the clean and "
                    f"{len(there)} in the corrupt prompt, so they do not correspond. Ask for one "
                    f"token of it, such as {name}[-1], or use names of as many tokens."
                )


def _baseline(model: Model, prompt: Prompt, value: torch.Tensor | float) -> torch.Tensor:
    value = tensor_of(value, "the baseline").detach()
    check_range(value, model.dtype, "the baseline")
    value = value.to(torch.promote_types(model.dtype, torch.float32))
    shape = (len(prompt), prompt.length, model.d_model)
    if not fits(value, shape):
        raise PatchError(
            f"a baseline of shape {tuple(value.shape)} cannot stand for embeddings {list(shape)}. "
            "Give that shape, one vector [d_model], or a number."
        )
    return value.expand(shape)
