"""Writing the VLM's own later state into an earlier layer, so that recall gets a second chance.

Every cell of a grid, a pair of layers at a group of tokens, is tried by whether the canonical
answer is what greedy decoding would give, on lost items, where there are many on as many of each
half of the entities. Two nulls are tried in the same cells. *Another picture's states* rule out
that any state there would do. They also take away what the own picture has at the earlier layer, so
they do not tell whether the *later* state is what helps: *another picture's change* does, which is
added to the own earlier state. The cell that gives most above both on one half is used on all items
of the other, where answers are free, and the other way round: what is scored has no say in the
choice, so the number is not the greatest of many.
"""

from collections.abc import Callable, Mapping, Sequence
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
SOURCES = ("own", "null", "change")
"""What is written: the own later state, another's, and another's change on the own earlier one."""
ARMS_OF_IT = ("back_patching", "back_patching_null", "back_patching_null_change")
"""The arms, in that order."""


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
        ``own``, ``null`` and ``change`` (cell, searched), see :data:`SOURCES`: the canonical
        answer's tokens are all the likeliest; ``searched``: the ids of these lost items;
        ``searched_entity`` (searched); ``later``, ``earlier`` and ``back_place`` (cell);
        ``has_null`` (tried); ``chosen_cell`` and ``chosen_cell_null`` (part): the cell at which own
        states give most above both nulls on the other half, and that at which others' states give
        most, -1 for none.
    arms : dict of str to Outcomes
        Free answers at the chosen cell, by :data:`ARMS_OF_IT`.
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
    n_sources = len(SOURCES)
    of_items = on_grid.map(answered_back, in_grid, model=study.vlm, passes=n_sources * len(cells))
    tables = {
        name: side_by_side([tables[source] for tables in of_items], (len(cells),), dtype=bool)
        for source, name in enumerate(SOURCES)
    }
    has_null, of_searched = questions.has_rival, half[searched]
    there = has_null[searched]
    best = best_cells(tables, of_searched, there)
    best_null = chosen_elsewhere(tables["null"][:, there], of_searched[there])

    def used(rows: Rows) -> Task:
        parts = [torch.tensor(half[rows] == part) for part in (0, 1)]
        chosen = [(cells[cell], part) for cell, part in zip(best, parts, strict=True) if cell >= 0]
        return *sides(rows), chosen, study.decoding

    said = questions.map(said_back, used, model=study.vlm, passes=n_sources)
    arms = {}
    untried = best[half] < 0
    for source, arm in enumerate(ARMS_OF_IT):
        outcome = Outcomes.of(questions.score([texts[source] for texts in said]))
        arms[arm] = outcome.without(untried | (~has_null if source else False))
    grid = xr.Dataset(
        {
            **{name: (("cell", "searched"), table) for name, table in tables.items()},
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


def best_cells(
    tables: Mapping[str, np.ndarray], half: np.ndarray, has_null: np.ndarray
) -> np.ndarray:
    """For each half, the cell that gives most above both nulls on the other, [half].

    Parameters
    ----------
    tables : mapping of str to ndarray of bool [cell, item]
        By :data:`SOURCES`.
    half : ndarray of int [item]
    has_null : ndarray of bool [item]
        Without a null an item has no say, unless none has one: then own states alone have it.
    """
    counted = has_null if has_null.any() else np.ones_like(has_null)
    own, *nulls = (tables[name].astype(float) for name in SOURCES)
    scores = np.stack([own * counted, *(null * has_null for null in nulls)], axis=-1)

    def above(means: np.ndarray) -> int:
        return int((means[:, 0] - means[:, 1:].max(-1)).argmax())

    return chosen_elsewhere(scores, half, best=above)


Written = Callable[[int, int, int], torch.Tensor]
"""``written(later, earlier, group)``: what a source writes in a cell, [row, token, d_model]."""


def sources(model: Model, shown: Side, theirs: Side, layers: Sequence[int]) -> list[Written]:
    """What each of :data:`SOURCES` writes, of states that enter these layers."""
    order = sorted({*layers})
    of_side = []
    for prompt, groups in (shown, theirs):
        sites = [Site("resid_pre", order, replace(at.filled(), single=False)) for at in groups]
        of_side.append(read(model, prompt, sites) if order else [])
    own, other = of_side
    place = {layer: i for i, layer in enumerate(order)}

    def its_own(later: int, earlier: int, group: int) -> torch.Tensor:
        return own[group][place[later]]

    def another(later: int, earlier: int, group: int) -> torch.Tensor:
        return other[group][place[later]]

    def changed(later: int, earlier: int, group: int) -> torch.Tensor:
        before, after = (other[group][place[layer]].float() for layer in (earlier, later))
        start = own[group][place[earlier]]
        return (start.float() + (after - before)).to(start.dtype)

    return [its_own, another, changed]


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

    By :data:`SOURCES`.

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
    # Of an image with few tokens, several groups are the same.
    alike = [next(i for i, at in enumerate(groups) if same(at, group)) for group in groups]
    different = [i for i, (*_, group) in enumerate(cells) if alike[group] == group]
    column_of = [
        different.index(cells.index((read_at, into, alike[group])))
        for read_at, into, group in cells
    ]
    tables = []
    layers = [layer for read_at, into, _ in cells for layer in (read_at, into)]
    for value in sources(model, shown, theirs, layers):
        patches = [
            [Patch("resid_pre", into, written[group], value(read_at, into, group))]
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
    """Free answers, [row][source], by :data:`SOURCES`.

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
    layers = [layer for (read_at, into, _), _ in chosen for layer in (read_at, into)]
    for value in sources(model, shown, theirs, layers):
        patches = [
            Patch("resid_pre", into, groups[group].only(rows), value(read_at, into, group))
            for (read_at, into, group), rows in chosen
        ]
        by_source.append(
            [text for [text] in free_answers(model, prompt, [patches], decoding, tick=tick)]
        )
    return [list(texts) for texts in zip(*by_source, strict=True)]
