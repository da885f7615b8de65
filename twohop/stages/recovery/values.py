"""What is read from the backbone, to be written into the VLM."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from interventions import Model, Prompt, Site
from interventions.model.sites import Component
from twohop.ask.memory import read
from twohop.ask.on_server import Task, Tick
from twohop.ask.questions import Questions, Rows
from twohop.ask.study import text_prompt
from twohop.items.items import Template

Sites = list[tuple[Component, list[int]]]
"""Components, each of some blocks."""


@dataclass(frozen=True)
class Reading:
    """Values of entities in the backbone, at the last token of their names.

    Attributes
    ----------
    questions : Questions
        About the entities.
    sites : list of (str, list of int)
        Components and blocks.
    template_of : callable, optional
        ``template_of(rows)`` is what the backbone is asked, in place of the question itself.
    """

    questions: Questions
    sites: Sites
    template_of: Callable[[Rows], Template] | None = None

    def asked(self, rows: Rows) -> Prompt:
        """The backbone's prompt of rows of one relation."""
        questions = self.questions
        template = (self.template_of or questions.template)(rows)
        entities = [questions.items[i].entity for i in rows]
        return text_prompt(questions.study.backbone, template, entities)


def entity_values(*readings: Reading) -> list[list[torch.Tensor]]:
    """Backbone activations at the last token of entities, [layer, item, d_model].

    For each reading, and there for each of its sites. Of items of the same relations in the same
    order; all in one go, as on a server each is a request.
    """
    questions = readings[0].questions

    def arguments(rows: Rows) -> Task:
        return ([(reading.asked(rows), reading.sites) for reading in readings],)

    backbone = questions.study.backbone
    of_items = questions.map(name_values, arguments, model=backbone, passes=0)
    widths = [len(blocks) for reading in readings for _, blocks in reading.sites]
    parts = iter(torch.stack(of_items, dim=1).split(widths))
    return [[next(parts) for _ in reading.sites] for reading in readings]


def name_values(model: Model, asked: Sequence[tuple[Prompt, Sites]], *, tick: Tick) -> torch.Tensor:
    """Activations at the last token of entities, those of all prompts, [row, layer, d_model]."""
    values = []
    for prompt, sites in asked:
        name = prompt.at("entity", -1)
        places = [Site(component, blocks, name) for component, blocks in sites]
        values += [value.cpu() for value in read(model, prompt, places)]
    tick(0)
    return torch.cat(values).movedim(1, 0)


def blocks_to(last: int) -> list[int]:
    """Blocks from 0 to ``last``; block 0 at least."""
    return list(range(max(last, 0) + 1))


def matched_noise(values: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Random directions with the norms of ``values`` [layer, item, d_model]."""
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm(dim=-1, keepdim=True) * values.norm(dim=-1, keepdim=True)
