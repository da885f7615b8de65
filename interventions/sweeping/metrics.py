"""What a patch changed, one number per row, from the logits that score whole answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from interventions.errors import PromptError
from interventions.given import one_of, plain, several, shown
from interventions.given_arrays import token_numbers
from interventions.model.model import Model
from interventions.prompt.answer_tokens import spaced, token_ids
from interventions.prompt.positions import Positions, Readout, ragged
from interventions.prompt.prompt import Prompt
from interventions.running.complete import following
from interventions.sweeping.own_metrics import (
    OwnMetric,
    is_own,
    metric_name,
    needs_resid,
    own_values,
)

Named = Literal["logprob", "logit_diff", "kl", "changed", "rank"]
Metric = Named | OwnMetric
"""One that has a name here; or a function of logits [row, vocab] that gives a number [row]."""
METRICS: tuple[Named, ...] = ("logprob", "logit_diff", "kl", "changed", "rank")
OF_ANSWERS: tuple[Named, ...] = ("logprob", "logit_diff", "rank")
OF_TWO_RUNS: tuple[Named, ...] = ("kl", "changed")
"""Those are never below 0: no sum of them is 0 by chance, so that their signs show nothing."""
Answers = str | Sequence[str | Sequence[int]]
"""One text for all rows; or one answer for each, as a text or as the ids of its tokens."""
UNITS = {
    "logprob": "nats",
    "logit_diff": "nats",
    "kl": "nats",
    "changed": "share",
    "rank": "0 is the likeliest token",
}


def unit_of(metric: Metric) -> str:
    """Unit of a metric's numbers."""
    return UNITS[metric] if isinstance(metric, str) else f"as {metric_name(metric)} gives it"


def measured_by(given: Any, *, answers: bool, foils: bool) -> list[Metric]:
    """The metrics asked for, each once.

    Parameters
    ----------
    given : str, callable, or sequence of these
    answers, foils : bool
        Whether there are any.

    Raises
    ------
    PromptError
        For one that there is not, that is named twice, or that lacks its answers or foils.
    """
    single = isinstance(plain(given), str) or is_own(given)
    wanted: list[Any] = [
        metric if is_own(metric) else one_of(metric, "metric", METRICS)
        for metric in ([given] if single else several(given, "metrics="))
    ]
    if not wanted:
        raise PromptError(f"metrics= is empty. Known: {', '.join(METRICS)}.")
    called = [metric_name(metric) for metric in wanted]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise PromptError(
            f"metrics= names one twice: {', '.join(twice)}. Functions go by their __name__ (a "
            "Direction by its name=): give each its own."
        )
    if covered := sorted({name for name in called if name in METRICS} - {*map(str, wanted)}):
        raise PromptError(f"{covered[0]} is the name of another metric. Call your function else.")
    if not answers and (lacking := [name for name in called if name in OF_ANSWERS]):
        raise PromptError(f"metric {lacking[0]!r} is of an answer: give answers=.")
    if "logit_diff" in called and not foils:
        raise PromptError('metric "logit_diff" compares with another answer: give foils=.')
    return wanted


@dataclass(frozen=True)
class Target:
    """The answers that a metric looks at, as tokens; made by :func:`target`.

    Attributes
    ----------
    answers : list of list of int
        One per row; without tokens, where no metric is of an answer.
    foils : list of list of int or None
        What ``logit_diff`` compares them with.
    pad_id : int
        Fills rows with shorter answers.
    token_type : int
        Type of the answers' tokens; see :func:`interventions.running.complete.following`.
    resid : int
        How much of the last axis of logits is what the final norm was given, for metrics of it:
        0 or d_model.
    """

    answers: list[list[int]]
    foils: list[list[int]] | None
    pad_id: int
    token_type: int = 0
    resid: int = 0

    @property
    def single(self) -> bool:
        """Whether every answer and foil is one token, so that the prompt alone scores them."""
        return all(len(tokens) <= 1 for tokens in (*self.answers, *(self.foils or ())))

    @property
    def repeats(self) -> int:
        """How many rows of :meth:`scored` belong to one row of the prompt."""
        return 1 if self.single or self.foils is None else 2

    def rows(self, rows: Sequence[int]) -> "Target":
        """Return the target of some rows, in the order given."""
        foils = None if self.foils is None else [self.foils[row] for row in rows]
        return replace(self, answers=[self.answers[row] for row in rows], foils=foils)

    def scored(self, prompt: Prompt) -> Prompt:
        """Return the prompt to be run: with its answers behind, and then again with its foils.

        Where every answer is one token nothing is added. The role ``answer`` marks the positions
        whose logits :meth:`values` takes.
        """
        if len(self.answers) != len(prompt):
            raise PromptError(f"{len(self.answers)} answers for {len(prompt)} rows. Give one each.")
        single = [answer[:1] or [self.pad_id] for answer in self.answers]
        tokens = single if self.single else list(self.answers)
        if self.repeats == 2:
            prompt = prompt.select([*range(len(prompt))] * 2)
            tokens += self.foils or []
        return following(prompt, tokens, pad_id=self.pad_id, token_type=self.token_type)

    def positions(self, scored: Prompt) -> Positions:
        """Positions of :meth:`scored` whose logits are wanted, [row, token]."""
        at = scored.at("answer")
        return Readout(**vars(at)) if self.resid else at

    def logprobs(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities, in nats, of whole answers and foils; differentiable.

        Parameters
        ----------
        logits : Tensor [row, token, vocab]
            At :meth:`positions`; a row may stand for several cells, repeated as a block.

        Returns
        -------
        answers, foils : Tensor [row]
            The second is None without foils.
        """
        logprobs = _wide(self._split(logits)[0]).log_softmax(-1)
        if self.foils is None:
            return _summed(logprobs, self.answers), None
        if self.repeats == 1:
            return _summed(logprobs, self.answers), _summed(logprobs, self.foils)
        answers, foils = logprobs.chunk(2)
        return _summed(answers, self.answers), _summed(foils, self.foils)

    def _split(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits alone, and what the final norm was given."""
        vocab = logits.shape[-1] - self.resid
        return logits[..., :vocab], logits[..., vocab:]

    def values(
        self, metric: Metric, logits: torch.Tensor, *, clean: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One number per row.

        Parameters
        ----------
        metric : str or callable
            ``"logprob"`` of the whole answer, nats. ``"logit_diff"``: that minus the foil's, which
            for answers of one token is the difference of their logits. Of the first token that
            would be generated: ``"kl"`` from the clean to this distribution, nats; ``"changed"``,
            1 where it is another than in the clean run; ``"rank"`` of the answer's first token, 0
            for the likeliest; or what a function makes of its logits [row, vocab].
        logits : Tensor [row, token, vocab]
            At :meth:`positions`.
        clean : Tensor [row, vocab], optional
            Logits of the unpatched run at ``last``, for ``"kl"`` and ``"changed"``.

        Returns
        -------
        Tensor [row], float32, or float64 of a model in float64
        """
        if metric in ("logprob", "logit_diff"):
            answers, foils = self.logprobs(logits)
            if metric == "logprob":
                return answers
            if foils is None:
                raise PromptError('metric "logit_diff" compares with another answer: give foils=.')
            return answers - foils
        logits, resid = self._split(logits)
        first, own_rows = logits[:, 0], len(self.answers)
        if not isinstance(metric, str):
            given = resid[:, 0] if needs_resid(metric) else first
            return own_values(metric, _wide(given[:own_rows]))
        first = first[:own_rows].float()
        if metric == "rank":
            tokens = torch.tensor([answer[0] for answer in self.answers], device=first.device)
            own = first.gather(1, tokens[:, None])
            return (first > own).sum(-1).float()
        if clean is None:
            raise PromptError(f"metric {metric!r} compares with the clean run: give its logits.")
        clean = self._split(clean)[0].to(first)
        if metric == "changed":
            return (first.argmax(-1) != clean.argmax(-1)).float()
        return torch.nn.functional.kl_div(
            first.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)


def target(
    model: Model,
    prompt: Prompt,
    answers: Answers | None,
    foils: Answers | None = None,
    *,
    resid: bool = False,
) -> Target:
    """Read the answers that a metric looks at as tokens, as they follow a prompt.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    answers, foils : str, or sequence of str or of token ids
        One text for all rows; or one per row, each a text or the ids of its tokens. None, where
        no metric is of an answer.
    resid : bool
        Some metric is of what the final norm is given.

    Raises
    ------
    PromptError
        If they are not as many as rows, one is empty or has no tokens, or an answer and its foil
        are the same or, being longer than one token, share their first and one begins the other.

    Examples
    --------
    >>> target(llm, named, "Marlow", "Brenn").answers
    [[51]]
    """
    nothing: list[list[int]] = [[] for _ in range(len(prompt))]
    wanted = nothing if answers is None else tokens_of(model, prompt, answers, "answer")
    against = None if foils is None else tokens_of(model, prompt, foils, "foil")
    for row, (answer, foil) in enumerate(zip(wanted, against or (), strict=False)):
        n = min(len(answer), len(foil))
        if answer[:n] == foil[:n]:
            raise PromptError(
                f"the answer and the foil of row {row} begin with the same tokens to the end of "
                "the shorter, so their difference says nothing. Give another foil."
            )
    pad = model.tokenizer.pad_token_id
    two_way = model.anatomy.family.two_way == "prompt"
    return Target(
        wanted,
        against,
        pad if pad is not None else 0,
        token_type=int(two_way),
        resid=model.d_model if resid else 0,
    )


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def tokens_of(model: Model, prompt: Prompt, answers: Answers, what: str) -> list[list[int]]:
    """Ids of one text for all rows, or of one for each, as they follow a prompt: [row][token]."""
    whole = plain(answers)
    given = [whole] * len(prompt) if isinstance(whole, str) else several(answers, f"{what}s")
    given = [plain(answer) for answer in given]
    if len(given) != len(prompt):
        raise PromptError(f"{len(given)} {what}s for {len(prompt)} rows. Give one for each row.")
    for row, answer in enumerate(given):
        if not isinstance(answer, str | list | tuple | torch.Tensor | np.ndarray):
            raise PromptError(
                f"the {what} of row {row} is {shown(answer)}, not a text or a list of token ids."
            )
    texts = [row for row, answer in enumerate(given) if isinstance(answer, str)]
    ids = [[] if isinstance(answer, str) else _as_ids(model, answer) for answer in given]
    if texts:
        read = token_ids(model, [given[row] for row in texts], space=spaced(model, prompt))
        for row, tokens in zip(texts, read, strict=True):
            ids[row] = tokens
    if empty := [row for row, tokens in enumerate(ids) if not tokens]:
        raise PromptError(
            f"the {what} of row(s) {empty[:8]} has no tokens ({given[empty[0]]!r}). Leave those "
            f"rows out with prompt.select(rows), or give them an {what}."
        )
    return ids


def _as_ids(model: Model, answer: Any) -> list[int]:
    if not len(answer):
        return []
    ids = token_numbers(answer, model.anatomy.vocab, error=PromptError)
    if ids.ndim != 1:
        raise PromptError(f"an answer is {shown(answer)}. Expected a text, or a list of token ids.")
    return ids.tolist()


def _summed(logprobs: torch.Tensor, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
    """Sum, over a row's tokens, of their log-probabilities [row, token, vocab]."""
    index, mask = (part.to(logprobs.device) for part in ragged(tokens))
    own = logprobs[:, : index.shape[1]].gather(2, index[:, :, None])[..., 0]
    return (own * mask.float()).sum(-1)
