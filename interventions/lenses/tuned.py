"""The tuned lens: affine translators that make the last distribution of earlier states."""

import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr

from interventions.architectures.wrapped import weightless, where_the_model_is
from interventions.errors import ProbeError, SiteError
from interventions.given import (
    HIGHEST_RATE,
    MOST_EPOCHS,
    batch_size,
    number,
    of_kind,
    seed_of,
    whole,
)
from interventions.given_arrays import check_range, classes_of, row_values, tensor_of
from interventions.model.model import Model
from interventions.model.sites import Layers, layer_list
from interventions.probing.splits import group_interval, held_out_groups
from interventions.running.fitted_lens import FittedLens
from interventions.running.gradients import frozen_weights


def tuned_lens(
    model: Model,
    activations: torch.Tensor | np.ndarray | xr.DataArray,
    *,
    layers: Layers | None = None,
    groups: Any | None = None,
    test_share: float = 0.2,
    epochs: int = 20,
    batch_rows: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> FittedLens:
    """Fit the tuned lens to collected states: an affine map for each layer.

    The lens of layer l reads head(norm(A_l h + b_l)), where A_l and b_l are those that minimise
    KL(p || q_l) of the model's last distribution p to what is read, over the fitted rows (Belrose
    et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023). They begin
    as the logit lens, A = 1 and b = 0, and weight decay draws them there.

    Parameters
    ----------
    model : Model
    activations : [layer, row, d_model]
        ``resid_post`` of tokens, that of the last block among them, from which p follows: what
        :func:`interventions.collect` or :func:`interventions.read` gave. Rows should be many and
        of the kind of text that is read later.
    layers : int, slice or list of int, optional
        Of the first axis. Default: the coordinate of a DataArray, or every layer of the model.
    groups : sequence [row], optional
        Rows of one text or picture are fitted or tested together; or the name of a coordinate.
    test_share : float
        Share of the groups held out.
    epochs, batch_rows, learning_rate, weight_decay
        Of Adam (decoupled decay, towards the logit lens), whose steps shrink to none.
    seed : int

    Returns
    -------
    FittedLens
        Whose ``divergences`` are the KL of both lenses on the rows held out.

    Raises
    ------
    ProbeError
        If shapes do not fit, the last layer is missing, or fewer rows are to be fitted than an
        affine map of this width has numbers for each output: d_model + 1.
    SiteError
        If the model is on a server that lets no gradients through.

    Warns
    -----
    RuntimeWarning
        If the tuned lens is no nearer to the last distribution on the rows held out than the logit
        lens is: the layers are named. It was fitted to too few rows, or for too long.

    Examples
    --------
    >>> words = "Avaria Belmora Corvenia Dravia Elsenia Fenmark Galdor Hestaria Ilvania".split()
    >>> prompt = llm.prompt([question.format(word) for word in words])
    >>> [states] = iv.read(llm, prompt, [iv.Site("resid_post", slice(None))])
    >>> texts = [text for text in range(9) for _ in range(prompt.length)]
    >>> fitted = iv.tuned_lens(llm, states.flatten(1, 2), groups=texts, epochs=50)
    >>> fitted
    <FittedLens (tuned): layers [0, 1, 2, 3, 4, 5, 6] of 8>
    """
    of_kind(model, Model, "the model", error=ProbeError)
    hidden, chosen = _states(model, activations, layers)
    last = model.n_layers - 1
    if last not in chosen or len(chosen) < 2 or len({*chosen}) < len(chosen):
        raise ProbeError(
            f"activations of layers {chosen}. Expected different ones, and layer {last} among "
            "them: the last distribution is read off it."
        )
    seed = seed_of(seed, error=ProbeError)
    n_rows = hidden.shape[1]
    if isinstance(groups, str):
        known = activations.coords if isinstance(activations, xr.DataArray) else {}
        if groups not in known:
            raise ProbeError(f"the activations have no coordinate {groups!r} for groups.")
        groups = known[groups].values
    own = (
        np.arange(n_rows)
        if groups is None
        else row_values(groups, n_rows, "groups", error=ProbeError)
    )
    group = classes_of(own)[1]
    test = held_out_groups(group, share=test_share, seed=seed)
    needed = model.d_model + 1
    if (n_fitted := int((~test).sum())) < needed:
        raise ProbeError(
            f"{n_fitted} rows are to be fitted, and {int(test.sum())} held out. An affine map of "
            f"width {model.d_model} takes at least {needed}, and many times as many to be of use: "
            "collect more tokens (Belrose et al. used millions)."
        )
    settings = {
        "epochs": whole(epochs, "epochs", least=1, most=MOST_EPOCHS, error=ProbeError),
        "batch_rows": batch_size(batch_rows, error=ProbeError),
        "learning_rate": number(
            learning_rate, "learning_rate", above=0, most=HIGHEST_RATE, error=ProbeError
        ),
        "weight_decay": number(
            weight_decay, "weight_decay", least=0, most=HIGHEST_RATE, error=ProbeError
        ),
        "seed": seed,
    }
    at = chosen.index(last)
    below = [i for i in range(len(chosen)) if i != at]
    fitted = translators(model, hidden[below], hidden[at], torch.from_numpy(test), **settings)
    if fitted is None:
        raise SiteError(
            f"requests for {model.name} run in a process of their own on this server; gradients do "
            "not get there, and fitting a lens needs them. Load the model here to fit it."
        )
    weight, bias, divergences = fitted
    held = divergences.cpu().double().numpy()  # [lens, layer, row]
    if not np.isfinite(held).all():
        raise ProbeError(
            f"the fit did not hold: its lens gives {int((~np.isfinite(held)).sum())} divergences "
            f"that are no numbers. Give a learning_rate below {settings['learning_rate']}."
        )
    mean, low, high = group_interval(held.reshape(-1, held.shape[-1]), group[test], seed=seed)
    shape = held.shape[:2]
    told = {"kl": mean, "low": low, "high": high}
    names = tuple(chosen[i] for i in below)
    about = {
        **{"model": model.name, "fitted_rows": n_fitted, "held_out_rows": int(test.sum())},
        **settings,
        "held_out": {name: value.reshape(shape).tolist() for name, value in told.items()},
    }
    worse = [
        layer
        for layer, pair in zip(names, mean.reshape(shape).T, strict=True)
        if pair[0] >= pair[1]
    ]
    if worse:
        warnings.warn(
            f"on the rows held out, the tuned lens of layers {worse} is no nearer to the last "
            "distribution than the logit lens. Collect more rows, or fit for fewer epochs.",
            RuntimeWarning,
            stacklevel=2,
        )
    return FittedLens("tuned", names, weight.cpu(), bias.cpu(), model.n_layers, about)


def _states(model: Model, given: Any, layers: Layers | None) -> tuple[torch.Tensor, list[int]]:
    """States [layer, row, d_model], and the layers they are of."""
    own: Any = layers
    if isinstance(given, xr.DataArray):
        if layers is None and "layer" in given.coords:
            own = given.coords["layer"].values.tolist()
        if {"layer", "row", "d_model"} == {*given.dims}:
            given = given.transpose("layer", "row", "d_model")
        given = given.values
    hidden = tensor_of(given, "activations", error=ProbeError)
    if hidden.ndim != 3 or hidden.shape[-1] != model.d_model or 0 in hidden.shape:
        raise ProbeError(
            f"activations have shape {tuple(hidden.shape)}. Expected [layer, row, "
            f"{model.d_model}]; several positions of a text are rows: activations.flatten(1, 2)."
        )
    chosen = layer_list(slice(None) if own is None else own, model.n_layers)
    if len(chosen) != len(hidden):
        raise ProbeError(
            f"activations of {len(hidden)} layers, but {len(chosen)} are named. Say which: layers=."
        )
    check_range(hidden, model.dtype, "activations")
    return hidden, chosen


@where_the_model_is
def translators(
    model: Model,
    hidden: torch.Tensor,
    final: torch.Tensor,
    test: torch.Tensor,
    *,
    epochs: int,
    batch_rows: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Fit translators; None if the weights, and so gradients, are in another process.

    Parameters
    ----------
    hidden : Tensor [layer, row, d_model]
    final : Tensor [row, d_model]
    test : Tensor [row], bool
        Rows held out.

    Returns
    -------
    weight : Tensor [layer, d_model, d_model]
    bias : Tensor [layer, d_model]
    divergences : Tensor [2, layer, held-out row]
        Nats: of these translators, and of none.
    """
    if weightless(model):
        return None
    device, number_format = model.device, torch.promote_types(model.dtype, torch.float32)
    fitted = (~test).nonzero().flatten()
    weights, biases, divergences = [], [], []
    with frozen_weights(model):
        for state in hidden:
            generator = torch.Generator().manual_seed(seed)
            change = torch.zeros(2 * state.shape[-1:], dtype=number_format, device=device)
            bias = torch.zeros(state.shape[-1], dtype=number_format, device=device)
            parameters = [change.requires_grad_(), bias.requires_grad_()]
            adam = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
            steps = epochs * -(-len(fitted) // batch_rows)
            slower = torch.optim.lr_scheduler.LambdaLR(
                adam, lambda step, steps=steps: max(0.0, 1 - step / steps)
            )
            for _ in range(epochs):
                for rows in fitted[torch.randperm(len(fitted), generator=generator)].split(
                    batch_rows
                ):
                    given = state[rows].to(device, number_format)
                    loss = _divergence(model, final[rows], given + given @ change.T + bias).mean()
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
                    slower.step()
            change, bias = change.detach(), bias.detach()
            with torch.no_grad():
                pair = [[], []]
                for rows in test.nonzero().flatten().split(batch_rows):
                    given = state[rows].to(device, number_format)
                    for lens, read in enumerate((given + given @ change.T + bias, given)):
                        pair[lens].append(_divergence(model, final[rows], read))
            divergences.append(torch.stack([torch.cat(parts) for parts in pair]))
            weights.append(change + torch.eye(len(bias), dtype=change.dtype, device=device))
            biases.append(bias)
    return torch.stack(weights), torch.stack(biases), torch.stack(divergences, 1)


def _divergence(model: Model, final: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """KL of the last distribution to the one that is read, [row], nats."""
    with torch.no_grad():
        expected = model.unembed(final).float().log_softmax(-1)
    ours = model.unembed(read).float().log_softmax(-1)
    return (expected.exp() * (expected - ours)).sum(-1)
