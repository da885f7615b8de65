"""Cases: exact patching over layer x position grids."""

from dataclasses import dataclass, replace
from typing import Any

import torch

import interventions as iv
from benchmarks.bound import counted, needed
from benchmarks.contest import Case, Contestant, Run
from benchmarks.models import ANSWER, Bench
from benchmarks.peers import PEERS, Cell, Task
from interventions.prompt.columns import columns_of
from interventions.sweeping.metrics import target
from interventions.sweeping.replay import replay
from interventions.sweeping.sources import FromModel
from interventions.sweeping.sweep import sweep

SAMPLE = 3  # cells that those who run one at a time are timed on


@dataclass(frozen=True)
class Grid:
    """A grid: what is patched, where its values come from, and which cells there are.

    Attributes
    ----------
    model : Model
    prompt : Prompt
    source : Prompt or FromModel
    source_runs : int
        Full runs of ``model`` that reading the values takes.
    layers : list of int
    roles : list of str
    read_roles : list of str
    """

    model: iv.Model
    prompt: iv.Prompt
    source: Any
    source_runs: int
    layers: list[int]
    roles: list[str]
    read_roles: list[str]

    def cells(self) -> list[Cell]:
        """Every cell, with its values."""
        model, prompt = (
            (self.source.pair.backbone, self.source.prompt)
            if isinstance(self.source, FromModel)
            else (self.model, self.source)
        )
        found = iv.run(
            model, prompt, reads=[iv.Site("resid_post", self.layers)], logits=False
        ).reads[0][:, 0]
        written, _ = columns_of(self.prompt, self.roles, each=False)
        read, _ = columns_of(prompt, self.read_roles, each=False)
        return [
            Cell(layer, tuple(to[0]), found[i, at[0]])
            for i, layer in enumerate(self.layers)
            for to, at in zip(written.tokens, read.tokens, strict=True)
        ]


def grid_case(name: str, title: str, grid: Grid, aim: float | None, floor: float) -> Case:
    """Everybody on one grid."""
    cells = grid.cells()
    task = Task(grid.model, grid.prompt, cells)
    computed: list[int] = []
    answer = target(grid.model, grid.prompt, ANSWER).answers[0][0]

    def replayed() -> Run:
        patches = [[_patch(grid.prompt, cell)] for cell in cells]

        def run(units: list[int]) -> torch.Tensor:
            found = replay(grid.model, grid.prompt, [patches[i] for i in units])
            return found[:, 0, -1]

        return run

    def swept() -> Run:
        def run(units: list[int]) -> torch.Tensor:
            every = len(units) == len(cells)
            with counted(grid.model.module) as tokens:
                found = sweep(
                    grid.model,
                    grid.prompt,
                    grid.source,
                    answers=ANSWER,
                    layers=grid.layers if every else grid.layers[-1:],
                    roles=grid.roles if every else grid.roles[-1:],
                    read_roles=grid.read_roles if every else grid.read_roles[-1:],
                    progress=False,
                )
            computed[:] = [sum(tokens)]
            return torch.from_numpy(found["logprob"].values).flatten()

        return run

    def bound() -> float:
        length, n = grid.prompt.length, grid.model.n_layers
        fewest = needed(cells, n_layers=n, length=length, full_runs=1 + grid.source_runs)
        return fewest / computed[0]

    contestants = [
        Contestant(name, lambda peer=peer: peer(task), sample=SAMPLE)
        for name, peer in PEERS.items()
    ]
    ours = [
        Contestant("interventions: replay, logits", replayed, ours=True),
        Contestant(
            "interventions: sweep",
            swept,
            ours=True,
            view=lambda logits: logits.log_softmax(-1)[answer],
        ),
    ]
    return Case(
        name,
        title,
        [*contestants, *ours],
        units=len(cells),
        unit="cell",
        aim=aim,
        floor=floor,
        bound=bound,
    )


def _patch(prompt: iv.Prompt, cell: Cell) -> iv.Patch:
    index = torch.tensor([cell.positions])
    mask = torch.ones_like(index, dtype=torch.bool)
    where = iv.Positions(index, mask, prompt.length, False, "cell")
    return iv.Patch("resid_post", cell.layer, where, cell.value[None])


def text_roles(bench: Bench) -> Grid:
    """All layers x the tokens after the picture."""
    return _own(bench, bench.vlm, bench.shown, bench.aside, "question", None)


def image_positions(bench: Bench) -> Grid:
    """Every third layer, which is as deep as all are in the mean, x positions over the picture."""
    grid = _own(bench, bench.vlm, bench.shown, bench.aside, "image", bench.shape.columns)
    return replace(grid, layers=grid.layers[1::3])


def text_only(bench: Bench) -> Grid:
    """All layers x all positions of a text."""
    return _own(bench, bench.backbone, bench.told, bench.untold, "question", None)


def transplanted(bench: Bench) -> Grid:
    """What the backbone computes on a text, put where the VLM sees the picture or reads."""
    pair = iv.pair(bench.vlm, bench.backbone)
    roles = ["image", "last_image", "question[0]", "question[-2]", "last"]
    read = ["question[0]", "question[1]", "question[0]", "question[-2]", "last"]
    layers = list(range(bench.shape.n_layers))
    return Grid(bench.vlm, bench.shown, FromModel(pair, bench.told), 0, layers, roles, read)


def _own(
    bench: Bench, model: iv.Model, prompt: iv.Prompt, source: iv.Prompt, role: str, n: int | None
) -> Grid:
    tokens = prompt.at(role).index.shape[1]
    chosen = range(tokens) if n is None else torch.linspace(0, tokens - 1, n).long().tolist()
    roles = [f"{role}[{i}]" for i in chosen]
    return Grid(model, prompt, source, 1, list(range(bench.shape.n_layers)), roles, roles)
