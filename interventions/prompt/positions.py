"""Where in each row of a prompt a value is read or written; reading and writing there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from interventions.errors import PatchError, RoleError, SiteError
from interventions.given import index_of, one_of, rows_of, shown
from interventions.given_arrays import check_range, tensor_of
from interventions.returnable import returnable

Mode = Literal["set", "add", "scale"]
MODES: tuple[Mode, ...] = ("set", "add", "scale")
Space = Literal["text", "tower", "features"]
SPACES: tuple[Space, ...] = ("text", "tower", "features")
"""Where positions are: in the language model's rows, among the tokens of the vision tower, or among
what the projector makes of them."""


@returnable
@dataclass(frozen=True)
class Positions:
    """Token positions, row by row, of one prompt: of its text, or of its pictures in the tower.

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
    of : {"text", "tower", "features"}
        Whose tokens: the language model's, the vision tower's, or what the projector gives.
    """

    index: torch.Tensor
    mask: torch.Tensor
    length: int
    single: bool
    role: str
    of: Space = field(default="text", repr=False)

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

    @property
    def span(self) -> slice | None:
        """The positions, if they are the same ones, one behind the other, in every row."""
        n_rows, n = self.index.shape
        if not n_rows or not n:
            return None
        first = int(self.index[0, 0])
        span = torch.arange(first, first + n, device=self.index.device)
        return slice(first, first + n) if bool((self.index == span).all()) else None

    def last(self) -> "Positions":
        """Return the last position of each row."""
        index = self.index.gather(1, self.counts[:, None] - 1)
        mask = torch.ones_like(index, dtype=torch.bool)
        return replace(self, index=index, mask=mask, single=True)

    def filled(self) -> "Positions":
        """Return as many positions for every row, so that rows that differ are read as one tensor.

        What fills a row up is its first position again: :attr:`mask`, before, tells which are its
        own.
        """
        index = torch.where(self.mask, self.index, self.index[:, :1])
        return replace(self, index=index, mask=torch.ones_like(self.mask))

    def shifted(self, left: int, length: int) -> "Positions":
        """Return the same tokens in a prompt that lost ``left`` columns in front."""
        if self.of != "text":
            return self
        return replace(self, index=self.index - left, length=length)

    def rows(self, rows: torch.Tensor | list[int]) -> "Positions":
        """Return the positions of some rows, in the order given."""
        rows = rows_of(rows, self.n_rows, error=RoleError)
        return replace(self, index=self.index[rows], mask=self.mask[rows])

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
        return replace(self, mask=mask)


class Readout(Positions):
    """Positions whose logits are wanted with, behind them, what the final norm is given.

    So the last axis is [vocab + d_model].
    """


Where = Positions | int | slice | Sequence[int] | None


def ragged(lists: Sequence[Sequence[int]], *, fill: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Put lists of whole numbers into rows of one width, padded on the right.

    Parameters
    ----------
    lists : sequence of sequence of int
        One per row; a row may be empty.
    fill : int
        What is put where a row has no more.

    Returns
    -------
    numbers : Tensor [row, n], int64
    mask : Tensor [row, n], bool
        Where a row has a number of its own.

    Examples
    --------
    >>> ragged([[7], [5, 6]])[0].tolist()
    [[7, 0], [5, 6]]
    """
    width = max((len(numbers) for numbers in lists), default=0)
    padded = [[*numbers, *[fill] * (width - len(numbers))] for numbers in lists]
    counts = torch.tensor([len(numbers) for numbers in lists], dtype=torch.long)
    mask = torch.arange(width) < counts[:, None]
    return torch.tensor(padded, dtype=torch.long).reshape(len(lists), width), mask


def of_copies(positions: Mapping[int, Positions], n_copies: int) -> Positions:
    """Positions in rows that stand ``n_copies`` times, each copy with its own.

    Parameters
    ----------
    positions : dict of int to Positions
        By copy, counted from 0: copies of a row are next to each other. Those that are not named
        have none.
    n_copies : int
    """
    like = next(iter(positions.values()))
    width = max(at.index.shape[1] for at in positions.values())
    index = torch.zeros(like.n_rows, n_copies, width, dtype=torch.long)
    mask = torch.zeros(like.n_rows, n_copies, width, dtype=torch.bool)
    for copy, at in positions.items():
        index[:, copy, : at.index.shape[1]] = at.index
        mask[:, copy, : at.index.shape[1]] = at.mask
    return Positions(index.flatten(0, 1), mask.flatten(0, 1), like.length, False, "cells", like.of)


def picked(
    positions: list[int], index: int | slice | Sequence[int] | None, role: str, row: int
) -> list[int]:
    """The positions of a role that an index names, of those of one row.

    Raises
    ------
    RoleError
        If one does not exist, or is named twice. Of a row without any nothing is said here.
    """
    if index is None or not positions:
        return positions
    if isinstance(index, slice):
        return positions[index]
    wanted = [index] if isinstance(index, int) else index
    for i in wanted:
        if not -len(positions) <= i < len(positions):
            raise RoleError(
                f"role {role!r} has {len(positions)} token(s) in row {row}, so there "
                f"is no index {i}. Use -1 for its last token."
            )
    if len({i % len(positions) for i in wanted}) < len(wanted):
        raise RoleError(f"index {wanted} of role {role!r} names one token twice.")
    return [positions[i] for i in wanted]


def from_lists(
    lists: list[list[int]], *, length: int, single: bool, role: str, of: Space = "text"
) -> Positions:
    """Build :class:`Positions` from one list of token indices per row.

    Raises
    ------
    RoleError
        If a row has no position: the rows are named.
    """
    empty = [row for row, tokens in enumerate(lists) if not tokens]
    if empty:
        raise RoleError(
            f"role {role!r} has no token in row(s) {empty[:8]} of {len(lists)}. "
            "Leave those rows out with prompt.select(rows), or ask for another role."
        )
    return Positions(*ragged(lists), length, single, role, of)


def index_list(asked: int | slice | Sequence[int], n: int, what: str = "layer") -> list[int]:
    """Indices named by an int, slice or list, counted from the end where negative.

    Raises
    ------
    SiteError
        If one does not exist, or none is named.
    """
    index = index_of(asked, what)
    if isinstance(index, slice):
        backward = index.step is not None and index.step < 0
        low, high = (-n - 1, n - 1) if backward else (-n, n)
        if any(end is not None and not low <= end <= high for end in (index.start, index.stop)):
            raise SiteError(f"{what}s {index.start}:{index.stop} reach outside 0:{n}.")
        index = list(range(n))[index]
    index = [index] if isinstance(index, int) else index
    if not index:
        raise SiteError(f"no {what} is named by {asked!r}; there are {what}s 0 to {n - 1}.")
    for number in index:
        if not -n <= number < n:
            raise SiteError(f"no {what} {number}: the model has {what}s 0 to {n - 1}.")
    return [number % n for number in index]


def answered_at(
    logits: torch.Tensor, at: Positions, first: int, final: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits [row, token, vocab] at positions, of those from position ``first`` on.

    ``final`` [row, position, d_model], what the final norm is given, comes behind them: as in
    :class:`Readout`.
    """
    index = at.index.to(logits.device)
    rows = torch.arange(len(index), device=logits.device)[:, None]
    answered = logits[rows, (index - first).clamp(min=0)]
    if final is None:
        return answered
    return torch.cat([answered, final.to(answered)[rows, index.clamp(min=0)]], -1)


def read_at(hidden: torch.Tensor, positions: Where) -> torch.Tensor:
    """Copy positions out of ``hidden`` [row, position, width]."""
    if not isinstance(positions, Positions):
        # A copy, for "stream[3] += v" changes what was read in place, and with it earlier reads.
        return hidden[:, place_of(hidden, positions)].clone()
    check_rows(hidden, positions)
    if positions.ragged:
        raise SiteError(
            f"role {positions.role!r} has between {int(positions.counts.min())} and "
            f"{int(positions.counts.max())} tokens per row, so it cannot be read as one tensor. "
            "Ask for one token per row, such as at(role, -1), or select() rows of equal length. To "
            'add or scale there, use stream.write(layers, positions, value, mode="add" or "scale").'
        )
    values = read_padded(hidden, positions)
    return values[:, 0] if positions.single else values


def read_padded(
    hidden: torch.Tensor, positions: Positions, *, layer_axis: bool = False, copy: bool = True
) -> torch.Tensor:
    """Copy positions out of ``hidden`` [row, position, ...], however many a row has.

    ``layer_axis``: ``hidden`` has one in front. Without ``copy`` it may be a view.

    Returns
    -------
    Tensor [row, n, ...]
        What ``positions.mask`` leaves out is meaningless.
    """
    if (span := positions.span) is not None:  # far less than gathering takes
        part = hidden[:, :, span] if layer_axis else hidden[:, span]
        return part.clone() if copy else part
    rows = torch.arange(positions.n_rows, device=hidden.device)[:, None]
    index = positions.index.to(hidden.device)
    return hidden[:, rows, index] if layer_axis else hidden[rows, index]


def place_of(hidden: torch.Tensor, positions: Any) -> int | slice | list[int]:
    """Positions that are the same in every row, as an index that ``hidden`` has."""
    n = hidden.shape[1]
    if positions is None:
        return slice(None)
    place = index_of(positions, "position")
    if isinstance(place, int) and not -n <= place < n:
        raise SiteError(f"no position {place}: the running rows have positions 0 to {n - 1}.")
    if isinstance(place, slice) and place == slice(None):
        return place
    return place if isinstance(place, int) else index_list(place, n, "position")


def check_rows(hidden: torch.Tensor, positions: Positions) -> None:
    """Refuse positions of one prompt in a trace that runs another."""
    if tuple(hidden.shape[:2]) != (positions.n_rows, positions.length):
        raise SiteError(
            f"these positions ({positions.role!r}) belong to a prompt of {positions.n_rows} rows x "
            f"{positions.length} tokens, but the forward pass has {hidden.shape[0]} x "
            f"{hidden.shape[1]}. Use positions of the prompt that is traced; while generating, "
            "they hold for the prefill step only."
        )


def fits(value: torch.Tensor, shape: Sequence[int]) -> bool:
    """Whether a value is a number, or one vector or as many as there are along every axis.

    A vector of one number would be spread over the width, which is nobody's wish.
    """
    if value.ndim and value.shape[-1] != shape[-1]:
        return False
    pairs = zip(reversed(value.shape), reversed(shape), strict=False)
    return value.ndim <= len(shape) and all(mine in (1, there) for mine, there in pairs)


def merged(old: torch.Tensor, value: torch.Tensor, mode: Mode) -> torch.Tensor:
    """What ``mode`` makes of an old value and a new one."""
    if mode == "add":
        return old + value
    return old * value if mode == "scale" else value


def write_at(
    hidden: torch.Tensor,
    positions: Where,
    value: Any,
    mode: Mode = "set",
    *,
    infinite: bool = False,
    checked: torch.dtype | None = None,
) -> torch.Tensor:
    """Return a copy of ``hidden`` [row, position, width] changed at ``positions``.

    A value of one axis less than the place it goes to is spread over the positions of its row; a
    number, or one vector [width], over all.

    Parameters
    ----------
    hidden : Tensor
    positions : Positions, int, slice or None
    value : Tensor or number
    mode : {"set", "add", "scale"}
        Overwrite with the value, add it, or multiply by it.
    infinite : bool
        The value may hold infinite numbers.
    checked : torch.dtype, optional
        A format that the value is known to be finite in: it is looked at again only if that of
        ``hidden`` holds less.

    Raises
    ------
    PatchError
        If the value's shape does not fit, it holds a NaN, or a number that the format of
        ``hidden`` would make infinite.
    """
    mode = one_of(mode, "mode", MODES, error=PatchError)
    value = tensor_of(value)
    if checked is None or torch.finfo(hidden.dtype).max < torch.finfo(checked).max:
        check_range(value, hidden.dtype, infinite=infinite)
    value = value.to(device=hidden.device, dtype=hidden.dtype)
    result = hidden.clone()
    if not isinstance(positions, Positions):
        place = place_of(hidden, positions)
        old = hidden[:, place]
        if value.ndim == 2 and not isinstance(place, int):
            value = value[:, None]  # one value per row, spread over its positions
        if isinstance(place, list) and len(set(place)) < len(place):
            raise PatchError(f"positions {place} name one twice, so a value would be written over.")
        if not fits(value, old.shape):
            raise PatchError(
                f"the value does not fit where it is to go: its shape is {tuple(value.shape)}. "
                f"Expected {list(old.shape)}."
            )
        result[:, place] = merged(old, value, mode)
        return result
    check_rows(hidden, positions)
    n_rows, n = positions.index.shape
    width = hidden.shape[-1]
    if value.ndim == 2:
        value = value[:, None]  # one value per row
    if not fits(value, (n_rows, n, width)):
        raise PatchError(
            f"a value of shape {tuple(value.shape)} does not fit {n_rows} rows x {n} positions x "
            f"{width} at role {positions.role!r}. Expected [{n_rows}, {n}, {width}], or "
            f"[{n_rows}, {width}] to spread one value per row over its positions."
        )
    value = value.expand(n_rows, n, width)
    mask = positions.mask.to(hidden.device)
    rows = torch.arange(n_rows, device=hidden.device)[:, None].expand(n_rows, n)[mask]
    index = positions.index.to(hidden.device)[mask]
    result[rows, index] = merged(hidden[rows, index], value[mask], mode)
    return result
