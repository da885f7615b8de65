"""What a model answers: greedy text, and the likelihood of whole answers, under patches.

Patches act in the prefill only. The prefill is run once; greedy decoding and every candidate
answer go on from its keys and values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

import torch

from interventions.answer_tokens import candidate_ids, spaced
from interventions.calling import call
from interventions.errors import PromptError
from interventions.model import Model
from interventions.patching import Patch, Run, run
from interventions.prefixes import take_rows
from interventions.prompts import Prompt
from interventions.rows import SEQUENCE_KEYS

CROSS = "cross_attention_mask"
ROUNDS = (2, 4, 8, 16)  # beginnings extended per row by choose(), round by round


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


def _step(model: Model, prefill: Run, rows: torch.Tensor, cache: Any, ids: torch.Tensor) -> Any:
    """Feed ``ids`` [row, n] to rows that go on from ``cache``; return last logits and cache."""
    prompt = prefill.prompt
    device = model.device
    mask = prompt.inputs["attention_mask"].to(device)[rows]
    done = cache.get_seq_length() - mask.shape[1]
    position = prompt.inputs["position_ids"].to(device)[rows][..., -1:] + 1 + done
    position = position + torch.arange(ids.shape[1], device=device)
    ones = torch.ones(len(rows), done + ids.shape[1], dtype=mask.dtype, device=device)
    extra = {}
    if CROSS in prompt.inputs:
        extra[CROSS] = _extended(CROSS, prompt.inputs[CROSS].to(device)[rows], ones.shape[1])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([mask, ones], dim=1),
        "position_ids": position.transpose(0, 1) if position.ndim == 3 else position,
        "past_key_values": cache,
        "use_cache": True,
        **extra,
        # A slice with gaps is slow to project.
        "logits_to_keep": 1 if ids.shape[1] == 1 else 0,
    }
    output = call(model, inputs)
    return output.logits[:, -1].float(), output.past_key_values


@dataclass(frozen=True)
class Decoded:
    """Greedy continuations.

    Attributes
    ----------
    texts : list of str
        One per row, up to the stop string, stripped of white space.
    ids : list of list of int
        The tokens generated, the stop included.
    logprobs : list of list of float
        Log-probability of each of them, nats.
    """

    texts: list[str]
    ids: list[list[int]]
    logprobs: list[list[float]]


def greedy(model: Model, prefill: Run, *, max_new_tokens: int, stop: str | None) -> Decoded:
    """Decode greedily from a prefill (``run(..., keep_cache=True)``).

    Parameters
    ----------
    model : Model
    prefill : Run
        Its cache is left as it was.
    max_new_tokens : int
    stop : str, optional
        Text that ends an answer; it and all after it are cut off.

    Returns
    -------
    Decoded
    """
    if prefill.logits is None or prefill.cache is None:
        raise PromptError("greedy() needs a prefill made by run(..., keep_cache=True).")
    n_rows = len(prefill.prompt)
    ends = model.end_ids
    texts = [""] * n_rows
    made: list[list[int]] = [[] for _ in range(n_rows)]
    likely: list[list[float]] = [[] for _ in range(n_rows)]
    active = torch.arange(n_rows, device=model.device)
    cache: Any = take_rows(prefill.cache, active)
    logits = prefill.logits
    for step in range(max_new_tokens):
        top, chosen = logits.log_softmax(-1).max(-1)
        going = []
        for i, (row, token) in enumerate(zip(active.tolist(), chosen.tolist(), strict=True)):
            made[row].append(token)
            likely[row].append(float(top[i]))
            if token in ends:
                continue
            text = model.tokenizer.decode(made[row], skip_special_tokens=True)
            texts[row] = text.split(stop)[0] if stop else text
            if not (stop and stop in text):
                going.append(i)
        if not going or step == max_new_tokens - 1:
            break
        keep = torch.tensor(going, device=model.device)
        if len(going) < len(active):
            active, chosen = active[keep], chosen[keep]
            cache = take_rows(cache, keep)
        logits, cache = _step(model, prefill, active, cache, chosen[:, None])
    return Decoded([text.strip() for text in texts], made, likely)


def choose(
    model: Model,
    prefill: Run,
    candidates: Sequence[Sequence[int]],
    *,
    decoded: Decoded | None = None,
) -> tuple[list[int], list[float]]:
    """Find the likeliest candidate of every row by its whole log-probability, exactly.

    An answer is at most as likely as its beginning, so beginnings are extended from the likeliest
    on until none that is left could still win. The result is that of trying all.

    Parameters
    ----------
    model : Model
    prefill : Run
        Made with ``keep_cache=True``; left as it was.
    candidates : sequence of token ids
        As :func:`candidate_ids` gives them.
    decoded : Decoded, optional
        The same prefill's greedy continuation: a candidate it begins with needs no further pass,
        and its likelihood rules most others out.

    Returns
    -------
    choices : list of int
        Index of the best candidate of each row.
    logprobs : list of float
        Its log-probability, nats.
    """
    if prefill.logits is None or prefill.cache is None:
        raise PromptError("choose() needs a prefill made by run(..., keep_cache=True).")
    tree = _beginnings(candidates)
    nodes = list(tree)
    number = {node: i for i, node in enumerate(nodes)}
    first = prefill.logits.log_softmax(-1)
    n_rows = len(prefill.prompt)
    exact = torch.full((n_rows, len(candidates)), -torch.inf, device=model.device)
    bound = torch.full((n_rows, len(nodes)), -torch.inf, device=model.device)

    def record(rows: Any, node: tuple[int, ...], so_far: Any, logprobs: torch.Tensor) -> None:
        for token, candidate in tree[node].items():
            score = so_far + logprobs[..., token]
            if candidate is None:
                bound[rows, number[(*node, token)]] = score
            else:
                exact[rows, candidate] = score

    record(slice(None), (), 0.0, first)
    if decoded is not None:
        for row, (ids, logprobs) in enumerate(zip(decoded.ids, decoded.logprobs, strict=True)):
            for c, tokens in enumerate(candidates):
                if ids[: len(tokens)] == list(tokens):
                    exact[row, c] = sum(logprobs[: len(tokens)])
    for count in chain(ROUNDS, repeat(ROUNDS[-1])):
        best = exact.amax(-1, keepdim=True)
        hopeful = torch.where(bound > best, bound, -torch.inf)
        top = hopeful.topk(min(count, len(nodes)), dim=-1)
        rows, slots = torch.isfinite(top.values).nonzero(as_tuple=True)
        if not len(rows):
            break
        chosen = top.indices[rows, slots]
        so_far = bound[rows, chosen]
        bound[rows, chosen] = -torch.inf
        depths = torch.tensor([len(nodes[int(i)]) for i in chosen], device=model.device)
        for depth in depths.unique().tolist():
            group = (depths == depth).nonzero()[:, 0]
            fed = torch.tensor([nodes[int(chosen[i])] for i in group], device=model.device)
            cache = take_rows(prefill.cache, rows[group])
            last, _ = _step(model, prefill, rows[group], cache, fed)
            logprobs = last.log_softmax(-1)
            for i, one in zip(group.tolist(), logprobs, strict=True):
                record(rows[i], nodes[int(chosen[i])], so_far[i], one)
    value, index = exact.max(-1)
    return index.tolist(), value.tolist()


def _beginnings(
    candidates: Sequence[Sequence[int]],
) -> dict[tuple[int, ...], dict[int, int | None]]:
    """Map each proper beginning of a candidate to its next tokens.

    A next token maps to the candidate it completes, or to None where more follow.
    """
    tree: dict[tuple[int, ...], dict[int, int | None]] = {(): {}}
    for c, tokens in enumerate(candidates):
        for depth, token in enumerate(tokens):
            node = tuple(tokens[:depth])
            tree.setdefault(node, {})[token] = c if depth == len(tokens) - 1 else None
    return tree


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
        Rows per forward pass; changes the memory needed, not the answers.
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
    for rows in torch.arange(len(prompt)).split(batch_rows):
        whole = len(rows) == len(prompt)
        prefill = run(
            model,
            prompt if whole else prompt.select(rows),
            patches=patches if whole else [patch.of_rows(rows) for patch in patches],
            keep_cache=True,
        )
        decoded = greedy(model, prefill, max_new_tokens=max_new_tokens, stop=stop)
        texts += decoded.texts
        if ids is not None:
            chosen, logprob = choose(model, prefill, ids, decoded=decoded)
            choices += chosen
            logprobs += logprob
        if on_rows is not None:
            on_rows(len(rows))
    return Completion(texts, choices, logprobs)


def _extended(key: str, given: torch.Tensor, n: int, *, token_type: int = 0) -> torch.Tensor:
    """Continue what has one entry per token by ``n`` tokens of text, [row, position, ...]."""
    if key == CROSS:  # what is written goes on seeing what the prompt saw
        more = given[:, -1:].expand(-1, n, *given.shape[2:])
    else:
        more = given.new_full((given.shape[0], n), token_type)
    return torch.cat([given, more], dim=1)


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
        inputs[key] = _extended(key, inputs[key], width, token_type=token_type)
    inputs["position_ids"] = torch.cat([inputs["position_ids"], position], dim=-1)
    end = prompt.length - 1
    roles = [
        {**roles, "answer": list(range(end, end + len(tokens)))}
        for roles, tokens in zip(prompt.roles, answers, strict=True)
    ]
    return replace(prompt, inputs=inputs, roles=roles)
