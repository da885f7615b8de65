"""Where hop 2 reads: the recall windows of a model, on its own text run.

At the entity's last token, *necessity*: which blocks' MLPs are needed, from each block up and each
alone; *sufficiency*: up to which block they have to be restored where the token is the mean of the
other entities; and *read-out*: until when the answer is still read there. The state is swapped for
another entity's after a block; the window ends where the answer no longer follows it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from interventions import Model
from twohop.ask.on_server import Task
from twohop.ask.questions import Questions, Rows, by_relation, side_by_side
from twohop.ask.sampling import in_proportion, in_turns
from twohop.ask.study import Study, item_coords
from twohop.items.items import Item
from twohop.scoring import normalise
from twohop.stages.ablation import Grid, relation_windows
from twohop.stages.recall import same_decoder
from twohop.stages.resolution.states import at_names
from twohop.stages.window_ends import ends_of, last_below, readout_end
from twohop.statistics import difference

NO_OTHER = "the model knows the answer about no other entity of its relation, so there is no mean"


def known_items(items: Sequence[Item], right: np.ndarray, *, seed: int, limit: int) -> list[Item]:
    """At most ``limit`` of the items answered right, as many of each relation if possible."""
    return [items[i] for i in in_turns(_shuffled(items, right, seed), limit)]


def representative_items(
    items: Sequence[Item], chosen: np.ndarray, *, seed: int, limit: int
) -> list[Item]:
    """At most ``limit`` of the chosen items, of each relation in proportion to what is chosen.

    A share of these is one of all that are chosen.
    """
    groups = _shuffled(items, chosen, seed)
    return [items[i] for i in in_proportion(groups, limit, seed=seed)]


def _shuffled(items: Sequence[Item], chosen: np.ndarray, seed: int) -> list[list[int]]:
    """Rows of the chosen items of each relation, in random order."""
    generator = np.random.default_rng(seed)
    return [
        [rows[i] for i in generator.permutation(len(rows)) if chosen[rows[i]]]
        for _, rows in by_relation(items)
    ]


def in_circuit(gate: xr.Dataset) -> np.ndarray:
    """The items on which windows and maps may be measured, [item].

    There the answer is checked token by token, so the free answer at this gate must begin with the
    canonical one, which the model gives by itself. Those whose answer begins as the entity's name
    does are none: spelling alone may give it.
    """
    pairs = zip(gate["text"].values[0], gate["answer"].values, strict=True)
    words = [(normalise(said), normalise(answer)) for said, answer in pairs]
    given = np.array([said[: len(answer)] == answer for said, answer in words], dtype=bool)
    return given & ~gate["surface"].values.astype(bool)


def windows(study: Study, known: np.ndarray) -> xr.Dataset:
    """Measure the recall windows of the backbone.

    Parameters
    ----------
    study : Study
    known : ndarray of bool [item]
        Which items the backbone answers in text, :func:`in_circuit`.

    Returns
    -------
    Dataset
        ``enrichment`` (edge, item), necessity: the answer survives if from this block up the MLPs
        are replaced by their mean over the other known entities, at the entity's last token; edge
        ``n_layers`` is no ablation. ``alone`` (block, item): it survives if one block's MLP is.
        ``sufficiency`` (edge, item): it is there if the token is replaced by the mean of the other
        entities, and so are its MLPs, but for the outputs of those before this edge. ``readout``
        (block, item): the answer follows another entity, whose state is swapped in after this
        block. The last three at no more blocks than the protocol's ``window_blocks``. NaN: at other
        blocks; where there is no other entity to take a mean over (attributes ``left_out``, the
        number of items, and ``left_out_reason``) or to swap in.
        ``half_point``, ``half_low``, ``half_high`` (curve): blocks up to which half of what all
        give is reached, by necessity and by sufficiency, :func:`half_point`, with intervals of
        resampled entities. ``alone_drop``, ``alone_low``, ``alone_high`` (block): share of the
        items lost by it, paired, with the closed form's interval. Attributes ``enrichment_end`` and
        ``readout_end``, each with ``_low`` and ``_high``: the last block of each window (-1: none;
        ends that are NaN: it was measured on no item); ``enrichment_half``: the last block of the
        first blocks that together give half of what all MLPs give (the protocol's
        ``transplant_share``).
    """
    benchmark, protocol = study.benchmark, study.protocol
    items = known_items(benchmark.items, known, seed=study.seed, limit=protocol.window_items)
    return windows_of(study, study.backbone, items, known)


def windows_vlm(study: Study, done: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Measure the recall windows of the VLM's own language model, in text.

    Parameters
    ----------
    study : Study
    done : mapping of str to Dataset
        ``recall`` and ``windows``.

    Returns
    -------
    Dataset
        As :func:`windows`, on those of its items that the VLM answers in text as well, so that
        both can be compared item by item; the mean is over all that the VLM knows. Attribute
        ``same_as_backbone``: 1 where its decoder is bit-equal to the backbone's, so that the
        backbone's windows are its own.
    """
    backbones = done["windows"]
    if same_decoder(study.vlm, study.backbone):
        own = backbones.copy()
        own.attrs = {**backbones.attrs, "same_as_backbone": 1}
        return own
    known = in_circuit(done["recall"].sel(gate=["vlm_text"]))
    asked = {*backbones["item"].values.tolist()}
    pairs = zip(study.benchmark.items, known, strict=True)
    items = [item for item, right in pairs if right and item.id in asked]
    return windows_of(study, study.vlm, items, known)


def windows_of(study: Study, model: Model, items: Sequence[Item], known: np.ndarray) -> xr.Dataset:
    """Measure the windows of a model on some items, with means over all that it knows."""
    benchmark, protocol = study.benchmark, study.protocol
    n_layers, most = len(model.anatomy.self_blocks), protocol.window_blocks
    questions = Questions(study, items)
    entities = {
        relation: [benchmark.items[row].entity for row in rows if known[row]]
        for relation, rows in by_relation(benchmark.items)
    }

    def arguments(rows: Rows) -> Task:
        rivals = [questions.rivals[i] for i in rows]
        swapped = [i for i in rows if questions.rivals[i] is not None]
        swap = None
        if swapped:
            swap = questions.named(model, swapped), questions.others.named(model, swapped)
        everyone = entities[items[rows[0]].relation]
        [(names, _)] = at_names(model, [(questions.template(rows), everyone)])
        of_known = names, [entity.code for entity in everyone]
        asked = [items[i] for i in rows]
        return questions.named(model, rows), asked, of_known, rivals, swap, most

    grid = Grid.of(n_layers, most)
    n_cells = n_layers + 1 + len(grid.alone) + len(grid.edges)
    passes = [n_cells + len(grid.swapped) * bool(told) for told in questions.has_rival]
    of_items = questions.map(relation_windows, arguments, model=model, passes=passes)
    sizes = (n_layers + 1, n_layers, n_layers + 1, n_layers)
    survives, alone, suffices, follows = (
        side_by_side([item[i] for item in of_items], (size,)) for i, size in enumerate(sizes)
    )
    names = [item.entity.name for item in items]
    measured = ~np.isnan(survives).any(0)
    curve = survives[:, measured].mean(1) if measured.any() else np.zeros(n_layers + 1)
    necessity, sufficiency = (
        ends_of(answered, names, seed=study.seed, protocol=protocol)
        for answered in (survives, suffices)
    )
    readout = readout_end(follows, names, seed=study.seed, protocol=protocol)
    half = np.stack([necessity.half, sufficiency.half], axis=1)
    left_out = int((~measured).sum())
    return xr.Dataset(
        {
            "enrichment": (("edge", "item"), survives),
            "alone": (("block", "item"), alone),
            "sufficiency": (("edge", "item"), suffices),
            "readout": (("block", "item"), follows),
            **{name: ("curve", numbers) for name, numbers in zip(HALVES, half, strict=True)},
            **{
                name: ("block", numbers)
                for name, numbers in zip(DROPS, _drops(survives[-1], alone, names), strict=True)
            },
        },
        coords={
            "edge": np.arange(n_layers + 1),
            "block": np.arange(n_layers),
            "curve": ["necessity", "sufficiency"],
            **item_coords(items),
        },
        attrs={
            "enrichment_end": int(necessity.last[0]),
            "enrichment_end_low": necessity.last[1],
            "enrichment_end_high": necessity.last[2],
            "enrichment_half": int(
                last_below(curve, curve[0] + protocol.transplant_share * (curve[-1] - curve[0]))
            ),
            "readout_end": int(readout[0]),
            "readout_end_low": readout[1],
            "readout_end_high": readout[2],
            "left_out": left_out,
            "left_out_reason": NO_OTHER if left_out else "",
            "same_as_backbone": int(model is study.backbone),
        },
    )


HALVES = ("half_point", "half_low", "half_high")
DROPS = ("alone_drop", "alone_low", "alone_high")


def _drops(clean: np.ndarray, alone: np.ndarray, entities: Sequence[str]) -> np.ndarray:
    """What each block's ablation alone loses, paired, with its interval: [number, block]."""
    numbers = np.full((len(DROPS), len(alone)), np.nan)
    for block, answered in enumerate(alone):
        there = ~np.isnan(answered)
        if there.any():
            lost = difference(clean[there], answered[there], np.asarray(entities)[there])
            numbers[:, block] = lost.value, lost.low, lost.high
    return numbers
