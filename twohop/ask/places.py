"""A grid of token places that every prompt with a picture has: where to read, and where to write.

A place is an image token by its share of the image, a token of the question by its distance from
the end, or the last token of all, so that prompts of different lengths have the same ones. The
question ends where the user's words do: what a chat writes behind it, the instruction to be brief
and the marks that close a turn, is the same in every prompt and no place; the last token, from
which the answer is read, is one. No place is privileged.
"""

from dataclasses import dataclass
from typing import Literal

from interventions import Positions, Prompt
from interventions.prompt.positions import from_lists
from twohop.ask.roles import has_image_tokens, question_tokens
from twohop.ask.study import Study


@dataclass(frozen=True)
class Place:
    """A token that every prompt with a picture has.

    Attributes
    ----------
    role : {"image", "question", "last"}
    which : int
        Of the image, the ``which``-th of its parts' last token; of the question, the token so far
        from its end, or its first where it is shorter. 0 of the last token.
    parts : int
        Of the image.
    """

    role: Literal["image", "question", "last"]
    which: int
    parts: int

    def __str__(self) -> str:
        if self.role == "last":
            return self.role
        if self.role == "image":
            return f"image token at {self.which + 1}/{self.parts}"
        return f"question token {-1 - self.which}"

    def positions(self, prompt: Prompt) -> Positions:
        """Return the place in every row."""
        if self.role == "last":
            return prompt.at("last")
        tokens = prompt.at("image") if self.role == "image" else question_tokens(prompt)
        lists = []
        for index, n in zip(tokens.index, tokens.counts.tolist(), strict=True):
            ahead = -(-n * (self.which + 1) // self.parts) - 1
            chosen = ahead if self.role == "image" else max(n - 1 - self.which, 0)
            lists.append([int(index[chosen])])
        return from_lists(lists, length=prompt.length, single=True, role=str(self))


def places(study: Study) -> list[Place]:
    """The candidates: the image from its end, the question from its end, the last token.

    Where an image has no tokens, those of the text.
    """
    parts = study.protocol.image_places
    image = [Place("image", i, parts) for i in reversed(range(parts))]
    asked = [Place("question", i, parts) for i in range(study.protocol.question_places)]
    text = [*asked, Place("last", 0, parts)]
    return [*image, *text] if has_image_tokens(study.vlm) else text
