"""Whether a model computes numbers at all, looked at before anything is measured with it."""

import torch

from interventions import Model, Prompt, Site, run
from interventions.errors import InterventionsError


class BrokenModel(InterventionsError):
    """A model that computes NaN or infinity."""


def check_sound(model: Model, prompt: Prompt) -> None:
    """Refuse a model that does not compute numbers on a prompt.

    One forward pass; where the first of them go wrong is looked for only if any do.

    Raises
    ------
    BrokenModel
        With the place where NaN or infinity first arises, and the weights that hold it.
    """
    logits = run(model, prompt).logits
    if logits is None or bool(torch.isfinite(logits).all()):
        return
    weights = [name for name, parameter in model.module.named_parameters() if holds_none(parameter)]
    if weights:
        why = f"So do its weights: {', '.join(weights[:3])}{', ...' if weights[3:] else ''}. "
        why += "Get or save the checkpoint again."
    else:
        why = f"Its weights are sound: a wider number format than {model.dtype} may help."
    where = origin(model, prompt)
    raise BrokenModel(f"{model.name} computes NaN or infinity, first in {where}. {why}")


def holds_none(values: torch.Tensor) -> bool:
    """Whether some of the values are NaN or infinite."""
    return not bool(torch.isfinite(values).all())


def origin(model: Model, prompt: Prompt) -> str:
    """Where a run first gives what is not a number."""
    blocks = [*range(model.n_layers)] if prompt.has_images else model.anatomy.self_blocks
    parts = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    values = run(
        model, prompt, reads=[Site(part, [layer]) for layer in blocks for part in parts]
    ).reads
    for i, value in enumerate(values):
        if holds_none(value):
            layer, part = blocks[i // len(parts)], parts[i % len(parts)]
            if i == 0:
                return "the embeddings of tokens or images"
            return f"{part} of block {layer}"
    return "the head"
