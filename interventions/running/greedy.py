"""Going on from a prefill: steps of decoding, and continuations, greedy or drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interventions.architectures.wrapped import forward
from interventions.errors import PromptError
from interventions.model.cache_names import cache_argument, returned_cache
from interventions.model.model import Model
from interventions.model.prefix_attention import attending_apart
from interventions.model.prefix_cache import take_rows
from interventions.prompt.thoughts import said_from
from interventions.running.later_steps import LaterEdits, edited_step
from interventions.running.run import Run
from interventions.running.sampling import Sampling

CROSS = "cross_attention_mask"


def step(
    model: Model,
    prefill: Run,
    rows: torch.Tensor,
    cache: Any,
    ids: torch.Tensor,
    later: LaterEdits | None = None,
) -> Any:
    """Feed ``ids`` [row, n] to rows that go on from ``cache``; return last logits and cache.

    ``later``: edits that act behind the prefill.
    """
    prompt = prefill.prompt
    device = model.device
    mask = prompt.inputs["attention_mask"].to(device)[rows]
    done = cache.get_seq_length() - mask.shape[1]
    position = prompt.inputs["position_ids"].to(device)[rows][..., -1:] + 1 + done
    position = position + torch.arange(ids.shape[1], device=device)
    ones = torch.ones(len(rows), done + ids.shape[1], dtype=mask.dtype, device=device)
    extra = {}
    if CROSS in prompt.inputs:
        extra[CROSS] = extended(CROSS, prompt.inputs[CROSS].to(device)[rows], ones.shape[1])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([mask, ones], dim=1),
        "position_ids": position.transpose(0, 1) if position.ndim == 3 else position,
        cache_argument(model.module): cache,
        "use_cache": True,
        **extra,
        # A slice with gaps is slow to project.
        "logits_to_keep": 1 if ids.shape[1] == 1 else 0,
    }
    patches, knockouts = ([], []) if later is None else later.of(rows, done + 1, ids.shape[1])
    if patches or knockouts:
        fed = done + ids.shape[1]
        logits, cache = edited_step(
            *(model, inputs, patches, knockouts),
            cache=cache,
            later=fed,
            images=prompt.has_images,
        )
    else:
        with attending_apart(model, cache):
            output = forward(model, inputs)
        logits, cache = output.logits, returned_cache(output)
    return logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32)), cache


@dataclass(frozen=True)
class Decoded:
    """Continuations, greedy or drawn.

    Attributes
    ----------
    texts : list of str
        One per row, up to the stop string, stripped of white space.
    ids : list of list of int
        The tokens generated, the stop included.
    logprobs : list of list of float
        Log-probability of each of them, nats; whatever the temperature.
    watched : Tensor [row, step, token]
        Log-probability, at each step, of every token that was to be watched, nats; NaN after a
        row's last step.
    cut : list of bool
        Whether a row's answer was at the limit of tokens before it ended.
    """

    texts: list[str]
    ids: list[list[int]]
    logprobs: list[list[float]]
    watched: torch.Tensor
    cut: list[bool]


def greedy(
    model: Model,
    prefill: Run,
    *,
    max_new_tokens: int,
    stop: str | None,
    watch: Sequence[int] = (),
    later: LaterEdits | None = None,
    sampling: Sampling | None = None,
) -> Decoded:
    """Decode from a prefill (``run(..., keep_cache=True)``), greedily unless told to draw.

    Parameters
    ----------
    model : Model
    prefill : Run
        Its cache is left as it was.
    max_new_tokens : int
    stop : str, optional
        Text that ends an answer; it and all after it are cut off. Inside a think block, and right
        behind it, it ends nothing.
    watch : sequence of int
        Tokens whose log-probabilities are kept, whether generated or not.
    later : LaterEdits, optional
        What is edited behind the prefill.
    sampling : Sampling, optional
        How tokens are drawn, of the prefill's rows.

    Returns
    -------
    Decoded
    """
    if prefill.logits is None or prefill.cache is None:
        raise PromptError("greedy() needs a prefill made by run(..., keep_cache=True).")
    n_rows = len(prefill.prompt)
    ends = model.end_ids
    texts = [""] * n_rows
    ids: list[list[int]] = [[] for _ in range(n_rows)]
    likely: list[list[float]] = [[] for _ in range(n_rows)]
    watching = torch.tensor(list(watch), dtype=torch.long, device=model.device)
    watched = torch.full((n_rows, max_new_tokens, len(watching)), torch.nan, device=model.device)
    cut = [False] * n_rows
    active = torch.arange(n_rows, device=model.device)
    cache: Any = take_rows(prefill.cache, active)
    logits = prefill.logits
    for done in range(max_new_tokens):
        logprobs = logits.log_softmax(-1)
        watched[active, done] = logprobs[:, watching]
        # Of logits: two log-probabilities may round to one number.
        chosen = logits.argmax(-1) if sampling is None else sampling.drawn(logits, active, done)
        top = logprobs.gather(-1, chosen[:, None])[:, 0]
        going = []
        # As lists: each number taken by itself would wait for the device.
        of_rows = zip(active.tolist(), chosen.tolist(), top.tolist(), strict=True)
        for i, (row, token, logprob) in enumerate(of_rows):
            ids[row].append(token)
            likely[row].append(logprob)
            if token in ends:
                continue
            text = model.tokenizer.decode(ids[row], skip_special_tokens=True)
            start = said_from(text)
            end = text.find(stop, start) if stop and start is not None else -1
            texts[row] = text if end < 0 else text[:end]
            if end < 0:
                going.append(i)
        if done == max_new_tokens - 1:
            for row in active[going].tolist():
                cut[row] = True
        if not going or done == max_new_tokens - 1:
            break
        keep = torch.tensor(going, device=model.device)
        if len(going) < len(active):
            active, chosen = active[keep], chosen[keep]
            cache = take_rows(cache, keep)
        logits, cache = step(model, prefill, active, cache, chosen[:, None], later)
    return Decoded([text.strip() for text in texts], ids, likely, watched, cut)


def extended(key: str, given: torch.Tensor, n: int, *, token_type: int = 0) -> torch.Tensor:
    """Continue what has one entry per token by ``n`` tokens of text, [row, position, ...]."""
    if key == CROSS:  # what is written goes on seeing what the prompt saw
        more = given[:, -1:].expand(-1, n, *given.shape[2:])
    else:
        more = given.new_full((given.shape[0], n), token_type)
    return torch.cat([given, more], dim=1)
