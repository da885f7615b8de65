"""The logit lens: what the head would say of a hidden state."""

import torch

from interventions.model import Model


def lens(
    model: Model, hidden: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and rank of chosen tokens, read out of hidden states.

    Each state goes through the final norm and the head (nostalgebraist, "interpreting GPT: the
    logit lens", 2020). Only the chosen tokens' numbers are kept.

    Parameters
    ----------
    model : Model
        Loaded locally.
    hidden : Tensor [layer, row, d_model]
        Residual stream.
    tokens : Tensor [row, token]
        The tokens looked for in each row.

    Returns
    -------
    logprob : Tensor [layer, row, token]
        Nats.
    rank : Tensor [layer, row, token]
        Number of tokens that are likelier: 0 is the top.

    Examples
    --------
    >>> logprob, rank = lens(llm, hidden, ids)      # doctest: +SKIP
    """
    norm, head = model.final_norm._module, model.head._module
    logprobs, ranks = [], []
    index = tokens.to(model.device)
    with torch.no_grad():
        for layer in hidden:
            scores = head(norm(layer.to(device=model.device, dtype=model.dtype))).float()
            chosen = scores.gather(-1, index)
            logprobs.append(chosen - scores.logsumexp(-1, keepdim=True))
            ranks.append((scores[:, None] > chosen[..., None]).sum(-1))
    return torch.stack(logprobs), torch.stack(ranks)
