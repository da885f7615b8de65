"""Chat messages become text, by a model's own chat template, with nothing lost on the way.

Some templates take a content as text, some as a list of parts, some either; what one does not take
it may leave out without a word. So each is first given marks in place of the texts, in the form
they were written in and then in others, and the first form in which every mark and picture comes
out is used. If there is none, that is said.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interventions.errors import PromptError, did_you_mean
from interventions.prompt.messages import Message
from interventions.prompt.thoughts import closed, opened

ASSISTANTS = ("assistant", "model")
CHOICE = "chat_template"
CONTINUE = "continue_final_message"
GENERATE = "add_generation_prompt"
THINKING = "enable_thinking"
THINKS = (THINKING, "thinking")
TAKEN = (
    "conversation",
    "messages",
    "tokenize",
    "return_tensors",
    "return_dict",
    "processor_kwargs",
)
GIVEN = {"messages", GENERATE, "raise_exception", "strftime_now"}
"""What every template can read, and nobody need give."""
# Private-use characters, which no text has.
MARK, MARK_END, SHOWN, STOP = "\ue010", "\ue011", "\ue012", "\ue013"
EXTRA = "⸘part⸘"
"""A key of every part, which only a template that prints the part itself would show."""


@dataclass(frozen=True)
class Chat:
    """A chat as text.

    Attributes
    ----------
    text : str
    pictures : list
        For each image placeholder of the text in its order, the picture that a message held there;
        None where one of ``images=`` goes.
    """

    text: str
    pictures: list[Any]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, what it is to be told, and how it writes images.

    Made by :func:`find_chat_template`.

    Attributes
    ----------
    source : processor or tokenizer
        Its ``apply_chat_template`` is called.
    jinja : str
        The template itself.
    arguments : frozenset of str
        What it can be told.
    name : str
        Of the model, for messages.
    placeholder : str or None
        What the text has once per image.
    mark : str
        How an image is written where a template takes only texts.
    settings : dict
        What it is told.
    """

    source: Any
    jinja: str
    arguments: frozenset[str]
    name: str
    placeholder: str | None
    mark: str
    settings: Mapping[str, Any]

    def write(self, messages: Sequence[Message]) -> Chat:
        """Write a chat.

        Where the template opens a think block for the answer, it is ended empty, unless
        ``enable_thinking`` (or ``thinking``) is set.

        Raises
        ------
        PromptError
            If the template refuses the chat, or would leave a part of it out.
        """
        n_images = sum(len(message.pictures) for message in messages)
        if n_images and not self.placeholder:
            raise PromptError(
                f"a chat has {n_images} image(s), but {self.name} is a text-only model (no "
                "processor). Load the VLM, or leave images out."
            )
        going_on = self._going_on(messages)
        forms, probe = self._forms(messages, going_on)
        text = self._render(messages, forms, going_on=going_on)
        return Chat(text, self._order(messages, probe))

    def _going_on(self, messages: Sequence[Message]) -> bool:
        last = messages[-1]
        called = last.silent or last.calls  # what stands behind a call would be cut off
        own = last.role in ASSISTANTS and not called
        wanted = self.settings.get(CONTINUE)
        if wanted is None:
            wanted = own and not self.settings.get(GENERATE)
        if wanted and (called or not last.parts or not isinstance(last.parts[-1], str)):
            raise PromptError(
                f"the last message ({last.role!r}) does not end with a text that could be gone on "
                f"with. Give it one, or set template_kwargs={{{CONTINUE!r}: False}}."
            )
        return bool(wanted)

    def _forms(self, messages: Sequence[Message], going_on: bool) -> tuple[list[bool], str]:
        """Which messages are to be given as text, and the text with marks that showed it."""
        probes = [_probe(message, i, self.placeholder) for i, message in enumerate(messages)]
        refused: PromptError | None = None
        lost: str | None = None
        for forms in _tries(messages):
            try:
                text = self._render(probes, forms, going_on=going_on, extra=EXTRA)
            except PromptError as error:
                if self._wants_no_pictures(error, probes, forms):
                    raise
                refused = refused or error
                continue
            missing = self._missing(messages, text)
            if missing is None:
                return forms, text
            lost = lost or missing
        if lost is None and refused is not None:
            raise refused
        more = f" In another form of the messages it says: {refused}" if refused else ""
        raise PromptError(
            f"the chat template of {self.name} {lost}. Write the chat otherwise, or "
            f"give another template: template_kwargs={{{CHOICE!r}: '...'}}.{more}"
        )

    def _missing(self, messages: Sequence[Message], text: str) -> str | None:
        """What of the marked messages a rendered text lacks."""
        if EXTRA in text:
            return "writes a list of parts as a list, and takes no text"
        for i, message in enumerate(messages):
            for k, part in enumerate(message.texts):
                if part.strip() and _marked(i, k) not in text:
                    role = message.role
                    return f"leaves out the text of message {i} ({role!r}), {part[:60]!r}"
        n_images = sum(len(message.pictures) for message in messages)
        if self.placeholder:
            shown = text.count(self.placeholder)
            if self.mark and self.placeholder not in self.mark:
                shown += text.count(self.mark)
            if shown != n_images:
                return f"writes {shown} image(s), and the messages have {n_images}"
        return None

    def _wants_no_pictures(
        self, error: PromptError, probes: Sequence[Message], forms: Sequence[bool]
    ) -> bool:
        """Whether the template says itself that pictures have no place here, in whatever form."""
        if type(error.__cause__).__name__ != "TemplateError":  # as raise_exception() raises
            return False
        bare = [probe.without_pictures() for probe in probes]
        try:
            self._render(bare, forms, going_on=False)
        except PromptError:
            return False
        return any(probe.pictures for probe in probes)

    def _order(self, messages: Sequence[Message], probe: str) -> list[Any]:
        """The pictures in the order in which the template writes their places."""
        if not self.placeholder:
            return []
        held = iter([picture.value for message in messages for picture in message.pictures])
        places = re.findall(f"{re.escape(self.placeholder)}|{SHOWN}", probe)
        return [None if place == SHOWN else next(held) for place in places]

    def _render(
        self,
        messages: Sequence[Message],
        forms: Sequence[bool],
        *,
        going_on: bool,
        extra: str | None = None,
    ) -> str:
        if going_on:
            last = messages[-1]
            texts = [*last.texts[:-1], last.texts[-1] + STOP]
            messages = [*messages[:-1], last.with_texts(texts)]
        written = [
            message.written(as_text=form, mark=self.mark, extra=extra)
            for message, form in zip(messages, forms, strict=True)
        ]
        if going_on:
            text = self._apply(written, False)
            if STOP not in text:
                raise PromptError(
                    f"the chat template of {self.name} does not write the end of the last message, "
                    f"{messages[-1].texts[-1][-61:-1]!r}, so it cannot be gone on with. Set "
                    f"template_kwargs={{{CONTINUE!r}: False}} to have it closed."
                )
            return self._begun(text[: text.rindex(STOP)], messages[-1].texts[-1][:-1])
        generate = bool(self.settings.get(GENERATE, True))
        text = self._apply(written, generate)
        return self._answering(written, text) if generate else text

    def _begun(self, text: str, said: str) -> str:
        """The text, if it has all that the last message says, however it is spaced."""
        if "".join(said.split()) not in "".join(text.split()):
            raise PromptError(
                f"the chat template of {self.name} leaves out some of the last message, which is "
                f"to be gone on with: {said[:60]!r}. Thoughts that were said before are left out "
                "by many: give what stands behind them, or write the prompt as text."
            )
        return text

    def _answering(self, written: list[dict[str, Any]], text: str) -> str:
        """End the think block that the template opened for the answer, where it did."""
        wanted = any(self.settings.get(key) for key in THINKS)
        if opened(text) is None:
            self._check_thinking(wanted)
            return text
        before = self._apply(written, False)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False))
        start = sum(1 for _ in same)
        if (end := opened(text, start)) is None:
            self._check_thinking(wanted)
            return text
        if wanted:
            return text
        if THINKING in self.arguments and THINKING not in self.settings:
            without = replace(self, settings={**self.settings, THINKING: False})
            text = without._apply(written, True)
            end = opened(text, start)
        return text if end is None else closed(text, end)

    def _check_thinking(self, wanted: bool) -> None:
        if THINKING in self.settings and THINKING not in self.arguments:
            raise PromptError(
                f"the chat template of {self.name} has no argument 'enable_thinking', and opens no "
                f"think block, so {'it cannot be set' if wanted else 'there is none to close'}."
            )

    def _apply(self, written: list[dict[str, Any]], generate: bool) -> str:
        settings = {k: v for k, v in self.settings.items() if k not in (GENERATE, CONTINUE)}
        if THINKING not in self.arguments:
            settings.pop(THINKING, None)
        settings[CHOICE] = self.jinja
        try:
            # Templates are others' code, and fail in every way that code can.
            return self.source.apply_chat_template(
                written, tokenize=False, add_generation_prompt=generate, **settings
            )
        except Exception as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> PromptError:
        said = str(error).strip().rstrip(".") or type(error).__name__
        return PromptError(
            f"the chat template of {self.name} refuses these messages: {said}. Change the "
            "messages, or give arguments of the template in template_kwargs."
        )


def find_chat_template(
    processor: Any | None,
    tokenizer: Any,
    *,
    name: str,
    placeholder: str | None,
    mark: str = "",
    settings: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """Return the chat template of a processor, or else of its tokenizer.

    Parameters
    ----------
    processor, tokenizer
        Of the model.
    name : str
        Of the model, for messages.
    placeholder : str or None
        What a text has once per image; None where there are no images, or it is not known.
    mark : str
        How an image is written in a text.
    settings : dict, optional
        Arguments of the template (``tools``, ``date_string`` ...); ``chat_template``, the name of
        one of several or a template of one's own; ``enable_thinking``;
        ``add_generation_prompt`` and ``continue_final_message``.

    Raises
    ------
    PromptError
        If there is no template, it is none, or it has no such argument.
    """
    source = processor if getattr(processor, "chat_template", None) else tokenizer
    settings = dict(settings or {})
    if settings.get(GENERATE) and settings.get(CONTINUE):
        raise PromptError(f"template_kwargs: give either {GENERATE!r} or {CONTINUE!r}.")
    jinja = _chosen(getattr(source, "chat_template", None), settings, name)
    arguments = _arguments(jinja, name)
    for key, value in settings.items():
        if key in (GENERATE, CONTINUE, THINKING) and not isinstance(value, bool):
            raise PromptError(f"template_kwargs: {key!r} is {value!r}, expected True or False.")
        if key in TAKEN:
            raise PromptError(f"template_kwargs: {key!r} is set by prompt() itself.")
        if key not in {GENERATE, CONTINUE, CHOICE, THINKING} | arguments:
            raise PromptError(
                f"the chat template of {name} has no argument {key!r}, and would pass over it "
                f"without a word. {did_you_mean(key, sorted(arguments))}"
            )
    return ChatTemplate(source, jinja, arguments, name, placeholder, mark, settings)


def _chosen(template: Any, settings: Mapping[str, Any], name: str) -> str:
    """The template's text: of several, the one that was asked for."""
    wanted = settings.get(CHOICE)
    if not isinstance(wanted, str | None):
        raise PromptError(
            f"template_kwargs: {CHOICE!r} is {type(wanted).__name__}, expected the template's "
            "text, or the name of one of several."
        )
    if isinstance(template, Mapping):
        tools = settings.get("tools") is not None and "tool_use" in template
        key = wanted or ("tool_use" if tools else "default")
        if key not in template and "{" not in key:
            raise PromptError(
                f"{name} has several chat templates, and none is called {key!r}. Choose one: "
                f"template_kwargs={{{CHOICE!r}: ...}}. {did_you_mean(key, sorted(template))}"
            )
        return str(template.get(key, key))
    if not (wanted or template):
        raise PromptError(
            f"{name} has no chat template, so chat messages cannot be written. Give the prompt as "
            f"text, or a template: template_kwargs={{{CHOICE!r}: '...'}}."
        )
    return str(wanted or template)


def _arguments(jinja: str, name: str) -> frozenset[str]:
    """What a template reads from outside, less what every template is given."""
    from jinja2 import Environment, TemplateError, ext, meta

    class Generation(ext.Extension):
        """Reads past the marks that transformers has around what the assistant says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = Environment(extensions=[Generation, ext.LoopControlExtension])
    try:
        names = meta.find_undeclared_variables(environment.parse(jinja))
    except TemplateError as error:
        raise PromptError(f"the chat template of {name} is none: {error}.") from error
    return frozenset(names) - GIVEN


def _marked(i: int, k: int) -> str:
    return f"{MARK}{i}.{k}{MARK_END}"


def _probe(message: Message, i: int, placeholder: str | None) -> Message:
    """The message with marks for its texts, and with one for each placeholder in them."""
    marks = [
        _marked(i, k) + SHOWN * (text.count(placeholder) if placeholder else 0)
        if text.strip()
        else text
        for k, text in enumerate(message.texts)
    ]
    return message.with_texts(marks)


def _tries(messages: Sequence[Message]) -> Iterator[list[bool]]:
    """Forms to try: as written, all as parts, all as text, then role by role."""
    yield [message.as_text for message in messages]
    yield [False] * len(messages)
    yield [True] * len(messages)
    roles = list(dict.fromkeys(message.role for message in messages))
    for forms in itertools.product((False, True), repeat=min(len(roles), 5)):
        by_role = dict(zip(roles, forms, strict=False))
        yield [by_role.get(message.role, message.as_text) for message in messages]
