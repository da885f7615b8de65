"""Writing the VLM's own later state into an earlier layer, so that recall gets a second chance.

Every cell of a grid, a pair of layers at a group of tokens, is tried by whether the canonical
answer is what greedy decoding would give, on lost items, where there are many on as many of each
half of the entities. The cell that is best on one half is used on all items of the other, where
answers are free, and the other way round: what is scored has no say in the choice, so the number is
not the greatest of many. The null writes the states of another entity's picture in the same cell:
all that differs is whose they are. A null that is searched as own states are, for the cell at which
other states do best, is in the grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import xarray as xr

from interventions import Model, Patch, Positions, Prompt, Site
from interventions.prompt.positions import from_lists
from interventions.sweeping.metrics import target
from twohop.ask.answers import Decoding
from twohop.ask.halves import chosen_elsewhere, rows_of_both
from twohop.ask.memory import read
from twohop.ask.on_server import Task, Tick
from twohop.ask.places import Place, places
from twohop.ask.questions import Questions, Rows, side_by_side
from twohop.ask.roles import entity_tokens, has_image_tokens
from twohop.ask.study import Study, text_array
from twohop.errors import ProtocolError
from twohop.protocol import DEFAULT, Protocol
from twohop.stages.patched import answered_cells, free_answers
from twohop.stages.recovery.shared import shared_text
from twohop.stages.recovery.transplants import Outcomes

Cell = tuple[int, int, int]
"""The layer read, the layer written, and the group of tokens."""
Side = tuple[Prompt, list[Positions]]
"""A prompt and its groups of tokens."""
ARMS_OF_IT = ("back_patching", "back_patching_null")


def layer_pairs(n_layers: int, *, protocol: Protocol = DEFAULT) -> list[tuple[int, int]]:
    """Pairs (later, earlier) of layers tried by back-patching.

    Raises
    ------
    ProtocolError
        If so few layers have no such pair.
    """
    later, earlier = (
        [min(round(share * n_layers), n_layers - 1) for share in shares]
        for shares in (protocol.later_layers, protocol.earlier_layers)
    )
    pairs = [
        (source, target)
        for source in dict.fromkeys(later)
        for target in dict.fromkeys(earlier)
        if source > target
    ]
    if not pairs:
        raise ProtocolError(
            f"of {n_layers} layers, protocol.later_layers {protocol.later_layers} are {later} and "
            f"protocol.earlier_layers {protocol.earlier_layers} are {earlier}: none is later. "
            "Expected shares further apart."
        )
    return pairs


def part_of_image(prompt: Prompt, which: int, parts: int) -> Positions:
    """The ``which``-th of ``parts`` parts of the image tokens of each row; of few, one at least."""
    tokens = prompt.at("image")
    lists = []
    for index, n in zip(tokens.index.tolist(), tokens.counts.tolist(), strict=True):
        start = min(n * which // parts, n - 1)
        lists.append(index[start : max(n * (which + 1) // parts, start + 1)])
    return from_lists(lists, length=prompt.length, single=False, role="a part of the image")


def asked_places(study: Study) -> list[Place]:
    """Tokens of the question, from its end, that back-patching is tried at."""
    asked = [place for place in places(study) if place.role != "image"]
    return asked[: study.protocol.back_tokens]


def groups_of(study: Study) -> dict[str, Callable[[Prompt], Positions]]:
    """Groups of tokens that back-patching is tried at, by name.

    All image tokens, the protocol's ``back_parts`` parts of them, ``back_tokens`` tokens of the
    question, each alone, and the last token of all.
    """
    groups: dict[str, Callable[[Prompt], Positions]] = {}
    if has_image_tokens(study.vlm):
        n = study.protocol.back_parts
        groups["all image tokens"] = entity_tokens
        for part in range(n if n > 1 else 0):
            groups[f"image part {part + 1}/{n}"] = partial(part_of_image, which=part, parts=n)
    groups |= {str(place): place.positions for place in asked_places(study)}
    return groups | {"last token": lambda prompt: prompt.at("last")}


@dataclass(frozen=True)
class BackPatched:
    """What came of back-patching.

    Attributes
    ----------
    grid : Dataset
        ``own`` and ``null`` (cell, searched): the canonical answer's tokens are all the likeliest;
        ``searched``: the ids of these lost items; ``searched_entity`` (searched); ``later``,
        ``earlier`` and ``back_place`` (cell); ``has_null`` (tried); ``chosen_cell`` and
        ``chosen_cell_null`` (part): the cell at which own states, and others', are best on the
        other half, -1 for none.
    arms : dict of str to Outcomes
        Free answers at the cell that is best on the other half: ``back_patching`` and its null.
    """

    grid: xr.Dataset
    arms: dict[str, Outcomes]


def back_patching(questions: Questions, half: np.ndarray, n_lost: int) -> BackPatched:
    """Write the VLM's own later state into an earlier layer, over a grid of layers and tokens.

    Parameters
    ----------
    questions : Questions
        The first ``n_lost`` are about lost items, on which the grid is tried.
    half : ndarray of int [item]
    n_lost : int
    """
    study, groups = questions.study, groups_of(questions.study)
    pairs = layer_pairs(study.vlm.n_layers, protocol=study.protocol)
    cells = [(*pair, group) for group in range(len(groups)) for pair in pairs]
    others = questions.others

    def side(prompt: Prompt) -> Side:
        return prompt, [positions(prompt) for positions in groups.values()]

    def sides(rows: Rows) -> tuple[Side, Side]:
        ahead = shared_text(questions, rows, asked_places(study))
        shown = questions.shown(rows, marked=True, share_prefix=ahead)
        theirs = others.shown(rows, like=questions, marked=True, share_prefix=ahead)
        return side(shown), side(theirs)

    searched = rows_of_both(half[:n_lost], study.protocol.back_items, seed=study.seed)

    def in_grid(rows: Rows) -> Task:
        rows = searched[rows].tolist()
        return *sides(rows), [questions.items[i].answers[0] for i in rows], cells

    on_grid = replace(questions, items=[questions.items[i] for i in searched])
    of_items = on_grid.map(answered_back, in_grid, model=study.vlm, passes=2 * len(cells))
    own, null = (
        side_by_side([tables[source] for tables in of_items], (len(cells),), dtype=bool)
        for source in (0, 1)
    )
    has_null, of_searched = questions.has_rival, half[searched]
    there = has_null[searched]
    best = chosen_elsewhere(own, of_searched)
    best_null = chosen_elsewhere(null[:, there], of_searched[there])

    def used(rows: Rows) -> Task:
        parts = [torch.tensor(half[rows] == part) for part in (0, 1)]
        chosen = [(cells[cell], part) for cell, part in zip(best, parts, strict=True) if cell >= 0]
        return *sides(rows), chosen, study.decoding

    said = questions.map(said_back, used, model=study.vlm, passes=2)
    arms = {}
    untried = best[half] < 0
    for source, arm in enumerate(ARMS_OF_IT):
        outcome = Outcomes.of(questions.score([texts[source] for texts in said]))
        arms[arm] = outcome.without(untried | (~has_null if source else False))
    grid = xr.Dataset(
        {
            "own": (("cell", "searched"), own),
            "null": (("cell", "searched"), null),
            "searched": [questions.items[i].id for i in searched],
            "searched_entity": (
                "searched",
                text_array([questions.items[i].entity.name for i in searched]),
            ),
            "has_null": ("tried", has_null[:n_lost]),
            "later": ("cell", [later for later, _, _ in cells]),
            "earlier": ("cell", [earlier for _, earlier, _ in cells]),
            "back_place": ("cell", text_array([[*groups][group] for *_, group in cells])),
            "chosen_cell": ("part", best),
            "chosen_cell_null": ("part", best_null),
        }
    )
    return BackPatched(grid, arms)


def states(model: Model, side: Side, later: Sequence[int]) -> list[torch.Tensor]:
    """What enters each of the layers at each group of tokens, [layer, row, token, d_model]."""
    prompt, groups = side
    values = read(
        model,
        prompt,
        [Site("resid_pre", [*later], replace(at.filled(), single=False)) for at in groups],
    )
    return values


def answered_back(
    model: Model,
    shown: Side,
    theirs: Side,
    answers: Sequence[str],
    cells: Sequence[Cell],
    *,
    tick: Tick,
) -> list[np.ndarray]:
    """Whether greedy decoding would give exactly these answers, [row] of [source, cell].

    With the states of the same picture, then of another one.

    Parameters
    ----------
    model : Model
    shown, theirs : (Prompt, list of Positions)
        About the same pictures, and about others of their size.
    answers : sequence of str
    cells : sequence of (int, int, int)
    tick : callable
    """
    prompt, groups = shown
    own = target(model, prompt, answers)
    asked = own.scored(prompt)
    # The answers are behind, so what is ahead stays where it is.
    written = [at.shifted(0, asked.length) for at in groups]
    later = sorted({cell[0] for cell in cells})
    # Of an image with few tokens, several groups are the same.
    alike = [next(i for i, at in enumerate(groups) if same(at, group)) for group in groups]
    different = [i for i, (*_, group) in enumerate(cells) if alike[group] == group]
    column_of = [
        different.index(cells.index((read_at, into, alike[group])))
        for read_at, into, group in cells
    ]
    tables = []
    for side in (shown, theirs):
        values = states(model, side, later)
        patches = [
            [Patch("resid_pre", into, written[group], values[group][later.index(read_at)])]
            for read_at, into, group in (cells[i] for i in different)
        ]
        table = answered_cells(model, asked, own, patches, tick=tick)
        tick((len(cells) - len(different)) * len(prompt))
        tables.append(table[column_of])
    return [*np.stack(tables).transpose(2, 0, 1)]


def same(first: Positions, second: Positions) -> bool:
    """Whether two groups are the same tokens of every row."""
    return torch.equal(first.index, second.index) and torch.equal(first.mask, second.mask)


def said_back(
    model: Model,
    shown: Side,
    theirs: Side,
    chosen: Sequence[tuple[Cell, torch.Tensor]],
    decoding: Decoding,
    *,
    tick: Tick,
) -> list[list[str]]:
    """Free answers with the states of the same picture, then of another one, [row][source].

    Parameters
    ----------
    model : Model
    shown, theirs : (Prompt, list of Positions)
        About the same pictures, and about others of their size.
    chosen : sequence of ((int, int, int), Tensor of bool [row])
        Cells, and the rows that they are for.
    decoding : Decoding
    tick : callable
    """
    prompt, groups = shown
    by_source = []
    later = sorted({cell[0] for cell, _ in chosen})
    for side in (shown, theirs):
        values = states(model, side, later) if later else []
        patches = [
            Patch(
                "resid_pre",
                into,
                groups[group].only(rows),
                values[group][later.index(read_at)],
            )
            for (read_at, into, group), rows in chosen
        ]
        by_source.append(
            [text for [text] in free_answers(model, prompt, [patches], decoding, tick=tick)]
        )
    return [list(texts) for texts in zip(*by_source, strict=True)]
