"""Records become items: rows of one question joined, entities and wordings told apart."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from twohop.items.checking import Record
from twohop.items.datamap import Wording
from twohop.items.items import Entity, Item
from twohop.items.pictures import Picture
from twohop.scoring import normalise

Question = tuple[str, str | None]


@dataclass(frozen=True)
class Gathered:
    """Items and what belongs to them.

    Attributes
    ----------
    items : tuple of Item
    wordings : dict of str to Wording
        By the items' relations.
    base : dict of str to str
        Relation of the items to the relation of the rows: several where it has several wordings.
    answer_sets : dict of str to tuple of str
        Candidates of the relations that have several wordings.
    pictures : dict of str to tuple of Picture
        By the entity's code.
    set_aside : tuple of (str, str, str)
        Place, reason and sentence of rows that repeat or contradict an earlier one.
    """

    items: tuple[Item, ...]
    wordings: dict[str, Wording]
    base: dict[str, str]
    answer_sets: dict[str, tuple[str, ...]]
    pictures: dict[str, tuple[Picture, ...]]
    set_aside: tuple[tuple[str, str, str], ...]

    def by_relation(self) -> dict[str, list[Item]]:
        """Items of every relation."""
        by_label: dict[str, list[Item]] = {label: [] for label in self.wordings}
        for item in self.items:
            by_label[item.relation].append(item)
        return by_label


def gather(records: Sequence[Record]) -> Gathered:
    """Join records.

    The first row of a question about an entity makes the item. A later one with the same answers
    gives the entity another picture; with other answers it is set aside. Wordings of one relation
    become relations of their own, with the same answers to choose among.
    """
    firsts: dict[tuple[str, str, Question], Record] = {}
    places: dict[str, str] = {}
    pictures: dict[str, dict[str, Picture]] = {}
    known: dict[str, list[str]] = {}
    popular: dict[str, float] = {}
    aside: list[tuple[str, str, str]] = []
    for record in records:
        if record.id is not None and record.id in places:
            said = f"{record.id!r} is the id of {places[record.id]}"
            aside.append((record.place, "duplicate_id", said))
            continue
        key = (record.code, record.relation, (record.question, record.image_question))
        first = firsts.get(key)
        seen = pictures.get(record.code, {})
        fresh = {
            picture.digest: picture for picture in record.pictures if picture.digest not in seen
        }
        if first is not None:
            if _answers(first) != _answers(record):
                said = f"{', '.join(record.answers)}, where {first.place} has "
                said += ", ".join(first.answers)
                aside.append((record.place, "other_answers", said))
                continue
            if not fresh:
                aside.append((record.place, "duplicate_row", f"as {first.place}"))
                continue
        else:
            firsts[key] = record
        if record.id is not None:
            places[record.id] = record.place
        pictures[record.code] = seen | fresh
        if record.popularity is not None:
            popular[record.code] = max(record.popularity, popular.get(record.code, -inf))
        names = known.setdefault(record.code, [record.name])
        names += [name for name in (record.name, *record.aliases) if name not in names]
    entities = {
        code: Entity(code, names[0], tuple(names[1:]), popular.get(code))
        for code, names in known.items()
    }
    labels = _labels(list(firsts.values()))
    spelling: dict[tuple[str, tuple[str, ...]], str] = {}
    used = set(places)
    items = []
    for (code, relation, question), record in firsts.items():
        first = record.answers[0]
        canonical = spelling.setdefault((relation, normalise(first)), first)
        label = labels[relation, question]
        items.append(
            Item(
                id=record.id or _free(f"{code}/{label}", used),
                entity=entities[code],
                relation=label,
                answers=tuple(dict.fromkeys((canonical, *record.answers))),
            )
        )
    base = {label: relation for (relation, _), label in labels.items()}
    return Gathered(
        items=tuple(items),
        wordings={label: Wording(*question) for (_, question), label in labels.items()},
        base=base,
        answer_sets=_answer_sets(items, base),
        pictures={code: tuple(of_entity.values()) for code, of_entity in pictures.items()},
        set_aside=tuple(aside),
    )


def _answers(record: Record) -> set[tuple[str, ...]]:
    return {normalise(answer) for answer in record.answers}


def _labels(records: Sequence[Record]) -> dict[tuple[str, Question], str]:
    """A relation's name for each wording: as it is for the first, then with a number."""
    labels: dict[tuple[str, Question], str] = {}
    counts: dict[str, int] = {}
    names = {record.relation for record in records}
    for record in records:
        key = (record.relation, (record.question, record.image_question))
        if key in labels:
            continue
        n = counts[record.relation] = counts.get(record.relation, 0) + 1
        label = record.relation if n == 1 else f"{record.relation} ({n})"
        labels[key] = _free(label, names) if n > 1 else label
    return labels


def _free(name: str, used: set[str]) -> str:
    """The name, or with a mark behind it if it is taken; it is taken from then on."""
    while name in used:
        name += "'"
    used.add(name)
    return name


def _answer_sets(items: Sequence[Item], base: dict[str, str]) -> dict[str, tuple[str, ...]]:
    counts = Counter(base.values())
    answers: dict[str, set[str]] = defaultdict(set)
    for item in items:
        answers[base[item.relation]].add(item.answers[0])
    return {
        label: tuple(sorted(answers[relation]))
        for label, relation in base.items()
        if counts[relation] > 1
    }
