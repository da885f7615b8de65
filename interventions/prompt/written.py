"""The rows of a prompt as they were written, brought to the text that a model's processor takes.

A row is a text or a chat. Where an image goes is written in the family's own way, as ``<image>``
in any family, or not at all; in a chat, a part of a message may also hold its picture.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interventions.architectures.wrapped import Wrapped
from interventions.errors import PromptError
from interventions.given import plain
from interventions.prompt.chats import ChatTemplate, find_chat_template
from interventions.prompt.messages import Message, Picture, is_message, read_messages

PLACE = "<image>"
"""An image's place in the text of any family."""

Edit = tuple[int, int, int]
"""Where a text was changed: character, how many were taken out, how many were put in."""


@dataclass(frozen=True)
class Written:
    """One row as text.

    Attributes
    ----------
    text : str
    images : list
        Its pictures, in the order of their places.
    edits : tuple of Edit
        What was changed in the text as it was given.
    """

    text: str
    images: list[Any]
    edits: tuple[Edit, ...] = field(default=())

    def moved(self, span: Any) -> Any:
        """Return a span of the text as it was given, as one of :attr:`text`."""
        if not isinstance(span, tuple):
            return span
        start, stop = (
            offset + sum(new - old for at, old, new in self.edits if at + old <= offset)
            for offset in span
        )
        return start, stop


def read_rows(text: Any) -> list[str | list[Message]]:
    """Tell the rows of a prompt apart: texts, and chats.

    Raises
    ------
    PromptError
        If something is neither.
    """
    if isinstance(text, str):
        return [plain(text)]
    if is_message(text):
        return [read_messages([text])]
    if not isinstance(text, Iterable) or isinstance(text, bytes | bytearray):
        raise _no_row(text)
    rows = list(text)
    if rows and is_message(rows[0]):
        return [read_messages(rows)]
    return [_row(row) for row in rows]


def _row(given: Any) -> str | list[Message]:
    if isinstance(given, str):
        return plain(given)
    if is_message(given) or not isinstance(given, Iterable) or isinstance(given, bytes | bytearray):
        raise _no_row(given)
    return read_messages(given)


def _no_row(given: Any) -> PromptError:
    return PromptError(
        f"a row of a prompt is {type(given).__name__} {str(given)[:60]!r}; expected a text, a "
        "chat (a list of messages), or a list of these."
    )


def written_rows(
    model: Wrapped,
    rows: Sequence[str | list[Message]],
    images: Sequence[list[Any]],
    settings: Mapping[str, Any] | None,
) -> list[Written]:
    """Write every row out.

    Parameters
    ----------
    model : Wrapped
    rows : sequence
        By :func:`read_rows`.
    images : sequence of list
        Those given beside the rows, per row.
    settings : dict, optional
        For the chat template.
    """
    chats = any(not isinstance(row, str) for row in rows)
    if settings and not chats:
        raise PromptError(
            f"template_kwargs {sorted(settings)} were given, but no row is a chat: a text is taken "
            "as it is written. Give messages, or leave template_kwargs out."
        )
    template = template_of(model, settings) if chats else None
    return [
        _text(model, row, given) if isinstance(row, str) else _chat(model, template, row, given)
        for row, given in zip(rows, images, strict=True)
    ]


def template_of(model: Wrapped, settings: Mapping[str, Any] | None) -> ChatTemplate:
    """Return a model's chat template, told some settings, which are checked."""
    return find_chat_template(
        model.processor,
        model.tokenizer,
        name=model.name,
        placeholder=model.placeholder,
        mark=model.image_token or "",
        settings=settings,
    )


def _text(model: Wrapped, text: str, images: list[Any]) -> Written:
    placeholder, mark = model.placeholder, model.image_token or ""
    begin = model.tokenizer.bos_token or ""
    edits: list[Edit] = []
    if _anywhere([text], len(images), model):
        pieces = text.split(PLACE)
        starts = [len(PLACE.join(pieces[: i + 1])) for i in range(len(pieces) - 1)]
        edits = [(start, len(PLACE), len(mark)) for start in starts]
        text = mark.join(pieces)
    placed = bool(placeholder) and placeholder in text
    if begin and model.anatomy.family.processor_begins:
        if not images and not text.startswith(begin):
            edits.append((0, 0, len(begin)))
            text = begin + text
        elif images and text.startswith(begin if not placed else begin + mark):
            edits.append((0, len(begin), 0))
            text = text.removeprefix(begin)
    if images and placeholder and not placed:
        front, at = mark * len(images) + "\n", len(begin) if text.startswith(begin) else 0
        edits.append((at, 0, len(front)))
        text = text[:at] + front + text[at:]
    return Written(text, images, tuple(edits))


def _anywhere(texts: Sequence[str], n_images: int, model: Wrapped) -> bool:
    """Whether ``<image>`` is the place of an image in texts of a family that writes another mark.

    Raises
    ------
    PromptError
        If it is there without an image, or beside the family's own mark.
    """
    own = model.placeholder
    if own is None or PLACE in own or not (n := sum(text.count(PLACE) for text in texts)):
        return False
    if not n_images:
        raise PromptError(
            f"0 image(s) were given for a text with {n} {PLACE!r}: {''.join(texts)!r}. That is an "
            f"image's place in every VLM; {model.name} itself writes {model.image_token!r}. Give "
            "images=, or write it otherwise."
        )
    if any(own in text for text in texts):
        raise PromptError(
            f"the text has both {PLACE!r} and this family's own mark of an image, {own!r}: "
            f"{''.join(texts)!r}. Write all places of images in one way."
        )
    return True


def _chat(
    model: Wrapped, template: ChatTemplate | None, messages: list[Message], images: list[Any]
) -> Written:
    assert template is not None
    held = [
        picture for message in messages for picture in message.pictures if picture.value is not None
    ]
    texts = [text for message in messages for text in message.texts]
    if _anywhere(texts, len(held) + len(images), model):
        mark = model.image_token or ""
        messages = [m.with_texts([t.replace(PLACE, mark) for t in m.texts]) for m in messages]
    own = model.placeholder
    free = sum(picture.value is None for message in messages for picture in message.pictures)
    free += sum(text.count(own) for m in messages for text in m.texts) if own else 0
    if images and not free and not held:
        messages = _in_front(messages, len(images))
    chat = template.write(messages)
    if not held:
        return Written(chat.text, images)
    free = sum(picture is None for picture in chat.pictures)  # arrays are not to be compared
    if free != len(images):
        raise PromptError(
            f"{len(images)} image(s) were given for a chat with {free} place(s) to fill; "
            f"{len(held)} of its parts hold a picture of their own. Give images= one per place "
            "that holds none, in their order."
        )
    more = iter(images)
    filled = [next(more) if picture is None else picture for picture in chat.pictures]
    return Written(chat.text, filled)


def _in_front(messages: list[Message], n_images: int) -> list[Message]:
    """Put images that have no place in front of what the user says first."""
    for i, message in enumerate(messages):
        if message.role == "user":
            parts = (*[Picture()] * n_images, *message.parts)
            return [*messages[:i], replace(message, parts=parts, as_text=False), *messages[i + 1 :]]
    return messages
