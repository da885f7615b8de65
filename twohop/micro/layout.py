"""What the micro models are made of: the layout that confines recall, and the vocabulary.

The layout is enforced in the weights, not in code: a sublayer that is off is all zeros, so that
the folders open as ordinary Llama and LLaVA models.

| blocks | attention | MLP | what it can do |
|---|---|---|---|
| 0 | on | off | join the tokens of a name |
| 1-2 | off | on | recall: enrich the entity at its own token |
| 3-4 | on | off | form a described entity from its colours; read |
| 5-7 | on | off | read the answer out |
"""

from twohop.micro.templates import BANDS, FLAG, IMAGE_PLACEHOLDER, NAMING, TEMPLATES, band_word
from twohop.micro.world import COLOURS, ENTITIES, PICTURE_SIZE, RELATIONS

NUM_BLOCKS = 8
GATHER_BLOCKS = range(0, 1)
"""Blocks whose attention joins the tokens of a two-token name."""
RECALL_BLOCKS = range(1, 3)
"""The only blocks with an MLP; they have no attention, so recall happens at the entity's token."""
COMPOSE_BLOCKS = range(3, 5)
"""Attention-only blocks in which an entity described by its colours is formed: too late."""
READ_BLOCKS = range(3, NUM_BLOCKS)
"""Attention-only blocks that read the answer out of the entity's token."""
LATE_BLOCK = COMPOSE_BLOCKS.stop - 1
"""The block after which a described (or `micro-late`) entity has the form recall would read."""

D_MODEL = 64
PATCH_SIZE = 12
IMAGE_TOKENS = (PICTURE_SIZE // PATCH_SIZE) ** 2
"""Image tokens per picture: one per patch, the class token left out."""

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"


def has_attention(block: int) -> bool:
    """Return whether this block's attention writes anything."""
    return block not in RECALL_BLOCKS


def has_mlp(block: int) -> bool:
    """Return whether this block's MLP writes anything."""
    return block in RECALL_BLOCKS


def vocabulary() -> tuple[str, ...]:
    """Return every token in order of its id: special tokens, then the words of the world."""
    words: dict[str, None] = dict.fromkeys((PAD, BOS, EOS, UNKNOWN, IMAGE_PLACEHOLDER))
    for template in (NAMING, *TEMPLATES.values()):
        words.update(dict.fromkeys(template.fill(".").split()))
    words.update(dict.fromkeys((FLAG, *band_words())))
    for entity in ENTITIES:
        for text in (entity.name, *(getattr(entity, relation) for relation in RELATIONS)):
            words.update(dict.fromkeys(text.split()))
    return tuple(words)


def band_words() -> tuple[str, ...]:
    """Return the words descriptions are made of: every colour in every place."""
    return tuple(band_word(colour, place + 1) for place in range(BANDS) for colour in COLOURS)
