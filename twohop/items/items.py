"""What a pair is asked: entities, facts, and the prompts that ask for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from interventions.errors import InterventionsError
from twohop.scoring import normalise

PLACE = "{entity}"
PICTURE = "{image}"
IT = "it"  # stands for what is not named


@dataclass(frozen=True)
class Template:
    """A prompt with one place for an entity.

    Attributes
    ----------
    prefix : str
        Constant text in front: the worked examples, if there are any.
    question : str
        The rest, with ``{entity}`` where a name, or an image, goes.
    image_question : str, optional
        The rest where it is asked about a picture, with ``{image}`` where the picture goes, if
        that is worded differently. Without ``{image}`` the picture is placed by the model's own
        marks, which the text then holds.
    unnamed : str, optional
        The rest where it is asked about nothing in particular, in the words of the question about
        a picture, if it has its own. Default: "it" takes the name's place.
    closing : str
        The end of the rest, in both wordings, that a format wrote behind the question: of a chat,
        the instruction to be brief and the marks that close the turn.
    """

    prefix: str
    question: str
    image_question: str | None = None
    unnamed: str | None = field(default=None, compare=False)
    closing: str = field(default="", compare=False)

    def fill(self, entity: str) -> str:
        """Return the whole prompt about ``entity``: a name, or an image placeholder.

        Examples
        --------
        >>> Template("", "The capital of {entity} is").fill("France")
        'The capital of France is'
        """
        return self.prefix + self.question.replace(PLACE, entity)

    def show(self, image: str) -> str:
        """Return the whole prompt about a picture, given how a picture is written.

        Examples
        --------
        >>> Template("", "The capital of {entity} is").show("<image>")
        'The capital of <image> is'
        """
        if self.image_question is None:
            return self.fill(image)
        return self.prefix + self.image_question.replace(PICTURE, image)

    def fill_with_nothing(self) -> str:
        """Return the whole prompt about nothing in particular.

        Examples
        --------
        >>> Template("", "The capital of {entity} is").fill_with_nothing()
        'The capital of it is'
        """
        return self.fill(IT) if self.unnamed is None else self.prefix + self.unnamed

    def span(self, entity: str) -> tuple[int, int]:
        """Where the entity stands in :meth:`fill`, as (start, stop) characters."""
        start = len(self.prefix) + self.question.index(PLACE)
        return start, start + len(entity)


@dataclass(frozen=True)
class Entity:
    """Something that can be named and pictured.

    Attributes
    ----------
    code : str
        Short key, unique.
    name : str
        As the prompts write it.
    aliases : tuple of str
        Other names that count as having named it.
    popularity : float, optional
        How well known it is, in any unit; nothing is asked by it.
    """

    code: str
    name: str
    aliases: tuple[str, ...] = ()
    popularity: float | None = field(default=None, compare=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Every accepted name."""
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class Item:
    """One fact to be recalled.

    Attributes
    ----------
    id : str
        ``code/relation``.
    entity : Entity
    relation : str
    answers : tuple of str
        What is accepted; the first is the canonical one, and the one in the forced choice.
    """

    id: str
    entity: Entity
    relation: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """Everything a study asks of a pair.

    Attributes
    ----------
    name : str
    items : tuple of Item
    templates : dict of str to Template
        One per relation.
    naming : Template
        Asks which entity it is.
    stop : str
        Text that ends an answer.
    end : str, optional
        Text that ends a candidate that begins another one, if not ``stop``: of a chat, the mark
        that ends a turn.
    chain : callable
        ``chain(relation, name)``: the entity's place is asked about by name first, ``name`` is the
        answer given, and the relation's question about that name follows.
    unnamed_chain : callable, optional
        ``unnamed_chain(relation, name)``: the same, but the second question does not say the name:
        it is in the words of the question about a picture, as in "of this country?".
    one_turn : callable, optional
        ``one_turn(relation)``: the prompt about a picture behind which the model writes a name and
        then answers. In a chat it writes both, on a line each; else the name comes next, and what
        follows it is as in ``unnamed_chain``.
    view : callable
        ``view(code, index)`` gives the index-th held-out picture of an entity.
    blank : callable
        ``blank()`` gives a picture with nothing on it.
    universe : tuple of Item
        All items there are; the answers to choose among and the names to tell apart are theirs,
        also where only some items are asked about. Empty: ``items``.
    notes : str
        What must be said wherever results on this benchmark are shown.
    answer_sets : dict of str to tuple of str
        The candidates of relations that are asked in several wordings, each a relation of its
        own here. Others' candidates are the canonical answers of their items.
    chat : bool
        Whether it is asked in a chat, where an answer may be a sentence, and is given the room.
    pictures : str
        Tells one set of pictures from another; results belong to theirs.
    """

    name: str
    items: tuple[Item, ...]
    templates: dict[str, Template]
    naming: Template
    stop: str
    chain: Callable[[str, str], Template]
    view: Callable[[str, int], Image.Image]
    blank: Callable[[], Image.Image]
    end: str | None = None
    notes: str = ""
    universe: tuple[Item, ...] = ()
    answer_sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pictures: str = ""
    chat: bool = False
    unnamed_chain: Callable[[str, str], Template] | None = None
    one_turn: Callable[[str], Template] | None = None

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The entities that items ask about, in order of first appearance."""
        return tuple({item.entity.code: item.entity for item in self.items}.values())

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations, in order of first appearance."""
        return tuple(dict.fromkeys(item.relation for item in self.items))

    @property
    def every_name(self) -> list[str]:
        """Every name of every entity there is."""
        known = {item.entity.code: item.entity for item in self.universe or self.items}
        return [name for entity in known.values() for name in entity.names]

    def answer_set(self, relation: str) -> list[str]:
        """The canonical answers of a relation, sorted: the candidates of the forced choice."""
        if relation in self.answer_sets:
            return sorted(self.answer_sets[relation])
        known = self.universe or self.items
        return sorted({item.answers[0] for item in known if item.relation == relation})

    def limited(self, n_entities: int | None) -> "Benchmark":
        """Return the benchmark on ``n_entities`` entities, spread evenly over the list.

        The answers to choose among stay those of the whole benchmark.
        """
        if n_entities is None or n_entities >= len(self.entities):
            return self
        if n_entities < 2:
            raise InterventionsError(f"--limit {n_entities}: at least 2 entities are needed.")
        step = len(self.entities) / n_entities
        kept = {self.entities[int(i * step)].code for i in range(n_entities)}
        items = tuple(item for item in self.items if item.entity.code in kept)
        return replace(self, items=items, universe=self.universe or self.items)


def check_items(items: Sequence[Item]) -> None:
    """Refuse a list of items with duplicate ids or without answers."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise InterventionsError(f"item id {item.id!r} occurs twice. Ids must be unique.")
        if not item.answers:
            raise InterventionsError(f"item {item.id!r} has no accepted answer.")
        for text in (*item.entity.names, *item.answers):
            if not normalise(text):
                raise InterventionsError(
                    f"item {item.id!r}: {text!r} has no letter and no digit, and names and "
                    "answers are compared by these. Write it out."
                )
        seen.add(item.id)
