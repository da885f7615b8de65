"""Common patches: noise, clean copies, ablation, steering."""

from typing import TYPE_CHECKING, Any

import torch

from interventions.errors import PatchError
from interventions.given import index_of, number, of_kind, seed_of
from interventions.given_arrays import tensor_of
from interventions.model.model import Model
from interventions.model.sites import (
    Component,
    Layers,
    Site,
    check_component,
    check_place,
    layer_list,
)
from interventions.prompt.positions import Positions, read_padded
from interventions.prompt.prompt import Prompt
from interventions.running.checking import check_asked
from interventions.running.patches import Patch
from interventions.running.run import read
from interventions.running.steps import PREFILL, Steps

if TYPE_CHECKING:
    import xarray as xr

SIGMAS = 3.0


def embedding_noise(
    model: Model, prompt: Prompt, positions: Positions, *, sigmas: float = SIGMAS, seed: int = 0
) -> Patch:
    """Gaussian noise on what enters the first block at some tokens, as a patch.

    Its standard deviation is ``sigmas`` times that of the embeddings found there (Meng et al.,
    "Locating and Editing Factual Associations in GPT", NeurIPS 2022: 3 sigma), so that image
    features get noise of their own scale.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    positions : Positions
    sigmas : float
    seed : int
        The same seed gives the same noise, whatever the device.

    Returns
    -------
    Patch
        Adds to ``resid_pre`` of block 0.
    """
    sigmas = number(sigmas, "sigmas", least=0, error=PatchError)
    seed = seed_of(seed, error=PatchError)
    check_written_at(model, prompt, positions, 0)
    [embedded] = read(model, prompt, [Site("resid_pre", 0)])
    there = read_padded(embedded, positions)
    spread = there[positions.mask.to(there.device)].float().std()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(there.shape, generator=generator).to(embedded.device)
    return Patch("resid_pre", 0, positions, (sigmas * spread * drawn).to(embedded.dtype), "add")


def frozen(
    model: Model,
    prompt: Prompt,
    positions: Positions,
    layers: Layers,
    *,
    component: Component = "resid_post",
) -> list[Patch]:
    """Patches that hold positions at the values they have in the unpatched run.

    Combined with another patch, they block the paths that lead through these places.

    Examples
    --------
    >>> hold = frozen(llm, named, named.at("last"), slice(4, 8), component="mlp_out")
    >>> run = iv.run(llm, named, patches=hold)
    """
    layers = index_of(layers, "layer")
    check_written_at(model, prompt, positions, layers, component)
    [value] = read(model, prompt, [Site(component, layers, positions.filled())])
    return [Patch(component, layers, positions, value)]


def ablated(
    component: Component,
    layers: Layers,
    positions: Positions,
    mean: torch.Tensor | None = None,
    *,
    steps: Steps = PREFILL,
) -> Patch:
    """Patch that sets a component to zero, or to a mean [d_model] or [layer, row, d_model].

    ``steps``: of a generation, as of :class:`interventions.Patch`.
    """
    value = torch.zeros(()) if mean is None else mean
    return Patch(component, layers, positions, value, steps=steps)


def steering(
    layers: Layers,
    positions: Positions,
    vector: "torch.Tensor | xr.Dataset",
    *,
    scale: float = 1.0,
    steps: Steps = PREFILL,
) -> Patch:
    """Patch that adds a vector to ``resid_post``, or to what a contrast vector is of.

    Parameters
    ----------
    layers : int, slice or list of int
    positions : Positions
        In the prefill; behind it, the new token of each row that has one.
    vector : Tensor [d_model], or Dataset
        One for all layers; or what :func:`interventions.contrast_vectors` gave, of which each layer
        gets its own.
    scale : float
    steps : {"prefill", "all"}, int or slice
        Of a generation, as of :class:`interventions.Patch`.

    Examples
    --------
    >>> vector = torch.ones(llm.d_model)
    >>> towards = iv.steering(3, named.at("last"), vector, scale=0.1, steps="all")
    >>> answered = iv.complete(llm, named, patches=[towards])
    """
    component: Component = "resid_post"
    if hasattr(vector, "data_vars"):
        component, layers, vector = _by_layer(vector, layers)
    # Multiplied in a wide format: whole numbers wrap around, and short ones overflow.
    wide = tensor_of(vector, "the vector")
    wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
    scaled = number(scale, "scale", error=PatchError) * wide
    return Patch(component, layers, positions, scaled, "add", steps=steps)


def _by_layer(vectors: Any, layers: Layers) -> tuple[Component, int | list[int], torch.Tensor]:
    """Component, layers and vectors of a result of :func:`interventions.contrast_vectors`."""
    try:
        component, n_layers = vectors.attrs["component"], int(vectors.attrs["n_layers"])
        known = vectors["layer"].values.tolist()
        values = torch.as_tensor(vectors["vector"].transpose("layer", "d_model").values)
    except (KeyError, ValueError) as error:
        raise PatchError(
            f"this Dataset holds no steering vectors ({error}). Give what iv.contrast_vectors "
            "returned, or one vector [d_model]."
        ) from error
    asked = layer_list(layers, n_layers)
    if lacking := sorted({*asked} - {*known}):
        raise PatchError(f"no vector is of layer(s) {lacking[:8]}. There are some of {known}.")
    chosen = values[[known.index(layer) for layer in asked]]
    single = isinstance(index_of(layers, "layer"), int)
    return component, (asked[0] if single else asked), (chosen[0] if single else chosen)


def check_written_at(
    model: Model,
    prompt: Prompt,
    positions: Positions,
    layers: Layers,
    component: Component = "resid_post",
) -> None:
    """Refuse positions that are not of the prompt that is read."""
    check_asked(model, prompt)
    of_kind(positions, Positions, "positions", error=PatchError)
    check_place(model, prompt, "a patch", layers, positions, check_component(component))
