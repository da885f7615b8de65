"""Where in each row of a prompt a value is read or written."""

from dataclasses import dataclass

import torch

from interventions.errors import RoleError
from interventions.given import rows_of, shown
from interventions.returnable import returnable


@returnable
@dataclass(frozen=True)
class Positions:
    """Token positions, row by row, of one prompt.

    Usually made by :meth:`interventions.Prompt.at`; indexes any stream inside a trace.

    Attributes
    ----------
    index : Tensor [row, n]
        Positions in the padded rows. Entries where ``mask`` is False are meaningless.
    mask : Tensor [row, n], bool
        True where the entry is a position of that row. Rows differ in their number of positions
        when the role does (two-token and one-token names).
    length : int
        Number of tokens in each padded row that goes through the blocks.
    single : bool
        One position per row: reading drops the position axis.
    role : str
        What was asked for, for messages.
    """

    index: torch.Tensor
    mask: torch.Tensor
    length: int
    single: bool
    role: str

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.index.shape[0]

    @property
    def ragged(self) -> bool:
        """Whether rows differ in how many positions they have."""
        return not bool(self.mask.all())

    @property
    def counts(self) -> torch.Tensor:
        """Number of positions of each row, [row]."""
        return self.mask.sum(-1)

    def last(self) -> "Positions":
        """Return the last position of each row."""
        index = self.index.gather(1, self.counts[:, None] - 1)
        return Positions(
            index, torch.ones_like(index, dtype=torch.bool), self.length, True, self.role
        )

    def shifted(self, left: int, length: int) -> "Positions":
        """Return the same tokens in a prompt that lost ``left`` columns in front."""
        return Positions(self.index - left, self.mask, length, self.single, self.role)

    def rows(self, rows: torch.Tensor | list[int]) -> "Positions":
        """Return the positions of some rows, in the order given."""
        rows = rows_of(rows, self.n_rows, error=RoleError)
        return Positions(self.index[rows], self.mask[rows], self.length, self.single, self.role)

    def only(self, rows: torch.Tensor) -> "Positions":
        """Return the same positions, written to in the rows where ``rows`` [row] is True only.

        Lets rows of one forward pass be patched in different layers.
        """
        if (
            not isinstance(rows, torch.Tensor)
            or rows.dtype != torch.bool
            or rows.shape != self.mask.shape[:1]
        ):
            raise RoleError(
                f"only() takes one bool per row ({self.n_rows}), not row numbers, as a tensor; "
                f"got {shown(rows)}."
            )
        mask = self.mask & rows.to(self.mask.device)[:, None]
        return Positions(self.index, mask, self.length, self.single, self.role)


def from_lists(lists: list[list[int]], *, length: int, single: bool, role: str) -> Positions:
    """Build :class:`Positions` from one list of token indices per row.

    Raises
    ------
    RoleError
        If a row has no position: the rows are named.
    """
    empty = [row for row, found in enumerate(lists) if not found]
    if empty:
        raise RoleError(
            f"role {role!r} has no token in row(s) {empty[:8]} of {len(lists)}. "
            "Leave those rows out with prompt.select(rows), or ask for another role."
        )
    width = max(len(found) for found in lists)
    index = torch.zeros(len(lists), width, dtype=torch.long)
    mask = torch.zeros(len(lists), width, dtype=torch.bool)
    for row, found in enumerate(lists):
        index[row, : len(found)] = torch.tensor(found)
        mask[row, : len(found)] = True
    return Positions(index, mask, length, single, role)
