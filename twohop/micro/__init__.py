"""A micro language model, and vision-language models on it, whose recall circuit is known.

The backbone is a stock `LlamaForCausalLM` in which only blocks `RECALL_BLOCKS` have MLPs that
write anything, so facts can be recalled nowhere else. Three stock `LlavaForConditionalGeneration`
models share its weights: one enters the recall circuit (`micro-aligned`), one only learnt to name
(`micro-naming`), and one forms the entity behind the recall blocks (`micro-late`).
"""

from twohop.micro.folders import MICRO_KEYS, MicroKey, micro_folder
from twohop.micro.layout import (
    COMPOSE_BLOCKS,
    GATHER_BLOCKS,
    IMAGE_TOKENS,
    LATE_BLOCK,
    NUM_BLOCKS,
    READ_BLOCKS,
    RECALL_BLOCKS,
)
from twohop.micro.templates import (
    NAMING,
    TEMPLATES,
    after_naming,
    chain_of_thought,
    description,
)
from twohop.micro.world import (
    ENTITIES,
    EVALUATION_START,
    RELATIONS,
    Entity,
    Fact,
    answers,
    entity,
    facts,
    view,
)

__all__ = [
    "COMPOSE_BLOCKS",
    "ENTITIES",
    "EVALUATION_START",
    "GATHER_BLOCKS",
    "IMAGE_TOKENS",
    "LATE_BLOCK",
    "MICRO_KEYS",
    "NAMING",
    "NUM_BLOCKS",
    "READ_BLOCKS",
    "RECALL_BLOCKS",
    "RELATIONS",
    "TEMPLATES",
    "Entity",
    "Fact",
    "MicroKey",
    "after_naming",
    "answers",
    "chain_of_thought",
    "description",
    "entity",
    "facts",
    "micro_folder",
    "view",
]
