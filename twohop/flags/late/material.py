"""What the late pair's language model is changed on: rows with images, and rows to leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from twohop.flags.data import RELATIONS, entities, fact
from twohop.flags.late.blocks import Rows, image_rows, text_rows
from twohop.flags.late.countries import described, lending
from twohop.flags.prompted import PromptedLM
from twohop.flags.templates import NAMING, QUESTIONS, chain_of_thought

SAMPLED_ROWS, SAMPLED_TOKENS = 24, 28


@dataclass(frozen=True)
class Material:
    """Groups of rows, all at one depth.

    Attributes
    ----------
    named : Rows
        Images in the naming prompt, with the name and a line break behind.
    asked : tuple of Rows
        Images in each question, nothing behind.
    chains : tuple of Rows
        Images of lending countries, then the name and the question about it, in one text.
    text : tuple of Rows
        Names, questions, answers, chains of thought, and what the language model says by itself.
    """

    named: Rows
    asked: tuple[Rows, ...]
    chains: tuple[Rows, ...]
    text: tuple[Rows, ...]

    def groups(self) -> tuple[Rows, ...]:
        """All of them, in one order."""
        return (self.named, *self.asked, *self.chains, *self.text)

    def moved(self, groups: Sequence[Rows]) -> Material:
        """The same groups at another depth, in the order of :meth:`groups`."""
        asked, chains = len(self.asked), len(self.chains)
        return Material(
            groups[0],
            tuple(groups[1 : 1 + asked]),
            tuple(groups[1 + asked : 1 + asked + chains]),
            tuple(groups[1 + asked + chains :]),
        )


@torch.no_grad()
def material(lm: PromptedLM, shown: torch.Tensor, *, seed: int) -> Material:
    """Write all rows, at the first block's input.

    Parameters
    ----------
    lm : PromptedLM
    shown : Tensor
        Image tokens, [country, view, slot, d_model], countries as in ``described()``.
    seed : int
        Of the text that is sampled.
    """
    codes = described()
    names = {entity.code: entity.name for entity in entities()}
    count, views = shown.shape[:2]
    every = [country for country in range(count) for _ in range(views)]
    named = image_rows(
        lm,
        NAMING.before,
        shown.flatten(0, 1),
        [f"{NAMING.after} {names[codes[country]]}\n" for country in every],
        every,
    )
    asked, chains, text = [], [], []
    others = [codes.index(code) for code in lending()]
    for number, relation in enumerate(RELATIONS):
        template = QUESTIONS[relation]
        view = number % views
        asked.append(
            image_rows(lm, template.before, shown[:, view], [template.after] * count, range(count))
        )
        told = [chain_of_thought(relation, name=names[codes[country]]) for country in others]
        chains.append(
            image_rows(
                lm, told[0].before, shown[others, view], [chain.after for chain in told], others
            )
        )
        spelt = [names[codes[country]] for country in others]
        text.append(
            text_rows(
                lm,
                told[0].before,
                [f" {name}{chain.after}" for name, chain in zip(spelt, told, strict=True)],
            )
        )
        answers = [fact(code, relation).answers[0] for code in codes]
        text.append(
            text_rows(
                lm,
                template.before,
                [
                    f" {names[code]}{template.after} {answer}\n"
                    for code, answer in zip(codes, answers, strict=True)
                ],
            )
        )
    doubled = QUESTIONS["capital"]
    text.append(
        text_rows(lm, doubled.before, [f"{f' {names[code]}' * 4}{doubled.after}" for code in codes])
    )
    spelt = [f" {name}{NAMING.after} {name}\n" for name in names.values()]
    text.append(text_rows(lm, NAMING.before, spelt))
    text.append(_sampled(lm, seed=seed))
    return Material(named, tuple(asked), tuple(chains), tuple(text))


def _sampled(lm: PromptedLM, *, seed: int) -> Rows:
    """What the language model says by itself, drawn at temperature 1."""
    model: Any = lm.model
    end: Any = lm.tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = torch.full((SAMPLED_ROWS, 1), end)
        said = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            max_new_tokens=SAMPLED_TOKENS,
            min_new_tokens=SAMPLED_TOKENS,
            pad_token_id=end,
        )
    embeds = lm.model.model.embed_tokens(said)
    places = torch.ones(said.shape[0], SAMPLED_TOKENS, dtype=torch.bool)
    return Rows(
        embeds[:1, :1].detach(),
        embeds[:, 1:].detach(),
        places,
        torch.zeros_like(places),
        tuple(range(SAMPLED_ROWS)),
    )
