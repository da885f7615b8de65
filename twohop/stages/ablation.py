"""Answers of a text run without some of the MLPs at the entity's last token, or with few of them.

What an MLP is replaced by is its mean over the other entities that the model knows an answer of the
same relation of, in the whole benchmark: what is the same for all of them stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interventions import Model, Patch, Prompt, Site
from interventions.sweeping.metrics import target
from twohop.ask.memory import read
from twohop.ask.on_server import Tick
from twohop.ask.questions import Rivals
from twohop.items.items import Item
from twohop.stages.patched import Cells, answered_cells

READ_ROWS = 64

Measured = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def relation_windows(
    model: Model,
    prompt: Prompt,
    items: Sequence[Item],
    known: tuple[Prompt, Sequence[str]],
    rivals: Rivals,
    swap: tuple[Prompt, Prompt] | None,
    most: int,
    *,
    tick: Tick,
) -> list[Measured]:
    """Measure what blocks of a model are needed for, on the items of one relation.

    Parameters
    ----------
    model : Model
    prompt : Prompt
        About all items.
    items : sequence of Item
    known : (Prompt, sequence of str)
        About every entity of which the model knows the answer, cut after its name, and their codes.
    rivals : list of Item or None
        Of each item.
    swap : (Prompt, Prompt) or None
        About the items that have a rival, and about their rivals; None if none has one.
    most : int
        How many blocks are looked at, at most, other than those that ablation begins with.
    tick : callable

    Returns
    -------
    list of (ndarray [edge], ndarray [block], ndarray [edge], ndarray [block])
        Of each item, whether its answer survives the ablation from a block up, that of a block
        alone, and that of all but the blocks before one; and whether it follows a swap. NaN where
        it was not measured: at other blocks; where no other entity is known; without a rival.
    """
    n = len(model.anatomy.self_blocks)
    mean, there = mean_of_known(model, *known, [item.entity.code for item in items])
    survives, alone, suffices, follows = (
        np.full((size, len(items)), np.nan) for size in (n + 1, n, n + 1, n)
    )
    grid = Grid.of(n, most)
    n_own = n + 1 + len(grid.alone)
    if there.any():
        measured = ablated(
            model,
            prompt.select(np.flatnonzero(there).tolist()),
            [item for item, others in zip(items, there, strict=True) if others],
            mean[:, torch.from_numpy(there)],
            grid=grid,
            tick=tick,
        )
        survives[:, there] = measured[: n + 1]
        columns = np.flatnonzero(there).tolist()
        alone[np.ix_(grid.alone, columns)] = measured[n + 1 : n_own]
        suffices[np.ix_(grid.edges, columns)] = measured[n_own:]
    tick(int((~there).sum()) * (n_own + len(grid.edges)))
    if swap is not None:
        told = [column for column, rival in enumerate(rivals) if rival is not None]
        others = [rival for rival in rivals if rival is not None]
        followed = readout(model, *swap, others, blocks=grid.swapped, tick=tick)
        follows[np.ix_(grid.swapped, told)] = followed
    return list(zip(survives.T, alone.T, suffices.T, follows.T, strict=True))


@dataclass(frozen=True)
class Grid:
    """At which blocks a window is looked at, other than those that ablation begins with.

    Attributes
    ----------
    alone : list of int
        Blocks that are ablated alone.
    edges : list of int
        Numbers of blocks that are restored; none and all of them among these.
    swapped : list of int
        Blocks after which the state is another entity's.
    """

    alone: list[int]
    edges: list[int]
    swapped: list[int]

    @classmethod
    def of(cls, n_layers: int, most: int) -> "Grid":
        """Return at most so many of each: every one, or fewer and fewer of the later.

        Recall is early, so there they are close; the read-out may end anywhere.

        Examples
        --------
        >>> grid = Grid.of(30, 8)
        >>> grid.alone, grid.edges
        ([0, 1, 2, 3, 6, 10, 17, 29], [0, 1, 3, 5, 8, 12, 19, 30])
        >>> grid.swapped
        [0, 4, 8, 12, 17, 21, 25, 29]
        >>> Grid.of(3, 8).edges
        [0, 1, 2, 3]
        """

        def early(n: int, most: int) -> list[int]:
            if most >= n:
                return [*range(n)]
            return np.unique(np.geomspace(1, n, most).round().astype(int) - 1).tolist()

        even = np.linspace(0, n_layers - 1, min(n_layers, most)).round().astype(int)
        return cls(early(n_layers, most), early(n_layers + 1, most + 1), even.tolist())


def mean_of_known(
    model: Model, names: Prompt, codes: Sequence[str], wanted: Sequence[str]
) -> tuple[torch.Tensor, np.ndarray]:
    """Mean over the other known entities of what enters the first block, and of every MLP's output.

    At the last token of the name.

    Parameters
    ----------
    model : Model
    names : Prompt
        Cut after the names.
    codes : sequence of str
        The entity of each row.
    wanted : sequence of str
        The entities that are left out of their own mean.

    Returns
    -------
    mean : Tensor [1 + block, wanted, d_model], float32
    there : ndarray of bool [wanted]
        Whether there is another entity; where not, the mean is 0 and stands for nothing.
    """
    blocks = model.anatomy.self_blocks
    own = torch.tensor([[float(code == other) for other in codes] for code in wanted])
    total, of_wanted = torch.zeros(()), torch.zeros(())
    for rows in torch.arange(len(names)).split(READ_ROWS):
        part, _ = names.select(rows).trimmed()
        at = part.at("entity", -1)
        first, mlps = read(
            model, part, [Site("resid_pre", blocks[0], at), Site("mlp_out", blocks, at)]
        )
        values = torch.cat([first[None], mlps]).cpu().double()
        total = total + values.sum(1, keepdim=True)
        of_wanted = of_wanted + torch.einsum("wr,lrd->lwd", own[:, rows].double(), values)
    others = len(codes) - own.sum(1)
    mean = (total - of_wanted) / others.clamp(min=1).double()[:, None]
    there = others > 0
    return torch.where(there[:, None], mean, 0).float(), there.numpy()


def ablated(
    model: Model,
    prompt: Prompt,
    items: Sequence[Item],
    mean: torch.Tensor,
    *,
    grid: Grid,
    tick: Tick,
) -> np.ndarray:
    """Whether each answer survives, [cell, item].

    Cells, in this order: from each block up, and nothing; each block of the grid alone; and each
    edge of it, up to which MLPs are restored. There the token is the mean of the others, and so are
    its MLPs but for the outputs of those before the edge: were the token left as it is, this would
    be the same as the cell from that edge up, as blocks below an ablated one do not see it.
    """
    layers = model.anatomy.self_blocks
    n = len(layers)
    own = target(model, prompt, [item.answers[0] for item in items])
    [mlps] = read(model, prompt, [Site("mlp_out", layers, prompt.at("entity", -1))])
    asked = own.scored(prompt)
    at = asked.at("entity", -1)
    embedded, means = mean[0], mean[1:]

    def outputs(values: torch.Tensor, first: int, stop: int) -> list[Patch]:
        kept = slice(first, stop)
        return [Patch("mlp_out", layers[kept], at, values[kept])] if first < stop else []

    cells: Cells = [
        *(outputs(means, edge, n) for edge in range(n + 1)),
        *(outputs(means, block, block + 1) for block in grid.alone),
        *(
            [
                Patch("resid_pre", layers[0], at, embedded),
                *outputs(mlps, 0, edge),
                *outputs(means, edge, n),
            ]
            for edge in grid.edges
        ),
    ]
    return answered_cells(model, asked, own, cells, tick=tick)


def readout(
    model: Model,
    prompt: Prompt,
    source: Prompt,
    rivals: Sequence[Item],
    *,
    blocks: Sequence[int],
    tick: Tick,
) -> np.ndarray:
    """Whether the answer becomes the rival's, whose state is put in, [block, rival]."""
    layers = [model.anatomy.self_blocks[block] for block in blocks]
    [other] = read(model, source, [Site("resid_post", layers, source.at("entity", -1))])
    theirs = target(model, prompt, [rival.answers[0] for rival in rivals])
    asked = theirs.scored(prompt)
    place = asked.at("entity", -1)

    cells = [
        [Patch("resid_post", layer, place, state)]
        for layer, state in zip(layers, other, strict=True)
    ]
    return answered_cells(model, asked, theirs, cells, tick=tick)
