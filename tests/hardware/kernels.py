"""Attention to a shared prefix: the way it is computed here, beside kernels that give the sum too.

What is put together from two parts needs the log of the sum of each part's exponentiated scores.
Flash attention gives it, and so does FlexAttention.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hardware.measuring import taken
from interventions.model.prefix_attention import attention

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
REPEATS = 10


@dataclass(frozen=True)
class Sizes:
    """Rows that go on from one prefix."""

    rows: int = 64
    heads: int = 32
    new: int = 30
    prefix: int = 600
    width: int = 128


SMALL = Sizes(rows=4, heads=2, new=3, prefix=9, width=16)


def _merged(
    before: torch.Tensor, sum_before: torch.Tensor, own: torch.Tensor, sum_own: torch.Tensor
) -> torch.Tensor:
    """Two parts of a softmax as one; the sums are logs [..., query]."""
    share = (sum_before.float() - sum_own.float()).sigmoid()[..., None].to(own.dtype)
    return own + (before - own) * share


def _flash(query: Any, key: Any, value: Any, *, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)
    return found[0], found[1]


def _flex(query: Any, key: Any, value: Any, *, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(_row: Any, _head: Any, position: Any, other: Any) -> Any:
        return position >= other

    length = query.shape[-2]
    mask = create_block_mask(seen, None, None, length, length, query.device) if causal else None
    compiled = torch.compile(flex_attention)
    return compiled(query, key, value, block_mask=mask, return_lse=True)


def _apart(kernel: Any, sizes: Sizes, before: Any, query: Any, key: Any, value: Any) -> Any:
    """The prefix by one product for all rows, and each row's own tokens."""
    joined = query.transpose(0, 1).flatten(1, 2)[None]  # [1, head, row and position, width]
    first, sum_first = kernel(joined, *before, causal=False)
    first = first[0].unflatten(1, (sizes.rows, sizes.new)).transpose(0, 1)
    sum_first = sum_first[0].unflatten(1, (sizes.rows, sizes.new)).transpose(0, 1)
    return _merged(first, sum_first, *kernel(query, key, value, causal=True))


def _ours(sizes: Sizes, before: Any, mask: Any, query: Any, key: Any, value: Any) -> Any:
    key.shared = before
    return attention(None, query, key, value, mask, scaling=sizes.width**-0.5)[0].transpose(1, 2)


def _whole(before: Any, mask: Any, query: Any, key: Any, value: Any) -> torch.Tensor:
    """Keys and values with a copy of the prefix for each row."""
    keys, values = (
        torch.cat([part.expand(len(own), -1, -1, -1), own], -2)
        for part, own in zip(before, (key, value), strict=True)
    )
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


def compare_kernels(device: str, dtype: torch.dtype, sizes: Sizes) -> dict[str, Any]:
    """Milliseconds of each, and its largest difference from float64; or why it cannot."""
    generator = torch.Generator().manual_seed(0)
    n, head = sizes.new, (sizes.heads,)

    def drawn(rows: int, length: int) -> torch.Tensor:
        values = torch.randn(rows, *head, length, sizes.width, generator=generator)
        return values.to(device, dtype)

    before = drawn(1, sizes.prefix), drawn(1, sizes.prefix)
    query, key, value = (drawn(sizes.rows, n) for _ in range(3))
    mask = torch.ones(n, sizes.prefix + n, dtype=torch.bool).tril(sizes.prefix)
    mask = mask.expand(sizes.rows, 1, -1, -1).to(device)
    exact = _whole(
        tuple(part.double().cpu() for part in before),
        mask.cpu(),
        *(part.double().cpu() for part in (query, key, value)),
    )
    ways: dict[str, Kernel] = {
        "as it is here": partial(_ours, sizes, before, mask),
        "sdpa with copies": partial(_whole, before, mask),
        "flash with sums": partial(_apart, _flash, sizes, before),
        "FlexAttention": partial(_apart, _flex, sizes, before),
    }
    return {name: _timed(way, exact, device, query, key, value) for name, way in ways.items()}


def _timed(way: Kernel, exact: torch.Tensor, device: str, *given: torch.Tensor) -> str:
    try:
        result = way(*given)
        with taken(device) as took:
            for _ in range(REPEATS):
                way(*given)
    except Exception as error:  # a kernel that is not here is a result
        return f"cannot: {type(error).__name__}: {str(error).splitlines()[0]}"[:120]
    difference = float((result.double().cpu() - exact).abs().max())
    return f"{took.seconds / REPEATS * 1e3:.2f} ms, differs by {difference:.1e}"
