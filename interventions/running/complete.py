"""What a model answers, under edits: text, greedy or drawn, and the likeliest of given answers.

The prefill is run once; decoding and every candidate answer go on from its keys and values. Edits
act in the prefill unless their ``steps`` say otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from interventions.architectures.wrapped import where_the_model_is
from interventions.errors import PromptError, SiteError
from interventions.given import MOST_TOKENS, batch_size, text_of, whole
from interventions.model.model import Model
from interventions.prompt.answer_tokens import candidate_ids, candidate_texts, spaced
from interventions.prompt.positions import ragged
from interventions.prompt.prompt import Prompt
from interventions.prompt.rows import SEQUENCE_KEYS
from interventions.returnable import returnable
from interventions.running.forced_choice import RULES, Rule, choose_by, tokens_of
from interventions.running.greedy import extended, greedy
from interventions.running.knockout import Knockout
from interventions.running.later_steps import checked_edits, in_prefill, later_edits, why_not_there
from interventions.running.patches import Patch
from interventions.running.run import run_checked
from interventions.running.sampling import Sampling, sampling_of


@returnable
@dataclass(frozen=True)
class Completion:
    """Answers of every row of a prompt.

    Attributes
    ----------
    texts : list of str
        Continuation up to the stop string, stripped.
    choices : list of int
        Index of the best candidate of each row, under the first of the rules that were asked for;
        empty without candidates. Of equal ones, the first.
    logprobs : list of float
        Its log-probability in nats, summed over its tokens.
    choices_by : dict of str to list of int
        The same under each rule.
    scores : list of list of float
        Where every candidate was to be scored, [row][candidate]: log-probability in nats, summed.
    lengths : list of int
        Tokens of each candidate as it was scored, the stop included where it has one.
    cut : list of bool
        Whether the text of each row was at ``max_new_tokens`` before it ended.
    """

    texts: list[str]
    choices: list[int]
    logprobs: list[float]
    choices_by: dict[str, list[int]] = field(default_factory=dict)
    scores: list[list[float]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)


def complete(
    model: Model,
    prompt: Prompt,
    *,
    patches: Sequence[Patch] = (),
    knockouts: Sequence[Knockout] = (),
    candidates: Sequence[str] | None = None,
    rules: Sequence[Rule] = RULES[:1],
    prior: torch.Tensor | Sequence[Any] | None = None,
    every_score: bool = False,
    max_new_tokens: int = 8,
    stop: str | None = "\n",
    end: str | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_rows: int = 192,
) -> Completion:
    """Answer every row: greedily or by sampling, and (given candidates) by forced choice.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    patches : sequence of Patch
        Written in the prefill, or at the ``steps`` they name: behind the prefill on each new
        token, of the free answer and of every candidate. Later patches overwrite earlier ones at
        the same place.
    knockouts : sequence of Knockout
        Attention edges to cut, at the ``steps`` they name.
    candidates : sequence of str, optional
        The answers to choose among, the same for all rows; read as they follow the prompt, see
        :func:`interventions.prompt.answer_tokens.spaced`.
    rules : sequence of {"sum", "per_token", "prior_corrected"}
        What makes a candidate the best: its log-probability, summed over its tokens; its mean over
        them, which takes nothing from long answers; or the sum less ``prior``, which takes nothing
        from rare ones.
    prior : [candidate] or [row][candidate], optional
        Log-probability of each candidate, nats, where nothing tells which is right: ``scores`` of
        the same candidates behind another prompt.
    every_score : bool
        Return ``scores``. Else candidates that cannot win are left out, which is faster.
    max_new_tokens : int
    stop : str, optional
        Text that ends an answer.
    end : str, optional
        Text that ends a candidate that begins another one, where that is not ``stop``: the mark
        that ends a turn of a chat.
    temperature : float
        0 takes the likeliest token; above, tokens are drawn from the logits divided by it. The
        draws of a row hang on ``seed`` and the row's number: not on what runs beside it, and not
        on what is edited, so that two conditions are drawn with the same chance numbers. Of one
        prompt many times, give its row as often: ``prompt.select([0] * 20)``.
    top_p : float
        Draw from as few of the likeliest tokens as have this probability together.
    seed : int
    batch_rows : int
        Rows per forward pass; changes the memory needed, not the answers. Where rows that run
        together would change each other (``model.anatomy.dependent_rows``) it is 1.

    Returns
    -------
    Completion

    Raises
    ------
    PromptError
        If the candidates cannot be told apart, there is no such rule, or the prior does not fit.
    PatchError, SiteError
        If an edit fits neither the model nor the prompt, or cannot act on a new token.

    Examples
    --------
    >>> answered = complete(llm, named, candidates=["Marlow", "Brenn"], stop=" .")
    >>> answered.texts, answered.choices
    (['Marlow'], [0])

    What the name adds, whatever is likely anyway:

    >>> cities = ["Marlow", "Brenn", "Tessin"]
    >>> unnamed = llm.prompt("Question : What is the capital of it ? Answer :")
    >>> anyway = complete(llm, unnamed, candidates=cities, every_score=True)
    >>> complete(
    ...     llm, named, candidates=cities, rules=["prior_corrected"], prior=anyway.scores[0]
    ... ).choices
    [0]
    """
    patches, knockouts = checked_edits(model, prompt, patches, knockouts)
    max_new_tokens = whole(max_new_tokens, "max_new_tokens", least=0, most=MOST_TOKENS)
    batch_rows = batch_size(batch_rows)
    stop = None if stop is None else text_of(stop, "stop")
    end = None if end is None else text_of(end, "end")
    sampling = sampling_of(temperature, top_p, seed, n_rows=len(prompt), steps=max_new_tokens)
    ids = None
    given = None if prior is None else _prior(prior, len(prompt))
    if candidates is None and (given is not None or every_score):
        raise PromptError("a prior, or scores, are of candidates: give candidates=.")
    if not rules:
        raise PromptError(f"no rule to choose by was given. Give some of {', '.join(RULES)}.")
    if candidates is not None:
        candidates = candidate_texts(candidates)
        ids = candidate_ids(model, candidates, stop=end or stop, space=spaced(model, prompt))
    completion = _complete(
        model,
        prompt,
        patches=patches,
        knockouts=knockouts,
        ids=ids,
        rules=tuple(rules),
        prior=given,
        every_score=every_score,
        max_new_tokens=max_new_tokens,
        stop=stop,
        sampling=sampling,
        batch_rows=batch_rows,
    )
    if isinstance(completion, str):
        raise SiteError(completion)
    return completion


@where_the_model_is
def _complete(
    model: Model,
    prompt: Prompt,
    *,
    patches: Sequence[Patch],
    knockouts: Sequence[Knockout],
    ids: list[list[int]] | None,
    rules: Sequence[Rule],
    prior: torch.Tensor | None,
    every_score: bool,
    max_new_tokens: int,
    stop: str | None,
    sampling: Sampling | None,
    batch_rows: int,
) -> Completion | str:
    """Answer rows, batch by batch, when all that was asked was looked at; a text says why not."""
    if (why := why_not_there(model, patches, knockouts)) is not None:
        return why
    texts: list[str] = []
    cut: list[bool] = []
    choices: dict[str, list[int]] = {} if ids is None else {rule: [] for rule in rules}
    logprobs: list[float] = []
    scores: list[list[float]] = []
    alone = model.anatomy.dependent_rows is not None
    for rows in torch.arange(len(prompt)).split(1 if alone else batch_rows):
        batch, written, cuts, draws = prompt, patches, knockouts, sampling
        if alone or len(rows) < len(prompt):
            batch, written = prompt.select(rows), [patch.of_rows(rows) for patch in patches]
            cuts = [knockout.of_rows(rows) for knockout in knockouts]
            draws = sampling and sampling.of_rows(rows)
        if alone:  # padding would count too
            batch, left = batch.trimmed()
            written = [patch.shifted(left, batch.length) for patch in written]
            cuts = [knockout.shifted(left, batch.length) for knockout in cuts]
        later = later_edits(written, cuts)
        prefill = run_checked(model, batch, **in_prefill(written, cuts), keep_cache=True)
        decoded = greedy(
            model,
            prefill,
            max_new_tokens=max_new_tokens,
            stop=stop,
            watch=() if ids is None else tokens_of(ids),
            later=later,
            sampling=draws,
        )
        texts += decoded.texts
        cut += decoded.cut
        if ids is not None:
            best = choose_by(
                model,
                prefill,
                ids,
                rules=rules,
                prior=prior if prior is None or prior.ndim == 1 else prior[rows],
                every=every_score,
                most_rows=batch_rows,
                decoded=decoded,
                later=later,
            )
            for rule, chosen in best.choices.items():
                choices[rule] += chosen
            first = torch.tensor(best.choices[rules[0]], device=best.scores.device)
            logprobs += best.scores.gather(-1, first[:, None])[:, 0].tolist()
            scores += best.scores.tolist() if every_score else []
    return Completion(
        texts=texts,
        choices=choices.get(rules[0], []),
        logprobs=logprobs,
        choices_by=choices,
        scores=scores,
        lengths=[len(tokens) for tokens in ids or ()],
        cut=cut,
    )


def _prior(given: torch.Tensor | Sequence[Any], n_rows: int) -> torch.Tensor:
    try:
        prior = torch.as_tensor(given, dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError) as error:
        raise PromptError(f"the prior is no table of numbers: {error}") from error
    if prior.ndim not in (1, 2) or (prior.ndim == 2 and len(prior) != n_rows):
        raise PromptError(
            f"the prior has shape {list(prior.shape)}, and the prompt {n_rows} rows. Expected a "
            "log-probability of each candidate, for all rows or for each."
        )
    return prior


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
    inputs = dict(prompt.inputs)
    extra, own = ragged([tokens[:-1] for tokens in answers], fill=pad_id)
    width, mask = extra.shape[1], own.long()
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
