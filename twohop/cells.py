"""Many patched variants of the same rows, several variants to one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from interventions import Model, Patch, Positions, Prompt, Site, run
from interventions.answer_tokens import candidate_ids, spaced
from interventions.decoding import greedy
from twohop.asking import Decoding
from twohop.entities.items import Item
from twohop.memory import Batches, read
from twohop.running import Tick

GROUP_ROWS = 6  # rows of like length, so that little padding is run
CELL_ROWS = 36  # few, so that a batch begins near the first block of each of its cells
ANSWER_ROWS = 192  # many, as a decoding step costs little more for many rows than for one

PatchesOf = Callable[[torch.Tensor, torch.Tensor], Sequence[Patch]]
Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def run_cells(
    model: Model,
    prompt: Prompt,
    *,
    first_blocks: Sequence[int],
    patches_of: PatchesOf,
    positions: Positions,
    measure: Measure,
    tick: Tick,
) -> np.ndarray:
    """Run every cell on every row and reduce the logits to one number each.

    Parameters
    ----------
    model : Model
        One that runs here: on a server, this is part of what runs there.
    prompt : Prompt
    first_blocks : sequence of int
        For each cell, the first block it patches. Blocks below are the same in every cell, so
        they are run once and then skipped.
    patches_of : callable
        ``patches_of(rows, cells)``, both [batch]: the patches of a batch whose rows are these rows
        of ``prompt``, each in its cell. Patches that are for some of the rows only say so with
        :meth:`interventions.Positions.only`.
    positions : Positions
        Where logits are wanted.
    measure : callable
        ``measure(logits, rows)`` of logits [batch, position, vocab] gives [batch].
    tick : callable
        Told the number of rows done.

    Returns
    -------
    ndarray [cell, row]
    """
    n = len(prompt)
    table = np.zeros((len(first_blocks), n))
    starts = torch.tensor([min(block, model.n_layers - 1) for block in first_blocks])
    needed = starts.unique().tolist()
    [clean] = read(model, prompt, [Site("resid_pre", needed)])
    for group in prompt.lengths.argsort(stable=True).split(GROUP_ROWS):
        order = starts.argsort(stable=True)[:, None] * n + group
        batches = Batches(order.flatten(), CELL_ROWS)
        for batch in batches:
            rows, cells = batch % n, batch // n
            block = int(starts[cells].min())
            some, left = prompt.select(rows).trimmed()
            there = slice(left, left + some.length)
            with batches.attempt(batch):
                found = run(
                    model,
                    some,
                    patches=[
                        replace(patch, positions=patch.positions.shifted(left, some.length))
                        for patch in patches_of(rows, cells)
                    ],
                    logits=positions.rows(rows).shifted(left, some.length),
                    start=(block, clean[needed.index(block), rows][:, there]),
                )
                if found.logits is not None:
                    measured = measure(found.logits, rows).double().cpu().numpy()
                    table[cells.numpy(), rows.numpy()] = measured
                tick(len(batch))
    return table


def free_answers(
    model: Model,
    prompt: Prompt,
    cells: Sequence[Sequence[Patch]],
    decoding: Decoding,
    *,
    tick: Tick,
) -> list[list[str]]:
    """Greedy answers of every row in every cell, as text: [cell][row].

    Parameters
    ----------
    model : Model
        One that runs here: on a server, this is part of what runs there.
    prompt : Prompt
    cells : sequence of sequences of Patch
        Each an intervention of its own, over all rows of the prompt.
    decoding : Decoding
    tick : callable
        Told the number of rows done.
    """
    n = len(prompt)
    texts = [[""] * n for _ in cells]
    batches = Batches(torch.arange(len(cells) * n), ANSWER_ROWS)
    for batch in batches:
        rows, which = batch % n, batch // n
        with batches.attempt(batch):
            patches = [
                replace(one, positions=one.positions.only(which == cell))
                for cell in which.unique().tolist()
                for one in (patch.of_rows(rows) for patch in cells[cell])
            ]
            prefill = run(model, prompt.select(rows), patches=patches, keep_cache=True)
            found = greedy(
                model, prefill, max_new_tokens=decoding.max_new_tokens, stop=decoding.stop
            )
            for row, cell, text in zip(rows.tolist(), which.tolist(), found.texts, strict=True):
                texts[cell][row] = text
            tick(len(batch))
    return texts


def answered_cells(
    model: Model,
    prompt: Prompt,
    answers: Sequence[Sequence[int]],
    *,
    first_blocks: Sequence[int],
    patches_of: PatchesOf,
    tick: Tick,
) -> np.ndarray:
    """Whether greedy decoding would give exactly these answers, in every cell.

    One forward pass over prompt and answer checks that every token of the answer is the likeliest
    where it stands.

    Parameters
    ----------
    prompt : Prompt
        Made by :func:`interventions.answers.following` with ``answers``.
    answers : sequence of token ids
        One per row.
    first_blocks, patches_of, tick
        As in :func:`run_cells`.

    Returns
    -------
    ndarray of bool [cell, row]
    """
    positions = prompt.at("answer")
    wanted = torch.zeros_like(positions.index)
    for row, tokens in enumerate(answers):
        wanted[row, : len(tokens)] = torch.tensor(list(tokens))

    def measure(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        same = logits.argmax(-1).cpu() == wanted[rows]
        return (same | ~positions.mask[rows]).all(-1)

    table = run_cells(
        model,
        prompt,
        first_blocks=first_blocks,
        patches_of=patches_of,
        positions=positions,
        measure=measure,
        tick=tick,
    )
    return table.astype(bool)


def answer_ids(model: Model, prompt: Prompt, items: Sequence[Item]) -> list[list[int]]:
    """Token ids of each item's canonical answer, as it follows a prompt."""
    space = spaced(model, prompt)
    return [candidate_ids(model, [item.answers[0]], space=space)[0] for item in items]
