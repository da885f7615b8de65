"""Common patches: noise, clean copies, ablation, steering."""

import torch

from interventions.errors import PatchError
from interventions.given import index_of, number, of_kind, seed_of
from interventions.given_arrays import tensor_of
from interventions.model.model import Model
from interventions.model.sites import Component, Layers, Site, check_component, check_place
from interventions.prompt.positions import Positions, read_padded
from interventions.prompt.prompt import Prompt
from interventions.running.checking import check_asked
from interventions.running.patches import Patch
from interventions.running.run import read

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
    component: Component, layers: Layers, positions: Positions, mean: torch.Tensor | None = None
) -> Patch:
    """Patch that sets a component to zero, or to a mean [d_model] or [layer, row, d_model]."""
    return Patch(component, layers, positions, torch.zeros(()) if mean is None else mean)


def steering(
    layers: Layers, positions: Positions, vector: torch.Tensor, *, scale: float = 1.0
) -> Patch:
    """Patch that adds a vector [d_model] to ``resid_post``."""
    # Multiplied in a wide format: whole numbers wrap around, and short ones overflow.
    wide = tensor_of(vector, "the vector")
    wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
    scaled = number(scale, "scale", error=PatchError) * wide
    return Patch("resid_post", layers, positions, scaled, "add")


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
