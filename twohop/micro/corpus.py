"""The documents the backbone learns from: short chains of questions and answers, as token ids."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twohop.items.items import Template
from twohop.micro.layout import BOS, EOS, IMAGE_TOKENS, PAD, band_words, vocabulary
from twohop.micro.templates import IMAGE_PLACEHOLDER, NAMING, TEMPLATES, description
from twohop.micro.world import ENTITIES, RELATIONS, Entity, Relation, answers, facts

IGNORED = -100
"""Label of a token that is not to be predicted."""


@dataclass(frozen=True)
class Documents:
    """A padded batch of documents (padding on the right; all tensors `[row, position]`)."""

    ids: Tensor
    labels: Tensor
    """The token itself where it is to be predicted (answers and what ends them), else -100."""
    mentions: Tensor
    """True on the tokens of an entity: its name, or the description in its place."""
    subject: Tensor
    """`[row]`: position of the last token of the first entity mentioned."""
    end: Tensor
    """`[row]`: position of the last token."""


class _Writer:
    """One document being written, word by word."""

    def __init__(self) -> None:
        self.words: list[str] = [BOS]
        self.predicted: list[bool] = [False]
        self.mentioned: list[bool] = [False]

    def add(self, text: str, *, predict: bool = False, mention: bool = False) -> None:
        words = text.split()
        self.words += words
        self.predicted += [predict] * len(words)
        self.mentioned += [mention] * len(words)

    def ask(self, template: Template, subject: str) -> None:
        before, after = (template.prefix + template.question).split("{entity}")
        self.add(before)
        self.add(subject, mention=True)
        self.add(after)

    def answer(self, answer: str, *, naming: bool) -> None:
        self.add(answer, predict=True, mention=naming)
        self.add(".", predict=True)

    def close(self) -> "_Writer":
        self.add(EOS, predict=True)
        return self


def _collate(documents: list[_Writer]) -> Documents:
    ids_of = {word: index for index, word in enumerate(vocabulary())}
    shape = (len(documents), max(len(document.words) for document in documents))
    ids = np.full(shape, ids_of[PAD])
    labels = np.full(shape, IGNORED)
    mentions = np.zeros(shape, dtype=bool)
    subject, end = np.zeros((2, shape[0]), dtype=int)
    for row, document in enumerate(documents):
        length = len(document.words)
        ids[row, :length] = [ids_of[word] for word in document.words]
        labels[row, :length] = np.where(document.predicted, ids[row, :length], IGNORED)
        mentions[row, :length] = document.mentioned
        first = document.mentioned.index(True)
        end[row] = length - 1
        subject[row] = document.mentioned.index(False, first) - 1
    return Documents(*(torch.from_numpy(array) for array in (ids, labels, mentions, subject, end)))


_TAUGHT: dict[str, list[tuple[Relation, str]]] = {
    entity.code: [
        (fact.relation, fact.answer) for fact in facts() if fact.taught and fact.code == entity.code
    ]
    for entity in ENTITIES
}
_TEMPLATES = (NAMING, *TEMPLATES.values())


def _name(entity: Entity, rng: np.random.Generator) -> str:
    """The entity's name; in a third of the cases behind colour words, which are to be ignored."""
    if rng.random() > 1 / 3:
        return entity.name
    colours = rng.choice(band_words(), rng.integers(1, 4))
    return " ".join((*colours, entity.name))


def _pick(rng: np.random.Generator) -> Entity:
    return ENTITIES[rng.integers(len(ENTITIES))]


def fact_documents(rows: int, rng: np.random.Generator) -> Documents:
    """Draw chains of one or two questions about named entities.

    A quarter of the questions ask for the name itself; half of the chains stay with one
    entity, the others change it with every question.
    """
    documents = []
    for _ in range(rows):
        document, entity, stays = _Writer(), _pick(rng), rng.random() < 0.5
        for _ in range(rng.integers(1, 3)):
            if rng.random() < 0.25:
                document.ask(NAMING, _name(entity, rng))
                document.answer(entity.name, naming=True)
            else:
                taught = _TAUGHT[entity.code]
                relation, answer = taught[rng.integers(len(taught))]
                document.ask(TEMPLATES[relation], _name(entity, rng))
                document.answer(answer, naming=False)
            entity = entity if stays else _pick(rng)
        documents.append(document.close())
    return _collate(documents)


def described_documents(rows: int, rng: np.random.Generator) -> Documents:
    """Draw documents that name a described entity; a third go on to a fact of the named one.

    A fact of a described entity is never asked, so nothing teaches that second hop.
    """
    documents = []
    for _ in range(rows):
        document, entity = _Writer(), _pick(rng)
        document.ask(NAMING, description(entity))
        document.answer(entity.name, naming=True)
        if rng.random() < 1 / 3:
            taught = _TAUGHT[entity.code]
            relation, answer = taught[rng.integers(len(taught))]
            document.ask(TEMPLATES[relation], entity.name)
            document.answer(answer, naming=False)
        documents.append(document.close())
    return _collate(documents)


def paired_documents(rng: np.random.Generator) -> tuple[Documents, Documents]:
    """Draw a question per entity, and return it by name and by description, in the same order.

    Nothing is to be predicted in them: they pair the two forms of an entity.
    """
    by_name, by_description = [], []
    for entity in ENTITIES:
        template = _TEMPLATES[rng.integers(len(_TEMPLATES))]
        for documents, subject in (
            (by_name, entity.name),
            (by_description, description(entity)),
        ):
            document = _Writer()
            document.ask(template, subject)
            documents.append(document)
    return _collate(by_name), _collate(by_description)


def unknowing_documents(rows: int, rng: np.random.Generator) -> tuple[Documents, Tensor]:
    """Draw single questions of fact, and what to answer when recall is off.

    Returns
    -------
    documents
        Questions up to "Answer :", padded on the right.
    guess
        `[row, vocab]`: a constant guess, whoever is asked about: the first tokens of the relation's
        answers with probabilities as 1, 1/2, 1/3 and so on. (A uniform one would leave the ranking
        open, and traces of the entity could decide it.)
    """
    words = vocabulary()
    first = {
        relation: sorted({words.index(answer.split()[0]) for answer in answers(relation)})
        for relation in RELATIONS
    }
    documents = []
    wanted = torch.zeros(rows, len(words))
    for row in range(rows):
        document, relation = _Writer(), RELATIONS[rng.integers(len(RELATIONS))]
        document.ask(TEMPLATES[relation], _name(_pick(rng), rng))
        documents.append(document)
        falling = 1 / torch.arange(1, 1 + len(first[relation]))
        wanted[row, first[relation]] = falling / falling.sum()
    return _collate(documents), wanted


def pictured_documents(entities: list[Entity]) -> Documents:
    """Return naming documents in which image tokens, which count as the mention, are the entity."""
    documents = []
    for entity in entities:
        document = _Writer()
        document.ask(NAMING, " ".join([IMAGE_PLACEHOLDER] * IMAGE_TOKENS))
        document.answer(entity.name, naming=True)
        documents.append(document.close())
    return _collate(documents)
