"""Prompts of the micro world, in the form the study uses: a prefix, and a question.

Every word is a token, so punctuation stands apart. A prompt is `prefix + question` with the
placeholder `{entity}` filled with a name (text) or with `<image>` (image, same place). There are
no worked examples: the backbone needs none, and short prompts are quick.
"""

from twohop.items.items import IT, Template
from twohop.micro.world import Entity, Relation

IMAGE_PLACEHOLDER = "<image>"
TURN_END = " ."
"""What ends an answer."""


NAMING = Template("Question : ", "Which country is {entity} ? Answer :")

TEMPLATES: dict[Relation, Template] = {
    "capital": Template("Question : ", "What is the capital of {entity} ? Answer :"),
    "continent": Template("Question : ", "Which continent is {entity} in ? Answer :"),
    "language": Template("Question : ", "What language is spoken in {entity} ? Answer :"),
}

FLAG = "flag"
"""The token that closes a description; where a described entity is formed, late."""


BANDS = 3
"""Bands of a flag."""


def description(entity: Entity) -> str:
    """Return an entity's flag in words, to stand in place of its name.

    The backbone can name what is described, but was never asked a fact of it: a two-hop question
    in text alone.

    Examples
    --------
    >>> from twohop.micro.world import ENTITIES
    >>> description(ENTITIES[0])
    'white-1 blue-2 green-3 flag'
    """
    bands = (band_word(colour, place) for place, colour in enumerate(entity.bands.split(), 1))
    return " ".join((*bands, FLAG))


def band_word(colour: str, place: int) -> str:
    """Return the word for a colour in the first, second or third band (`place` 1, 2 or 3)."""
    return f"{colour}-{place}"


def chain_of_thought(relation: Relation, *, name: str, unnamed: bool = False) -> Template:
    """Return name-then-answer: the naming question, the answer given to it, then the fact.

    Parameters
    ----------
    relation
        What is asked.
    name
        The answer given to "Which country is ... ?": the model's own, the right one, or a wrong
        one.
    unnamed
        The second question says "it" in place of the name.

    Examples
    --------
    >>> chain_of_thought("capital", name="Avaria").question.split(" . ")[1]
    'Question : What is the capital of Avaria ? Answer :'
    """
    behind = after_naming(relation, name=name, about=IT if unnamed else None)
    return Template(NAMING.prefix, NAMING.question + behind)


def after_naming(relation: Relation, *, name: str, about: str | None = None) -> str:
    """Return what follows the naming question once the answer to it was `name`.

    The next question is about `about`, by default that name.
    """
    return f" {name}{TURN_END} {TEMPLATES[relation].fill(about or name)}"
