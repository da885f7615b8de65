"""What tells one benchmark from another: short hashes of everything that is asked."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from interventions.errors import InterventionsError
from twohop.items.items import Benchmark, Entity, Item, Template
from twohop.protocol import DEFAULT, Protocol

ANY_NAME = "Any Name"  # where a chain of questions is written about no entity in particular


def named(benchmark: Benchmark, parts: Mapping[str, str | None]) -> str:
    """A benchmark's name with the short hash of its parts, :func:`asked_parts`."""
    return f"{benchmark.name} {_short(parts)}"


def asked_parts(benchmark: Benchmark, *, protocol: Protocol = DEFAULT) -> dict[str, str | None]:
    """Everything a benchmark asks, part by part, each as a short hash or as its few letters.

    Parameters
    ----------
    benchmark : Benchmark
    protocol : Protocol
        Says which pictures of an entity are shown.

    Returns
    -------
    dict of str to str or None
        JSON types. ``items`` and ``universe``: ids, entities with all their names, relations and
        accepted answers, in order; ``answer_sets``; ``templates`` of every relation, ``naming``
        and ``chain`` of every relation, in all its forms: all that they write, about names and
        about pictures;
        ``stop`` and ``end``; ``pictures``: pixel by pixel, of one entity only
        where the benchmark says which pictures it has; ``blank``: the pixels of the blank one.
    """
    relations = benchmark.relations
    names = (ANY_NAME, *(entity.name for entity in benchmark.entities[:1]))
    writers = [write for write in (benchmark.chain, benchmark.unnamed_chain) if write]
    chains = {
        relation: [_texts(write(relation, name)) for write in writers for name in names]
        + ([_texts(benchmark.one_turn(relation))] if benchmark.one_turn else [])
        for relation in relations
    }
    everyone = benchmark.entities
    # What a benchmark says of its pictures is trusted but for those of one entity.
    shown = everyone[:1] if benchmark.pictures else everyone
    pictures = [benchmark.pictures, _pixels(_shown(benchmark, shown, protocol))]
    return {
        "items": _short([_facts(item) for item in benchmark.items]),
        "universe": _short([_facts(item) for item in benchmark.universe]),
        "answer_sets": _short({relation: benchmark.answer_set(relation) for relation in relations}),
        "templates": _short(
            {relation: _texts(template) for relation, template in benchmark.templates.items()}
        ),
        "naming": _short(_texts(benchmark.naming)),
        "chain": _short(chains),
        "stop": benchmark.stop,
        "end": benchmark.end,
        "pictures": _short(pictures),
        "blank": _short(_pixels([benchmark.blank()])),
    }


def _facts(item: Item) -> Sequence[Any]:
    entity = item.entity
    names = [entity.code, entity.name, entity.aliases]
    return [item.id, names, item.relation, item.answers]


def _texts(template: Template) -> Sequence[str | None]:
    """Everything a template writes."""
    return [template.prefix, template.question, template.image_question]


def _shown(
    benchmark: Benchmark, entities: Iterable[Entity], protocol: Protocol
) -> Iterator[Image.Image | None]:
    """Pictures that may be shown: those asked about, and those of the probes, if there are any."""
    for entity in entities:
        yield benchmark.view(entity.code, 0)
        for view in (protocol.test_view, *protocol.fit_views):
            try:
                yield benchmark.view(entity.code, view)
            except InterventionsError:  # the stage that shows it will say what to do
                yield None


def _pixels(pictures: Iterable[Image.Image | None]) -> str:
    hasher = hashlib.sha256()
    for picture in pictures:
        if picture is None:
            hasher.update(b"none")
            continue
        hasher.update(f"{picture.mode} {picture.size} {picture.getpalette()}".encode())
        hasher.update(picture.tobytes())
    return hasher.hexdigest()


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
