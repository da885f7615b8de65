"""What the embedded pairs name and recall: ``python -m twohop.flags.evaluate``.

A plain measurement for the model card: greedy, first line of the answer, whole-answer match. The
study has its own gates and scorers.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from twohop.flags.assemble import PAIR_KEYS, PairKey, pair_folder
from twohop.flags.backbone import backbone_folder, quiet_transformers
from twohop.flags.benchmark import countries
from twohop.flags.data import (
    FIRST_HELD_OUT_VIEW,
    RELATIONS,
    STYLES,
    Entity,
    Relation,
    entities,
    entity,
    fact,
    is_surface,
    view,
)
from twohop.flags.prompted import PromptedLM
from twohop.flags.templates import NAMING, QUESTIONS, Template
from twohop.flags.tower import pixels

if TYPE_CHECKING:
    from transformers import (
        LlamaForCausalLM,
        LlavaForConditionalGeneration,
        PreTrainedTokenizerBase,
    )

CARD_VIEW = 10_100
"""The view behind the model card's figures; trials on the way looked at 10,000 to 10,002."""


def plain(text: str) -> str:
    """Lower case, no accents, no surrounding punctuation or article."""
    letters = "".join(
        character
        for character in unicodedata.normalize("NFKD", text)
        if not unicodedata.combining(character)
    )
    return re.sub(r"^the\s+", "", letters.lower().strip(" .,;:!?\"'"))


def named(said: str, entity: Entity) -> bool:
    """Whether a line is one of a country's names, and nothing else."""
    return plain(said) in {plain(name) for name in (entity.name, *entity.aliases)}


def answered(said: str, answers: Iterable[str]) -> bool:
    """Whether a line is, or begins with, an accepted answer that ends where a word ends."""
    line = plain(said)
    return any(re.match(rf"{re.escape(plain(answer))}(?!\w)", line) for answer in answers)


@dataclass(frozen=True)
class RelationRecall:
    """Counts over items that were named right and that the backbone answers from the name."""

    items: int
    right: int
    echoed: int
    """Answers that begin with the country's name instead."""
    told: int
    """Items that the pair's own language model answers right from the name."""


class PairReader:
    """Reads country names and facts off image tokens, with the prompts' beginnings cached.

    Parameters
    ----------
    model, tokenizer
        The language model that is to read.
    countries
        The countries it is asked about.
    backbone
        Whose answers about names say what is known; ``None``: its own.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        *,
        countries: Sequence[Entity] = entities(),
        backbone: PairReader | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.countries = tuple(countries)
        self._backbone = backbone
        self._readers = {
            template.name: PromptedLM(model, tokenizer, prefix=template.before)
            for template in (NAMING, *QUESTIONS.values())
        }
        self._known: dict[Relation, list[bool]] = {}

    def reader(self, template: Template) -> PromptedLM:
        """The model behind a template's beginning."""
        return self._readers[template.name]

    @torch.no_grad()
    def lines(self, template: Template, tokens: Sequence[torch.Tensor]) -> list[str]:
        """First lines of the answers about entities given as embeddings [position, d_model]."""
        reader = self.reader(template)
        after = reader.embed(reader.token_ids(template.after))
        longest = 8 if template is NAMING else 6
        return reader.first_lines([torch.cat([row, after]) for row in tokens], tokens=longest)

    def known(self, relation: Relation) -> list[bool]:
        """Whether the backbone answers about each country from its name; surface items: no."""
        if self._backbone is not None:
            rows = zip(self._backbone.countries, self._backbone.known(relation), strict=True)
            told = {country.code: right for country, right in rows}
            return [told[country.code] for country in self.countries]
        return self.told(relation)

    def told(self, relation: Relation) -> list[bool]:
        """Whether this model answers about each country from its name; surface items: no."""
        if relation not in self._known:
            reader = self.reader(QUESTIONS[relation])
            names = [reader.embed(reader.token_ids(f" {entity.name}")) for entity in self.countries]
            facts = [fact(entity.code, relation) for entity in self.countries]
            self._known[relation] = [
                answered(line, fact.answers) and not is_surface(fact, tokenizer=self.tokenizer)
                for line, fact in zip(self.lines(QUESTIONS[relation], names), facts, strict=True)
            ]
        return self._known[relation]

    def asked(self, relation: Relation) -> int:
        """Number of items of a relation: those that are not surface items."""
        facts = [fact(entity.code, relation) for entity in self.countries]
        return sum(not is_surface(fact, tokenizer=self.tokenizer) for fact in facts)

    def recognised(self, image_tokens: torch.Tensor) -> list[bool]:
        """Whether each country, [country, slot, d_model], is named right."""
        lines = self.lines(NAMING, list(image_tokens))
        return [named(line, entity) for line, entity in zip(lines, self.countries, strict=True)]

    def recall(
        self, image_tokens: torch.Tensor, recognised: Sequence[bool]
    ) -> dict[Relation, RelationRecall]:
        """Facts from the image, over the items that are both recognised and known."""
        counts = {}
        for relation in RELATIONS:
            pairs = zip(recognised, self.known(relation), strict=True)
            rows = [number for number, usable in enumerate(map(all, pairs)) if usable]
            asked = [self.countries[row] for row in rows]
            lines = self.lines(QUESTIONS[relation], [image_tokens[row] for row in rows])
            right = echoed = 0
            for line, country in zip(lines, asked, strict=True):
                right += answered(line, fact(country.code, relation).answers)
                echoed += answered(line, (country.name, *country.aliases))
            own = self.told(relation)
            counts[relation] = RelationRecall(
                items=len(rows), right=right, echoed=echoed, told=sum(own[row] for row in rows)
            )
        return counts


def measure(reader: PairReader, image_tokens: torch.Tensor) -> dict[str, Any]:
    """Naming and recall of one view of every country, as plain numbers."""
    recognised = reader.recognised(image_tokens)
    measured: dict[str, Any] = {"named": sum(recognised) / len(recognised)}
    for relation, counts in reader.recall(image_tokens, recognised).items():
        measured[relation] = {
            "items": counts.items,
            "right": counts.right,
            "echoed": counts.echoed,
            "told": counts.told,
            "gap": 1 - counts.right / max(1, counts.items),
        }
    return measured


def backbone_reader() -> PairReader:
    """The backbone, in float32, behind all prompts."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    backbone = backbone_folder()
    with quiet_transformers():
        model = LlamaForCausalLM.from_pretrained(backbone, dtype=torch.float32)
        return PairReader(model, AutoTokenizer.from_pretrained(backbone))


def own_reader(
    vlm: LlavaForConditionalGeneration, *, countries: Sequence[Entity], backbone: PairReader
) -> PairReader:
    """The language model inside an assembled pair, behind all prompts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    parts: Any = vlm
    with torch.device("meta"):
        # A config of its own: a model takes over the one it is given, attention and all.
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(backbone_folder()))
    model.model, model.lm_head = parts.model.language_model, parts.lm_head
    return PairReader(model, backbone.tokenizer, countries=countries, backbone=backbone)


@torch.no_grad()
def evaluate_pair(
    key: PairKey,
    *,
    reader: PairReader,
    weights: Path | None = None,
    views: Sequence[int] = (CARD_VIEW,),
) -> list[dict[str, Any]]:
    """Measure an assembled pair on held-out views of both drawings; one entry for each."""
    from transformers import LlavaForConditionalGeneration

    with quiet_transformers():
        vlm = LlavaForConditionalGeneration.from_pretrained(
            pair_folder(key, weights=weights), dtype=torch.float32
        )
    asked = [entity(code) for code in countries(key)]
    own = own_reader(vlm, countries=asked, backbone=reader)
    rows = []
    for style in STYLES:
        for index in views:
            pictures = [view(country.code, index, style=style) for country in asked]
            features: Any = vlm.get_image_features(pixel_values=pixels(pictures))
            # A sequence with one [slot, d_model] per picture.
            tokens = torch.stack(list(features.pooler_output))
            rows.append({"pair": key, "style": style, "view": index, **measure(own, tokens)})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="folder of trained weights; default shipped")
    parser.add_argument(
        "--view",
        type=int,
        nargs="+",
        default=[CARD_VIEW],
        help=f"which views of every flag, from {FIRST_HELD_OUT_VIEW} on (default {CARD_VIEW})",
    )
    asked = parser.parse_args()
    console = Console()
    table = Table("pair", "drawing", "view", "named", *RELATIONS)
    with console.status("reading names"):
        reader = backbone_reader()
        known = [reader.known(relation) for relation in RELATIONS]
    asked_of = [reader.asked(relation) for relation in RELATIONS]
    cells = [f"{sum(right)}/{items}" for right, items in zip(known, asked_of, strict=True)]
    table.add_row("the name, as text", "", "", "", *cells)
    for key in PAIR_KEYS:
        with console.status(f"reading flags: {key}"):
            rows = evaluate_pair(key, reader=reader, weights=asked.weights, views=asked.view)
        for row in rows:
            cells = [
                "{right}/{items}, echo {echoed}, told {told}".format(**row[relation])
                for relation in RELATIONS
            ]
            table.add_row(key, row["style"], str(row["view"]), f"{row['named']:.3f}", *cells)
    console.print(table)
    console.print("Facts: of the items that are named right and that the backbone answers right")
    console.print("from the name; told: so does the pair's own language model.")


if __name__ == "__main__":
    main()
