"""Rows as users write them: what is told for them, what prompts they become, and their digests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interventions.collecting.batches import Maker, RoleSite
from interventions.digests import digest_of
from interventions.errors import PictureError, PromptError, SiteError, did_you_mean
from interventions.model.model import Model
from interventions.prompt.making import RESERVED
from interventions.prompt.messages import HOLDERS, is_message
from interventions.prompt.picture_sources import located
from interventions.prompt.processor_settings import image_settings
from interventions.prompt.prompt import Prompt
from interventions.prompt.written import read_rows, template_of

ROW_KEYS = ("text", "images", "spans")
PICTURE_KEYS = ("images", *HOLDERS)  # of a row, and of the parts of a message


@dataclass(frozen=True)
class Told:
    """What is told to the chat template and to the image processor, for the rows that need them.

    Attributes
    ----------
    template, processor : dict
        As ``template_kwargs`` and ``processor_kwargs`` of :meth:`interventions.Model.prompt`.
    """

    template: Mapping[str, Any]
    processor: Mapping[str, Any]

    def check(self, model: Model) -> None:
        """Refuse what the model's template or processor does not use.

        Raises
        ------
        PromptError
            If there is such a setting, or no template or processor.
        """
        if self.template:
            template_of(model, self.template)
        if self.processor and model.processor is None:
            raise PromptError(
                f"processor_kwargs {sorted(self.processor)} were given, but {model.name} is a "
                "text-only model (no processor). Leave them out."
            )
        if self.processor:
            image_settings(model.processor, self.processor)

    def settings(self) -> dict[str, dict[str, Any]]:
        """What a collection has to know of it: JSON types, other values by their digests."""
        by_kind = {"template_kwargs": self.template, "processor_kwargs": self.processor}
        return {
            what: {key: _said(value) for key, value in told.items()}
            for what, told in by_kind.items()
            if told
        }

    def to(self, chats: bool, pictures: bool) -> dict[str, Any]:
        """Return what a prompt is to be given, which refuses what none of its rows can use."""
        template = {"template_kwargs": self.template} if chats and self.template else {}
        return template | (
            {"processor_kwargs": self.processor} if pictures and self.processor else {}
        )


def _said(value: Any) -> Any:
    simple = value is None or isinstance(value, bool | int | float | str)
    return value if simple else digest_of(value)


def maker_of(model: Model, rows: Sequence[Any], sites: Mapping[str, RoleSite], told: Told) -> Maker:
    """Make prompts of rows as users write them, with the spans that sites ask for."""
    wanted = sorted({site.role for site in sites.values() if not RESERVED.fullmatch(site.role)})

    def make(numbers: list[int]) -> Prompt:
        texts, images, spans = [], [], {name: [] for name in wanted}
        for number in numbers:
            given = rows[number]
            listed = isinstance(given, Mapping) and "role" not in given
            row = given if listed else {"text": given}
            if unknown := sorted(set(row) - set(ROW_KEYS)):
                raise PromptError(f"a row has {unknown[0]!r}. {did_you_mean(unknown[0], ROW_KEYS)}")
            if "text" not in row:
                raise PromptError("a row has no 'text'.")
            text = row["text"]
            texts.append([text] if is_message(text) else text)
            images.append(row.get("images"))
            for name in wanted:
                if name not in (row.get("spans") or {}):
                    raise SiteError(f"no span {name!r}, which a site asks for")
                spans[name].append(row["spans"][name])
        shown = images if any(pictures is not None for pictures in images) else None
        chats = [chat for text in texts for chat in read_rows([text]) if not isinstance(chat, str)]
        held = any(message.pictures for chat in chats for message in chat)
        more = told.to(bool(chats), held or shown is not None)
        return model.prompt(texts, images=shown, spans=spans, **more)

    return make


def digest_rows(rows: Sequence[Any] | Maker, numbers: Sequence[int]) -> str | None:
    """Digest of some rows as they were given; of pictures given as files, of what is in these.

    None where rows are made by a function, or hold something that cannot be compared.
    """
    if callable(rows):
        return None
    contents = []
    for number in numbers:
        try:
            contents.append(_with_files(rows[number]))
        except Exception as error:  # a row that is made when asked for may raise what it likes
            contents.append(f"{type(error).__name__}: {error}")
    try:
        return digest_of(*contents)
    except Exception:  # unknown content, or a picture that cannot be read, which is set aside
        return None


def _with_files(value: Any, *, a_picture: bool = False) -> Any:
    """A row with paths in the place of the names and addresses of picture files."""
    if isinstance(value, Mapping):
        return {
            key: _with_files(entry, a_picture=key in PICTURE_KEYS) for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_files(entry, a_picture=a_picture) for entry in value]
    if not (a_picture and isinstance(value, str)):
        return value
    try:
        source = located(value, Path())
    except PictureError:
        return value
    return source if isinstance(source, Path) else value
