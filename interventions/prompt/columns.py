"""Tokens of roles as columns of a grid: which tokens of each row a column stands for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interventions.errors import RoleError
from interventions.prompt.positions import Positions, ragged
from interventions.prompt.prompt import Prompt

ROLE = re.compile(r"(.+?)(?:\[(-?\d+)\])?")
OTHER = "other"
Column = list[list[int]]
"""Tokens of a column, [row][token]; a row may have none."""


@dataclass(frozen=True)
class Columns:
    """The columns of a grid.

    Attributes
    ----------
    names : list of str
        The role each stands for; with ``each``, the role its token belongs to.
    tokens : list of Column
    """

    names: list[str]
    tokens: list[Column]

    def rows(self, rows: Sequence[int]) -> "Columns":
        """Return the columns of some rows."""
        return Columns(self.names, [[column[row] for row in rows] for column in self.tokens])

    def shifted(self, left: int) -> "Columns":
        """Return the columns of a prompt that lost ``left`` positions in front."""
        moved = [[[token - left for token in row] for row in column] for column in self.tokens]
        return Columns(self.names, moved)

    def positions(self, which: int, length: int) -> Positions:
        """One column as positions of a prompt of ``length`` tokens."""
        return Positions(*ragged(self.tokens[which]), length, False, self.names[which])

    def flat(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens of all columns behind one another, row by row, without gaps.

        Returns
        -------
        index, column, mask : Tensor [row, n]
            Each token, which column it is of, and whether there is one.
        """
        n_rows = len(self.tokens[0])
        tokens = [
            [token for column in self.tokens for token in column[row]] for row in range(n_rows)
        ]
        owners = [
            [which for which, column in enumerate(self.tokens) for _ in column[row]]
            for row in range(n_rows)
        ]
        index, mask = ragged(tokens)
        return index, ragged(owners)[0], mask


def role_tokens(prompt: Prompt, name: str) -> Column:
    """Tokens of a role, such as ``"entity"``, or of one of them, such as ``"entity[-1]"``.

    A row that has none gets an empty list.

    Raises
    ------
    RoleError
        If no row has the role.
    """
    match = ROLE.fullmatch(name)
    role, index = (match[1], match[2]) if match else (name, None)
    if not any(role in roles for roles in prompt.roles):
        prompt.at(role)  # says what there is
    column = []
    for roles in prompt.roles:
        tokens = roles.get(role, [])
        if index is not None:
            i = int(index)
            tokens = [tokens[i]] if -len(tokens) <= i < len(tokens) else []
        column.append(tokens)
    return column


def role_labels(prompt: Prompt) -> list[list[str]]:
    """Name every token after the narrowest of its roles, [row][position]; "" is padding.

    So each token counts once, and sums over roles add up to the sum over positions.
    """
    labels = []
    mask = prompt.inputs["attention_mask"][:, -prompt.length :].bool().tolist()
    for row, roles in enumerate(prompt.roles):
        names = [OTHER if real else "" for real in mask[row]]
        for name in sorted(roles, key=lambda role: (len(roles[role]), role), reverse=True):
            for position in roles[name]:
                names[position] = name
        labels.append(names)
    return labels


def every_token(prompt: Prompt) -> Columns:
    """Return each position as a column of its own; rows have none where they are padded.

    Positions that no row has a token at are no columns.
    """
    labels = role_labels(prompt)
    names, tokens = [], []
    for position in range(prompt.length):
        column = [[position] if row[position] else [] for row in labels]
        if any(column):
            roles = {row[position] for row in labels if row[position]}
            names.append(roles.pop() if len(roles) == 1 else "")
            tokens.append(column)
    return Columns(names, tokens)


def narrowest_roles(prompt: Prompt) -> Columns:
    """Return roles as columns, so that each token counts for the narrowest of its own."""
    labels = role_labels(prompt)
    names = list(dict.fromkeys(name for row in labels for name in row if name))
    tokens = [
        [[i for i, label in enumerate(row) if label == name] for row in labels] for name in names
    ]
    return Columns(names, tokens)


def columns_of(
    prompt: Prompt, roles: Sequence[str], *, each: bool
) -> tuple[Columns, dict[int, str]]:
    """Return roles as columns, or each of their tokens, and the rows that lack one.

    Raises
    ------
    RoleError
        If no role is named, or no row has them all.
    """
    if not roles:
        raise RoleError("roles= is empty. Name roles, or leave it out for every token.")
    tokens = [role_tokens(prompt, name) for name in roles]
    missing: dict[int, str] = {}
    for name, column in zip(roles, tokens, strict=True):
        for row, own in enumerate(column):
            if not own:
                missing.setdefault(row, f"no token of role {name!r}")
    if len(missing) == len(prompt):
        raise RoleError(f"no row has all of {', '.join(roles)}. Row 0 has {missing[0]}.")
    if not each:
        return Columns(list(roles), tokens), missing
    names, single = [], []
    for name, column in zip(roles, tokens, strict=True):
        for k in range(max(len(row) for row in column)):
            names.append(name)
            single.append([row[k : k + 1] for row in column])
    return Columns(names, single), missing


def check_same_tokens(prompt: Prompt, source: Prompt) -> None:
    """Refuse two prompts whose rows differ in length, so that positions do not correspond.

    Raises
    ------
    RoleError
        With the rows and what to do.
    """
    here, there = prompt.lengths, source.lengths
    if wrong := (here != there).nonzero().flatten().tolist():
        row = wrong[0]
        raise RoleError(
            f"row(s) {wrong[:8]} differ in length: row {row} has {int(here[row])} tokens in the "
            f"prompt and {int(there[row])} in the source, so positions do not correspond. "
            'Compare roles instead, such as roles=("entity[-1]", "last"), or use names of as many '
            "tokens and images of the same size."
        )
