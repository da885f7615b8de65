"""Reading hidden states out: by the model's own head, or through another prompt."""

from collections.abc import Sequence
from typing import Literal

import torch

from interventions.architectures.wrapped import where_the_model_is
from interventions.errors import PatchError, PromptError, SiteError
from interventions.given import MOST_TOKENS, of_kind, one_of, several, text_of, whole
from interventions.given_arrays import check_range, tensor_of, token_numbers
from interventions.model.model import Model
from interventions.model.sites import Site
from interventions.prompt.prompt import Prompt
from interventions.running.fitted_lens import FittedLens
from interventions.running.patches import Patch, check_patches
from interventions.running.run import run_checked

LensKind = Literal["logit", "tuned", "jacobian"]
LENSES: tuple[LensKind, ...] = ("logit", "tuned", "jacobian")
IDENTITY_PROMPT = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
STATES = 256
"""States that go through the head at once, each with a number for every token there is."""


def lens(
    model: Model,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    *,
    kind: LensKind | None = None,
    fitted: FittedLens | None = None,
    layers: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and rank of chosen tokens, read out of hidden states.

    Each state goes through the final norm and the head (nostalgebraist, "interpreting GPT: the
    logit lens", 2020); through the affine map of its layer before that, where a lens was fitted.
    Only the chosen tokens' numbers are kept.

    Parameters
    ----------
    model : Model
    hidden : Tensor [layer, row, d_model]
        Residual stream.
    tokens : Tensor [row, token]
        The tokens looked for in each row.
    kind : {"logit", "tuned", "jacobian"}, optional
        Default: that of ``fitted``, or the logit lens.
    fitted : FittedLens, optional
        From :func:`interventions.tuned_lens` or :func:`interventions.jacobian_lens`, or loaded.
    layers : sequence of int, optional
        Which ``hidden`` is of, for a lens that was fitted. Default: those of the lens, or every
        layer of the model, as many as there are.

    Returns
    -------
    logprob : Tensor [layer, row, token]
        Nats.
    rank : Tensor [layer, row, token]
        Number of tokens that are likelier: 0 is the top.

    Raises
    ------
    PatchError
        If the shapes do not fit, or the lens is of another kind or model.

    Examples
    --------
    >>> last = iv.Site("resid_post", slice(None), named.at("last"))
    >>> [hidden] = iv.read(llm, named, [last])
    >>> marlow = torch.tensor([[51]])
    >>> logprob, rank = lens(llm, hidden, marlow)
    >>> rank[-1].item()  # the likeliest behind the last block
    0
    """
    of_kind(model, Model, "the model", error=PromptError)
    hidden = tensor_of(hidden, "hidden")
    tokens = token_numbers(tokens, model.anatomy.vocab, error=PatchError)
    fits = hidden.ndim == 3 and hidden.shape[-1] == model.d_model
    if not fits or tokens.ndim != 2 or len(tokens) != hidden.shape[1] or not len(hidden):
        raise PatchError(
            f"hidden states of shape {tuple(hidden.shape)} and tokens of shape "
            f"{tuple(tokens.shape)} do not fit. Expected [layer, row, {model.d_model}] and "
            "[row, token]; read one position per row, such as at(role, -1), in a list of layers."
        )
    check_range(hidden, model.dtype, "hidden")
    return _chosen_of(model, _translated(model, hidden, kind, fitted, layers), tokens)


def _translated(
    model: Model,
    hidden: torch.Tensor,
    kind: LensKind | None,
    fitted: FittedLens | None,
    layers: Sequence[int] | None,
) -> torch.Tensor:
    """States as the head is given them by a lens of some kind."""
    if fitted is not None:
        of_kind(fitted, FittedLens, "fitted", error=PatchError)
    own = "logit" if fitted is None else fitted.kind
    if kind is not None and one_of(kind, "kind", LENSES, error=PatchError) != own:
        make = f"iv.{kind}_lens" if kind != "logit" else "nothing"
        raise PatchError(
            f"kind={kind!r}, but fitted= is {fitted!r}. Give what {make} gives as fitted=."
        )
    if fitted is None:
        return hidden
    if fitted.n_layers != model.n_layers:
        raise PatchError(
            f"the lens was fitted to a model of {fitted.n_layers} layers; {model.name} has "
            f"{model.n_layers}. Use one that was fitted to this model."
        )
    listed = None if layers is None else several(layers, "layers", error=PatchError)
    return fitted.translated(hidden, listed)


@where_the_model_is
def _chosen_of(
    model: Model, hidden: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and rank of the tokens, layer by layer."""
    logprobs, ranks = zip(*(_of_layer(model, layer, tokens) for layer in hidden), strict=True)
    return torch.stack(logprobs), torch.stack(ranks)


def _of_layer(
    model: Model, hidden: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of one layer: hidden [row, d_model], tokens [row, token]."""
    with torch.no_grad():
        scores = model.unembed(hidden).float()
        chosen = scores.gather(-1, tokens.to(scores.device))  # where the head is
        rank = (scores[:, None] > chosen[..., None]).sum(-1)
        return chosen - scores.logsumexp(-1, keepdim=True), rank


@where_the_model_is
def lens_at(
    model: Model, prompt: Prompt, sites: Sequence[Site], tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a prompt and read chosen tokens out of it, at every layer and position of sites.

    On a server the states stay there: one request, of which these numbers come back.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    sites : sequence of Site
        Of the residual stream, each of several layers, at positions that no row lacks.
    tokens : Tensor [row, token]

    Returns
    -------
    logprob, rank : Tensor [layer, row, position, token]
        The layers of all sites, behind one another.
    """
    states = run_checked(model, prompt, reads=sites, logits=False).reads
    return read_out(model, [layer for read in states for layer in read], tokens)


def read_out(
    model: Model, layers: Sequence[torch.Tensor], tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and rank of chosen tokens in states of many positions.

    Parameters
    ----------
    model : Model
        Here, or where this runs.
    layers : sequence of Tensor [row, position, d_model]
    tokens : Tensor [row, token]

    Returns
    -------
    logprob, rank : Tensor [layer, row, position, token]
        On the CPU.
    """
    logprobs, ranks = [], []
    for hidden in layers:
        n_positions = hidden.shape[1]
        states = hidden.flatten(0, 1).split(STATES)
        wanted = tokens.repeat_interleave(n_positions, 0).split(STATES)
        parts = [_of_layer(model, *few) for few in zip(states, wanted, strict=True)]
        for kept, values in zip((logprobs, ranks), zip(*parts, strict=True), strict=True):
            kept.append(torch.cat(values).unflatten(0, (-1, n_positions)).cpu())
    return torch.stack(logprobs), torch.stack(ranks)


def patchscope(
    model: Model,
    values: torch.Tensor,
    *,
    layer: int,
    prompt: str = IDENTITY_PROMPT,
    placeholder: str = "?",
    max_new_tokens: int = 8,
) -> list[str]:
    """Read hidden states out by another prompt, of the model they are from or of another.

    Each value replaces the output of block ``layer`` at the placeholder's last token, and the
    model goes on writing (Ghandeharioun et al., "Patchscopes", ICML 2024).

    Parameters
    ----------
    model : Model
        The reader.
    values : Tensor [value, d_model]
    layer : int
        Of the reader.
    prompt : str
        Its last ``placeholder`` is where the value goes. Default: an identity prompt, which makes
        the model name what the value stands for.
    placeholder : str
    max_new_tokens : int

    Returns
    -------
    list of str
        One continuation per value.

    Raises
    ------
    PatchError, SiteError
        Before anything runs, if values, prompt or layer do not fit.
    """
    of_kind(model, Model, "the model", error=PromptError)
    values = tensor_of(values, "values")
    layer = whole(layer, "layer", error=SiteError)
    prompt, placeholder = text_of(prompt, "the prompt"), text_of(placeholder, "the placeholder")
    max_new_tokens = whole(max_new_tokens, "max_new_tokens", least=1, most=MOST_TOKENS)
    if values.ndim != 2 or values.shape[-1] != model.d_model:
        raise PatchError(
            f"values of shape {tuple(values.shape)} cannot be read out by {model.name}. Expected "
            f"[value, {model.d_model}]."
        )
    start = prompt.rfind(placeholder)
    if start < 0 or not placeholder:
        raise PatchError(f"the prompt {prompt!r} has no placeholder {placeholder!r}.")
    span = (start, start + len(placeholder))
    asked = model.prompt([prompt] * len(values), spans={"value": [span] * len(values)})
    place = asked.at("value", -1)
    check_patches(model, asked, [Patch("resid_post", layer, place, values)])
    with model.generate(asked, max_new_tokens=max_new_tokens) as tracer:
        model.resid_post[layer, place] = values
        ids = tracer.result.save()
    return model.completions(ids, asked)
