"""The likeliest of some answers, by the log-probability of all its tokens."""

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import torch

from interventions.decoding import Decoded, step
from interventions.errors import PromptError
from interventions.model import Model
from interventions.patching import Run
from interventions.prefixes import take_rows

ROUNDS = (2, 4, 8, 16)  # beginnings extended per row, round by round


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
        The same prefill's greedy continuation, made with ``watch=tokens_of(candidates)``:
        beginnings that it goes through need no further pass, and their likelihood rules most
        others out.

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
    tokens = tokens_of(candidates)
    column = {token: i for i, token in enumerate(tokens)}
    columns = torch.tensor(tokens, device=model.device)
    n_rows = len(prefill.prompt)
    exact = torch.full((n_rows, len(candidates)), -torch.inf, device=model.device)
    bound = torch.full((n_rows, len(nodes)), -torch.inf, device=model.device)

    def record(rows: Any, node: tuple[int, ...], so_far: Any, logprobs: torch.Tensor) -> None:
        for token, candidate in tree[node].items():
            score = so_far + logprobs[..., column[token]]
            if candidate is None:
                bound[rows, number[(*node, token)]] = score
            else:
                exact[rows, candidate] = score

    record(slice(None), (), 0.0, prefill.logits.log_softmax(-1)[:, columns])
    if decoded is not None:
        for row, (ids, logprobs) in enumerate(zip(decoded.ids, decoded.logprobs, strict=True)):
            for done in range(1, len(ids)):
                node = tuple(ids[:done])
                if node not in tree:
                    break
                record(row, node, sum(logprobs[:done]), decoded.watched[row, done])
                bound[row, number[node]] = -torch.inf
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
        together = 1 if model.anatomy.dependent_rows is not None else len(rows)
        alike = [(depths == depth).nonzero()[:, 0] for depth in depths.unique().tolist()]
        for group in (part for one in alike for part in one.split(together)):
            fed = torch.tensor([nodes[int(chosen[i])] for i in group], device=model.device)
            cache = take_rows(prefill.cache, rows[group])
            last, _ = step(model, prefill, rows[group], cache, fed)
            logprobs = last.log_softmax(-1)[:, columns]
            for i, one in zip(group.tolist(), logprobs, strict=True):
                record(rows[i], nodes[int(chosen[i])], so_far[i], one)
    value, index = exact.max(-1)
    return index.tolist(), value.tolist()


def tokens_of(candidates: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that candidates are made of, in order."""
    return sorted({token for one in candidates for token in one})


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
