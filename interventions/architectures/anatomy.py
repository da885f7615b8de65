"""Where the parts of a model are, and its sizes: what :mod:`anatomy_finding
<interventions.architectures.anatomy_finding>` finds once, when a model is loaded.
"""

from dataclasses import dataclass, field

from interventions.architectures.blocks import Block
from interventions.architectures.families import Family
from interventions.architectures.tower import Tower


@dataclass(frozen=True)
class Anatomy:
    """Dotted paths, from the root module, of the parts of one model, and its sizes.

    Attributes
    ----------
    model_type : str
        The config's name for the architecture.
    decoder, blocks : str
        The text decoder, and its list of blocks.
    parts : tuple of Block
        What each block is made of.
    final_norm, head, embeddings : str
        Norm after the last block, output projection, token embeddings.
    vision_tower, projector : str or None
        None in a text-only model; the projector may be part of the tower.
    image_token_id : int or None
        Id of the token that image features replace; None without such tokens.
    n_layers, d_model, n_heads, n_kv_heads, head_dim, vocab : int
        Sizes of the decoder.
    three_axis_positions : bool
        Image tokens are placed by (time, height, width): position ids have three rows.
    added_between : bool
        Something other than blocks also adds to the residual stream, between the first blocks.
    windowed : bool
        Some blocks attend to a window or chunk of the last positions only.
    softcap : float or None
        Final logits are ``softcap * tanh(head / softcap)``.
    logit_scale : float
        Factor on what the head gives.
    family : Family
        What structure does not tell.
    dependent_rows : str or None
        Why the numbers of a row depend on the rows and padding that it is run with; None if they
        do not.
    tower : Tower or None
        The blocks of the vision tower; None in a text-only model.
    notes : tuple of str
        What a user should know about the streams of this architecture.
    """

    model_type: str
    decoder: str
    blocks: str
    parts: tuple[Block, ...]
    final_norm: str
    head: str
    embeddings: str
    vision_tower: str | None
    projector: str | None
    image_token_id: int | None
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    three_axis_positions: bool
    added_between: bool
    windowed: bool
    softcap: float | None
    logit_scale: float
    family: Family
    dependent_rows: str | None = None
    tower: Tower | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def is_vlm(self) -> bool:
        """Whether the model sees images."""
        return self.vision_tower is not None

    @property
    def cross_blocks(self) -> list[int]:
        """Indices of the cross-attention blocks."""
        return [layer for layer, block in enumerate(self.parts) if block.cross]

    @property
    def recurrent_blocks(self) -> list[int]:
        """Indices of the blocks that keep a state in the place of keys and values."""
        return [layer for layer, block in enumerate(self.parts) if block.recurrent]

    @property
    def self_blocks(self) -> list[int]:
        """Indices of the other blocks: those a text-only model has."""
        return [layer for layer, block in enumerate(self.parts) if not block.cross]

    @property
    def identity(self) -> str:
        """The identity that holds between the components of a block."""
        if any(block.attn_gate for block in self.parts):
            return (
                "resid_pre + attn_out + mlp_out == resid_post; in cross-attention blocks, at "
                "tokens that see an image, each of the two is first scaled by tanh of its gate"
            )
        if any(block.scale for block in self.parts):
            return "(resid_pre + attn_out + mlp_out) x the block's scale == resid_post"
        return "resid_pre + attn_out + mlp_out == resid_post"
