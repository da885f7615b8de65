"""Where one component is inside a block: what is found once, when a model is loaded."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Spot:
    """Where one component of a block is.

    Attributes
    ----------
    component : str
    path : str or None
        The module inside the block; None where there is none.
    side : {"input", "output"}
        Of that module.
    element : int
        Which of several outputs.
    heads_first : bool
        It is [row, head, position, width] there.
    axes : tuple of int
        Sizes of one layer, row and position: (width,), or (heads, width). A width of 0 is that of
        the tokens that can be attended to.
    why : str
        Why there is none, and what to use.
    """

    component: str
    path: str | None = None
    side: Literal["input", "output"] = "output"
    element: int = 0
    heads_first: bool = False
    axes: tuple[int, ...] = ()
    why: str = ""
