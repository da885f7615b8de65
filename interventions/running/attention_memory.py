"""What reading or writing attention takes beside a run: a number for each pair of tokens."""

from collections.abc import Sequence

import torch

from interventions.errors import BudgetTooSmall
from interventions.model.model import Model
from interventions.model.sites import (
    Site,
    layers_of,
    length_of,
    n_heads_of,
    of_vision,
    width_of,
)
from interventions.prompt.prompt import Prompt
from interventions.running.budget import free_on
from interventions.running.patches import Patch

PAIRED = ("attn_scores", "attn_pattern", "vision.attn_pattern")
AT_ONCE = 4  # tensors of all pairs while those of one block are made, in float32


def attention_bytes(
    model: Model, prompt: Prompt, patches: Sequence[Patch], reads: Sequence[Site]
) -> int:
    """Bytes that scores and patterns take: what is kept of them, and those of one block at work."""
    paired = [place for place in (*patches, *reads) if place.component in PAIRED]
    n_bytes = torch.empty(0, dtype=model.dtype).element_size()
    at_work = kept = 0
    for place in paired:
        n_queries = length_of(model, prompt, place.component)
        n_keys = n_queries if of_vision(place.component) else len(prompt.prefix_ids) + n_queries
        n_heads = n_heads_of(model, place.component)
        at_work = max(at_work, AT_ONCE * 4 * len(prompt) * n_heads * n_queries * n_keys)
        if isinstance(place, Site):
            if place.positions is not None:
                n_queries = int(place.positions.index.shape[1])
            width = int(torch.tensor(width_of(model, place, n_keys)).prod())
            # Once as read, and once more to put the layers together.
            kept += 2 * n_bytes * len(layers_of(model, place)) * len(prompt) * n_queries * width
    return at_work + kept


def check_attention_fits(
    model: Model, prompt: Prompt, patches: Sequence[Patch], reads: Sequence[Site]
) -> None:
    """Refuse attention that there is no memory for, before anything runs.

    Raises
    ------
    BudgetTooSmall
        Says how much it takes, how much there is, and what to ask for instead.
    """
    needed = attention_bytes(model, prompt, patches, reads)
    if needed and not model.remote and needed > (free := free_on(model)):
        paired = [place for place in (*patches, *reads) if place.component in PAIRED]
        longest = max(length_of(model, prompt, place.component) for place in paired)
        raise BudgetTooSmall(
            f"attention of {len(prompt)} row(s) x {longest} tokens needs about "
            f"{needed / 2**20:.0f} MiB, but {free / 2**20:.0f} MiB are free. Read fewer blocks or "
            "heads at a time, name the queries (positions=), or run fewer or shorter rows."
        )
