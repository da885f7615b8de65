"""What reading or writing attention takes beside a run: a number for each pair of tokens."""

from collections.abc import Sequence

import torch

from interventions.errors import BudgetTooSmall
from interventions.model.model import Model
from interventions.model.sites import Site, layer_list, width_of
from interventions.prompt.prompt import Prompt
from interventions.running.budget import free_on
from interventions.running.patches import Patch

PAIRED = ("attn_scores", "attn_pattern")
AT_ONCE = 4  # tensors of all pairs while those of one block are made, in float32


def attention_bytes(
    model: Model, prompt: Prompt, patches: Sequence[Patch], reads: Sequence[Site]
) -> int:
    """Bytes that scores and patterns take: what is kept of them, and those of one block at work."""
    paired = [place for place in (*patches, *reads) if place.component in PAIRED]
    if not paired:
        return 0
    n_keys = len(prompt.prefix_ids) + prompt.length
    at_work = AT_ONCE * 4 * len(prompt) * model.anatomy.n_heads * prompt.length * n_keys
    n_bytes = torch.empty(0, dtype=model.dtype).element_size()
    kept = 0
    for site in reads:
        if site.component in PAIRED:
            n_queries = (
                prompt.length if site.positions is None else int(site.positions.index.shape[1])
            )
            width = int(torch.tensor(width_of(model, site, n_keys)).prod())
            n_layers = len(layer_list(site.layers, model.n_layers))
            # Once as read, and once more to put the layers together.
            kept += 2 * n_bytes * n_layers * len(prompt) * n_queries * width
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
        raise BudgetTooSmall(
            f"attention of {len(prompt)} row(s) x {prompt.length} tokens needs about "
            f"{needed / 2**20:.0f} MiB, but {free / 2**20:.0f} MiB are free. Read fewer blocks or "
            "heads at a time, name the queries (positions=), or run fewer or shorter rows."
        )
