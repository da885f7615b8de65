"""The flags of the United Nations' members as a benchmark: capital, continent, language."""

from PIL import Image

from twohop.flags import data, templates
from twohop.flags.assemble import PairKey
from twohop.flags.late.countries import studied
from twohop.items.items import Benchmark, Entity, Item, Template

NOTES = (
    "Constructed VLMs on a real language model: a small tower that knows flags and nothing else, "
    "and a projector. Three pairs on one backbone show what high and low degradation look like, "
    "what a country formed too late looks like, and that the controls fail as they should. They "
    "are not production VLMs. flags-naming and flags-aligned are not known to be late: a linear "
    "probe reads the entity from their image tokens at the first layer. flags-late is late by "
    "construction, and is asked about the countries it was made for."
)


def countries(key: PairKey) -> tuple[str, ...]:
    """Codes of the countries that a pair is asked about, in their order."""
    return studied() if key == "flags-late" else tuple(country.code for country in data.entities())


def benchmark(key: PairKey = "flags-aligned") -> Benchmark:
    """Return the items and few-shot prompts of the flags study, of the countries of one pair."""
    asked = set(countries(key))
    entities = {
        entity.code: Entity(entity.code, entity.name, entity.aliases)
        for entity in data.entities()
        if entity.code in asked
    }
    items = tuple(
        Item(f"{fact.code}/{fact.relation}", entities[fact.code], fact.relation, fact.answers)
        for fact in data.facts()
        if fact.code in asked
    )
    return Benchmark(
        name="flags" if len(asked) == len(data.entities()) else f"flags-{len(asked)}",
        items=items,
        templates={
            relation: Template(template.prefix, template.question)
            for relation, template in templates.QUESTIONS.items()
        },
        naming=Template(templates.NAMING.prefix, templates.NAMING.question),
        stop="\n",
        chain=_chain,
        unnamed_chain=_unnamed_chain,
        one_turn=_one_turn,
        view=lambda code, index: data.view(code, data.FIRST_HELD_OUT_VIEW + index),
        blank=lambda: Image.new("RGB", (128, 96), "white"),
        notes=NOTES,
    )


def _relation(relation: str) -> data.Relation:
    known: dict[str, data.Relation] = {key: key for key in templates.QUESTIONS}
    return known[relation]


def _chain(relation: str, name: str) -> Template:
    template = templates.chain_of_thought(_relation(relation), name=name)
    return Template(template.prefix, template.question)


def _unnamed_chain(relation: str, name: str) -> Template:
    template = templates.chain_of_thought(_relation(relation), name=name, unnamed=True)
    return Template(template.prefix, template.question)


def _one_turn(relation: str) -> Template:
    template = templates.chain_of_thought(_relation(relation), unnamed=True)
    return Template(template.prefix, template.question)
