"""Prompts of rows, batch by batch; what cannot be read is set aside."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interventions.digests import digest_of
from interventions.errors import PromptError, ResultsError, SiteError
from interventions.given import flag, index_of, of_kind, text_of
from interventions.model.sites import Component, Heads, Layers, Site
from interventions.prompt.positions import from_lists
from interventions.prompt.prompt import SINGLE, Prompt

MOST_TRIED = 100
Maker = Callable[[list[int]], Prompt]


@dataclass(frozen=True)
class RoleSite:
    """A place to read in every row: component x layers x tokens of a role.

    Unlike :class:`interventions.Site`, it is not bound to one prompt.

    Attributes
    ----------
    component : str
        As in :class:`interventions.Site`.
    layers : int, slice or list of int
    role : str
        As in :meth:`interventions.Prompt.at`.
    index : int or slice, optional
        Which of the role's tokens; default all. All rows must have equally many.
    mean : bool
        Average over those tokens (in float32), of which rows may have any number.
    heads : int, slice or list of int, optional
        For ``"head_out"``. None: every query head.
    """

    component: Component
    layers: Layers
    role: str
    index: int | slice | None = None
    mean: bool = False
    heads: Heads = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", index_of(self.layers, "layer"))
        if self.heads is not None:
            object.__setattr__(self, "heads", index_of(self.heads, "head"))
        index = None if self.index is None else index_of(self.index, "index")
        if isinstance(index, list):
            raise SiteError(f"index={index}: expected an int, a slice or None.")
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "role", text_of(self.role, "a role", error=SiteError))
        object.__setattr__(self, "mean", flag(self.mean, "mean", error=SiteError))

    @property
    def single(self) -> bool:
        """Whether one token per row is read."""
        return isinstance(self.index, int) or self.role in SINGLE

    def tokens(self, of_role: Sequence[int]) -> list[int]:
        """The tokens to read, of a row whose tokens of the role are ``of_role``.

        Raises
        ------
        SiteError
            If there are none.
        """
        chosen = list(of_role)
        if isinstance(self.index, int):
            inside = -len(chosen) <= self.index < len(chosen)
            chosen = [chosen[self.index]] if inside else []
        elif self.index is not None:
            chosen = chosen[self.index]
        if not chosen:
            which = "" if self.index is None else f" at {self.index}"
            raise SiteError(f"no token of role {self.role!r}{which}; it has {len(of_role)}")
        return chosen


@dataclass(frozen=True)
class Batch:
    """The rows of a batch that can be read, as a prompt, and those that cannot."""

    rows: list[int]
    prompt_if_any: Prompt | None
    failed: list[tuple[int, str]]

    @property
    def prompt(self) -> Prompt:
        """The prompt; there is one where there are rows."""
        if self.prompt_if_any is None:
            raise ResultsError(f"none of the rows can be read: {self.failed[:1]}.")
        return self.prompt_if_any

    @property
    def digest(self) -> str:
        """Of what the model is given, and where its roles are."""
        if self.prompt_if_any is None:
            return ""
        return digest_of(
            dict(self.prompt_if_any.inputs), self.prompt_if_any.prefix_ids, self.prompt_if_any.roles
        )

    def places(self, sites: Mapping[str, RoleSite]) -> dict[str, tuple[Site, torch.Tensor]]:
        """Sites of this prompt, each with the mask [row, n] of the tokens to count."""
        places: dict[str, tuple[Site, torch.Tensor]] = {}
        for name, site in sites.items():
            lists = [site.tokens(roles.get(site.role, [])) for roles in self.prompt.roles]
            single = site.single and not site.mean
            at = from_lists(lists, length=self.prompt.length, single=single, role=site.role)
            mask = at.mask
            if site.mean:  # what fills a row up is left out of the mean
                at = at.filled()
            layers = [site.layers] if isinstance(site.layers, int) else site.layers
            where = Site(site.component, layers, at, site.heads)
            places[name] = (where, mask)
        return places


class Fetched(Sequence[Any]):
    """Rows, each of which is asked for once while a batch of them is dealt with."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        if number not in self._kept:
            self._kept[number] = self.rows[number]
        return self._kept[number]

    def forget(self) -> None:
        """Let go of what was fetched."""
        self._kept.clear()


def make_batch(
    make: Maker,
    rows: Sequence[int],
    sites: Mapping[str, RoleSite],
    counts: dict[str, int],
) -> Batch:
    """Make the prompt of some rows; those that cannot be made, or lack a role, are set aside.

    ``counts``: how many tokens each site has in every row; the first row that can be read decides.
    """
    good, failed = list(rows), []
    try:
        prompt = _prompt_of(make, good)
    except Exception:  # of any kind: a picture that cannot be decoded raises what it likes
        good = []
        for row in rows:
            try:
                _prompt_of(make, [row])
            except Exception as error:
                failed.append((row, f"{type(error).__name__}: {error}"))
            else:
                good.append(row)
        if not good:
            return Batch([], None, failed)
        prompt = _prompt_of(make, good)
    if len(prompt) != len(good):
        raise PromptError(f"a prompt of {len(prompt)} rows was made of {len(good)} rows.")
    readable = []
    for i, row in enumerate(good):
        try:
            sizes = {}
            for name, site in sites.items():
                tokens = site.tokens(prompt.roles[i].get(site.role, []))
                sizes[name] = 1 if site.mean else len(tokens)
            for name, count in sizes.items():
                if count != counts.get(name, count):
                    raise SiteError(
                        f"{count} tokens of role {sites[name].role!r}, where the first row has "
                        f"{counts[name]}; choose some by index=, or average with mean=True"
                    )
        except SiteError as error:
            failed.append((row, str(error)))
        else:
            counts.update(sizes)
            readable.append(i)
    if not readable:
        return Batch([], None, failed)
    if len(readable) < len(good):
        prompt = prompt.select(readable).trimmed()[0]
    return Batch([good[i] for i in readable], prompt, sorted(failed))


def make_batches(
    make: Maker, rows: Sequence[int], sites: Mapping[str, RoleSite], counts: dict[str, int]
) -> list[Batch]:
    """Make one batch of some rows; of rows that cannot stand in one prompt, a batch of each.

    Rows with different numbers of images would change each other in some models, for one.
    """
    try:
        return [make_batch(make, rows, sites, counts)]
    except PromptError:
        if len(rows) == 1:
            raise
        return [make_batch(make, [row], sites, counts) for row in rows]


def digest_of_batches(batches: Sequence[Batch]) -> str:
    """Digest of what the model is given in some batches together."""
    digests = [batch.digest for batch in batches]
    return digests[0] if len(digests) == 1 else digest_of(*digests)


def _prompt_of(make: Maker, rows: list[int]) -> Prompt:
    return of_kind(make(rows), Prompt, "what the function of row numbers made", error=PromptError)


def first_batch(
    make: Maker,
    total: int,
    sites: Mapping[str, RoleSite],
    counts: dict[str, int],
) -> Batch:
    """The first row that can be read, as a batch of its own.

    Raises
    ------
    ResultsError
        If none of the first rows can be.
    """
    reason = ""
    tried = min(total, MOST_TRIED)
    for row in range(tried):
        batch = make_batch(make, [row], sites, counts)
        if batch.rows:
            return batch
        reason = reason or f"row {row}: {batch.failed[0][1]}"
    raise ResultsError(f"none of the first {tried} rows can be read: {reason}.")
