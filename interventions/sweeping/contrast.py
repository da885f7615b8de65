"""What a sweep and an attribution compare: a run, and the same run with values put into it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interventions.errors import PatchError, PromptError, RoleError
from interventions.given import flag, names, one_or_several
from interventions.model.model import Model
from interventions.model.vision_places import check_vision
from interventions.prompt.columns import (
    Columns,
    check_same_grids,
    check_same_tokens,
    columns_of,
    every_token,
    narrowest_roles,
)
from interventions.prompt.positions import Space
from interventions.prompt.prompt import Prompt
from interventions.sweeping.metrics import Answers, Metric, Target, measured_by, target
from interventions.sweeping.own_metrics import (
    check_own,
    is_own,
    metric_digest,
    metric_name,
    needs_resid,
)
from interventions.sweeping.sources import FromModel, Source, Values, check_columns


@dataclass(frozen=True)
class Embedded:
    """A prompt with other values entering the first block: a baseline of an attribution.

    Attributes
    ----------
    prompt : Prompt
    value : Tensor [row, position, d_model]
        In place of the prompt's own embeddings.
    """

    prompt: Prompt
    value: torch.Tensor

    def rows(self, rows: Sequence[int]) -> "Embedded":
        """Return some rows."""
        return Embedded(self.prompt.select(rows), self.value[list(rows)])


Side = Prompt | Embedded
"""What one model runs."""


@dataclass(frozen=True)
class Contrast:
    """A run, where values put into it come from, and what is measured; see :func:`make_contrast`.

    Attributes
    ----------
    run : Prompt or Embedded
    source : Prompt, Embedded, FromModel, FromLayers, Noise, Tensor or Values
    columns, read_columns : Columns
        Tokens of the run that values are put at, and those that they are read at.
    each : bool
        A column is a token, not a role.
    target : Target
    metrics : list of str or callable
    items : list of int
        Which rows of the prompts given these are.
    missing : dict of int to str
        Rows of the prompts given that lack a role, and which.
    """

    run: Side
    source: Source | Side | Values
    columns: Columns
    read_columns: Columns
    each: bool
    target: Target
    metrics: list[Metric]
    items: list[int]
    missing: dict[int, str]

    @property
    def of_tower(self) -> bool:
        """Whether columns are tokens of the vision tower."""
        return self.columns.of == "tower"

    @property
    def prompt(self) -> Prompt:
        """The prompt that runs."""
        return prompt_of(self.run)

    @property
    def kept(self) -> list[int]:
        """Rows, counted among these, that lack no role."""
        return [row for row, item in enumerate(self.items) if item not in self.missing]

    @property
    def metric_names(self) -> list[str]:
        """What the metrics are called."""
        return [metric_name(metric) for metric in self.metrics]

    @property
    def metric_digests(self) -> dict[str, str]:
        """Digests of metrics that are functions, by name; see :func:`metric_digest`."""
        own = [metric for metric in self.metrics if is_own(metric)]
        return {metric_name(metric): metric_digest(metric) for metric in own}

    @property
    def left_out(self) -> dict[str, str]:
        """Why rows were left out, by their numbers as texts, as a Dataset's attribute has it."""
        return {str(item): why for item, why in sorted(self.missing.items())}

    @property
    def has_images(self) -> bool:
        """Whether all that this model runs has images, so that every block runs."""
        sides = [side for side in (self.run, self.source) if isinstance(side, Prompt | Embedded)]
        return all(prompt_of(side).has_images for side in sides)

    def rows(self, rows: Sequence[int]) -> "Contrast":
        """Return some rows."""
        return replace(
            self,
            run=_rows_of(self.run, rows),
            source=_rows_of(self.source, rows),
            columns=self.columns.rows(rows),
            read_columns=self.read_columns.rows(rows),
            target=self.target.rows(rows),
            items=[self.items[row] for row in rows],
        )


def prompt_of(side: Side) -> Prompt:
    """Return the prompt of what is run."""
    return side.prompt if isinstance(side, Embedded) else side


def _rows_of(side: Any, rows: Sequence[int]) -> Any:
    """Some rows of a prompt, or of what there is for each row; else all there is."""
    if isinstance(side, Prompt):
        return side.select(rows)
    if isinstance(side, FromModel):
        return replace(side, prompt=side.prompt.select(rows))
    return side.rows(rows) if isinstance(side, Embedded | Values) else side


def make_contrast(
    model: Model,
    run: Side,
    source: Source | Side,
    *,
    answers: Answers | None,
    foils: Answers | None,
    metrics: Metric | Sequence[Metric],
    roles: Sequence[str] | None,
    read_roles: Sequence[str] | None,
    each: bool,
    by_role: bool = False,
    gradient: bool = False,
    of: Space = "text",
) -> Contrast:
    """Check what can be checked before a model runs, and find rows to leave out.

    Parameters
    ----------
    model : Model
    run : Prompt or Embedded
    source : Prompt, Embedded, FromModel, FromLayers, Noise, Tensor or float
    answers, foils, metrics, roles, read_roles, each
        As of :func:`interventions.sweep`.
    by_role : bool
        All tokens, each a part of the column of the narrowest of its roles.
    gradient : bool
        Metrics are to have one.
    of : {"text", "tower"}
        Whose tokens columns are; see :func:`interventions.sweeping.grid.space_among`.

    Raises
    ------
    PromptError
        If metrics, answers or prompts do not belong together.
    RoleError
        If tokens do not correspond, or no row has all roles.
    """
    measured, answers, foils = measures(model, metrics, answers, foils, gradient=gradient)
    if of == "tower":
        _check_tower(model, run, source)
    prompt, other = prompt_of(run), _read_in(run, source)
    if len(other) != len(prompt):
        raise PromptError(
            f"the source has {len(other)} rows, the prompt {len(prompt)}. Give one for each."
        )
    by_role, each = flag(by_role, "by_role"), flag(each, "each")
    missing: dict[int, str] = {}
    if roles is not None:
        if by_role:
            raise PromptError("by_role=True sums all positions by role; leave out roles=.")
        columns, read_columns, missing = _named(run, source, roles, read_roles, each=each, of=of)
    elif read_roles is not None or isinstance(source, FromModel):
        raise PromptError("values are read at roles, so name the roles written: roles=.")
    else:
        columns = read_columns = narrowest_roles(prompt, of) if by_role else every_token(prompt, of)
        if other is not prompt:
            check_same_tokens(prompt, other, of)
            read_columns = columns if by_role else every_token(other, of)
    each = not by_role and (each or roles is None)
    if other is not prompt and read_roles is None:
        check_same_grids(prompt, other, columns, each=each)
    contrast = Contrast(
        run=run,
        source=source,
        columns=columns,
        read_columns=read_columns,
        each=each,
        target=target(model, prompt, answers, foils, resid=any(map(needs_resid, measured))),
        metrics=measured,
        items=list(range(len(prompt))),
        missing=missing,
    )
    if not contrast.kept:
        raise RoleError(
            f"no row has all of the roles named in both prompts. Row 0 has {missing[0]}."
        )
    return contrast


def _named(
    run: Side,
    source: Source | Side,
    roles: Sequence[str],
    read_roles: Sequence[str] | None,
    *,
    each: bool,
    of: Space,
) -> tuple[Columns, Columns, dict[int, str]]:
    """Columns of roles, those they are read at, and the rows that lack one."""
    roles = names(roles, "roles=", error=RoleError, once=True)
    prompt, other = prompt_of(run), _read_in(run, source)
    columns, missing = columns_of(prompt, roles, each=each, of=of)
    read_columns = columns
    if other is not prompt or read_roles is not None:
        read_roles = roles if read_roles is None else read_roles
        read_roles = names(read_roles, "read_roles=", error=RoleError)
        if len(read_roles) != len(roles):
            raise PromptError(f"{len(roles)} roles are written, {len(read_roles)} are read.")
        read_columns, more = columns_of(other, read_roles, each=each, of=of)
        missing = more | missing
    if read_columns is not columns and not isinstance(source, torch.Tensor):
        kept = [row for row in range(len(prompt)) if row not in missing]
        check_columns(columns.rows(kept), read_columns.rows(kept))
    return columns, read_columns, missing


def _check_tower(model: Model, run: Any, source: Any) -> None:
    """Refuse runs in which no vision tower runs.

    Raises
    ------
    SiteError, PatchError
    """
    for side in (run, source):
        if isinstance(side, Embedded):
            raise PatchError(
                "a baseline enters the first block of the language model, behind the vision tower, "
                "which shows it nothing. Give a Prompt with a picture, such as a grey one."
            )
        if isinstance(side, FromModel):
            raise PatchError(
                "a backbone has no vision tower, so no values of one. Give a Prompt of "
                f"{model.name}, Noise, FromLayers or numbers."
            )
        if isinstance(side, Prompt):
            check_vision(model, side, "the vision tower")


def _read_in(run: Side, source: Any) -> Prompt:
    """The prompt whose tokens values are read at: the run's own, unless the source has one."""
    if isinstance(source, Prompt):
        return source
    return source.prompt if isinstance(source, FromModel | Embedded) else prompt_of(run)


def measures(
    model: Model,
    given: Metric | Sequence[Metric],
    answers: Answers | None,
    foils: Answers | None,
    *,
    gradient: bool = False,
) -> tuple[list[Metric], Answers | None, Answers | None]:
    """The metrics asked for, each once, and the answers and foils they are of."""
    measured = measured_by(given, answers=answers is not None, foils=foils is not None)
    for metric in measured:
        if is_own(metric):
            check_own(model, metric, gradient=gradient)
    answers = None if answers is None else one_or_several(answers, "answers")
    return measured, answers, None if foils is None else one_or_several(foils, "foils")
