"""How questions are put to a pair: as text to complete, in a question-answer frame, or as a chat.

Both models of a pair are given the same text, so that a prompt about a name and one about a
picture differ in nothing else. A chat is written by the VLM's own template, also for the backbone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interventions.errors import LoadError, PromptError
from interventions.prompt import chats
from interventions.prompt.messages import read_messages
from interventions.prompt.tokenizing import ends_of
from twohop.items.datamap import Kind, Wording
from twohop.items.items import IT, PICTURE, PLACE, Template

FRAME = "Question: {question}\nAnswer:"
ASKED = "{question}"
LEAD = f"{PICTURE}\n"
BOTH = (
    "Answer two questions, each on a line of its own, and write nothing else.\n"
    "First: {naming}\nSecond: {asked}"
)
DATE = "26 Jul 2024"  # what Llama's templates say where they are told no date

Turn = tuple[str, str | None]
"""A question, and its answer; None where the model is to give it."""
ChatTemplate = Callable[[list[dict[str, Any]]], str]


@dataclass(frozen=True)
class PromptFormat:
    """How a pair is asked; worked examples, if a wording has any, come first.

    Attributes
    ----------
    kind : {"chat", "qa", "completion"}
        Chat turns, by the VLM's template; ``Question: ...`` and ``Answer:`` on a line each; or
        the text of the question as it is.
    stop : str
        Text that ends an answer.
    brief : str, optional
        Of a chat, what is written behind every question, about a name or a picture alike, so that
        the answer is not a sentence.
    """

    kind: Kind
    stop: str = "\n"
    brief: str | None = None


COMPLETION, QA, CHAT = PromptFormat("completion"), PromptFormat("qa"), PromptFormat("chat")


@dataclass(frozen=True)
class Writer:
    """Writes prompts in a format.

    Attributes
    ----------
    format : PromptFormat
    chat_template : callable, optional
        Chat messages to text, see :func:`chat_template_of`; needed for chats.
    end : str, optional
        Of a chat, the mark that ends a turn, see :func:`end_of_turn`.
    """

    format: PromptFormat
    chat_template: ChatTemplate | None = None
    end: str | None = None

    def template(self, wording: Wording) -> Template:
        """Return the prompt of a question, behind its worked examples.

        Examples
        --------
        >>> wording = Wording("What is the capital of {entity}?", examples=(("Wales", "Cardiff"),))
        >>> print(Writer(QA).template(wording).fill("France"))
        Question: What is the capital of Wales?
        Answer: Cardiff
        <BLANKLINE>
        Question: What is the capital of France?
        Answer:
        """
        shots = [[(_about(wording, name), answer)] for name, answer in wording.examples]
        written = self._written(shots, [(wording.text, None)], [(_shown(wording), None)])
        unnamed = self._render([*shots, [(_of_nothing(wording), None)]])
        if not unnamed.startswith(written.prefix):
            return written
        return replace(written, unnamed=unnamed.removeprefix(written.prefix))

    def chain(
        self, naming: Wording, wording: Wording, name: str, *, unnamed: bool = False
    ) -> Template:
        """Return the prompt that asks for the name, is given one, and asks about it.

        Its worked examples are the wording's, each with the naming question before it. With
        ``unnamed`` the second question does not say the name.
        """
        behind: Turn = (_of_nothing(wording) if unnamed else _about(wording, name), None)
        text: list[Turn] = [(naming.text, name), behind]
        shots = _named_first(naming, wording, unnamed=unnamed)
        return self._written(shots, text, [(_shown(naming), name), behind])

    def one_turn(self, naming: Wording, wording: Wording) -> Template:
        """Return the prompt behind which the model writes a name and then answers.

        In a chat both questions are asked in one turn, the brevity that is asked for elsewhere
        left out. Else it is the prompt of an unnamed :meth:`chain` up to where the name begins.

        Examples
        --------
        >>> wording = Wording("What is the capital of {entity}?", "What is its capital?")
        >>> naming = Wording("Which country is {entity}?", "Which country is it?")
        >>> print(Writer(QA).one_turn(naming, wording).show("<image>"))
        <image>
        Question: Which country is it?
        Answer:
        """
        if self.format.kind != "chat":
            shots = _named_first(naming, wording, unnamed=True)
            return self._written(shots, [(naming.text, None)], [(_shown(naming), None)])
        both: list[Turn] = [
            (_both(question, _of_nothing(wording)), None)
            for question in (naming.text, _shown(naming))
        ]
        shots = [
            [(_both(_about(naming, entity), _of_nothing(wording)), f"{entity}\n{answer}")]
            for entity, answer in wording.examples
        ]
        at_length = replace(self, format=replace(self.format, brief=None))
        return at_length._written(shots, both[:1], both[1:])

    def _written(
        self, shots: Sequence[Sequence[Turn]], text: Sequence[Turn], shown: Sequence[Turn]
    ) -> Template:
        named, pictured = self._render([*shots, text]), self._render([*shots, shown])
        if named.count(PLACE) != 1:
            raise PromptError(
                f"the prompt has {named.count(PLACE)} places for the entity, expected one: "
                f"{named!r}. A chat template may leave out what it is given."
            )
        # The prefix is what is no part of the question: worked examples, and a chat's marks.
        asked = text[0][0].strip() if self.format.kind == "chat" else self._render([text])
        before = named[: max(named.find(asked), 0)]
        while not pictured.startswith(before):
            before = before[:-1]
        named, pictured = named[len(before) :], pictured[len(before) :]
        same = pictured == named.replace(PLACE, PICTURE)
        closing = self._closing(text[-1][0], named)
        closing = closing if pictured.endswith(closing) else ""
        return Template(before, named, None if same else pictured, closing=closing)

    def _closing(self, question: str, prompt: str) -> str:
        """What a chat writes behind the last question."""
        if self.format.kind != "chat":
            return ""
        _, asked, behind = prompt.rpartition(question.strip())
        return behind if asked else ""

    def _render(self, dialogues: Sequence[Sequence[Turn]]) -> str:
        if self.format.kind == "chat":
            asked = [turn for dialogue in dialogues for turn in dialogue]
            return self._chat([(self._briefly(question), answer) for question, answer in asked])
        stop = self.format.stop
        after = stop if stop[-1].isspace() else f"{stop} "
        between = "\n" if stop.isspace() else ""
        parts = []
        for dialogue in dialogues:
            for question, answer in dialogue:
                parts.append(self._framed(question))
                if answer is not None:
                    parts.append(f" {answer}{after}")
            parts.append(between)
        return "".join(parts).removesuffix(between)

    def _briefly(self, question: str) -> str:
        brief = self.format.brief
        return f"{question.rstrip()}\n{brief}" if brief else question

    def _framed(self, question: str) -> str:
        lead = LEAD if question.startswith(LEAD) else ""
        text = question.removeprefix(lead).rstrip()
        return lead + (FRAME.replace(ASKED, text) if self.format.kind == "qa" else text)

    def _chat(self, turns: Sequence[Turn]) -> str:
        if self.chat_template is None:
            raise PromptError("a chat needs the VLM's chat template: Writer(chat_template=...).")
        messages: list[dict[str, Any]] = []
        for question, answer in turns:
            parts: list[dict[str, Any]] = [{"type": "text", "text": question.removeprefix(LEAD)}]
            if question.startswith(LEAD):
                parts.insert(0, {"type": "image"})
            messages.append({"role": "user", "content": parts})
            if answer is not None:
                said = [{"type": "text", "text": answer}]
                messages.append({"role": "assistant", "content": said})
        return self.chat_template(messages)


def _named_first(naming: Wording, wording: Wording, *, unnamed: bool) -> list[list[Turn]]:
    """The wording's worked examples, each with the naming question before it."""
    return [
        [
            (_about(naming, entity), entity),
            (_of_nothing(wording) if unnamed else _about(wording, entity), answer),
        ]
        for entity, answer in wording.examples
    ]


def _both(naming: str, asked: str) -> str:
    """Both questions in one turn; the picture, if it has no place in the first, in front."""
    lead = LEAD if naming.startswith(LEAD) else ""
    return lead + BOTH.format(naming=naming.removeprefix(LEAD).strip(), asked=asked.strip())


def _about(wording: Wording, name: str) -> str:
    return wording.text.replace(PLACE, name)


def _shown(wording: Wording) -> str:
    """The question about a picture, with the picture in front if it has no place of its own."""
    if wording.image is None:
        return wording.text.replace(PLACE, PICTURE)
    return wording.image if PICTURE in wording.image else LEAD + wording.image


def _of_nothing(wording: Wording) -> str:
    """The question about a picture without one; if it has no words of its own, about "it"."""
    if wording.image is None:
        return wording.text.replace(PLACE, IT)
    return wording.image.replace(PICTURE, IT)


def processor_of(place: str | Path) -> Any:
    """Open a VLM's processor, without its weights."""
    from transformers import AutoConfig

    from interventions.architectures.access import refusal
    from interventions.architectures.llava_layout import Original, is_original_llava
    from interventions.architectures.processors import open_processor

    try:
        if is_original_llava(str(place)):
            return Original.at(str(place)).processor(str(place))
        return open_processor(str(place), AutoConfig.from_pretrained(str(place)))
    except (OSError, ValueError, KeyError) as error:
        if (refused := refusal(error)) is not None:
            raise LoadError(f"{str(place)!r} cannot be opened: {refused}") from error
        raise LoadError(
            f"the processor of {str(place)!r} cannot be opened: {error}\nExpected a Hugging Face "
            "repo id, or a folder with the files of a VLM and its processor."
        ) from error


def chat_template_of(processor: Any, *, name: str) -> ChatTemplate:
    """Return what writes chat messages as a processor's template does, for text that follows.

    A begin token is left to the tokenizer; a template that says today's date says a fixed one, so
    that prompts are the same tomorrow; one that lets a model think first is told not to, so that
    what follows the prompt is the answer. Where a template takes no pictures, ``{image}`` is
    written in a picture's place.

    Raises
    ------
    PromptError
        If the processor has none.
    """
    if not has_chat_template(processor):
        raise PromptError(
            f"the processor of {name} has no chat template. Choose another format: "
            'format = "qa" or "completion".'
        )
    template = _template(processor, name)
    fixed = {"date_string": DATE, "enable_thinking": False}
    told = {key: value for key, value in fixed.items() if key in template.arguments}
    template = replace(template, settings=told)
    begin = ends_of(processor.tokenizer).begin

    def written(messages: list[dict[str, Any]]) -> str:
        return template.write(read_messages(messages)).text.removeprefix(begin)

    return written


def _template(processor: Any, name: str, **settings: Any) -> chats.ChatTemplate:
    return chats.find_chat_template(
        processor,
        processor.tokenizer,
        name=name,
        placeholder=getattr(processor, "image_token", None),
        mark=PICTURE,
        settings=settings,
    )


def end_of_turn(processor: Any) -> str | None:
    """What a processor's chat template writes behind an answer; None for nothing but space."""
    said = "\ue000"  # a private-use character, which no template has
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": said}]
    closed = {"add_generation_prompt": False, "continue_final_message": False}
    template = _template(processor, type(processor).__name__, **closed)
    return template.write(read_messages(turns)).text.partition(said)[2].strip() or None


def has_chat_template(processor: Any) -> bool:
    """Whether a processor, or its tokenizer, has a chat template."""
    return bool(
        getattr(processor, "chat_template", None)
        or getattr(processor.tokenizer, "chat_template", None)
    )


def writer_for(format: PromptFormat | None, vlm: str | Path, wordings: Sequence[Wording]) -> Writer:
    """Return the writer of a pair's prompts.

    Parameters
    ----------
    format : PromptFormat or None
        None chooses: a chat if the VLM has a template for it, else a question-answer frame if
        every question ends with a question mark, else completion.
    vlm : str or Path
        Repo id or folder; only its processor's files are read, and only for a chat.
    wordings : sequence of Wording
    """
    if format is not None and format.kind != "chat":
        return Writer(format)
    processor = processor_of(vlm)
    if format is None and not has_chat_template(processor):
        asks = all(wording.text.rstrip().endswith("?") for wording in wordings)
        return Writer(QA if asks else COMPLETION)
    template = chat_template_of(processor, name=str(vlm))
    return Writer(format or CHAT, template, end_of_turn(processor))
