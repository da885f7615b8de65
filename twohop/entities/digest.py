"""What tells one benchmark from another: short hashes of everything that is asked."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from twohop.entities.items import Benchmark, Item, Template
from twohop.protocol import DEFAULT, Protocol

ANY_NAME = "Any Name"  # where a chain of questions is written about no entity in particular


def fingerprint(benchmark: Benchmark, *, protocol: Protocol = DEFAULT) -> str:
    """Short hash of everything a benchmark asks."""
    return _short(asked_parts(benchmark, protocol=protocol))


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
        and ``chain`` of every relation: all that they write, about names and about pictures;
        ``stop`` and ``end``; ``pictures``: their contents, by what the benchmark says of them or
        else pixel by pixel; ``blank``: the pixels of the blank one.
    """
    relations = benchmark.relations
    names = (ANY_NAME, *(entity.name for entity in benchmark.entities[:1]))
    chains = {one: [_texts(benchmark.chain(one, name)) for name in names] for one in relations}
    pictures: Any = benchmark.pictures or _pixels(_shown(benchmark, protocol))
    return {
        "items": _short([_facts(item) for item in benchmark.items]),
        "universe": _short([_facts(item) for item in benchmark.universe]),
        "answer_sets": _short({one: benchmark.answer_set(one) for one in relations}),
        "templates": _short({one: _texts(it) for one, it in benchmark.templates.items()}),
        "naming": _short(_texts(benchmark.naming)),
        "chain": _short(chains),
        "stop": benchmark.stop,
        "end": benchmark.end,
        "pictures": _short(pictures),
        "blank": _short(_pixels([benchmark.blank])),
    }


def _facts(item: Item) -> Sequence[Any]:
    entity = item.entity
    names = [entity.code, entity.name, entity.aliases]
    return [item.id, names, item.relation, item.answers]


def _texts(template: Template) -> Sequence[str | None]:
    """Everything a template writes."""
    return [template.prefix, template.question, template.image_question]


def _shown(benchmark: Benchmark, protocol: Protocol) -> Iterable[Callable[[], Image.Image]]:
    """Every picture that may be shown: the one asked about, and those of the probes."""
    views = sorted({0, protocol.test_view, *protocol.fit_views})
    for entity in benchmark.entities:
        for view in views:
            yield lambda code=entity.code, view=view: benchmark.view(code, view)


def _pixels(pictures: Iterable[Callable[[], Image.Image]]) -> str:
    found = hashlib.sha256()
    for picture in pictures:
        made = picture()
        found.update(f"{made.mode} {made.size}".encode())
        found.update(made.tobytes())
        found.update(bytes(str(made.getpalette()), "ascii") if made.mode == "P" else b"")
    return found.hexdigest()


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
