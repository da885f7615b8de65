"""Rows as users write them become prompts, batch by batch; what cannot be read is set aside."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interventions.errors import PromptError, ResultsError, SiteError, did_you_mean
from interventions.model import Model
from interventions.patching import Site
from interventions.positions import from_lists
from interventions.prompting import RESERVED
from interventions.prompts import SINGLE, Prompt
from interventions.streams import Component, Heads, Layers

MOST_TRIED = 100
ROW_KEYS = ("text", "images", "spans")
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

    @property
    def single(self) -> bool:
        """Whether one token per row is read."""
        return isinstance(self.index, int) or self.role in SINGLE

    def tokens(self, found: Sequence[int]) -> list[int]:
        """The tokens to read, of a row whose tokens of the role are ``found``.

        Raises
        ------
        SiteError
            If there are none.
        """
        chosen = list(found)
        if isinstance(self.index, int):
            inside = -len(chosen) <= self.index < len(chosen)
            chosen = [chosen[self.index]] if inside else []
        elif self.index is not None:
            chosen = chosen[self.index]
        if not chosen:
            which = "" if self.index is None else f" at {self.index}"
            raise SiteError(f"no token of role {self.role!r}{which}; it has {len(found)}")
        return chosen


@dataclass(frozen=True)
class Batch:
    """The rows of a batch that can be read, as a prompt, and those that cannot."""

    rows: list[int]
    made: Prompt | None
    failed: list[tuple[int, str]]

    @property
    def prompt(self) -> Prompt:
        """The prompt; there is one where there are rows."""
        if self.made is None:
            raise ResultsError(f"none of the rows can be read: {self.failed[:1]}.")
        return self.made

    @property
    def digest(self) -> str:
        """Of what the model is given."""
        if self.made is None:
            return ""
        inputs = sorted(self.made.inputs.items())
        parts = [self.made.prefix_ids, *(value for _, value in inputs)]
        return digest_of(*(part.cpu().contiguous().view(torch.uint8).numpy() for part in parts))

    def places(self, sites: Mapping[str, RoleSite]) -> dict[str, tuple[Site, torch.Tensor]]:
        """Sites of this prompt, each with the mask [row, n] of the tokens to count."""
        found: dict[str, tuple[Site, torch.Tensor]] = {}
        for name, site in sites.items():
            lists = [site.tokens(roles.get(site.role, [])) for roles in self.prompt.roles]
            single = site.single and not site.mean
            at = from_lists(lists, length=self.prompt.length, single=single, role=site.role)
            mask = at.mask
            if site.mean:  # a row's first token fills its list up, and is left out of the mean
                index = torch.where(mask, at.index, at.index[:, :1])
                at = replace(at, index=index, mask=torch.ones_like(mask))
            layers = [site.layers] if isinstance(site.layers, int) else site.layers
            where = Site(site.component, layers, at, site.heads)
            found[name] = (where, mask)
        return found


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
        prompt = make(good)
    except Exception:  # of any kind: a picture that cannot be decoded raises what it likes
        good = []
        for row in rows:
            try:
                make([row])
            except Exception as error:
                failed.append((row, f"{type(error).__name__}: {error}"))
            else:
                good.append(row)
        if not good:
            return Batch([], None, failed)
        prompt = make(good)
    if len(prompt) != len(good):
        raise PromptError(f"a prompt of {len(prompt)} rows was made of {len(good)} rows.")
    readable = []
    for i, row in enumerate(good):
        try:
            found = {}
            for name, site in sites.items():
                tokens = site.tokens(prompt.roles[i].get(site.role, []))
                found[name] = 1 if site.mean else len(tokens)
            for name, count in found.items():
                if count != counts.get(name, count):
                    raise SiteError(
                        f"{count} tokens of role {sites[name].role!r}, where the first row has "
                        f"{counts[name]}; choose some by index=, or average with mean=True"
                    )
        except SiteError as error:
            failed.append((row, str(error)))
        else:
            counts.update(found)
            readable.append(i)
    if not readable:
        return Batch([], None, failed)
    if len(readable) < len(good):
        prompt = prompt.select(readable).trimmed()[0]
    return Batch([good[i] for i in readable], prompt, sorted(failed))


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


def maker_of(model: Model, rows: Sequence[Any], sites: Mapping[str, RoleSite]) -> Maker:
    """Make prompts of rows as users write them, with the spans that sites ask for."""
    wanted = sorted({one.role for one in sites.values() if not RESERVED.fullmatch(one.role)})

    def make(numbers: list[int]) -> Prompt:
        texts, images, spans = [], [], {name: [] for name in wanted}
        for number in numbers:
            given = rows[number]
            row = given if isinstance(given, Mapping) else {"text": given}
            if unknown := sorted(set(row) - set(ROW_KEYS)):
                raise PromptError(f"a row has {unknown[0]!r}. {did_you_mean(unknown[0], ROW_KEYS)}")
            if "text" not in row:
                raise PromptError("a row has no 'text'.")
            texts.append(row["text"])
            images.append(row.get("images"))
            for name in wanted:
                if name not in (row.get("spans") or {}):
                    raise SiteError(f"no span {name!r}, which a site asks for")
                spans[name].append(row["spans"][name])
        shown = images if any(one is not None for one in images) else None
        return model.prompt(texts, images=shown, spans=spans)

    return make


def digest_of(*parts: Any) -> str:
    """Short digest of bytes or arrays."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()
