"""What is known of a vision tower: its blocks, its projector, and its sizes."""

from dataclasses import dataclass

from interventions.architectures.blocks import Block

PACKED = "cu_seqlens"


@dataclass(frozen=True)
class Tower:
    """Dotted paths, from the root module, of a vision tower's blocks, and its sizes.

    Attributes
    ----------
    blocks : tuple of str
        Every block in the order in which they run; where there are several stacks of them, one
        stack behind another.
    parts : tuple of Block
        What each of them is made of.
    width, n_heads, head_dim : int
        Of its residual stream and its attention.
    n_used : int
        So many blocks make the features; what those above give is not used.
    packed : bool
        Its attention is called once for each picture or window, on parts of one long row.
    projector : str
        The module that makes features of what the tower gives.
    projector_width, features_width : int
        Of what that is given, and of what it gives.
    patch : tuple of int, optional
        Height and width of a patch, in pixels.
    n_patches : int, optional
        How many there are in a view of a picture; None where that goes by its size.
    why : str
        Why the tower was not understood; empty where it was.
    """

    blocks: tuple[str, ...] = ()
    parts: tuple[Block, ...] = ()
    width: int = 0
    n_heads: int = 0
    head_dim: int = 0
    n_used: int = 0
    packed: bool = False
    projector: str = ""
    projector_width: int = 0
    features_width: int = 0
    patch: tuple[int, int] | None = None
    n_patches: int | None = None
    why: str = ""
