"""The likeliest of some answers, by all its tokens, under one rule or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Literal, get_args

import torch

from interventions.errors import PromptError, did_you_mean
from interventions.model.model import Model
from interventions.model.prefix_cache import take_rows
from interventions.running.greedy import Decoded, step
from interventions.running.later_steps import LaterEdits
from interventions.running.run import Run

ROUNDS = (2, 4, 8, 16)  # beginnings extended per row and rule, round by round
AT_ONCE = 256  # or as many as give this many rows, where all are wanted

Rule = Literal["sum", "per_token", "prior_corrected"]
"""What is compared: an answer's log-probability; its mean over the answer's tokens; or how much
more likely the answer is than it was before, without what is asked about."""
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class Chosen:
    """The best candidates of every row.

    Attributes
    ----------
    choices : dict of str to list of int
        By rule, the index of each row's best candidate; the first of those that are equal.
    scores : Tensor [row, candidate]
        Log-probability of a candidate, nats, summed over its tokens; minus infinity where it was
        ruled out before it was known.
    """

    choices: dict[str, list[int]]
    scores: torch.Tensor


def choose_by(
    model: Model,
    prefill: Run,
    candidates: Sequence[Sequence[int]],
    *,
    rules: Sequence[Rule] = ("sum",),
    prior: torch.Tensor | None = None,
    every: bool = False,
    most_rows: int | None = None,
    decoded: Decoded | None = None,
    later: LaterEdits | None = None,
) -> Chosen:
    """Find the best candidate of every row under each rule, exactly.

    An answer is at most as likely as its beginning, so beginnings are extended from the likeliest
    on until none that is left could still win under any rule. The result is that of trying all.

    Parameters
    ----------
    model : Model
    prefill : Run
        Made with ``keep_cache=True``; left as it was.
    candidates : sequence of token ids
        As :func:`candidate_ids` gives them.
    rules : sequence of str
        Of :data:`RULES`. The tokens of a candidate are the same under each: with the stop, where
        it begins another one.
    prior : Tensor [row, candidate] or [candidate], optional
        Log-probability of each candidate, nats, that ``prior_corrected`` takes off.
    every : bool
        Score every candidate, whether it could win or not.
    most_rows : int, optional
        Of a forward pass; a row has as many of them as beginnings that are extended at a time.
    decoded : Decoded, optional
        The same prefill's greedy continuation, made with ``watch=tokens_of(candidates)``:
        beginnings that it goes through need no further pass, and their likelihood rules most
        others out.
    later : LaterEdits, optional
        What is edited behind the prefill, and was when ``decoded`` was made.

    Raises
    ------
    PromptError
        If the prefill has no cache, there is no such rule, or the prior does not fit.
    """
    if prefill.logits is None or prefill.cache is None:
        raise PromptError("a forced choice needs a prefill made by run(..., keep_cache=True).")
    n_rows, device = len(prefill.prompt), model.device
    tree = _beginnings(candidates)
    nodes = list(tree)
    number = {node: i for i, node in enumerate(nodes)}
    tokens = tokens_of(candidates)
    column = {token: i for i, token in enumerate(tokens)}
    columns = torch.tensor(tokens, device=device)
    exact = torch.full((n_rows, len(candidates)), -torch.inf, device=device)
    bound = torch.full((n_rows, len(nodes)), -torch.inf, device=device)
    measures = [_measure(rule, candidates, number, prior, exact) for rule in rules]

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
        wanted = torch.zeros_like(bound, dtype=torch.bool)
        for measure in measures:
            best = measure.of(exact).amax(-1, keepdim=True)
            could = measure.at_most(bound)
            wanted |= _top(torch.where(could >= best, could, -torch.inf), count)
        if every:
            wanted |= _top(bound, max(count, AT_ONCE // n_rows))
        rows, chosen = wanted.nonzero(as_tuple=True)
        if not len(rows):
            break
        so_far = bound[rows, chosen]
        bound[rows, chosen] = -torch.inf
        # As lists: each number taken by itself, even as an index, would wait for the device.
        begun, of_rows = [nodes[i] for i in chosen.tolist()], rows.tolist()
        depths = torch.tensor([len(node) for node in begun], device=device)
        together = 1 if model.anatomy.dependent_rows is not None else most_rows or len(rows)
        alike = [(depths == depth).nonzero()[:, 0] for depth in depths.unique().tolist()]
        for group in (part for same_depth in alike for part in same_depth.split(together)):
            fed = torch.tensor([begun[i] for i in group.tolist()], device=device)
            cache = take_rows(prefill.cache, rows[group])
            last, _ = step(model, prefill, rows[group], cache, fed, later)
            logprobs = last.log_softmax(-1)[:, columns]
            for i, row_logprobs in zip(group.tolist(), logprobs, strict=True):
                record(of_rows[i], begun[i], so_far[i], row_logprobs)
    choices = {
        rule: measure.of(exact).argmax(-1).tolist()
        for rule, measure in zip(rules, measures, strict=True)
    }
    return Chosen(choices, exact)


@dataclass(frozen=True)
class _Measure:
    """What a rule compares: the log-probability, times a weight, less what is taken off.

    Attributes
    ----------
    weight, taken_off : Tensor [candidate], and [row, candidate] or [candidate]
    least_weight, least_taken_off : Tensor
        Least of any candidate that goes on from each beginning.
    """

    weight: torch.Tensor
    taken_off: torch.Tensor
    least_weight: torch.Tensor
    least_taken_off: torch.Tensor

    def of(self, exact: torch.Tensor) -> torch.Tensor:
        """Return what is compared, [row, candidate]."""
        return exact * self.weight - self.taken_off

    def at_most(self, bound: torch.Tensor) -> torch.Tensor:
        """Return what no candidate behind a beginning can exceed, [row, beginning]."""
        return bound * self.least_weight - self.least_taken_off


def _measure(
    rule: Rule,
    candidates: Sequence[Sequence[int]],
    number: dict[tuple[int, ...], int],
    prior: torch.Tensor | None,
    exact: torch.Tensor,
) -> _Measure:
    if rule not in RULES:
        raise PromptError(f"no rule {rule!r} of a forced choice. {did_you_mean(rule, RULES)}")
    weight = torch.ones_like(exact[0])
    taken_off = torch.zeros_like(exact[0])
    if rule == "per_token":
        weight = 1 / weight.new_tensor([len(tokens) for tokens in candidates])
    if rule == "prior_corrected":
        if prior is None:
            raise PromptError("prior_corrected takes each candidate's log-probability: prior=.")
        taken_off = torch.as_tensor(prior, dtype=exact.dtype, device=exact.device)
        if taken_off.shape not in (exact.shape, exact.shape[1:]):
            raise PromptError(
                f"the prior has shape {list(taken_off.shape)}, expected {list(exact.shape)} or "
                f"{list(exact.shape[1:])}: a log-probability of each candidate."
            )
        if not taken_off.isfinite().all():
            raise PromptError("the prior holds log-probabilities that are not finite.")
    pairs = [
        (number[tuple(tokens[:depth])], c)
        for c, tokens in enumerate(candidates)
        for depth in range(len(tokens))
    ]
    node, candidate = torch.tensor(pairs, device=exact.device).T

    def least(values: torch.Tensor) -> torch.Tensor:
        smallest = values.new_full((*values.shape[:-1], len(number)), torch.inf)
        where = node.expand(*values.shape[:-1], -1)
        return smallest.scatter_reduce(-1, where, values[..., candidate], reduce="amin")

    return _Measure(weight, taken_off, least(weight), least(taken_off))


def _top(values: torch.Tensor, count: int) -> torch.Tensor:
    """Which are the greatest of a row, as far as they are finite."""
    top = values.topk(min(count, values.shape[-1]), dim=-1)
    which = torch.zeros_like(values, dtype=torch.bool)
    return which.scatter(-1, top.indices, top.values.isfinite())


def tokens_of(candidates: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that candidates are made of, in order."""
    return sorted({token for candidate in candidates for token in candidate})


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
