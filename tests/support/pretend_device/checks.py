"""What the pretend device must refuse, and what it must compute as the CPU does.

Only to be imported once the device is on.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

X, Y = torch.randn(4, 5), torch.randn(5, 3)
D = "fake:0"
FX, FY = X.to(D), Y.to(D)
ZERO = torch.zeros(4, 1, dtype=torch.long)
PICTURES = torch.randn(2, 3, 8, 8)


def written(index: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What is on the device, with a value put into some rows."""
    copy = FX.clone()
    copy[index] = value
    return copy


def too_much_memory() -> torch.Tensor:
    """More than there is; afterwards there is again as much as one likes."""
    fake: Any = torch.get_device_module(D)
    fake.set_memory_limit(fake.memory_allocated() + 1000)
    try:
        return torch.empty(10000, device=D)
    finally:
        fake.set_memory_limit(0)


def slopes(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Gradients of a convolution's weights."""
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 4, 3).to(x.device)
    convolution(PICTURES.to(x.device)).pow(2).sum().backward()
    assert convolution.weight.grad is not None
    return convolution.weight.grad


REFUSED: dict[str, Callable[[], Any]] = {
    "add": lambda: FX + X,
    "matmul": lambda: FX @ Y,
    "cat": lambda: torch.cat([FX, X]),
    "where": lambda: torch.where(X > 0, FX, 0),
    "masked_fill": lambda: FX.masked_fill(X > 0, 0.0),
    "gather": lambda: FX.gather(1, ZERO),
    "index_select": lambda: FX.index_select(0, torch.tensor(1)),
    "embedding": lambda: F.embedding(torch.tensor([1]), FX),
    "a CPU tensor indexed by the device": lambda: X[torch.tensor([0], device=D)],
    "values of index_put": lambda: written(torch.tensor([0, 1]), torch.ones(2, 5)),
    "numpy": lambda: FX.numpy(),
    "asarray": lambda: np.asarray(FX),
    "two devices": lambda: FX + X.to("fake:1"),
    "a CPU generator": lambda: torch.randn(3, device=D, generator=torch.Generator()),
    "its generator on the CPU": lambda: torch.randn(3, generator=torch.Generator(D)),
    "into a CPU tensor": lambda: torch.zeros(4, 5).add_(FX),
    "cross_entropy": lambda: F.cross_entropy(FX, torch.tensor([1, 2, 3, 4])),
    "attention": lambda: F.scaled_dot_product_attention(FX[None], FX[None], X[None]),
    "equal": lambda: torch.equal(FX, X),
    "an operator of the CPU's": lambda: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        FX[None, None], FX[None, None], FX[None, None]
    ),
    "more memory than there is": too_much_memory,
}
SAME: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "matmul": lambda x, y: x @ y,
    "number": lambda x, _: x + torch.tensor(2.0),
    "slice": lambda x, _: x[1:, ::2],
    "CPU index": lambda x, _: x[torch.tensor([0, 2])],
    "CPU mask": lambda x, _: x[torch.tensor([True, False, True, False])],
    "copies": lambda x, _: x.cpu() + x.to("fake:1").cpu(),
    "softmax": lambda x, y: (x @ y).log_softmax(-1),
    "sort": lambda x, _: x.sort(-1).values,
    "attention": lambda x, _: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "conjugate": lambda x, _: (torch.complex(x, x + 1).conj()[1:] * torch.complex(x, x)[1:]).imag,
    "bfloat16": lambda x, y: (x.bfloat16() @ y.bfloat16()).float(),
    "solve": lambda x, y: torch.linalg.solve(
        (x.T @ x).double() + 3 * torch.eye(5, device=x.device), y.double()
    ),
    "gradients": slopes,
}


def refused(name: str) -> str:
    """Empty if it is refused."""
    try:
        REFUSED[name]()
    except (RuntimeError, TypeError, IndexError):
        return ""
    return "it is let through"


def same(name: str) -> str:
    """Empty if the numbers are the CPU's."""
    ours, theirs = SAME[name](FX, FY).cpu(), SAME[name](X, Y)
    return "" if torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) else "other numbers"
