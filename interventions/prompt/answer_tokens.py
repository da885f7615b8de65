"""Answers as tokens, as they follow a prompt: behind a space, or right behind it."""

from collections.abc import Sequence
from typing import Any

from interventions.architectures.wrapped import Wrapped
from interventions.errors import PromptError
from interventions.given import names
from interventions.prompt.prompt import Prompt

ANCHORS = {True: ":", False: ":\n"}
"""What stands before a text with a space, and without."""


def spaced(model: Wrapped, prompt: Prompt) -> bool:
    """Whether a space stands between a prompt and its answer.

    It does, unless the prompt ends in white space or in a special token that is no image. Chats
    whose header of the answer ends in a new line (ChatML, Llama 3, Gemma) or in a mark (Mistral's
    ``[/INST]``) go on at once; ``Answer:`` and ``ASSISTANT:`` do not.

    Raises
    ------
    PromptError
        If some rows end one way and some the other.

    Examples
    --------
    >>> spaced(llm, llm.prompt("Question : Which country is Belmora ? Answer :"))
    True
    """
    last = prompt.inputs["input_ids"][:, -1].tolist()
    closed = [_closed(model, *row) for row in zip(prompt.texts, last, strict=True)]
    if len(set(closed)) > 1:
        raise PromptError(
            f"row {closed.index(True)} of the prompt ends in white space or a special token "
            f"({prompt.texts[closed.index(True)][-20:]!r}) and row {closed.index(False)} does not "
            f"({prompt.texts[closed.index(False)][-20:]!r}), so an answer has other tokens behind "
            "the one than behind the other. Put them in prompts of their own."
        )
    return not any(closed)


def _closed(model: Wrapped, text: str, last: int) -> bool:
    if model.image_token and text.endswith(model.image_token):
        return False
    # A processor may have put a new line behind the text as written.
    ends = text[-1:].isspace() or model.tokenizer.decode([last])[-1:].isspace()
    mark = model.tokenizer.added_tokens_decoder.get(last)
    return ends or (mark is not None and mark.special)


def token_ids(model: Wrapped, texts: Sequence[str], *, space: bool = True) -> list[list[int]]:
    """Ids of texts as they follow a prompt, whatever the tokenizer's habits.

    Each is tokenised behind a colon (and a new line), which is then taken off, as tokenizers treat
    the beginning of a text differently from its middle.

    Parameters
    ----------
    model : Wrapped
    texts : sequence of str
        White space in front of one is left out.
    space : bool
        Whether a space stands before each; see :func:`spaced`.
    """

    def ids(text: str) -> list[int]:
        return model.tokenizer(text, add_special_tokens=False)["input_ids"]

    before = ANCHORS[space]
    anchor = ids(before)
    following = []
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PromptError(f"{text!r} holds half a character, which no token is.") from None
        whole = ids(f"{before}{' ' if space else ''}{text.lstrip()}") if text.strip() else anchor
        if whole[: len(anchor)] != anchor:
            raise PromptError(f"{text!r} cannot be tokenised apart from what it follows.")
        following.append(whole[len(anchor) :])
    return following


def candidate_texts(candidates: Any) -> list[str]:
    """Return candidate answers as a list; a single text has nothing to be chosen from.

    Raises
    ------
    PromptError
        If it is one text, or some are no texts.
    """
    if isinstance(candidates, str):
        raise PromptError(f"candidates= is one text, {candidates!r}. Give a list of texts.")
    return names(candidates, "candidates=")


def candidate_ids(
    model: Wrapped, candidates: Sequence[str], *, stop: str | None = None, space: bool = True
) -> list[list[int]]:
    """Token ids of candidate answers as they follow a prompt.

    A candidate whose tokens begin another's also gets the stop string, as it would else never
    lose to the longer one.

    Parameters
    ----------
    model : Wrapped
    candidates : sequence of str
    stop : str, optional
        Text that ends an answer: a new line, or the mark that ends a turn of a chat.
    space : bool
        Whether a space stands before each; see :func:`spaced`.

    Raises
    ------
    PromptError
        If there is none, one is empty, two have the same tokens, or one begins another and there
        is no stop.
    """
    candidates = candidate_texts(candidates)
    if not candidates:
        raise PromptError("there are no candidate answers to choose among. Give at least one.")
    ids = token_ids(model, candidates, space=space)
    for text, tokens in zip(candidates, ids, strict=True):
        if not tokens:
            raise PromptError(f"candidate answer {text!r} has no tokens. Leave it out.")
        if ids.count(tokens) > 1:
            raise PromptError(f"candidate answer {text!r} is given twice. Merge them.")
    ending = model.tokenizer(stop, add_special_tokens=False)["input_ids"] if stop else []
    begins = [
        any(other != tokens and other[: len(tokens)] == tokens for other in ids) for tokens in ids
    ]
    if any(begins) and not ending:
        raise PromptError(
            f"candidate {candidates[begins.index(True)]!r} begins another one, so it must also "
            "end: give stop=, the text that ends an answer."
        )
    return [tokens + ending if more else tokens for tokens, more in zip(ids, begins, strict=True)]
