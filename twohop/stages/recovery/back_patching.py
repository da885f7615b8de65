"""Writing the VLM's own later state into an earlier layer, so that recall gets a second chance."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from interventions import Model, Patch, Prompt, Site
from twohop.ask.answers import Decoding
from twohop.ask.memory import read
from twohop.ask.on_server import Task, Tick
from twohop.ask.questions import Questions, Rows
from twohop.ask.roles import entity_tokens
from twohop.errors import ProtocolError
from twohop.items.items import Item
from twohop.protocol import DEFAULT, Protocol
from twohop.stages.patched import free_answers


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


def dev_part(items: Sequence[Item], *, seed: int, protocol: Protocol = DEFAULT) -> np.ndarray:
    """Which items are of the entities that choices are made on, [item].

    Their share of the entities is the protocol's ``dev_share``.
    """
    codes = sorted({item.entity.code for item in items})
    shuffled = np.random.default_rng(seed).permutation(len(codes))
    n = int(len(codes) * protocol.dev_share + 1e-9)
    part = {codes[i] for i in shuffled[:n]}
    return np.array([item.entity.code in part for item in items], dtype=bool)


def back_patching(questions: Questions) -> xr.Dataset:
    """Write the VLM's own later state at the image tokens into an earlier layer.

    At the question's tokens where an image has none. Every pair of layers is tried on every item;
    the pair is fixed on one part of the entities (``dev``) and scored on the other. The null does
    the same with the states of another entity's picture, in the size of the item's own, so that
    what a search over pairs finds by luck can be told apart.

    Returns
    -------
    Dataset
        ``own`` and ``null`` (pair, tried): the answer is right; ``has_null`` (tried): there was
        another entity to take the null from; ``dev`` (tried);
        ``later`` and ``earlier`` (pair); ``chosen`` and ``chosen_null``: index of
        the pair fixed on dev.
    """
    study, items = questions.study, questions.items
    pairs = layer_pairs(study.vlm.n_layers, protocol=study.protocol)

    def arguments(rows: Rows) -> Task:
        theirs = questions.others.shown(rows, like=questions)
        return questions.shown(rows), theirs, pairs, study.decoding

    passes = 2 * len(pairs)
    of_items = questions.map(said_back, arguments, model=study.vlm, passes=passes)
    tables = {
        name: np.array(
            [
                questions.score([texts[source][pair] for texts in of_items]).right
                for pair in range(len(pairs))
            ]
        )
        for source, name in enumerate(("own", "null"))
    }
    dev = dev_part(items, seed=study.seed, protocol=study.protocol)
    best = {
        name: int(table[:, dev].mean(1).argmax()) if dev.any() else 0
        for name, table in tables.items()
    }
    return xr.Dataset(
        {
            "own": (("pair", "tried"), tables["own"]),
            "null": (("pair", "tried"), tables["null"]),
            "has_null": ("tried", questions.has_rival),
            "dev": ("tried", dev),
            "later": ("pair", [later for later, _ in pairs]),
            "earlier": ("pair", [earlier for _, earlier in pairs]),
        },
        attrs={"chosen": best["own"], "chosen_null": best["null"]},
    )


def said_back(
    model: Model,
    shown: Prompt,
    theirs: Prompt,
    pairs: Sequence[tuple[int, int]],
    decoding: Decoding,
    *,
    tick: Tick,
) -> list[tuple[list[str], ...]]:
    """Free answers with the states of the same picture, then of another one, [row][source][pair].

    Parameters
    ----------
    model : Model
    shown, theirs : Prompt
        About the same pictures, and about others of their size.
    pairs : sequence of (later, earlier)
        Layers read and written.
    decoding : Decoding
    tick : callable
    """
    image, needed = entity_tokens(shown), sorted({later for later, _ in pairs})
    by_source = []
    for prompt in (shown, theirs):
        place = entity_tokens(prompt).filled()
        [states] = read(model, prompt, [Site("resid_pre", needed, place)])
        cells = [
            [Patch("resid_pre", earlier, image, states[needed.index(later)])]
            for later, earlier in pairs
        ]
        by_source.append(free_answers(model, shown, cells, decoding, tick=tick))
    return list(zip(*by_source, strict=True))
