"""By when the entity must be there, and in which form: the backbone's recall timetable.

The backbone is asked about nothing in particular: a neutral word stands in the name's place, as
many times over as the name has tokens. Into this run the entity's own state is written: that which
its name's tokens have after ``form`` blocks, as what enters block ``block``, not earlier than it
comes about by itself. Whether the answer is then given says by when an entity in this form must
arrive to be recalled and read out.

On the diagonal, where form and block are the same, the name's tokens are from there on exactly as
in the model's own run; what stands behind the name has seen the neutral word in the blocks before.
So the diagonal is what is lost by being *looked at* late alone, and what is beyond it is lost by
being *formed* late. Form 0 in block 0 is the model's own run, and is always right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from interventions import Model, Patch, Prompt, Site
from interventions.sweeping.metrics import target
from twohop.ask.memory import read
from twohop.ask.on_server import Task, Tick
from twohop.ask.questions import Questions, Rows, side_by_side
from twohop.ask.study import Study, item_coords, text_prompt
from twohop.items.items import IT, Entity, Item, Template
from twohop.stages.deadlines import deadlines
from twohop.stages.patched import answered_cells
from twohop.stages.recall import same_decoder
from twohop.stages.windows import in_circuit, known_items
from twohop.statistics import of_entities, shares

DENSE = 3
"""First blocks, none of which is left out: there a form changes most from block to block."""


def thinned(n_layers: int, most: int) -> list[int]:
    """Blocks of a timetable: the first three, the last, and between them steps that grow.

    Their square roots are evenly spaced, as recall is early.

    Examples
    --------
    >>> thinned(30, 8), thinned(6, 8)
    ([0, 1, 2, 5, 9, 14, 21, 29], [0, 1, 2, 3, 4, 5])
    """
    if n_layers <= most:
        return [*range(n_layers)]
    roots = np.linspace(np.sqrt(DENSE - 1), np.sqrt(n_layers - 1), most - DENSE + 1)
    return sorted({*range(DENSE), *np.round(roots**2).astype(int).tolist()})


def neutral_ids(model: Model, template: Template) -> list[int]:
    """Tokens of the neutral word as they stand in a question: the study's "it"."""
    prompt = text_prompt(model, template, [Entity(IT, IT)])
    [index] = prompt.at("entity").index
    return prompt.inputs["input_ids"][0, index].tolist()


def about_nothing(prompt: Prompt, ids: Sequence[int]) -> Prompt:
    """Put these tokens, over and over, in the place of each row's name; all else stays."""
    names = prompt.at("entity")
    tokens = prompt.inputs["input_ids"].clone()
    over = torch.tensor(ids).repeat(-(-names.index.shape[1] // len(ids)))
    for row, (index, mask) in enumerate(zip(names.index, names.mask, strict=True)):
        tokens[row, index[mask]] = over[: int(mask.sum())].to(tokens)
    return replace(prompt, inputs={**prompt.inputs, "input_ids": tokens})


def timetable(study: Study, right: np.ndarray) -> xr.Dataset:
    """Measure the backbone's recall timetable.

    Parameters
    ----------
    study : Study
    right : ndarray of bool [item]
        Which items the backbone answers in text.

    Returns
    -------
    Dataset
        Coordinates ``form`` and ``block`` are numbers of blocks done: form ``s`` is the state
        after ``s`` blocks (0: the embeddings), and ``block`` ``t`` is where it is written, into
        what enters block ``t``. ``answered`` (form, block, item): whether every token of the
        canonical answer is then the likeliest; NaN where block < form. ``neutral`` (item): the
        same with nothing written. ``accuracy`` (form, block), with ``accuracy_low`` and
        ``accuracy_high``: its mean and 95 % interval over entities. ``deadline`` (form), with
        ``deadline_low``, ``deadline_high`` and ``deadline_state``: see
        :func:`twohop.stages.deadlines.deadlines`. Attributes: ``n_layers`` of the backbone;
        ``neutral_text``.
    """
    most = study.protocol.timetable_items
    items = known_items(study.benchmark.items, right, seed=study.seed, limit=most)
    return timetable_of(study, study.backbone, items)


def timetable_vlm(study: Study, done: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Measure the recall timetable of the VLM's own language model, in text.

    Parameters
    ----------
    study : Study
    done : mapping of str to Dataset
        ``recall`` and ``timetable``.

    Returns
    -------
    Dataset
        As :func:`timetable`, on those of its items that the VLM answers in text as well. Attribute
        ``same_as_backbone``: 1 where its decoder is bit-equal to the backbone's, so that the
        backbone's timetable is its own.
    """
    backbones = done["timetable"]
    if same_decoder(study.vlm, study.backbone):
        return backbones.assign_attrs(same_as_backbone=1)
    known = in_circuit(done["recall"].sel(gate=["vlm_text"]))
    asked = {*backbones["item"].values.tolist()}
    pairs = zip(study.benchmark.items, known, strict=True)
    return timetable_of(
        study, study.vlm, [item for item, right in pairs if right and item.id in asked]
    )


def timetable_of(study: Study, model: Model, items: Sequence[Item]) -> xr.Dataset:
    """Measure the timetable of a model on some items that it answers."""
    protocol, n_layers = study.protocol, len(model.anatomy.self_blocks)
    layers = thinned(n_layers, protocol.timetable_layers)
    pairs = [(form, block) for form in layers for block in layers if block >= form]
    questions = Questions(study, items)

    def arguments(rows: Rows) -> Task:
        prompt = questions.named(model, rows)
        neutral = about_nothing(prompt, neutral_ids(model, questions.template(rows)))
        return prompt, neutral, [items[i] for i in rows], pairs

    of_items = questions.map(relation_timetable, arguments, model=model, passes=1 + len(pairs))
    cells = side_by_side(of_items, (1 + len(pairs),))
    answered = np.full((len(layers), len(layers), len(items)), np.nan)
    at = [(layers.index(form), layers.index(block)) for form, block in pairs]
    for (row, column), of_cell in zip(at, cells[1:], strict=True):
        answered[row, column] = of_cell
    data = xr.Dataset(
        {"answered": (("form", "block", "item"), answered), "neutral": ("item", cells[0])},
        coords={"form": layers, "block": layers, **item_coords(items)},
        attrs={
            "n_layers": n_layers,
            "neutral_text": IT,
            "same_as_backbone": int(model is study.backbone),
        },
    )
    data = data.assign(deadlines(data, protocol=protocol))
    for name, values in accuracy(data).items():
        data[name] = (("form", "block"), values)
    return data


def accuracy(data: xr.Dataset) -> dict[str, np.ndarray]:
    """Mean over a timetable's items, [form, block], and the ends of its interval."""
    answered = data["answered"].values
    blank = np.full(answered.shape[:2], np.nan)
    names = ("accuracy", "accuracy_low", "accuracy_high")
    tables = {name: blank.copy() for name in names}
    there = data["block"].values >= data["form"].values[:, None]
    if answered.shape[2]:
        share = shares(*of_entities(answered[there], data["entity"].values))
        for name, values in zip(names, (share.value, share.low, share.high), strict=True):
            tables[name][there] = values
    return tables


def relation_timetable(
    model: Model,
    prompt: Prompt,
    neutral: Prompt,
    items: Sequence[Item],
    pairs: Sequence[tuple[int, int]],
    *,
    tick: Tick,
) -> list[np.ndarray]:
    """Write every form at every block, on the items of one relation.

    Parameters
    ----------
    model : Model
    prompt : Prompt
        About all items.
    neutral : Prompt
        The same, about nothing; row by row as many tokens.
    items : sequence of Item
    pairs : sequence of (int, int)
        Form and block.
    tick : callable

    Returns
    -------
    list of ndarray of bool [1 + pair]
        Of each item, whether it is answered with nothing written, and for each pair.
    """
    forms, blocks = sorted({form for form, _ in pairs}), model.anatomy.self_blocks
    sites = [Site("resid_pre", [blocks[form] for form in forms], prompt.at("entity").filled())]
    [states] = read(model, prompt, sites)
    own = target(model, prompt, [item.answers[0] for item in items])
    asked = own.scored(neutral)
    names = asked.at("entity")
    state = dict(zip(forms, states, strict=True))
    cells = [[Patch("resid_pre", blocks[block], names, state[form])] for form, block in pairs]
    answered = answered_cells(model, asked, own, [[], *cells], tick=tick)
    return [*answered.T]
