"""Where the entity of a picture is among a VLM's tokens, and which of its layers is which.

Most VLMs give an image tokens of its own. Where it enters by cross-attention blocks it has none:
there, the tokens of the question stand for the place where the backbone's entity is written.
"""

from interventions import Model, ModelPair, Positions, Prompt
from interventions.prompt.positions import from_lists

IMAGE_ROLES = ("image", "last_image")
NO_IMAGE_TOKENS = "the image enters by cross-attention, so the text has no image tokens"


def has_image_tokens(vlm: Model) -> bool:
    """Whether an image takes positions among the tokens of a prompt."""
    return not vlm.anatomy.cross_blocks


def question_tokens(prompt: Prompt) -> Positions:
    """Text tokens of the question, worked examples, a chat's marks and the last token left out.

    ``prompt`` has the role ``asked``, see :func:`twohop.ask.study.image_prompt`.
    """
    lists = [
        sorted({*roles["asked"]} & {*roles["question"]} - {*roles["last"]})
        for roles in prompt.roles
    ]
    return from_lists(lists, length=prompt.length, single=False, role="question's tokens")


def entity_tokens(prompt: Prompt) -> Positions:
    """Image tokens of a prompt with pictures; the question's where there are none."""
    return question_tokens(prompt) if prompt.cross_attention else prompt.at("image")


def last_entity_token(prompt: Prompt) -> Positions:
    """Last image token; the last token of all where there are none."""
    return prompt.at("last") if prompt.cross_attention else prompt.at("image", -1)


def backbone_layers(pair: ModelPair) -> list[int]:
    """For each layer of the VLM, the backbone's at which as many of its blocks are done.

    Layer ``l`` is the input of block ``l``; the last one is the output of the last block.
    """
    layers = range(pair.vlm.n_layers + 1)
    return [sum(block < layer for block in pair.layer_map) for layer in layers]
