"""Attention of chosen tokens: as each block gives it, or followed down to the first.

Where heads are put together, or blocks multiplied, that is done where the model is, so that what is
kept, and what a server sends, has no number for each pair of tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch

from interventions.architectures.wrapped import where_the_model_is
from interventions.model.cache_names import cache_argument
from interventions.model.model import Model
from interventions.model.sites import Site
from interventions.prompt.positions import Positions, read_at
from interventions.prompt.prompt import Prompt
from interventions.running.run import run_checked

STAYS = 0.5
"""Share of a token that comes by its residual stream, and not by attention."""


@where_the_model_is
def attended_at(model: Model, prompt: Prompt, site: Site, *, mean: bool) -> torch.Tensor:
    """Attention of a site's queries to the prompt's own tokens; ``mean``: over its heads.

    Returns
    -------
    Tensor [layer, row, query, head, key]
        Without ``head`` where the mean is taken.
    """
    [pattern] = run_checked(model, prompt, reads=[site], logits=False).reads
    own = pattern[..., len(prompt.prefix_ids) :].float()
    return (own.mean(-2) if mean else own).cpu()


@where_the_model_is
def rolled_out(
    model: Model, prompt: Prompt, queries: Positions, layers: Sequence[int]
) -> torch.Tensor:
    """Share of each token of the prompt in what queries are behind each of the layers.

    Each block mixes tokens by the mean of its heads' attention and, as much, leaves them as they
    are; mixtures are multiplied from the first block on (Abnar and Zuidema, "Quantifying Attention
    Flow in Transformers", ACL 2020). What goes to a shared prefix stays there, as no token of it
    sees a token behind it.

    Parameters
    ----------
    model : Model
        Whose blocks, up to the last of ``layers``, all attend.
    prompt : Prompt
    queries : Positions
        No row lacks one.
    layers : sequence of int

    Returns
    -------
    Tensor [layer, row, query, key]
    """
    n_before, n = len(prompt.prefix_ids), prompt.length
    given = {}
    if (before := model.prefix_cache(prompt)) is not None:
        given[cache_argument(model.module)] = before
    real = prompt.inputs["attention_mask"][:, -n:].bool()
    start = torch.cat([torch.zeros(n, n_before), torch.eye(n)], dim=1)
    shares: Any = start.expand(len(prompt), -1, -1)
    kept: dict[int, Any] = {}
    with torch.no_grad(), model.trace(prompt, inputs=given, use_cache=False) as tracer:
        for layer in range(max(layers) + 1):
            attention = model.attn_pattern[layer].float().mean(2)
            shares = mixed(shares.to(attention.device), attention, real, n_before)
            if layer in layers:
                share: Any = read_at(shares, queries)[..., n_before:]
                kept[layer] = share.save()
        tracer.stop()
    return torch.stack([kept[layer].cpu() for layer in layers])


def mixed(
    shares: torch.Tensor, attention: torch.Tensor, real: torch.Tensor, n_before: int
) -> torch.Tensor:
    """What tokens are made of behind a block: shares [row, token, source] of before, and attention.

    ``attention`` [row, query, key]; sources and keys begin with ``n_before`` tokens that stay as
    they are. ``real`` [row, token]: no padding, whose queries may attend to anything.
    """
    attention = torch.where(real.to(attention.device)[..., None], attention, 0)
    mixture = attention[..., n_before:] @ shares
    mixture[..., :n_before] += attention[..., :n_before]
    return STAYS * shares + (1 - STAYS) * mixture
