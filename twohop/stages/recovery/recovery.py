"""What gives the lost facts back: patching the backbone's entity in, and naming it first.

Every arm is tried on the same *lost* items (recognised, right in text, wrong from the image), of
which some are answered right afterwards, and on the same *kept* ones (right from the image), where
it reports harm. Patches act in the prefill only. The values are the backbone's at the last token of
the entity's name: block outputs in the blocks that give half of its enrichment, MLP outputs in the
whole enrichment window; from the text question's run, unless an arm says another. What each arm
writes, and where, is in :data:`twohop.stages.recovery.arms.ALL_ARMS`. Places, spans and cells are
chosen on one half of the entities and scored on the other, and the other way round.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from twohop.ask.halves import halves
from twohop.ask.questions import Questions
from twohop.ask.study import Study, text_array
from twohop.items.items import Item
from twohop.stages.recovery.arms import ARMS, FOLLOW, WHOLE
from twohop.stages.recovery.back_patching import back_patching, layer_pairs
from twohop.stages.recovery.chains import chains
from twohop.stages.recovery.elsewhere import Chosen, place_arms, span_arms
from twohop.stages.recovery.transplants import (
    Outcomes,
    own_arm,
    sources,
    whole_arms,
    whole_transplant,
)
from twohop.stages.windows import representative_items

SPAN_VALUES = {
    "span_mlp": "own",
    "span_wrong_entity": "wrong",
    "span_mean_entity": "mean",
    "span_norm_matched": "noise",
}
"""What each arm at the span writes, of :class:`twohop.stages.recovery.transplants.Sources`."""
NO_OTHER_QUESTION = "no relation of the benchmark asks for another fact"
NO_OTHER_ENTITY = "only one entity is tried, so there is no mean over the others"


@dataclass(frozen=True)
class Asked:
    """The items of the recovery.

    Attributes
    ----------
    questions : Questions
        About the lost items that are tried, then about the kept ones.
    n_lost : int
        How many of them are lost.
    half : ndarray of int [item]
        Which half of the entities each is in.
    every_lost : list of Item
        Also those that are not tried.
    n_kept : int
        How many kept ones there are in all.
    """

    questions: Questions
    n_lost: int
    half: np.ndarray
    every_lost: list[Item]
    n_kept: int

    @property
    def tried(self) -> slice:
        """Rows of the lost items."""
        return slice(0, self.n_lost)

    @property
    def kept(self) -> slice:
        """Rows of the kept items."""
        return slice(self.n_lost, None)


def asked_of(study: Study, gates: xr.Dataset) -> Asked:
    """Return the items that the recovery is about.

    Parameters
    ----------
    study : Study
    gates : Dataset
        From :func:`twohop.stages.recall.recall`.
    """
    items, protocol = study.benchmark.items, study.protocol
    right = {gate: gates["right"].sel(gate=gate).values for gate in gates["gate"].values}
    able = right["recognised"] & right["backbone_text"] & ~gates["surface"].values
    gone, there = able & ~right["vlm_image"], able & right["vlm_image"]
    tried = representative_items(items, gone, seed=study.seed, limit=protocol.lost_items)
    kept = representative_items(items, there, seed=study.seed, limit=protocol.kept_items)
    codes = [[item.entity.code for item in part] for part in (tried, kept)]
    # The halves of what is chosen on are as large as can be; who was not tried is in either.
    half_of = {
        code: half
        for part in reversed(codes)
        for code, half in zip(part, halves(part, seed=study.seed), strict=True)
    }
    return Asked(
        Questions(study, [*tried, *kept]),
        len(tried),
        np.array([half_of[code] for part in codes for code in part], dtype=int),
        [item for item, here in zip(items, gone, strict=True) if here],
        int(there.sum()),
    )


def recovery(study: Study, gates: xr.Dataset, *, last_block: int, last_mlp: int) -> xr.Dataset:
    """Run every arm.

    Parameters
    ----------
    study : Study
    gates : Dataset
        From :func:`twohop.stages.recall.recall`.
    last_block : int
        Block outputs are written in blocks 0 to this one: those that give half of the enrichment.
    last_mlp : int
        MLP outputs are written in blocks 0 to this one: the enrichment window.

    Returns
    -------
    Dataset
        ``recovered`` (arm, tried): right after the intervention (of the random arms the share of
        places), NaN where an arm could not be tried; ``still_right`` (arm, kept): the same of items
        that were right; ``said`` (arm, tried); ``followed`` (follow_arm, tried): the answer is that
        of the entity whose values, or name, were put in; ``half`` (tried) and ``kept_half``
        (kept). ``whole`` (lost): right after the whole transplant, of every lost item.
        Back-patching's grid: see :class:`twohop.stages.recovery.back_patching.BackPatched`.
        ``place_gain`` (place, tried), by exact patching, and ``span_score`` (place, tried), by
        ``span_found_by``, nats. Of ``part``, what items of that half were given, chosen on the
        other: ``chosen_place`` and ``chosen_span`` (part), ``chosen_place_index`` (part) and
        ``chosen_span_ends`` (part, end) along ``place``, and ``chosen_cell`` (part) and
        ``chosen_cell_null`` (part) along ``cell``; -1 for none. Attributes: ``n_lost`` and
        ``n_kept``, of all such items; ``whole_arm``: the transplant that the diagnosis goes by;
        ``refused``, JSON: arms that could not be tried at all, and why.
    """
    layer_pairs(study.vlm.n_layers, protocol=study.protocol)  # before what takes long
    asked = asked_of(study, gates)
    questions, half, n = asked.questions, asked.half, asked.n_lost
    told = sources(questions, last_block=last_block, last_mlp=last_mlp) if len(questions) else None
    arms: dict[str, Outcomes] = {}
    refused: dict[str, str] = {}
    if told is not None:
        arms |= whole_arms(questions, told)
        names = {
            str(item): str(name)
            for item, name in zip(
                gates["item"].values, gates["text"].sel(gate="recognised").values, strict=True
            )
        }
        said, refused = chains(questions, [names[item.id] for item in questions.items])
        arms |= said
        if told.no_other_question.all():
            refused["whole_other_question"] = NO_OTHER_QUESTION
        if told.no_mean:
            refused |= dict.fromkeys(("mean_entity", "span_mean_entity"), NO_OTHER_ENTITY)
    place, span = Chosen.of_nothing(study), Chosen.of_nothing(study, ends=True)
    if told is not None and n:
        at_place, place = place_arms(questions, told.resid["own"], half, n)
        written = {arm: told.mlp[source] for arm, source in SPAN_VALUES.items()}
        at_span, span = span_arms(questions, written, half, n)
        arms |= at_place | {arm: came for arm, came in at_span.items() if arm not in refused}
    back = back_patching(questions, half, n)
    arms |= back.arms
    for arm in FOLLOW:
        if arm in arms:
            arms[arm] = arms[arm].without(~questions.has_rival)
    result = _outcomes(asked, arms).merge(back.grid, combine_attrs="no_conflicts")
    result = result.merge(_choices(place, span), combine_attrs="no_conflicts")
    result["whole"] = ("lost", _every_lost(asked, arms, last_block=last_block))
    return result.assign_attrs(
        last_block=last_block,
        last_mlp=last_mlp,
        random_seeds=study.protocol.random_seeds,
        whole_arm=own_arm(study.vlm, WHOLE),
        n_lost=len(asked.every_lost),
        n_kept=asked.n_kept,
        span_found_by=span.by,
        refused=json.dumps(refused),
    )


def _outcomes(asked: Asked, arms: Mapping[str, Outcomes]) -> xr.Dataset:
    """What came of every arm, on lost and on kept items."""
    questions, n = asked.questions, len(asked.questions)
    never = Outcomes(np.full(n, np.nan), [""] * n)
    every = [arms.get(arm, never) for arm in ARMS]
    right = np.array([outcome.right for outcome in every], dtype=float).reshape(len(ARMS), n)
    texts = text_array([outcome.texts for outcome in every]).reshape(len(ARMS), n)
    following = [arms.get(arm, never) for arm in FOLLOW]
    followed = [
        np.where(np.isnan(outcome.right), np.nan, questions.follows(outcome.texts))
        for outcome in following
    ]
    entities = text_array([item.entity.name for item in questions.items])
    ids = [item.id for item in questions.items]
    return xr.Dataset(
        {
            "recovered": (("arm", "tried"), right[:, asked.tried]),
            "still_right": (("arm", "kept"), right[:, asked.kept]),
            "said": (("arm", "tried"), texts[:, asked.tried]),
            "followed": (
                ("follow_arm", "tried"),
                np.array(followed, dtype=float).reshape(len(FOLLOW), n)[:, asked.tried],
            ),
            "half": ("tried", asked.half[asked.tried]),
            "kept_half": ("kept", asked.half[asked.kept]),
            "tried_entity": ("tried", entities[asked.tried]),
            "kept_entity": ("kept", entities[asked.kept]),
            "lost_entity": (
                "lost",
                text_array([item.entity.name for item in asked.every_lost]),
            ),
        },
        coords={
            "arm": list(ARMS),
            "follow_arm": list(FOLLOW),
            "tried": ids[asked.tried],
            "kept": ids[asked.kept],
            "lost": [item.id for item in asked.every_lost],
        },
    )


def _choices(place: Chosen, span: Chosen) -> xr.Dataset:
    """What was chosen for each half on the other."""
    return xr.Dataset(
        {
            "place_gain": (("place", "tried"), place.scores),
            "span_score": (("place", "tried"), span.scores),
            "chosen_place": ("part", text_array(place.names)),
            "chosen_span": ("part", text_array(span.names)),
            "chosen_place_index": ("part", place.which),
            "chosen_span_ends": (("part", "end"), span.which),
        },
        coords={"place": place.candidates},
    )


def _every_lost(asked: Asked, arms: Mapping[str, Outcomes], *, last_block: int) -> np.ndarray:
    """Whether the whole transplant gives each lost item back, those not tried included."""
    study = asked.questions.study
    tried = asked.questions.items[asked.tried]
    back: dict[str, float] = {}
    if tried:
        right = arms[own_arm(study.vlm, WHOLE)].right
        back = {item.id: bool(won) for item, won in zip(tried, right, strict=False)}
    if rest := [item for item in asked.every_lost if item.id not in back]:
        outcome = whole_transplant(Questions(study, rest), last_block=last_block)
        back |= {item.id: bool(won) for item, won in zip(rest, outcome.right, strict=True)}
    return np.array([back[item.id] for item in asked.every_lost], dtype=bool)
