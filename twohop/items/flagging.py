"""What to be wary of in items that are usable."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from twohop.items.gathering import Gathered
from twohop.items.items import PLACE, Item
from twohop.scoring import first_mention, normalise

ALIKE = 3  # letters that begin both an answer and a name, where it may be copied
SHOWN = 3  # examples named in a flag


@dataclass(frozen=True)
class Flag:
    """Something to be wary of (a key of :data:`twohop.items.reasons.FLAGS`)."""

    kind: str
    where: str
    said: str


def flags_of(gathered: Gathered) -> Iterator[Flag]:
    """Flags of relations and of names."""
    for label, items in gathered.by_relation().items():
        wording = gathered.wordings[label]
        answers = {item.answers[0] for item in items}
        if len(gathered.answer_sets.get(label, answers)) == 1:
            said = f"{answers.pop()!r} is the answer to all of {len(items)} items"
            yield Flag("constant_answer", label, said)
        yield from _flag_if_any(
            "surface", label, [item for item in items if begins_alike(item)], items
        )
        text = (wording.image or wording.text).replace(PLACE, " ")
        told = [item for item in items if first_mention(text, [("told", item.answers)])]
        yield from _flag_if_any("answer_in_question", label, told, items)
    wordings: dict[str, list[str]] = defaultdict(list)
    for label, relation in gathered.base.items():
        wordings[relation].append(label)
    for relation, several in wordings.items():
        if len(several) > 1:
            said = f"{len(several)} wordings: {', '.join(several[:SHOWN])}"
            yield Flag("several_wordings", relation, said)
    yield from _shared_names(gathered.items)


def _flag_if_any(
    kind: str, label: str, flagged: Sequence[Item], items: Sequence[Item]
) -> Iterator[Flag]:
    if flagged:
        such = "; ".join(f"{item.entity.name}: {item.answers[0]}" for item in flagged[:SHOWN])
        yield Flag(kind, label, f"{len(flagged)} of {len(items)} items, such as {such}")


def begins_alike(item: Item) -> bool:
    """Whether an answer begins as a name of the entity does.

    By letters, before a model is known. Where one is, the study looks at first tokens.

    Examples
    --------
    >>> from twohop.items.items import Entity
    >>> begins_alike(Item("dz/capital", Entity("dz", "Algeria"), "capital", ("Algiers",)))
    True
    """
    names = {normalise(name)[0][:ALIKE] for name in item.entity.names}
    return any(normalise(answer)[0][:ALIKE] in names for answer in item.answers)


def _shared_names(items: Sequence[Item]) -> Iterator[Flag]:
    owners: dict[tuple[str, ...], set[str]] = defaultdict(set)
    shown: dict[tuple[str, ...], str] = {}
    for item in items:
        for name in item.entity.names:
            owners[normalise(name)].add(item.entity.code)
            shown.setdefault(normalise(name), name)
    for words, codes in owners.items():
        if len(codes) > 1:
            yield Flag("shared_name", shown[words], f"a name of {', '.join(sorted(codes))}")
