"""The Jacobian lens: what a state moves the last layer by, on average."""

from collections.abc import Sequence

import nnsight
import torch

from interventions.architectures.wrapped import weightless, where_the_model_is
from interventions.errors import ProbeError, PromptError, SiteError
from interventions.given import MOST_TOKENS, whole
from interventions.model.model import Model
from interventions.model.sites import Layers, check_place, layer_list
from interventions.prompt.prompt import Prompt
from interventions.running.checking import check_asked
from interventions.running.fitted_lens import FittedLens
from interventions.running.gradients import frozen_weights

SKIPPED = 16
"""First tokens of a text that are left out, which draw attention and have states unlike others."""


def jacobian_lens(
    model: Model,
    prompt: Prompt,
    *,
    layers: Layers | None = None,
    skip: int = SKIPPED,
    batch_dims: int = 16,
) -> FittedLens:
    """Average the Jacobian from each layer to the last over the tokens of prompts.

    The lens of layer l reads head(norm(J_l h)), with

        J_l = E_{prompt, p} [ sum over p' >= p of d h_last[p'] / d h_l[p] ],

    h being ``resid_post``: what changing a state at one token changes in the last layer, there and
    at later tokens, to first order (Gurnee et al., "Verbalizable Representations Form a Global
    Workspace in Language Models", Anthropic, 2026: the estimator of its reference code). p and p'
    run over a prompt's tokens but the first ``skip`` and the last; the mean over p is taken in each
    prompt, then over prompts.

    Parameters
    ----------
    model : Model
    prompt : Prompt
        One text per row, such as passages of 128 tokens of ordinary text; some hundred are enough.
    layers : int, slice or list of int, optional
        Default: all but the last, whose Jacobian is 1.
    skip : int
    batch_dims : int
        Dimensions of the last layer that one backward pass is for: changes the memory needed, not
        the numbers. A prompt takes one forward pass, of so many copies, and d_model / batch_dims
        backward passes.

    Returns
    -------
    FittedLens

    Raises
    ------
    ProbeError
        If a row has no token between the first ``skip`` and the last.
    SiteError
        If the model is on a server that lets no gradients through.

    Examples
    --------
    >>> fitted = iv.jacobian_lens(llm, named, layers=[4, 5, 6], skip=2, batch_dims=64)
    >>> [states] = iv.read(llm, named, [iv.Site("resid_post", [4, 5, 6], named.at("last"))])
    >>> logprob, rank = iv.lens(llm, states, torch.tensor([[51]]), fitted=fitted)
    >>> rank.shape  # [layer, row, token]
    torch.Size([3, 1, 1])
    """
    check_asked(model, prompt)
    if len(prompt.prefix_ids):
        raise PromptError(
            "the tokens of a shared prefix are run once, and the mean is over all tokens of all "
            "rows. Give the prompt without share_prefix=."
        )
    skip = whole(skip, "skip", least=0, most=MOST_TOKENS, error=ProbeError)
    batch_dims = whole(batch_dims, "batch_dims", least=1, most=model.d_model, error=ProbeError)
    last = model.n_layers - 1
    asked = layer_list(slice(0, last) if layers is None else layers, model.n_layers)
    chosen = sorted({*asked} - {last})
    if not chosen:
        raise ProbeError(f"no layer below the last one, {last}, is named: its Jacobian is 1.")
    check_place(model, prompt, "a lens", [*chosen, last], None)
    short = (prompt.lengths - skip < 2).nonzero().flatten().tolist()
    if short:
        raise ProbeError(
            f"row {short[0]} has {int(prompt.lengths[short[0]])} tokens, of which the first {skip} "
            "and the last are left out, so there is none. Give longer texts, or a smaller skip."
        )
    weight = jacobians(model, prompt, chosen, skip, batch_dims)
    if weight is None:
        raise SiteError(
            f"requests for {model.name} run in a process of their own on this server; gradients do "
            "not get there, and a Jacobian is made of them. Load the model here."
        )
    about = {"model": model.name, "prompts": len(prompt), "skip": skip}
    weight = weight.cpu()
    bias = torch.zeros(weight.shape[:2], dtype=weight.dtype)
    return FittedLens("jacobian", tuple(chosen), weight, bias, model.n_layers, about)


@where_the_model_is
def jacobians(
    model: Model, prompt: Prompt, layers: Sequence[int], skip: int, batch_dims: int
) -> torch.Tensor | None:
    """Mean Jacobians [layer, d_model, d_model] of rows of a prompt: output by input dimension.

    None if the weights, and so gradients, are in another process.
    """
    if weightless(model):
        return None
    copies = 1 if model.anatomy.dependent_rows is not None else batch_dims
    total: torch.Tensor | None = None
    for row in range(len(prompt)):
        single, _ = prompt.select([row]).trimmed()
        own = _of_row(model, single.select([0] * copies), layers, skip)
        total = own if total is None else total + own
    assert total is not None
    return total / len(prompt)


def _of_row(model: Model, copies: Prompt, layers: Sequence[int], skip: int) -> torch.Tensor:
    """Jacobians of one row, of which there are copies: each is for a dimension at a time."""
    n, width = len(copies), model.d_model
    counted = range(skip, copies.length - 1)
    number_format = torch.promote_types(model.dtype, torch.float32)
    with frozen_weights(model), model.trace(copies, logits_to_keep=1, use_cache=False):
        live = []
        for layer in layers:
            value = model.resid_post.live(layer)
            if not value.requires_grad:
                value = value.detach().clone().requires_grad_()
                model.resid_post.replace(layer, value)
            live.append(value)
        last = model.resid_post.live(model.n_layers - 1)
        parts = []
        for start in range(0, width, n):
            stop = min(start + n, width)
            told = torch.zeros_like(last)
            for copy in range(stop - start):
                told[copy, counted.start : counted.stop, start + copy] = 1
            slopes = torch.autograd.grad(last, live, told, retain_graph=stop < width)
            parts.append(
                torch.stack(
                    [
                        slope[: stop - start, counted.start : counted.stop]
                        .to(slopes[0].device, number_format)
                        .mean(1)
                        for slope in slopes
                    ]
                )
            )
        jacobian = nnsight.save(torch.cat(parts, 1))
    return jacobian
