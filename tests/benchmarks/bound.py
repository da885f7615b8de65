"""How many tokens went through blocks, and how many a grid needs at the least."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.peers import Cell, blocks


@contextmanager
def counted(module: Any) -> Iterator[list[int]]:
    """Count the tokens that go through each block's MLP, which a skipped block does not run."""
    counts: list[int] = []

    def count(_module: Any, args: Any) -> None:
        counts.append(args[0].shape[:-1].numel())

    handles = [block.mlp.register_forward_pre_hook(count) for block in blocks(module)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def needed(cells: Sequence[Cell], *, n_layers: int, length: int, full_runs: int) -> int:
    """Tokens x layers of full runs, and of each cell above its block from its first position on."""
    above = [(n_layers - 1 - cell.layer) * (length - min(cell.positions)) for cell in cells]
    return full_runs * n_layers * length + sum(above)
