"""Sizes of the published pairs' language models, and the tokens that a flag's picture has in each.

What a plan needs of a pair whose config is not at hand; the configs themselves have the same, which
is tested.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Shape:
    """Sizes of a pair's language model.

    Attributes
    ----------
    n_layers : int
        Blocks of the backbone.
    d_model, n_heads, n_kv_heads, head_dim, inner, vocab : int
        ``inner`` is the width inside the MLPs; ``vocab`` is the VLM's.
    picture : int
        Tokens that a flag of 128 x 96 pixels has in the text.
    crossing : int
        Blocks of the VLM that only attend to the picture.
    tied : bool
        Whether the head is the embedding.
    sees : {"itself", "image", "all"}
        What runs again for a patch: tokens behind it; all, as those of an image see each other;
        or all in all blocks.
    windowed : bool
        Whether blocks attend within a window.
    recurrent : bool
        Whether blocks keep a state instead of keys and values.
    unlike : int
        Parameters of a block in the mean, where blocks are unlike one another; 0: all are alike.
    """

    n_layers: int = 32
    d_model: int = 4096
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 128
    inner: int = 14_336
    vocab: int = 128_256
    picture: int = 576
    crossing: int = 0
    tied: bool = False
    sees: Literal["itself", "image", "all"] = "itself"
    windowed: bool = False
    recurrent: bool = False
    unlike: int = 0

    @property
    def block(self) -> int:
        """Parameters of a block's projections; the rest is nothing beside them."""
        if self.unlike:
            return self.unlike
        attention = 2 * self.head_dim * (self.n_heads + self.n_kv_heads)
        return self.d_model * (attention + 3 * self.inner)

    @property
    def ends(self) -> int:
        """Parameters of embeddings and head."""
        return self.vocab * self.d_model * (1 if self.tied else 2)


LLAVA_7B = Shape(n_kv_heads=32, inner=11_008, vocab=32_064)
# The whole picture, and two tiles of which a part is padding, with a token behind each line.
NEXT = 1368
QWEN_7B = Shape(28, 3584, 28, 4, 128, 18_944, 152_064, picture=15)
GEMMA_12B = Shape(
    48, 3840, 16, 8, 256, 15_360, 262_208, 256, tied=True, sees="image", windowed=True
)
QWEN3_8B = Shape(36, inner=12_288, vocab=151_936)
MLLAMA = Shape(vocab=128_256, picture=0, crossing=8, sees="all")
SHAPES: dict[str, Shape] = {
    "llava-1.5-7b": LLAVA_7B,
    "llava-1.5-13b": replace(
        LLAVA_7B, n_layers=40, d_model=5120, n_heads=40, n_kv_heads=40, inner=13_824
    ),
    "llava-next-mistral-7b": Shape(vocab=32_064, picture=NEXT),
    "llava-next-llama3-8b": Shape(vocab=128_320, picture=NEXT),
    "llava-more-8b": Shape(),
    "llava-onevision-7b": replace(QWEN_7B, vocab=152_128, picture=1317),
    "pixtral-12b": Shape(40, 5120, vocab=131_072, picture=54),
    "pixtral-large-124b": Shape(88, 12_288, 96, inner=28_672, vocab=32_768, picture=54),
    "gemma-3-12b": GEMMA_12B,
    "gemma-3-27b": replace(
        GEMMA_12B, n_layers=62, d_model=5376, n_heads=32, n_kv_heads=16, head_dim=128, inner=21_504
    ),
    "qwen2.5-vl-7b": QWEN_7B,
    "qwen2.5-vl-72b": Shape(80, 8192, 64, inner=29_568, vocab=152_064, picture=15),
    "llama-3.2-vision-11b": MLLAMA,
    "llama-3.2-vision-90b": replace(
        MLLAMA, n_layers=80, d_model=8192, n_heads=64, inner=28_672, crossing=20
    ),
    # Made larger, to 65,536 pixels at the least.
    "qwen3-vl-8b": replace(QWEN3_8B, picture=70, sees="all"),
    # Twelve tiles of 256 and the whole picture.
    "internvl3.5-8b": replace(QWEN3_8B, picture=3328),
    "smolvlm2-2.2b": Shape(24, 2048, 32, 32, 64, 8192, 49_280, picture=1053, tied=True),
    "glm-4.1v-9b": Shape(40, n_kv_heads=2, inner=13_696, vocab=151_552, picture=15),
    # Every sixth block has four wider heads for keys, which are the values too.
    "gemma-4-31b": Shape(
        *(60, 5376, 32, 16, 256, 21_504, 262_144, 266),
        tied=True,
        sees="image",
        windowed=True,
        unlike=488_134_319,
    ),
    # Three blocks of four are recurrent.
    "qwen3.5-9b": Shape(
        *(32, 4096, 16, 4, 256, 12_288, 248_320, 70),
        sees="image",
        recurrent=True,
        unlike=216_236_432,
    ),
}
"""By the pair's key."""
