"""The prompts of the flags study, as data, fixed once.

Every prompt is ``prefix + question``. The prefix is text and the same for all countries; the
question has one ``{entity}``, which is replaced by a name or by the image placeholder. Nothing
else differs: ``"of France?"`` and ``"of <image>?"`` have the same tokens around the entity,
because the placeholder takes the space before it, as a name's first token does.

The worked examples are places that are not members of the United Nations, so that no item is
lost to them. Which two, and the wording, were chosen on the backbone's text recall alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from twohop.flags.data import Relation

IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Template:
    """A few-shot prompt: constant ``prefix``, then ``question`` with one ``{entity}``."""

    name: str
    prefix: str
    question: str

    def text(self, name: str) -> str:
        """The prompt with the country named.

        Examples
        --------
        >>> NAMING.text("France").splitlines()[-2]
        'Question: Which country is France?'
        """
        return self.prefix + self.question.format(entity=name)

    def image(self) -> str:
        """The prompt with the image placeholder in the name's place."""
        return self.text(IMAGE_PLACEHOLDER)

    @property
    def before(self) -> str:
        """All text before the entity, without the space that belongs to the entity's token."""
        return self.prefix + self.question.split("{entity}")[0].rstrip(" ")

    @property
    def after(self) -> str:
        """All text after the entity."""
        return self.question.split("{entity}")[1]


_EXAMPLES: dict[Relation, tuple[tuple[str, str], ...]] = {
    "capital": (("Scotland", "Edinburgh"), ("Puerto Rico", "San Juan")),
    "continent": (("Greenland", "North America"), ("Scotland", "Europe")),
    "language": (("Scotland", "English"), ("Puerto Rico", "Spanish")),
}
"""Entity and answer of the worked examples."""

_ASKED: dict[Relation, str] = {
    "capital": "Question: What is the capital of {entity}?\nAnswer:",
    "continent": "Question: Which continent is {entity} in?\nAnswer:",
    "language": "Question: What is the official language of {entity}?\nAnswer:",
}


def _few_shot(name: str, question: str, examples: Iterable[tuple[str, str]]) -> Template:
    worked = (f"{question.format(entity=entity)} {said}\n\n" for entity, said in examples)
    return Template(name=name, prefix="".join(worked), question=question)


UNNAMED = "this country"
"""What stands for a name in a question that does not say it."""

QUESTIONS: dict[Relation, Template] = {
    relation: _few_shot(relation, asked, _EXAMPLES[relation]) for relation, asked in _ASKED.items()
}
"""The question of each relation."""

NAMING = _few_shot(
    "naming",
    "Question: Which country is {entity}?\nAnswer:",
    (("Scotland", "Scotland"), ("Puerto Rico", "Puerto Rico")),
)
"""Asks for the entity's name: the gate "recognised", and what the naming pair is trained on."""


def chain_of_thought(
    relation: Relation, *, name: str | None = None, unnamed: bool = False
) -> Template:
    """Name the entity first, then answer the question about the name.

    Parameters
    ----------
    relation
        Which question.
    name
        ``None`` stops at the naming question, behind which the model writes a name. A given name,
        right or wrong, is written together with the second question.
    unnamed
        The second question says "this country" in place of the name.

    Examples
    --------
    >>> print(chain_of_thought("capital", name="France").question)
    Question: Which country is {entity}?
    Answer: France
    Question: What is the capital of France?
    Answer:
    """
    examples = (
        (entity, f"{entity}{after_naming(relation, name=UNNAMED if unnamed else entity)} {answer}")
        for entity, answer in _EXAMPLES[relation]
    )
    stopped = _few_shot(f"{relation}, named first", NAMING.question, examples)
    if name is None:
        return stopped
    behind = after_naming(relation, name=UNNAMED if unnamed else name)
    return replace(stopped, question=f"{stopped.question} {name}{behind}")


def after_naming(relation: Relation, *, name: str) -> str:
    """What follows a name in a chain of thought: the question about it, on the next line."""
    return "\n" + _ASKED[relation].format(entity=name)
