"""What gives the lost facts back: patching the backbone's entity in, and naming it first.

Every arm is tried on *lost* items (recognised, right in text, wrong from the image) and reports
which of them are answered right afterwards; on *kept* items (right from the image) the same arms
report harm. Patches act in the prefill only. The values are the backbone's at the last token of
the entity's name, from the text question's run: block outputs in the blocks that give half of its
enrichment, MLP outputs in the whole enrichment window.

========================================  ========================================================
arm                                       what is written, and where
========================================  ========================================================
``transplant_all_image``                  block outputs, into every image token
``transplant_last_image``                 the same, into the last image token only
``transplant_all_image_mlp``              MLP outputs only, into every image token
``transplant_question``,                  the same three where an image has no tokens: into the
``transplant_last_token``,                question's tokens, or the last of the prompt
``transplant_question_mlp``
``transplant_heuristic``                  block outputs, into the one token where that raises the
                                          answer's probability most on other entities
``transplant_random_position``            as the first, into as many random text tokens
``wrong_entity``                          another entity's values, into every image token
``mean_entity``                           the mean over the other entities
``norm_matched``                          random vectors of the same norm
``back_patching``                         the VLM's own later state, into an earlier layer
``back_patching_null``                    the same search with another picture's states
``cot_named``                             the VLM says its own name for it, then is asked
``cot_gold``, ``cot_wrong``               the same with the right name, with a wrong one
========================================  ========================================================
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from twohop.answering import answers
from twohop.asking import (
    Scored,
    Study,
    another,
    by_relation,
    chain_prompt,
    score,
    text_array,
)
from twohop.back_patching import back_patching, dev_part
from twohop.entities.items import Item
from twohop.heuristic import gains, transplant_at
from twohop.running import on_each
from twohop.transplant import (
    LAST,
    PATCH_ARMS,
    WHOLE,
    WITHOUT_IMAGE_TOKENS,
    follows,
    has_other,
    own_arm,
    random_positions,
    transplant_arms,
)
from twohop.window import known_items

ARMS = (
    *PATCH_ARMS[:3],
    *WITHOUT_IMAGE_TOKENS.values(),
    "transplant_heuristic",
    "transplant_random_position",
    *PATCH_ARMS[3:],
    "back_patching",
    "back_patching_null",
    "cot_named",
    "cot_gold",
    "cot_wrong",
)


def chains(
    study: Study, items: Sequence[Item], arms: Mapping[str, Sequence[str]]
) -> dict[str, Scored]:
    """Ask after names have been said of the pictures; free answers only.

    Parameters
    ----------
    study : Study
    items : sequence of Item
    arms : dict of str to sequence of str
        For each arm, the name said of each item's picture.

    Returns
    -------
    dict of str to Scored
        One per arm.
    """
    # Arms often say the same name: each is asked once.
    asked = {
        (item.id, name): (item, name)
        for names in arms.values()
        for item, name in zip(items, names, strict=True)
    }
    wanted, keys = list(asked.values()), list(asked)
    groups = [rows for _, rows in by_relation([item for item, _ in wanted])]
    tasks = (
        (
            chain_prompt(study, [wanted[i][0] for i in rows], [wanted[i][1] for i in rows]),
            None,
            study.decoding,
        )
        for rows in groups
    )
    found = on_each(study.vlm, answers, tasks, tick=study.tick)
    study.tick(len(arms) * len(items) - len(wanted))
    said = {
        keys[row]: text
        for rows, answered in zip(groups, found, strict=True)
        for row, text in zip(rows, answered["texts"], strict=True)
    }
    return {
        arm: score(
            study,
            items,
            [said[item.id, name] for item, name in zip(items, names, strict=True)],
            [""] * len(items),
        )
        for arm, names in arms.items()
    }


def recovery(study: Study, gates: xr.Dataset, *, last_block: int, last_mlp: int) -> xr.Dataset:
    """Run every arm.

    Parameters
    ----------
    study : Study
    gates : Dataset
        From :func:`twohop.recall.recall`.
    last_block : int
        Block outputs are written in blocks 0 to this one: those that give half of the enrichment.
    last_mlp : int
        MLP outputs are written in blocks 0 to this one: the enrichment window.

    Returns
    -------
    Dataset
        ``recovered`` (arm, lost): right after the intervention (a share, for the random
        positions), NaN where an arm was not tried on an item; ``said`` (arm, lost); ``followed``
        (follow_arm, tried): the answer is that of the entity whose values, or name, were put in;
        ``still_right`` (harm_arm, kept); back-patching as :func:`back_patching`;
        ``heuristic_gain`` (heuristic_place), nats, on the part that chose the place. Attributes
        ``whole_arm``: the transplant that the diagnosis goes by; ``heuristic``: the place.
    """
    benchmark, protocol = study.benchmark, study.protocol
    right = {gate: gates["right"].sel(gate=gate).values for gate in gates["gate"].values}
    able = right["recognised"] & right["backbone_text"] & ~gates["surface"].values
    lost = [
        item for item, gone in zip(benchmark.items, able & ~right["vlm_image"], strict=True) if gone
    ]
    tried = known_items(
        benchmark.items, able & ~right["vlm_image"], seed=study.seed, limit=protocol.lost_items
    )
    kept = known_items(
        benchmark.items, able & right["vlm_image"], seed=study.seed, limit=protocol.kept_items
    )
    place = {item.id: i for i, item in enumerate(benchmark.items)}
    own_names = gates["text"].sel(gate="recognised").values

    arms: dict[str, np.ndarray] = {}
    said: dict[str, list[str]] = {}
    followed: dict[str, np.ndarray] = {}
    still: dict[str, np.ndarray] = {}
    if tried:
        for arm, scored in transplant_arms(
            study, tried, last_block=last_block, last_mlp=last_mlp, arms=PATCH_ARMS[1:]
        ).items():
            arms[arm], said[arm] = scored.right, scored.texts
            if arm == "wrong_entity":
                followed[arm] = follows(study, tried, scored)
        every = np.ones(len(tried), bool)
        some = known_items(tried, every, seed=study.seed, limit=protocol.random_items)
        arms["transplant_random_position"] = np.full(len(tried), np.nan)
        arms["transplant_random_position"][[tried.index(item) for item in some]] = random_positions(
            study, some, last_block=last_block
        ).mean(0)
        names = {
            "cot_named": [str(own_names[place[item.id]]) for item in tried],
            "cot_gold": [item.entity.name for item in tried],
            "cot_wrong": [
                (one or item).entity.name
                for one, item in zip(another(study, tried), tried, strict=True)
            ],
        }
        for arm, scored in chains(study, tried, names).items():
            arms[arm], said[arm] = scored.right, scored.texts
            if arm == "cot_wrong":
                followed[arm] = follows(study, tried, scored)
        for arm in ("wrong_entity", "cot_wrong"):
            arms[arm] = np.where(has_other(study, tried), arms[arm].astype(float), np.nan)
    scores, arms["transplant_heuristic"], words_there = heuristic(study, tried, last=last_block)
    said["transplant_heuristic"] = words_there
    back = back_patching(study, tried)
    arms["back_patching"] = back["own"].values[back.attrs["chosen"]]
    null = back["null"].values[back.attrs["chosen_null"]].astype(float)
    arms["back_patching_null"] = np.where(back["has_null"].values, null, np.nan)
    whole_arm = own_arm(study.vlm, WHOLE)
    where = [[item.id for item in lost].index(item.id) for item in tried]
    tables = {name: np.full(len(lost), np.nan) for name in ARMS}
    words = {name: [""] * len(lost) for name in tables}
    for arm, row in arms.items():
        tables[arm][where] = row
        for i, text in zip(where, said.get(arm, []), strict=False):
            words[arm][i] = text
    if lost:
        # The arm that the diagnosis of every lost item needs is run on all of them.
        [whole] = transplant_arms(
            study, lost, last_block=last_block, last_mlp=last_mlp, arms=PATCH_ARMS[:1]
        ).values()
        tables[whole_arm] = whole.right.astype(float)
        words[whole_arm] = whole.texts
    if kept:
        for arm, scored in transplant_arms(
            study, kept, last_block=last_block, last_mlp=last_mlp, arms=(WHOLE, LAST)
        ).items():
            still[arm] = scored.right
        own = [str(own_names[place[item.id]]) for item in kept]
        still["cot_named"] = chains(study, kept, {"cot_named": own})["cot_named"].right
    result = xr.Dataset(
        {
            "recovered": (("arm", "lost"), _table(tables, len(lost))),
            "said": (
                ("arm", "lost"),
                text_array(list(words.values())).reshape(len(words), len(lost)),
            ),
            "followed": (("follow_arm", "tried"), _table(followed, len(tried))),
            "still_right": (("harm_arm", "kept"), _table(still, len(kept))),
            "lost_entity": ("lost", text_array([item.entity.name for item in lost])),
            "tried_entity": ("tried", text_array([item.entity.name for item in tried])),
            "kept_entity": ("kept", text_array([item.entity.name for item in kept])),
        },
        coords={
            "arm": list(tables),
            "follow_arm": list(followed),
            "harm_arm": list(still),
            "lost": [item.id for item in lost],
            "tried": [item.id for item in tried],
            "kept": [item.id for item in kept],
        },
        attrs={
            "last_block": last_block,
            "last_mlp": last_mlp,
            "random_seeds": protocol.random_seeds,
            "whole_arm": whole_arm,
            "heuristic": max(scores, key=lambda place: scores[place], default="none"),
        },
    )
    result["heuristic_gain"] = ("heuristic_place", np.array([*scores.values()], dtype=float))
    result = result.assign_coords(heuristic_place=[*scores])
    return result.merge(back, combine_attrs="no_conflicts")


def heuristic(
    study: Study, items: Sequence[Item], *, last: int
) -> tuple[dict[str, float], np.ndarray, list[str]]:
    """Choose the place of the transplant on one part of the entities, and score the others.

    Returns
    -------
    scores : dict of str to float
        For each place, the mean log-probability it gives to the answer's first token, nats; empty
        where there are no two entities.
    recovered : ndarray [item]
        NaN on the part that chose.
    said : list of str
    """
    dev = dev_part(items, seed=study.seed, protocol=study.protocol)
    recovered, said = np.full(len(items), np.nan), [""] * len(items)
    if not dev.any():
        return {}, recovered, said
    chosen_on = [item for item, here in zip(items, dev, strict=True) if here]
    found, table = gains(study, chosen_on, component="resid_post", last=last)
    mean = table.mean(1)
    rest = np.nonzero(~dev)[0].tolist()
    place = found[int(mean.argmax())]
    scored = transplant_at(
        study, [items[i] for i in rest], place, component="resid_post", last=last
    )
    recovered[rest] = scored.right
    for i, text in zip(rest, scored.texts, strict=True):
        said[i] = text
    scores = {str(one): float(gain) for one, gain in zip(found, mean, strict=True)}
    return scores, recovered, said


def _table(rows: dict[str, np.ndarray], width: int) -> np.ndarray:
    return np.array([np.asarray(row, dtype=float) for row in rows.values()]).reshape(
        len(rows), width
    )
