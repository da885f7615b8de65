"""Chat messages as people write them, read into one form.

A content may be a text, a list of parts, one part, or nothing. A text part is a text, or holds it
as ``text`` or ``content``. An image part holds its picture, or only says where one of ``images=``
goes. Pictures are taken as they are given; :mod:`interventions.prompt.making` opens them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interventions.errors import PromptError
from interventions.given import plain

HOLDERS = ("image", "path", "url", "base64", "data", "bytes", "image_url", "source")
"""Where an image part may hold its picture."""
TEXTS = ("text", "input_text", "output_text")
IMAGES = ("image", "image_url", "input_image")
SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")
"""What Qwen's own tools read from an image part, and no processor does."""
CALLS = ("tool_calls", "function_call")
SILENT = (*CALLS, "reasoning_content", "reasoning", "thinking")
"""What a message may hold in place of a content."""
BESIDE = ("image", "images", "image_url", "image_urls", "video", "videos", "audio", "audios")
"""Where other programs look for what a message shows: beside its content. No template does."""
ROLES = "such as {'role': 'user', 'content': 'What is the capital of France?'}"


@dataclass(frozen=True)
class Picture:
    """The place of a picture in a message, and the picture; None for one of ``images=``."""

    value: Any = None


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    Attributes
    ----------
    role : str
    parts : tuple of str or Picture
        Texts and pictures in their order.
    as_text : bool
        Whether the content was written as one text, and not as a list of parts.
    silent : bool
        There is no content at all: a call of a tool, for one.
    more : dict
        What else the message holds, for the template.
    """

    role: str
    parts: tuple[str | Picture, ...]
    as_text: bool = True
    silent: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def pictures(self) -> list[Picture]:
        """The places of its pictures."""
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def texts(self) -> list[str]:
        """Its texts."""
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def calls(self) -> bool:
        """Whether it ends with a call of a tool."""
        return any(self.more.get(key) for key in CALLS)

    def without_pictures(self) -> "Message":
        """Return the message with its texts only."""
        return replace(self, parts=tuple(self.texts) or ("",))

    def with_texts(self, texts: Sequence[str]) -> "Message":
        """Return the message with other texts in the places of its own."""
        new = iter(texts)
        return replace(
            self, parts=tuple(next(new) if isinstance(p, str) else p for p in self.parts)
        )

    def written(self, *, as_text: bool, mark: str, extra: str | None = None) -> dict[str, Any]:
        """Return the message as a chat template takes it.

        Parameters
        ----------
        as_text : bool
            The content as one text, instead of a list of parts. Pictures in front of it take a
            line of their own, others stand where they are.
        mark : str
            How a picture is written in a text.
        extra : str, optional
            A key that no template reads, for every part.
        """
        message = {"role": self.role, **self.more}
        if self.silent:
            return message
        if as_text:
            front = next((i for i, p in enumerate(self.parts) if isinstance(p, str)), None)
            shown = [p if isinstance(p, str) else mark for p in self.parts]
            if front:
                shown.insert(front, "\n")
            return {**message, "content": "".join(shown)}
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"}
            for p in self.parts
        ]
        return {**message, "content": [{**p, extra: extra} if extra else p for p in parts]}


def is_message(value: Any) -> bool:
    """Whether a value is a message rather than a list of them, or a text."""
    return isinstance(value, Mapping) or callable(getattr(value, "model_dump", None))


def read_messages(messages: Iterable[Any]) -> list[Message]:
    """Read one chat.

    Raises
    ------
    PromptError
        If it has no messages, or one that is no message: which one, and what was expected.
    """
    chat = [_message(message, i) for i, message in enumerate(messages)]
    if not chat:
        raise PromptError(f"a chat has no messages. Give at least one, {ROLES}.")
    return chat


def _message(given: Any, i: int) -> Message:
    where = f"message {i}"
    if callable(dump := getattr(given, "model_dump", None)):
        given = dump()
    if not isinstance(given, Mapping):
        raise PromptError(
            f"{where} of a chat is {type(given).__name__} {str(given)[:60]!r}; expected a mapping, "
            f"{ROLES}."
        )
    role = plain(given.get("role"))
    if not isinstance(role, str) or not role:
        raise PromptError(
            f"{where} of a chat has the role {role!r} and the keys {sorted(map(str, given))}; "
            f"expected a role and a content, {ROLES}."
        )
    more = {str(k): v for k, v in given.items() if k not in ("role", "content") and v is not None}
    shown = [key for key in BESIDE if key in more and not _empty(more[key])]
    if shown:
        raise PromptError(
            f"{where} ({role!r}) holds {shown[0]!r} beside its content, where no template looks. "
            "Make it a part of the content: [{'type': 'image', 'image': ...}, 'What is this?']."
        )
    content = given.get("content")
    if content is None:
        if "content" not in given and not set(more) & {*SILENT}:
            raise PromptError(
                f"{where} ({role!r}) has no content; beside its role it holds "
                f"{sorted(more) or 'nothing'}. Expected a content, {ROLES}."
            )
        calls = bool(set(more) & {*SILENT})
        return Message(role, () if calls else ("",), silent=calls, more=more)
    if isinstance(content, str):
        return Message(role, (plain(content),), more=more)
    if isinstance(content, Mapping) or not isinstance(content, list | tuple):
        content = [content]
    parts = tuple(_part(part, f"part {k} of {where} ({role!r})") for k, part in enumerate(content))
    return Message(role, parts or ("",), as_text=False, more=more)


def _empty(value: Any) -> bool:
    return isinstance(value, str | list | tuple) and not value


def _part(given: Any, where: str) -> str | Picture:
    if isinstance(given, str):
        return plain(given)
    if not isinstance(given, Mapping):
        if given is None or isinstance(given, bool | int | float | list | tuple):
            raise PromptError(
                f"{where} is {given!r}; expected a text, an image, or a mapping such as "
                "{'type': 'text', 'text': 'What is this?'}."
            )
        return Picture(given)
    kind = given.get("type")
    if kind is None:
        kind = "text" if isinstance(given.get("text"), str) else "image"
        if kind == "image" and not any(given.get(key) is not None for key in HOLDERS):
            kind = None
    if kind in TEXTS:
        text = given.get("text", given.get("content"))
        if not isinstance(text, str):
            raise PromptError(
                f"{where} is of type {kind!r} and holds no text: {_brief(given)}. Write it as "
                "{'type': 'text', 'text': 'What is this?'}."
            )
        if held := [key for key in HOLDERS if given.get(key) is not None]:
            raise PromptError(
                f"{where} is a text and holds {' and '.join(held)} too: {_brief(given)}. Give the "
                "picture a part of its own."
            )
        return plain(text)
    if kind not in IMAGES:
        raise PromptError(
            f"{where} is of type {kind!r}: {_brief(given)}. Parts are texts, "
            "{'type': 'text', 'text': ...}, and images, {'type': 'image', 'image': ...}; videos, "
            "sounds and others are not supported."
        )
    return Picture(_held(given, where))


def _held(given: Mapping[str, Any], where: str) -> Any:
    """The picture that an image part holds; None if it holds none."""
    if given.get("text"):
        raise PromptError(
            f"{where} is an image and holds a text too: {_brief(given)}. Give the text a part of "
            "its own."
        )
    if told := [key for key in SIZES if given.get(key) is not None]:
        raise PromptError(
            f"{where} says {told[0]!r}, which would change nothing here: all pictures of a prompt "
            "are sized alike. Give processor_kwargs={'min_pixels': ..., 'max_pixels': ...}."
        )
    held = {key: given[key] for key in HOLDERS if given.get(key) is not None}
    if len(held) > 1:
        raise PromptError(f"{where} holds a picture as {' and as '.join(held)}. Give it once.")
    for key, value in held.items():
        if key in ("image_url", "source") and isinstance(value, Mapping):
            inside = [value[k] for k in ("url", "data", "path") if value.get(k) is not None]
            value = inside[0] if inside else None
            if value is None:
                raise PromptError(f"{where} has no picture in its {key!r}: {_brief(given)}.")
        if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
            raise PromptError(
                f"{where} is the address {value!r}. Nothing is downloaded here, since what stands "
                "at an address may change: save the picture, and give its path or the image."
            )
        return value
    return None


def _brief(given: Mapping[str, Any]) -> str:
    text = str({key: given[key] for key in given})
    return text if len(text) < 120 else f"{text[:117]}..."
