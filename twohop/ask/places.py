"""A grid of token places that every prompt with a picture has: where to read, and where to write.

A place is an image token by its share of the image, or a token of the question by its distance
from the end, so that prompts of different lengths have the same ones.
"""

from dataclasses import dataclass

from interventions import Positions, Prompt
from interventions.prompt.positions import from_lists
from twohop.ask.roles import has_image_tokens, question_tokens
from twohop.ask.study import Study


@dataclass(frozen=True)
class Place:
    """A token that every prompt with a picture has.

    Attributes
    ----------
    role : str
        ``"image"`` or ``"question"``.
    which : int
        Of the image, the ``which``-th of its parts' last token; of the question, the token so far
        from its end.
    parts : int
        Of the image.
    """

    role: str
    which: int
    parts: int

    def __str__(self) -> str:
        if self.role == "image":
            return f"image token at {self.which + 1}/{self.parts}"
        return f"question token {-1 - self.which}"

    def positions(self, prompt: Prompt) -> Positions:
        """Return the place in every row."""
        tokens = prompt.at("image") if self.role == "image" else question_tokens(prompt)
        lists = []
        for index, n in zip(tokens.index, tokens.counts.tolist(), strict=True):
            ahead = -(-n * (self.which + 1) // self.parts) - 1
            chosen = ahead if self.role == "image" else max(n - 1 - self.which, 0)
            lists.append([int(index[chosen])])
        return from_lists(lists, length=prompt.length, single=True, role=str(self))


def places(study: Study) -> list[Place]:
    """The candidates, the end of the image first."""
    parts = study.protocol.image_places
    image = [Place("image", i, parts) for i in reversed(range(parts))]
    asked = [Place("question", i, parts) for i in range(study.protocol.question_places)]
    return [*image, *asked] if has_image_tokens(study.vlm) else asked
