"""What gives the lost facts back: patching the backbone's entity in, and naming it first.

Every arm is tried on *lost* items (recognised, right in text, wrong from the image) and reports
which of them are answered right afterwards; on *kept* items (right from the image) the same arms
report harm. Patches act in the prefill only. The values are the backbone's at the last token of
the entity's name, from the text question's run: block outputs in the blocks that give half of its
enrichment, MLP outputs in the whole enrichment window. What each arm writes, and where, is in
:data:`twohop.stages.recovery.arms.ALL_ARMS`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from twohop.ask.answers import answers
from twohop.ask.on_server import Task
from twohop.ask.questions import Questions, Rows, Scored
from twohop.ask.study import Study, chain_prompt, text_array
from twohop.stages.recovery.arms import ARMS, LAST, WHOLE, WRITTEN
from twohop.stages.recovery.back_patching import back_patching, dev_part
from twohop.stages.recovery.heuristic import gains, transplant_at
from twohop.stages.recovery.transplants import own_arm, random_positions, transplant_arms
from twohop.stages.windows import known_items


def chains(questions: Questions, arms: Mapping[str, Sequence[str]]) -> dict[str, Scored]:
    """Ask after names have been said of the pictures; free answers only.

    Parameters
    ----------
    questions : Questions
    arms : dict of str to sequence of str
        For each arm, the name said of each item's picture.

    Returns
    -------
    dict of str to Scored
        One per arm.
    """
    study = questions.study
    # Arms often say the same name: each is asked once.
    wanted = {
        (item.id, name): (item, name)
        for names in arms.values()
        for item, name in zip(questions.items, names, strict=True)
    }
    asked = Questions(study, [item for item, _ in wanted.values()])
    said_first = [name for _, name in wanted.values()]

    def arguments(rows: Rows) -> Task:
        items, names = [asked.items[i] for i in rows], [said_first[i] for i in rows]
        return chain_prompt(study, items, names), None, study.decoding

    of_items = asked.map(answers, arguments, model=study.vlm)
    said = {key: answer["text"] for key, answer in zip(wanted, of_items, strict=True)}
    return {
        arm: questions.score(
            [said[item.id, name] for item, name in zip(questions.items, names, strict=True)]
        )
        for arm, names in arms.items()
    }


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
        ``recovered`` (arm, lost): right after the intervention (a share, for the random
        positions), NaN where an arm was not tried on an item; ``said`` (arm, lost); ``followed``
        (follow_arm, tried): the answer is that of the entity whose values, or name, were put in;
        ``still_right`` (harm_arm, kept); back-patching as :func:`back_patching`;
        ``heuristic_gain`` (heuristic_place), nats, on the part that chose the place. Attributes
        ``whole_arm``: the transplant that the diagnosis goes by; ``heuristic``: the place.
    """
    items, protocol = study.benchmark.items, study.protocol
    right = {gate: gates["right"].sel(gate=gate).values for gate in gates["gate"].values}
    able = right["recognised"] & right["backbone_text"] & ~gates["surface"].values
    gone, there = able & ~right["vlm_image"], able & right["vlm_image"]
    lost = Questions(study, [item for item, here in zip(items, gone, strict=True) if here])
    tried = Questions(study, known_items(items, gone, seed=study.seed, limit=protocol.lost_items))
    kept = Questions(study, known_items(items, there, seed=study.seed, limit=protocol.kept_items))
    own_names = dict(
        zip(gates["item"].values, gates["text"].sel(gate="recognised").values, strict=True)
    )

    def own_name(questions: Questions) -> list[str]:
        return [str(own_names[item.id]) for item in questions.items]

    arms: dict[str, np.ndarray] = {}
    said: dict[str, list[str]] = {}
    followed: dict[str, np.ndarray] = {}
    still: dict[str, np.ndarray] = {}
    if len(tried):
        scored = transplant_arms(tried, last_block=last_block, last_mlp=last_mlp, arms=WRITTEN[1:])
        arms["transplant_random_position"] = random_positions(tried, last_block=last_block).mean(0)
        names = {
            "cot_named": own_name(tried),
            "cot_gold": [item.entity.name for item in tried.items],
            "cot_wrong": [other.entity.name for other in tried.others.items],
        }
        scored |= chains(tried, names)
        for arm, answered in scored.items():
            arms[arm], said[arm] = answered.right, answered.texts
        for arm in ("wrong_entity", "cot_wrong"):
            followed[arm] = tried.follows(said[arm])
            arms[arm] = np.where(tried.has_rival, arms[arm].astype(float), np.nan)
    scores, arms["transplant_heuristic"], said["transplant_heuristic"] = heuristic(
        tried, last=last_block
    )
    back = back_patching(tried)
    arms["back_patching"] = back["own"].values[back.attrs["chosen"]]
    null = back["null"].values[back.attrs["chosen_null"]].astype(float)
    arms["back_patching_null"] = np.where(back["has_null"].values, null, np.nan)
    whole_arm = own_arm(study.vlm, WHOLE)
    where = [[*lost.items].index(item) for item in tried.items]
    tables = {name: np.full(len(lost), np.nan) for name in ARMS}
    words = {name: [""] * len(lost) for name in tables}
    for arm, row in arms.items():
        tables[arm][where] = row
        for i, text in zip(where, said.get(arm, []), strict=False):
            words[arm][i] = text
    if len(lost):
        # The arm that the diagnosis of every lost item needs is run on all of them.
        [whole] = transplant_arms(
            lost, last_block=last_block, last_mlp=last_mlp, arms=(WHOLE,)
        ).values()
        tables[whole_arm] = whole.right.astype(float)
        words[whole_arm] = whole.texts
    if len(kept):
        harmed = transplant_arms(
            kept, last_block=last_block, last_mlp=last_mlp, arms=(WHOLE, LAST)
        ) | chains(kept, {"cot_named": own_name(kept)})
        still = {arm: answered.right for arm, answered in harmed.items()}
    result = xr.Dataset(
        {
            "recovered": (("arm", "lost"), _table(tables, len(lost))),
            "said": (
                ("arm", "lost"),
                text_array(list(words.values())).reshape(len(words), len(lost)),
            ),
            "followed": (("follow_arm", "tried"), _table(followed, len(tried))),
            "still_right": (("harm_arm", "kept"), _table(still, len(kept))),
            "lost_entity": ("lost", text_array([item.entity.name for item in lost.items])),
            "tried_entity": ("tried", text_array([item.entity.name for item in tried.items])),
            "kept_entity": ("kept", text_array([item.entity.name for item in kept.items])),
        },
        coords={
            "arm": list(tables),
            "follow_arm": list(followed),
            "harm_arm": list(still),
            "lost": [item.id for item in lost.items],
            "tried": [item.id for item in tried.items],
            "kept": [item.id for item in kept.items],
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


def heuristic(questions: Questions, *, last: int) -> tuple[dict[str, float], np.ndarray, list[str]]:
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
    study, n = questions.study, len(questions)
    dev = dev_part(questions.items, seed=study.seed, protocol=study.protocol)
    recovered, said = np.full(n, np.nan), [""] * n
    if not dev.any():
        return {}, recovered, said
    chosen_on, rest = (np.nonzero(rows)[0].tolist() for rows in (dev, ~dev))
    places, table = gains(questions.only(chosen_on), last=last)
    mean = table.mean(1)
    place = places[int(mean.argmax())]
    scored = transplant_at(questions.only(rest), place, last=last)
    recovered[rest] = scored.right
    for i, text in zip(rest, scored.texts, strict=True):
        said[i] = text
    scores = {str(tried): float(gain) for tried, gain in zip(places, mean, strict=True)}
    return scores, recovered, said


def _table(rows: dict[str, np.ndarray], width: int) -> np.ndarray:
    return np.array([np.asarray(row, dtype=float) for row in rows.values()]).reshape(
        len(rows), width
    )
