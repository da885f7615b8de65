"""Many patched variants of the same rows, several variants to one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from interventions import Model, Patch, Positions, Prompt, replay, run
from interventions.prompt.positions import ragged
from interventions.running.greedy import greedy
from interventions.sweeping.metrics import Target
from interventions.sweeping.schedule import Edit
from twohop.ask.memory import Batches, limit_of, rows_for
from twohop.ask.on_server import Tick
from twohop.ask.study import Decoding

GROUP_ROWS = 24  # rows of like length, so that little padding is run
ANSWER_ROWS = 192  # many, as a decoding step costs little more for many rows than for one

Cells = Sequence[Sequence[Patch]]
"""Interventions, each over all rows of a prompt."""
Edits = Sequence[Sequence[Edit]]
"""The same, with edges of attention that are cut among them."""
Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def run_cells(
    model: Model,
    prompt: Prompt,
    cells: Edits,
    *,
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
    cells : sequence of sequences of Patch or Knockout
        One without any is the clean run.
    positions : Positions
        Where logits are wanted.
    measure : callable
        ``measure(logits, rows)`` of logits [batch, position, vocab] and the rows of ``prompt``,
        [batch], that they are of gives [batch].
    tick : callable
        Told the number of rows done.

    Returns
    -------
    ndarray [cell, row]
    """
    table = np.zeros((len(cells), len(prompt)))
    patched = [i for i, cell in enumerate(cells) if cell]
    bare = [i for i, cell in enumerate(cells) if not cell]
    most = max(1, len(patched))  # cells at a time; fewer where memory runs out, and then fewer rows
    limit = limit_of(model, "clean runs")
    batches = Batches(
        prompt.lengths.argsort(stable=True),
        rows_for(model, limit, "cells", GROUP_ROWS, prompt),
        limit=limit,
        width=prompt.length,
    )
    for rows in batches:
        trimmed, left = prompt.select(rows).trimmed()
        at = positions.rows(rows).shifted(left, trimmed.length)

        def measured(logits: torch.Tensor, rows: torch.Tensor = rows) -> torch.Tensor:
            n_cells = len(logits)
            numbers = measure(logits.flatten(0, 1), rows.repeat(n_cells))
            tick(n_cells * len(rows))
            return numbers.cpu().double().unflatten(0, (n_cells, len(rows)))

        with batches.attempt(rows):
            if bare:
                clean = run(model, trimmed, logits=at).logits
                assert clean is not None
                table[np.array(bare)[:, None], rows.numpy()] = measured(clean[None]).numpy()
            parts = Batches(
                torch.tensor(patched, dtype=torch.long),
                most,
                limit=limit_of(model, "cells"),
                width=len(rows) * trimmed.length,
            )
            for part in parts:
                with parts.attempt(part):
                    here = [
                        [patch.of_rows(rows).shifted(left, trimmed.length) for patch in cells[i]]
                        for i in part.tolist()
                    ]
                    numbers = replay(model, trimmed, here, logits=at, reduce=measured)
                    table[part.numpy()[:, None], rows.numpy()] = numbers.numpy()
            most = parts.size
    return table


def free_answers(
    model: Model,
    prompt: Prompt,
    cells: Cells,
    decoding: Decoding,
    *,
    tick: Tick,
) -> list[list[str]]:
    """Greedy answers of every row in every cell, as text: [row][cell].

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
    tokens = torch.zeros(len(prompt), dtype=torch.long)
    runs = torch.ones(len(cells), len(prompt), dtype=torch.bool)
    answered = weighed_answers(model, prompt, cells, decoding, tokens, runs, tick=tick)
    return [[text for text, _ in row] for row in answered]


def weighed_answers(
    model: Model,
    prompt: Prompt,
    cells: Cells,
    decoding: Decoding,
    tokens: torch.Tensor,
    runs: torch.Tensor,
    *,
    tick: Tick,
) -> list[list[tuple[str, float]]]:
    """Greedy answers in cells, each with how likely it was to begin with a given token.

    Parameters
    ----------
    model, prompt, cells, decoding
        As in :func:`free_answers`.
    tokens : Tensor of int [row]
        Of each row, the token whose log-probability is wanted where the answer begins.
    runs : Tensor of bool [cell, row]
        Which rows of which cell are run.
    tick : callable
        Told the number of rows done.

    Returns
    -------
    list of list of (str, float)
        [row][cell]: the text, and the log-probability, nats; empty and NaN where a row is not run.
    """
    n = len(prompt)
    answered = [[("", float("nan"))] * len(cells) for _ in range(n)]
    limit = limit_of(model, "patched answers")
    batches = Batches(
        runs.flatten().nonzero().flatten(),
        rows_for(model, limit, "answers", ANSWER_ROWS, prompt),
        limit=limit,
        width=prompt.length,
    )
    for batch in batches:
        rows, cell_of = batch % n, batch // n
        with batches.attempt(batch):
            patches = [
                replace(patch, positions=patch.positions.only(cell_of == cell))
                for cell in cell_of.unique().tolist()
                for patch in (patch.of_rows(rows) for patch in cells[cell])
            ]
            prefill = run(model, prompt.select(rows), patches=patches, keep_cache=True)
            assert prefill.logits is not None
            logprobs = prefill.logits.log_softmax(-1).cpu().gather(1, tokens[rows, None])[:, 0]
            said = greedy(
                model, prefill, max_new_tokens=decoding.max_new_tokens, stop=decoding.stop
            )
            done = zip(rows.tolist(), cell_of.tolist(), said.texts, logprobs.tolist(), strict=True)
            for row, cell, text, logprob in done:
                answered[row][cell] = (text, logprob)
            tick(len(batch))
    return answered


def answered_cells(
    model: Model, prompt: Prompt, target: Target, cells: Cells, *, tick: Tick
) -> np.ndarray:
    """Whether greedy decoding would give exactly these answers, in every cell.

    One forward pass over prompt and answer checks that every token of the answer is the likeliest
    where it stands.

    Parameters
    ----------
    model : Model
        One that runs here: on a server, this is part of what runs there.
    prompt : Prompt
        With the answers behind: :meth:`interventions.sweeping.metrics.Target.scored`.
    target : Target
    cells, tick
        As in :func:`run_cells`.

    Returns
    -------
    ndarray of bool [cell, row]
    """
    positions = target.positions(prompt)
    wanted, own = ragged(target.answers)

    def measure(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        same = logits.argmax(-1).cpu() == wanted[rows]
        return (same | ~own[rows]).all(-1)

    table = run_cells(model, prompt, cells, positions=positions, measure=measure, tick=tick)
    return table.astype(bool)
