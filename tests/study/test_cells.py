"""Cells that run together against each cell's own run."""

import pytest
import torch
from floors import FLOOR32, NAMES, noise, relative

import interventions as iv
from interventions.sweeping.metrics import target
from twohop.ask.on_server import no_tick
from twohop.micro.benchmark import benchmark
from twohop.stages.patched import answered_cells, run_cells


@pytest.fixture
def asked(llm: iv.Model) -> iv.Prompt:
    """Rows of unequal length."""
    return llm.prompt([f"The capital of {name} is" for name in NAMES], spans={"entity": NAMES})


def cells_of(llm: iv.Model, prompt: iv.Prompt) -> list[list[iv.Patch]]:
    """A clean cell, sublayers over several blocks, and single blocks, for all rows at once."""
    name = prompt.at("entity", -1)
    values = noise((llm.n_layers, len(prompt), llm.d_model))
    blocks = [
        [iv.Patch("mlp_out", slice(block, llm.n_layers), name, values[block:])]
        for block in range(0, llm.n_layers, 2)
    ]
    single = [
        [iv.Patch("resid_post", block, place, values[block])]
        for block in range(0, llm.n_layers, 3)
        for place in (name, prompt.at("last"))
    ]
    return [[], *blocks, *single]


def test_cells_are_runs_of_their_own(
    llm: iv.Model, asked: iv.Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twohop.stages.patched.GROUP_ROWS", 3)  # rows in several groups
    assert len(asked.lengths.unique()) > 1
    cells, rows_done = cells_of(llm, asked), []
    token = torch.arange(len(asked)) + 5
    found = run_cells(
        llm,
        asked,
        cells,
        positions=asked.at("last"),
        measure=lambda logits, rows: logits[:, 0].gather(1, token[rows, None])[:, 0],
        tick=rows_done.append,
    )
    assert sum(rows_done) == len(cells) * len(asked)
    for row, patches in zip(found, cells, strict=True):
        logits = iv.run(llm, asked, patches=patches).logits
        assert logits is not None
        expected = logits.gather(1, token[:, None])[:, 0].double()
        assert relative(torch.from_numpy(row), expected) < FLOOR32


def test_answers_in_cells_are_those_of_greedy_decoding(llm: iv.Model) -> None:
    bench = benchmark()
    items = [item for item in bench.items if item.relation == bench.relations[0]][:6]
    template = bench.templates[bench.relations[0]]
    prompt = llm.prompt(
        [template.fill(item.entity.name) for item in items],
        spans={"entity": [template.span(item.entity.name) for item in items]},
    )
    own = target(llm, prompt, [item.answers[0] for item in items])
    asked = own.scored(prompt)
    found = answered_cells(llm, asked, own, cells_of(llm, asked), tick=no_tick)
    assert found.any()
    assert not found.all()
    for right, patches in zip(found, cells_of(llm, prompt), strict=True):
        # Answers follow a prompt of as many tokens to the left, so the same values are put in.
        said = iv.complete(llm, prompt, patches=patches, stop=bench.stop).texts
        assert right.tolist() == [
            text == item.answers[0] for text, item in zip(said, items, strict=True)
        ]
