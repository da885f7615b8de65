"""Two runs of the same rows, and which tokens of the one answer to which of the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from interventions.errors import PatchError, PromptError, RoleError
from interventions.given import one_of
from interventions.given_arrays import check_range, tensor_of
from interventions.metrics import Metric, Target
from interventions.model import Model
from interventions.patches import Patch
from interventions.places import check_same_tokens, role_labels, role_tokens
from interventions.positions import Positions, fits
from interventions.prompts import Prompt

Which = Literal["run", "source"]
Direction = Literal["denoising", "noising"]
DIRECTIONS: dict[Direction, str] = {
    "denoising": "the corrupt prompt runs, and values of the clean run are put into it",
    "noising": "the clean prompt runs, and values of the corrupt run are put into it",
}


@dataclass(frozen=True)
class Places:
    """The columns of a map: tokens of the prompt that runs, and those their values come from.

    Attributes
    ----------
    names : list of str or None
        A column is a role. None: a column is a position.
    run, source : list of list of list of int
        Tokens, [column][row]. A row may have none.
    """

    names: list[str] | None
    run: list[list[list[int]]]
    source: list[list[list[int]]]

    def rows(self, rows: Sequence[int]) -> "Places":
        """Return the places of some rows."""
        run, source = (
            [[column[row] for row in rows] for column in side] for side in (self.run, self.source)
        )
        return Places(self.names, run, source)

    def flat(self, which: Which) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens of all columns behind one another: token, column, and whether there is one.

        Returns
        -------
        index, column, mask : Tensor [row, n]
        """
        side = self.run if which == "run" else self.source
        tokens = [
            [(token, i) for i, column in enumerate(side) for token in column[row]]
            for row in range(len(side[0]))
        ]
        shape = (len(tokens), max(len(one) for one in tokens))
        index, column = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, one in enumerate(tokens):
            if one:
                index[row, : len(one)], column[row, : len(one)] = torch.tensor(one).T
                mask[row, : len(one)] = True
        return index, column, mask


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
    places : Places
    target : Target
    metric : str
    items : list of int
        Which rows of the prompts given these are; some may have been left out.
    missing : dict of int to str
        Why each of the others was.
    """

    run: Side
    source: Side
    places: Places
    target: Target
    metric: Metric
    items: list[int]
    missing: dict[int, str]

    def rows(self, rows: Sequence[int]) -> "Contrast":
        """Return some rows, counted among those that are left."""
        return replace(
            self,
            run=self.run.rows(rows),
            source=self.source.rows(rows),
            places=self.places.rows(rows),
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
        index, _, mask = self.places.flat(which)
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
    sides = (Side(clean), Side(other, baseline))
    missing: dict[int, str] = {}
    if roles is None:
        check_same_tokens(clean, other)
        lists = _every(clean) if not by_role else _by_role(clean)
        places = Places(lists[0], lists[1], lists[1])
    else:
        if by_role:
            raise PromptError("by_role=True sums all positions by role; leave out roles=.")
        names = list(roles)
        if not names:
            raise RoleError("roles= is empty. Name roles, or leave it out for all positions.")
        both = [_of_roles(prompt, names, missing) for prompt in (clean, other)]
        for i, name in enumerate(names):
            for row, (one, two) in enumerate(zip(both[0][i], both[1][i], strict=True)):
                if row not in missing and len(one) != len(two):
                    raise RoleError(
                        f"role {name!r} of row {row} has {len(one)} tokens in the clean and "
                        f"{len(two)} in the corrupt prompt, so they do not correspond. Ask for one "
                        f"token of it, such as {name}[-1], or use names of as many tokens."
                    )
        places = Places(names, *(both if direction == "noising" else both[::-1]))
    kept = [row for row in range(len(clean)) if row not in missing]
    if not kept:
        raise RoleError(f"no row has all of {', '.join(roles or ())}: row 0 has no {missing[0]}.")
    source, run = sides if direction == "denoising" else sides[::-1]
    whole = Contrast(run, source, places, target, metric, list(range(len(clean))), {})
    return replace(whole.rows(kept), missing=missing)


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


def _every(prompt: Prompt) -> tuple[None, list[list[list[int]]]]:
    mask = prompt.inputs["attention_mask"][:, -prompt.length :].bool().tolist()
    return None, [
        [[position] if row[position] else [] for row in mask] for position in range(prompt.length)
    ]


def _by_role(prompt: Prompt) -> tuple[list[str], list[list[list[int]]]]:
    labels = role_labels(prompt)
    names = list(dict.fromkeys(name for row in labels for name in row if name))
    return names, [
        [[i for i, label in enumerate(row) if label == name] for row in labels] for name in names
    ]


def _of_roles(
    prompt: Prompt, names: Sequence[str], missing: dict[int, str]
) -> list[list[list[int]]]:
    """Tokens of each role in each row; rows that lack one are noted."""
    found = []
    for name in names:
        column = role_tokens(prompt, name)
        for row, tokens in enumerate(column):
            if not tokens:
                missing.setdefault(row, name)
        found.append(column)
    return found
