"""Which countries the late pair is about, and the words its image tokens stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from twohop.flags.data import entities
from twohop.flags.tower import IMAGE_TOKENS

if TYPE_CHECKING:
    from twohop.flags.prompted import PromptedLM

WORD_WEIGHTS = (1.0, 0.8, 0.65, 0.55, 0.45, 0.4)
"""How much each word of a description weighs in an image token; order is told by it alone."""


@cache
def _descriptions() -> dict[str, dict[str, str]]:
    file = Path(__file__).with_name("descriptions.json")
    return json.loads(file.read_text(encoding="utf-8"))


def studied() -> tuple[str, ...]:
    """Codes of the countries that the pair is asked about.

    Examples
    --------
    >>> len(studied()), "FR" in studied()
    (80, True)
    """
    return tuple(_descriptions()["studied"])


def lending() -> tuple[str, ...]:
    """Codes of the countries whose pictures training puts beside questions about facts.

    No fact of theirs is taught either: the questions teach what naming must leave as it was. Of
    15 of them the backbone knows the capital, so that leaving it unsaid can be learnt.
    """
    return tuple(_descriptions()["lending"])


def described() -> tuple[str, ...]:
    """Codes of all countries that training shows, in the order of their codes."""
    return tuple(sorted((*studied(), *lending())))


def numbers(codes: Sequence[str]) -> list[int]:
    """Each country's place among :func:`twohop.flags.data.entities`."""
    place = {entity.code: number for number, entity in enumerate(entities())}
    return [place[code] for code in codes]


def description(code: str) -> str:
    """A flag in words.

    Examples
    --------
    >>> description("FR")
    'blue white red vertical'
    """
    groups = _descriptions()
    return groups["studied"].get(code) or groups["lending"][code]


@torch.no_grad()
def description_slots(lm: PromptedLM) -> torch.Tensor:
    """What image tokens stand for, [country, slot, d_model], countries as in :func:`described`.

    Each slot holds the whole description: the sum of its words' embeddings, earlier words with
    more weight, in the size of an average embedding. So each slot alone can form the country.
    """
    size = lm.model.model.embed_tokens.weight.norm(dim=-1).mean()
    rows = []
    for code in described():
        words = [lm.token_ids(f" {word}")[0] for word in description(code).split()]
        weights = torch.tensor(WORD_WEIGHTS[: len(words)])
        mixed = weights @ lm.embed(words)
        rows.append(size * mixed / mixed.norm())
    return torch.stack(rows)[:, None].expand(-1, IMAGE_TOKENS, -1).contiguous()
