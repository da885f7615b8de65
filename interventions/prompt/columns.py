"""Tokens of roles as columns of a grid: which tokens of each row a column stands for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from interventions.errors import RoleError
from interventions.prompt.picture_grids import PictureGrid
from interventions.prompt.positions import Positions, Space, ragged
from interventions.prompt.prompt import Prompt
from interventions.prompt.tower_positions import tower_roles

EVERY = "every"
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
    of : {"text", "tower"}
        Whose tokens.
    """

    names: list[str]
    tokens: list[Column]
    of: Space = "text"

    def rows(self, rows: Sequence[int]) -> "Columns":
        """Return the columns of some rows."""
        tokens = [[column[row] for row in rows] for column in self.tokens]
        return replace(self, tokens=tokens)

    def shifted(self, left: int) -> "Columns":
        """Return the columns of a prompt that lost ``left`` positions in front."""
        if self.of != "text":
            return self
        moved = [[[token - left for token in row] for row in column] for column in self.tokens]
        return replace(self, tokens=moved)

    def length_in(self, prompt: Prompt) -> int:
        """How many positions a row of a prompt has where these tokens are, padding included."""
        return prompt.length if self.of == "text" else prompt.vision[self.of].length

    def positions(self, which: int, prompt: Prompt) -> Positions:
        """One column as positions of a prompt."""
        length, name = self.length_in(prompt), self.names[which]
        return Positions(*ragged(self.tokens[which]), length, False, name, self.of)

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


def roles_in(prompt: Prompt, of: Space) -> Sequence[Mapping[str, Sequence[int]]]:
    """Tokens of every role of each row of a prompt, of its text or of its pictures in the tower."""
    return prompt.roles if of == "text" else tower_roles(of, prompt.grids)


def role_tokens(prompt: Prompt, name: str, of: Space = "text") -> Column:
    """Tokens of a role, such as ``"entity"``, or of one of them, such as ``"entity[-1]"``.

    A row that has none gets an empty list.

    Raises
    ------
    RoleError
        If no row has the role.
    """
    match = ROLE.fullmatch(name)
    role, index = (match[1], match[2]) if match else (name, None)
    known = roles_in(prompt, of)
    if not any(role in roles for roles in known):
        prompt.at(role, of=of)  # says what there is
    column = []
    for roles in known:
        tokens = [*roles.get(role, ())]
        if index is not None:
            i = int(index)
            tokens = [tokens[i]] if -len(tokens) <= i < len(tokens) else []
        column.append(tokens)
    return column


def role_labels(prompt: Prompt, of: Space = "text") -> list[list[str]]:
    """Name every token after the narrowest of its roles, [row][position]; "" is padding.

    So each token counts once, and sums over roles add up to the sum over positions.
    """
    labels = []
    if of == "text":
        mask = prompt.inputs["attention_mask"][:, -prompt.length :].bool().tolist()
    else:  # what is neither a patch nor a class token fills up
        mask = [[False] * prompt.vision[of].length] * len(prompt)
    for row, every in enumerate(roles_in(prompt, of)):
        roles = {name: tokens for name, tokens in every.items() if name != EVERY or of == "text"}
        names = [OTHER if real else "" for real in mask[row]]
        for name in sorted(roles, key=lambda role: (len(roles[role]), role), reverse=True):
            for position in roles[name]:
                names[position] = name
        labels.append(names)
    return labels


def every_token(prompt: Prompt, of: Space = "text") -> Columns:
    """Return each position as a column of its own; rows have none where they are padded.

    Positions that no row has a token at are no columns.
    """
    labels = role_labels(prompt, of)
    names, tokens = [], []
    for position in range(len(labels[0])):
        column = [[position] if row[position] else [] for row in labels]
        if any(column):
            roles = {row[position] for row in labels if row[position]}
            names.append(roles.pop() if len(roles) == 1 else "")
            tokens.append(column)
    return Columns(names, tokens, of)


def narrowest_roles(prompt: Prompt, of: Space = "text") -> Columns:
    """Return roles as columns, so that each token counts for the narrowest of its own."""
    labels = role_labels(prompt, of)
    names = list(dict.fromkeys(name for row in labels for name in row if name))
    tokens = [
        [[i for i, label in enumerate(row) if label == name] for row in labels] for name in names
    ]
    return Columns(names, tokens, of)


def columns_of(
    prompt: Prompt, roles: Sequence[str], *, each: bool, of: Space = "text"
) -> tuple[Columns, dict[int, str]]:
    """Return roles as columns, or each of their tokens, and the rows that lack one.

    Raises
    ------
    RoleError
        If no role is named, or no row has them all.
    """
    if not roles:
        raise RoleError("roles= is empty. Name roles, or leave it out for every token.")
    tokens = [role_tokens(prompt, name, of) for name in roles]
    missing: dict[int, str] = {}
    for name, column in zip(roles, tokens, strict=True):
        for row, own in enumerate(column):
            if not own:
                missing.setdefault(row, f"no token of role {name!r}")
    if len(missing) == len(prompt):
        raise RoleError(f"no row has all of {', '.join(roles)}. Row 0 has {missing[0]}.")
    if not each:
        return Columns(list(roles), tokens, of), missing
    names, single = [], []
    for name, column in zip(roles, tokens, strict=True):
        for k in range(max(len(row) for row in column)):
            names.append(name)
            single.append([row[k : k + 1] for row in column])
    return Columns(names, single, of), missing


def check_same_tokens(prompt: Prompt, source: Prompt, of: Space = "text") -> None:
    """Refuse two prompts whose rows differ in length, so that positions do not correspond.

    Raises
    ------
    RoleError
        With the rows and what to do.
    """
    if of != "text":
        _check_same_patches(prompt, source, of)
        return
    here, there = prompt.lengths, source.lengths
    if wrong := (here != there).nonzero().flatten().tolist():
        row = wrong[0]
        raise RoleError(
            f"row(s) {wrong[:8]} differ in length: row {row} has {int(here[row])} tokens in the "
            f"prompt and {int(there[row])} in the source, so positions do not correspond. "
            'Compare roles instead, such as roles=("entity[-1]", "last"), or use names of as many '
            "tokens and images of the same size."
        )


def _check_same_patches(prompt: Prompt, source: Prompt, of: Space) -> None:
    here, there = (own.vision[of].counts for own in (prompt, source))
    pairs = zip(here, there, strict=True)
    if wrong := [row for row, (mine, theirs) in enumerate(pairs) if mine != theirs]:
        row = wrong[0]
        raise RoleError(
            f"row(s) {wrong[:8]} differ in their pictures: row {row} has {here[row]} tokens in the "
            f"vision tower, and {there[row]} in the source, so patches do not correspond. Use "
            "pictures of the same size."
        )


def check_same_grids(prompt: Prompt, source: Prompt, columns: Columns, *, each: bool) -> None:
    """Refuse pictures of as many tokens that lie otherwise, such as a wide and a high one.

    Parameters
    ----------
    prompt, source : Prompt
    columns : Columns
        Where values are written, and read at the same number in the source.
    each : bool
        Tokens are columns of their own. A column of one token is refused only so: without it, that
        token was asked for by name.

    Raises
    ------
    RoleError
        With the rows and what to do.
    """
    if not (prompt.grids and source.grids):
        return
    wrong = []
    for row, roles in enumerate(roles_in(prompt, columns.of)):
        shown = {*roles.get("image", ())}
        used = [tokens[row] for tokens in columns.tokens if shown.intersection(tokens[row])]
        if (each and used) or any(len(tokens) > 1 for tokens in used):
            pictures = zip(prompt.grids[row], source.grids[row], strict=False)
            if any(_lie_otherwise(own, other, columns.of) for own, other in pictures):
                wrong.append(row)
    if wrong:
        own, other = ([grid.size for grid in of.grids[wrong[0]]] for of in (prompt, source))
        raise RoleError(
            f"row(s) {wrong[:8]} have pictures of another shape in the source: row {wrong[0]} has "
            f"{own} (width, height), and {other} there. Their tokens are as many, but lie "
            "elsewhere in the picture, so they do not correspond. Use pictures of the same size."
        )


def _lie_otherwise(own: PictureGrid, other: PictureGrid, of: Space) -> bool:
    """Whether as many tokens are known to lie at other places of the grids."""
    mine, theirs = (grid.seen_by(of).patches for grid in (own, other))
    if mine is None or theirs is None or len(mine.kind) != len(theirs.kind):
        return False
    return any(
        (getattr(mine, name) != getattr(theirs, name)).any() for name in ("view", "row", "column")
    )
