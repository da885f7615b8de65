"""What a model answers: greedy text, and the likeliest of given answers, under patches.

Patches act in the prefill only. The prefill is run once; greedy decoding and every candidate
answer go on from its keys and values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from interventions.answer_tokens import candidate_ids, spaced
from interventions.choosing import choose, tokens_of
from interventions.decoding import extended, greedy
from interventions.model import Model
from interventions.patching import Patch, run
from interventions.prompts import Prompt
from interventions.rows import SEQUENCE_KEYS


@dataclass(frozen=True)
class Completion:
    """Answers of every row of a prompt.

    Attributes
    ----------
    texts : list of str
        Greedy continuation up to the stop string, stripped.
    choices : list of int
        Index of the likeliest candidate of each row; empty without candidates.
    logprobs : list of float
        Its log-probability in nats, summed over its tokens.
    """

    texts: list[str]
    choices: list[int]
    logprobs: list[float]


def complete(
    model: Model,
    prompt: Prompt,
    *,
    patches: Sequence[Patch] = (),
    candidates: Sequence[str] | None = None,
    max_new_tokens: int = 8,
    stop: str | None = "\n",
    end: str | None = None,
    batch_rows: int = 192,
    on_rows: Callable[[int], None] | None = None,
) -> Completion:
    """Answer every row: greedily, and (given candidates) by forced choice.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    patches : sequence of Patch
        Written in the prefill.
    candidates : sequence of str, optional
        The answers to choose among, the same for all rows; read as they follow the prompt, see
        :func:`interventions.answer_tokens.spaced`.
    max_new_tokens : int
    stop : str, optional
        Text that ends an answer.
    end : str, optional
        Text that ends a candidate that begins another one, where that is not ``stop``: the mark
        that ends a turn of a chat.
    batch_rows : int
        Rows per forward pass; changes the memory needed, not the answers. Where rows that run
        together would change each other (``model.anatomy.dependent_rows``) it is 1.
    on_rows : callable, optional
        Called with the number of rows after each batch, for a progress bar.

    Returns
    -------
    Completion

    Examples
    --------
    >>> complete(llm, prompt, candidates=["Paris", "Madrid"]).texts       # doctest: +SKIP
    ['Paris']
    """
    ids = None
    if candidates is not None:
        ids = candidate_ids(model, candidates, stop=end or stop, space=spaced(model, prompt))
    if model.remote:
        answered = model.job(
            complete,
            prompt,
            patches=patches,
            candidates=candidates,
            max_new_tokens=max_new_tokens,
            stop=stop,
            end=end,
            batch_rows=batch_rows,
        )
        if on_rows is not None:
            on_rows(len(prompt))
        return answered
    texts: list[str] = []
    choices: list[int] = []
    logprobs: list[float] = []
    alone = model.anatomy.dependent_rows is not None
    for rows in torch.arange(len(prompt)).split(1 if alone else batch_rows):
        some, written = prompt, patches
        if alone or len(rows) < len(prompt):
            some, written = prompt.select(rows), [patch.of_rows(rows) for patch in patches]
        if alone:  # padding would count too
            some, left = some.trimmed()
            written = [
                replace(patch, positions=patch.positions.shifted(left, some.length))
                for patch in written
            ]
        prefill = run(model, some, patches=written, keep_cache=True)
        watch = () if ids is None else tokens_of(ids)
        decoded = greedy(model, prefill, max_new_tokens=max_new_tokens, stop=stop, watch=watch)
        texts += decoded.texts
        if ids is not None:
            chosen, logprob = choose(model, prefill, ids, decoded=decoded)
            choices += chosen
            logprobs += logprob
        if on_rows is not None:
            on_rows(len(rows))
    return Completion(texts, choices, logprobs)


def following(
    prompt: Prompt, answers: Sequence[Sequence[int]], *, pad_id: int, token_type: int = 0
) -> Prompt:
    """Append known answers to a prompt, so that one forward pass scores all their tokens.

    The role ``answer`` marks, in each row, the positions whose logits predict the answer's tokens.

    Parameters
    ----------
    prompt : Prompt
    answers : sequence of token ids
        One per row.
    pad_id : int
        Fills rows with shorter answers, on the right; masked out.
    token_type : int
        Type of the answer's tokens, for models that take one: 1 where a prompt's own tokens, which
        see each other in both directions, must not see the answer.
    """
    width = max(len(tokens) for tokens in answers) - 1
    inputs = dict(prompt.inputs)
    extra = torch.full((len(prompt), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompt), width), dtype=torch.long)
    for row, tokens in enumerate(answers):
        extra[row, : len(tokens) - 1] = torch.tensor(list(tokens[:-1]), dtype=torch.long)
        mask[row, : len(tokens) - 1] = 1
    position = inputs["position_ids"][..., -1:] + 1 + torch.arange(width)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], extra], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask], dim=1)
    for key in set(SEQUENCE_KEYS) & set(inputs):
        inputs[key] = extended(key, inputs[key], width, token_type=token_type)
    inputs["position_ids"] = torch.cat([inputs["position_ids"], position], dim=-1)
    end = prompt.length - 1
    roles = [
        {**roles, "answer": list(range(end, end + len(tokens)))}
        for roles, tokens in zip(prompt.roles, answers, strict=True)
    ]
    return replace(prompt, inputs=inputs, roles=roles)
