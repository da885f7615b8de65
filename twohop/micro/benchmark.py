"""The micro world as a benchmark: 24 made-up countries, for tests that take seconds."""

from PIL import Image

from twohop.items.items import Benchmark, Entity, Item, Template
from twohop.micro import templates, world

NOTES = (
    "A made-up world for tests: the backbone's recall is confined to known blocks by "
    "construction, and its numbers say nothing of real models."
)


def _chain(relation: str, name: str, *, unnamed: bool = False) -> Template:
    known: dict[str, world.Relation] = {key: key for key in templates.TEMPLATES}
    return templates.chain_of_thought(known[relation], name=name, unnamed=unnamed)


def benchmark() -> Benchmark:
    """Return the micro world's items and prompts."""
    entities = {entity.code: Entity(entity.code, entity.name) for entity in world.ENTITIES}
    items = tuple(
        Item(f"{fact.code}/{fact.relation}", entities[fact.code], fact.relation, (fact.answer,))
        for fact in world.facts()
    )
    return Benchmark(
        name="micro",
        items=items,
        templates={**templates.TEMPLATES},
        naming=templates.NAMING,
        stop=templates.TURN_END,
        chain=_chain,
        unnamed_chain=lambda relation, name: _chain(relation, name, unnamed=True),
        one_turn=lambda relation: templates.NAMING,
        view=lambda code, index: world.view(code, world.EVALUATION_START + index),
        blank=lambda: Image.new("RGB", (world.PICTURE_SIZE, world.PICTURE_SIZE), "white"),
        notes=NOTES,
    )
