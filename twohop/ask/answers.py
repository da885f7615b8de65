"""What a model answers to a prompt: freely, and in a forced choice under every rule of one.

The study's forced choice is that of the largest log-probability, summed over an answer's tokens
(:data:`DEFAULT_RULE`). Beside it stand the largest mean over tokens, which takes nothing from long
answers, and the largest gain over a prompt that tells nothing of the entity (a blank picture; "it"
for the name), which takes nothing from rare ones. A candidate has the same tokens under all three:
those of its text, and the stop behind them where it begins another candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from interventions import Model, Prompt, complete
from interventions.prompt.thoughts import behind_thoughts
from interventions.running.forced_choice import Rule
from twohop.ask.memory import Batches, limit_of, rows_for
from twohop.ask.on_server import Tick, no_tick
from twohop.ask.shards import SHARD_ROWS

DEFAULT_RULE: Rule = "sum"
"""It is right most often of the three on both embedded pairs, by text and from pictures."""
WITHOUT_PRIOR: tuple[Rule, ...] = ("sum", "per_token")


@dataclass(frozen=True)
class Decoding:
    """How answers are written down.

    Attributes
    ----------
    max_new_tokens : int
        How long one may be, see :func:`twohop.ask.study.longest_answer`.
    stop : str or None
        Text that ends one; None: only the model itself does.
    end : str or None
        Text that ends a candidate that begins another one, where that is not ``stop``.
    """

    max_new_tokens: int
    stop: str | None
    end: str | None


class Answer(TypedDict):
    """What a row of a prompt was answered.

    Attributes
    ----------
    text : str
    cut : bool
        Whether the text was at the limit of tokens before it ended.
    choices : dict of str to int
        By rule, the index of the best candidate.
    scores : list of float
        Without a prior, the log-probability of every candidate; these may become one. With it,
        empty.
    """

    text: str
    cut: bool
    choices: dict[str, int]
    scores: list[float]


def answers(
    model: Model,
    prompt: Prompt,
    candidates: Sequence[str] | None,
    decoding: Decoding,
    rules: Sequence[Rule] = WITHOUT_PRIOR,
    prior: torch.Tensor | None = None,
    *,
    tick: Tick = no_tick,
) -> list[Answer]:
    """Ask a prompt: the free answer of every row and, given candidates, the best of them.

    Of an answer with a think block, what stands behind it. Rows of like length run together.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    candidates : sequence of str, optional
    decoding : Decoding
    rules : sequence of str
        What makes a candidate the best, see :func:`interventions.complete`.
    prior : Tensor [row, candidate], optional
        For the rule ``prior_corrected``.
    tick : callable
        Told the number of rows done.
    """
    every = candidates is not None and prior is None
    answered: dict[int, Answer] = {}
    order = prompt.lengths.argsort(stable=True)
    limit = limit_of(model, "answers")
    most = rows_for(model, limit, "answers", SHARD_ROWS, prompt)
    batches = Batches(order, most, limit=limit, width=prompt.length)
    for rows in batches:
        trimmed, _ = prompt.select(rows).trimmed()
        with batches.attempt(rows):
            completion = complete(
                model,
                trimmed,
                candidates=candidates,
                rules=rules,
                prior=None if prior is None else prior[rows],
                every_score=every,
                max_new_tokens=decoding.max_new_tokens,
                stop=decoding.stop,
                end=decoding.end,
                batch_rows=batches.size,
            )
            for i, row in enumerate(rows.tolist()):
                answered[row] = {
                    "text": behind_thoughts(completion.texts[i]),
                    "cut": completion.cut[i],
                    "choices": {rule: best[i] for rule, best in completion.choices_by.items()},
                    "scores": completion.scores[i] if every else [],
                }
            tick(len(rows))
    return [answered[row] for row in range(len(prompt))]
