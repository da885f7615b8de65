"""Which cells of a prompt run in one forward pass, and from where.

A patch in block l at position p leaves every block below l and, in a causal decoder, every token
before p as they were: how far that goes, and what a forward pass costs beside its tokens, decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from interventions.architectures.wrapped import weightless
from interventions.errors import PatchError
from interventions.model.model import Model
from interventions.model.prefix_attention import can_be_kept_apart
from interventions.model.sites import depth_of, of_vision
from interventions.prompt.prompt import Prompt
from interventions.running.budget import Budget
from interventions.running.knockout import Knockout
from interventions.running.patches import Patch
from interventions.sweeping.sizes import Sizes, tower_row

Path = Literal["suffix", "rows", "plain"]
Edit = Patch | Knockout
BEHIND = ("mlp_out", "resid_post")  # a patch there changes nothing but the next block's input


@dataclass(frozen=True)
class Cell:
    """Patches and knockouts of one layer each, over all rows of a prompt, and what they change.

    Attributes
    ----------
    patches : tuple of Patch
    knockouts : tuple of Knockout
    block : int
        The first block that has to be run; ``n_layers`` if none.
    position : int
        The first position that changes, in any row.
    """

    patches: tuple[Patch, ...]
    knockouts: tuple[Knockout, ...]
    block: int
    position: int


@dataclass(frozen=True)
class Group:
    """Cells that run as rows of one forward pass.

    Attributes
    ----------
    cells : tuple of int
    block, position : int
        Where all of them start.
    """

    cells: tuple[int, ...]
    block: int
    position: int


def path_of(model: Model, prompt: Prompt, *, tower: bool = False) -> tuple[Path, str]:
    """How much of a prompt has to be run again for a patch, and why.

    Returns
    -------
    path : {"suffix", "rows", "plain"}
        The tokens from the first patched one on; whole rows; or everything.
    reason : str
        Empty for "suffix".
    """
    anatomy = model.anatomy
    if anatomy.dependent_rows is not None:
        return "plain", f"{anatomy.dependent_rows}: one cell a pass"
    if tower:
        return "plain", "the vision tower is patched, ahead of all that could be gone on from"
    if anatomy.cross_blocks and prompt.has_images:
        return "plain", "cross-attention blocks take the image in every pass"
    if anatomy.added_between and prompt.has_images:
        return "plain", "image features are added between the first blocks"
    if any(block.scale for block in anatomy.parts) and weightless(model) and not model.remote:
        return "plain", "what blocks are scaled by is in the process that has the weights"
    if anatomy.family.two_way == "prompt":
        return "rows", "tokens of a prompt see each other in both directions"
    if anatomy.family.two_way == "image" and prompt.has_images:
        return "rows", "tokens of an image see each other in both directions"
    if anatomy.recurrent_blocks:
        return "rows", "blocks with a recurrent state keep no keys and values"
    if anatomy.cross_blocks:
        return "rows", "cross-attention blocks keep no keys and values without an image"
    if anatomy.windowed and len(prompt.prefix_ids):
        return "plain", "a shared prefix in front of blocks with windows"
    if weightless(model) and not model.remote:
        return "rows", "keys and values are in the process that has the weights"
    return "suffix", ""


def cell(model: Model, edits: Sequence[Edit]) -> Cell:
    """Split patches and knockouts by layer, and find where they begin to change a run."""
    single = [part for edit in edits for part in edit.split(_depth_of(model, edit))]
    if not single:
        raise PatchError(
            "a cell needs at least one patch or knockout; without any, it is the clean run."
        )
    if any(in_tower(part) for part in single):
        return Cell(
            patches=tuple(part for part in single if isinstance(part, Patch)),
            knockouts=tuple(part for part in single if isinstance(part, Knockout)),
            block=0,
            position=0,
        )
    changed = [part.queries if isinstance(part, Knockout) else part.positions for part in single]
    places = [at.index[at.mask] for at in changed]
    position = min(
        (int(place.min()) for place in places if len(place)), default=changed[0].length - 1
    )
    return Cell(
        patches=tuple(part for part in single if isinstance(part, Patch)),
        knockouts=tuple(part for part in single if isinstance(part, Knockout)),
        block=min(first_block(part) for part in single),
        position=position,
    )


def in_tower(edit: Edit) -> bool:
    """Whether an edit is of the vision tower or its projector."""
    return isinstance(edit, Patch) and of_vision(edit.component)


def _depth_of(model: Model, edit: Edit) -> int:
    return model.n_layers if isinstance(edit, Knockout) else depth_of(model, edit.component)


def first_block(edit: Edit) -> int:
    """The first block that an edit of one layer changes the input of, or the inside of."""
    assert isinstance(edit.layers, int)
    return edit.layers + (isinstance(edit, Patch) and is_behind(edit))


def is_behind(patch: Patch) -> bool:
    """Whether a patch changes nothing of its block but what the next one is given.

    Coordinates of what the MLP adds have to be read there.
    """
    if patch.component == "mlp_out" and patch.within is not None:
        return False
    return patch.component in BEHIND


def groups(
    model: Model, prompt: Prompt, cells: Sequence[Cell], path: Path, budget: Budget
) -> list[Group]:
    """Divide cells among forward passes.

    Cells of a group run from the same block, and from the first position of any of them. The
    division is the one that costs the fewest tokens, where a forward pass costs some as well.

    Raises
    ------
    BudgetTooSmall
        If not even one cell fits the budget: says how much is needed.
    """
    passes: list[Group] = []
    if path != "plain":
        taken = len(prompt) * Sizes.of(model).kept(prompt.length, len(prompt.prefix_ids))
        budget = budget.less(taken)
    if path == "plain":
        tower = any(in_tower(patch) for cell in cells for patch in cell.patches)
        most = _most_cells(model, prompt, 0, path, budget, tower=tower)
        everything = range(len(cells))
        return [Group(tuple(everything[i : i + most]), 0, 0) for i in range(0, len(cells), most)]
    divided: dict[tuple[int, ...], list[slice]] = {}
    for block in sorted({cell.block for cell in cells}):
        chosen = [i for i, cell in enumerate(cells) if cell.block == block]
        if path == "rows":
            parts = [chosen]
        else:
            chosen.sort(key=lambda i: cells[i].position)
            places = tuple(cells[i].position for i in chosen)
            if places not in divided:  # most blocks have the same
                overhead = Sizes.of(model).pass_tokens(model.device.type)
                divided[places] = parts_of(places, len(prompt), prompt.length, overhead)
            parts = [chosen[part] for part in divided[places]]
        for part in parts:
            start = cells[part[0]].position if path == "suffix" else 0
            most = _most_cells(model, prompt, start, path, budget)
            # As even as can be: the last forward pass is no smaller than it must be.
            n_passes = -(-len(part) // most)
            size = -(-len(part) // n_passes)
            for i in range(0, len(part), size):
                batch = part[i : i + size]
                at = cells[batch[0]].position if path == "suffix" else 0
                passes.append(Group(tuple(batch), block, at))
    return passes


def _most_cells(
    model: Model, prompt: Prompt, start: int, path: Path, budget: Budget, *, tower: bool = False
) -> int:
    if model.anatomy.dependent_rows is not None:
        return 1
    n_tokens = prompt.length - start
    before = start + len(prompt.prefix_ids)
    apart = path == "suffix" and can_be_kept_apart(model)
    needed = len(prompt) * Sizes.of(model).row(n_tokens, before, apart=apart)
    if tower:
        needed += len(prompt) * tower_row(model, prompt)
        n_tokens += prompt.vision["tower"].length
    return budget.fit(needed, len(prompt) * n_tokens, "one cell")


def parts_of(positions: Sequence[int], n_rows: int, length: int, overhead: int) -> list[slice]:
    """Divide cells, sorted by position, so that overhead and repeated tokens are fewest.

    Parameters
    ----------
    positions : sequence of int
        The first that each cell changes.
    n_rows, length : int
        Of the prompt.
    overhead : int
        Tokens that one more forward pass costs as much as.
    """
    starts = sorted(set(positions))
    after = {at: i for i, at in enumerate(starts)}
    count = [0] * len(starts)
    for at in positions:
        count[after[at]] += 1
    total = [0]
    for n_cells in count:
        total.append(total[-1] + n_cells)
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(starts) + 1):
        best.append(
            min(
                (
                    best[begin][0]
                    + overhead
                    + n_rows * (total[end] - total[begin]) * (length - starts[begin]),
                    begin,
                )
                for begin in range(end)
            )
        )
    bounds = [len(starts)]
    while bounds[-1]:
        bounds.append(best[bounds[-1]][1])
    edges = [total[bound] for bound in reversed(bounds)]
    return [slice(a, b) for a, b in pairwise(edges)]
