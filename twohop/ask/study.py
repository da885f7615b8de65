"""What every stage works with, and from items to prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from interventions import Model, ModelPair, Prompt, pair
from interventions.prompt.answer_tokens import candidate_ids, spaced, token_ids
from twohop.ask.answers import Decoding, answers
from twohop.ask.on_server import SILENT, Progress, on_each
from twohop.ask.roles import has_image_tokens
from twohop.ask.shards import SHARD_ROWS
from twohop.items.digest import asked_parts, named
from twohop.items.items import Benchmark, Entity, Item, Template
from twohop.protocol import DEFAULT, Protocol
from twohop.scoring import names_it

SEPARATOR = " | "  # between accepted answers, where they are stored as one text


@dataclass(frozen=True)
class Study:
    """What every stage works with.

    Attributes
    ----------
    vlm, backbone : Model
    benchmark : Benchmark
    seed : int
    max_new_tokens : int
        How long an answer may be, see :func:`longest_answer`.
    kept : dict
        What the backbone gave and later pairs on it will ask for again.
    progress : Progress
        Told of the rows to come and of those done.
    protocol : Protocol
        Every number that decides what is measured.
    """

    vlm: Model
    backbone: Model
    benchmark: Benchmark
    seed: int = 0
    max_new_tokens: int = 8
    kept: dict[Any, Any] = field(default_factory=dict, compare=False)
    progress: Progress = field(default=SILENT, compare=False)
    protocol: Protocol = DEFAULT

    @cached_property
    def pair(self) -> ModelPair:
        """The two models, and which block of the one corresponds to which of the other.

        Raises
        ------
        AlignmentError
            If nothing can be patched between them.
        """
        return pair(self.vlm, self.backbone)

    @property
    def decoding(self) -> Decoding:
        """How the benchmark's answers are written down."""
        return Decoding(self.max_new_tokens, self.benchmark.stop, self.benchmark.end)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What results depend on, as a run's settings have it; JSON types."""
        parts = asked_parts(self.benchmark, protocol=self.protocol)
        return {
            "vlm": self.vlm.name,
            "backbone": self.backbone.name,
            "benchmark": named(self.benchmark, parts),
            "asked": parts,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "protocol": self.protocol.as_settings(),
        }


def text_prompt(
    model: Model,
    template: Template,
    entities: Sequence[Entity],
    *,
    share_prefix: bool | str = True,
) -> Prompt:
    """Ask about named entities; the role ``entity`` is the name."""
    return model.prompt(
        [template.fill(entity.name) for entity in entities],
        spans={"entity": [template.span(entity.name) for entity in entities]},
        share_prefix=share_prefix,
    )


def image_prompt(
    study: Study,
    template: Template,
    entities: Sequence[Entity],
    *,
    views: Sequence[int] | int = 0,
    sized_as: Sequence[Entity] | None = None,
    sized_view: int = 0,
    marked: bool = False,
    share_prefix: bool | str = True,
) -> Prompt:
    """Ask the VLM about pictured entities, each by one of its held-out views.

    Parameters
    ----------
    study : Study
    template : Template
    entities : sequence of Entity
    views : int or sequence of int
        For all, or one each.
    sized_as : sequence of Entity, optional
        Bring each picture to the size of this entity's: as large pictures have as many tokens.
    sized_view : int
        Which picture of it.
    marked : bool
        Give the question, without worked examples, what is shared, and what a chat writes behind
        it, the role ``asked``; done anyway where an image has no tokens.
    share_prefix : bool or str
        As in :meth:`interventions.Model.prompt`.
    """
    chosen = [views] * len(entities) if isinstance(views, int) else views
    images = [
        study.benchmark.view(entity.code, view)
        for entity, view in zip(entities, chosen, strict=True)
    ]
    if sized_as is not None:
        sizes = [study.benchmark.view(entity.code, sized_view).size for entity in sized_as]
        images = [
            image if image.size == size else image.resize(size)
            for image, size in zip(images, sizes, strict=True)
        ]
    text = template.show(study.vlm.image_token or "")
    marked = marked or not has_image_tokens(study.vlm)
    ahead = len(share_prefix) if isinstance(share_prefix, str) else 0
    asked = (max(len(template.prefix), ahead), len(text) - len(template.closing))
    return study.vlm.prompt(
        [text] * len(images),
        images=images,
        spans={"asked": asked} if marked else None,
        share_prefix=share_prefix,
    )


def pictured(study: Study, items: Sequence[Item], templates: Sequence[Template]) -> Prompt:
    """Show the VLM the picture of each item in a text of its own, such as a chain of questions."""
    shown = study.vlm.image_token or ""
    images = [study.benchmark.view(item.entity.code, 0) for item in items]
    texts = [template.show(shown) for template in templates]
    return study.vlm.prompt(texts, images=images, share_prefix=True)


def longest_answer(model: Model, benchmark: Benchmark, *, protocol: Protocol = DEFAULT) -> int:
    """Tokens to generate: the longest name or accepted answer, and the protocol's spare ones.

    Of the whole benchmark, also where only some of its items are asked about. In a chat, room for
    a sentence at least, :attr:`Protocol.sentence_tokens`.
    """
    texts = {*benchmark.every_name}
    texts |= {answer for item in benchmark.universe or benchmark.items for answer in item.answers}
    asked = text_prompt(model, benchmark.naming, benchmark.entities[:1])
    tokens = token_ids(model, sorted(texts), space=spaced(model, asked))
    longest = max(len(ids) for ids in tokens) + protocol.spare_tokens
    return max(longest, protocol.sentence_tokens) if benchmark.chat else longest


def name_entities(
    study: Study, entities: Sequence[Entity]
) -> tuple[list[str], np.ndarray, list[bool]]:
    """Ask the VLM which entity each picture shows.

    Returns
    -------
    texts : list of str
        Its words.
    right : ndarray of bool [entity]
    cut : list of bool
        Whether they were at the limit of tokens before they ended.
    """
    study.progress.expect(len(entities))
    shards = (entities[i : i + SHARD_ROWS] for i in range(0, len(entities), SHARD_ROWS))
    tasks = (
        (image_prompt(study, study.benchmark.naming, shard), None, study.decoding)
        for shard in shards
    )
    of_shards = on_each(study.vlm, answers, tasks, tick=study.progress.tick)
    answered = [answer for of_shard in of_shards for answer in of_shard]
    texts = [answer["text"] for answer in answered]
    everyone = study.benchmark.every_name
    right = [
        names_it(text, names=entity.names, others=everyone)
        for entity, text in zip(entities, texts, strict=True)
    ]
    return texts, np.array(right, dtype=bool), [answer["cut"] for answer in answered]


def first_tokens(model: Model, prompt: Prompt, texts: Sequence[str]) -> list[int]:
    """Id of the first token of each answer as it follows a prompt."""
    space = spaced(model, prompt)
    return [candidate_ids(model, [text], space=space)[0][0] for text in texts]


def mean_of_others(values: torch.Tensor, items: Sequence[Item]) -> torch.Tensor:
    """For each row of [layer, row, ...], the mean over the rows of other entities.

    A mean that includes the row itself would leak a share of what is to be taken away. Zero where
    there is no other entity.
    """
    codes = [item.entity.code for item in items]
    weights = torch.tensor(
        [[float(own != other) for other in codes] for own in codes], dtype=values.dtype
    )
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return torch.einsum("ij,lj...->li...", weights.to(values.device), values)


def item_coords(items: Sequence[Item]) -> dict[str, tuple[str, list[str]]]:
    """Coordinates along ``item``: id, entity, relation, canonical and all accepted answers."""
    return {
        "item": ("item", [item.id for item in items]),
        "entity": ("item", [item.entity.name for item in items]),
        "relation": ("item", [item.relation for item in items]),
        "answer": ("item", [item.answers[0] for item in items]),
        "accepted": ("item", [SEPARATOR.join(item.answers) for item in items]),
    }


def text_array(values: object) -> np.ndarray:
    """Strings as an object array, which netCDF stores as variable-length text.

    It cannot hold a zero byte, which a broken or untrained model may well say: a replacement
    character stands for it.
    """
    texts = np.array(values, dtype=object)
    for where, text in np.ndenumerate(texts):
        texts[where] = text.replace("\0", "\ufffd")
    return texts
