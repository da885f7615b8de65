"""The study on models whose answer is known by construction (:mod:`micro_surgery`).

Nothing is trained here: micro models are changed by hand, so that it is known in which block the
entity of a picture comes into the form that recall reads, or what else is wrong. The study must
find it.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import micro_surgery as surgery
import numpy as np
import pytest
import torch
import xarray as xr
from micro_surgery import DEPTH, KNOWN, PLACES, RECALL
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

from interventions import load
from interventions.results import read_tree
from twohop.ask.questions import Questions
from twohop.ask.study import Study, longest_answer
from twohop.items.formats import COMPLETION
from twohop.micro import NAMING, TEMPLATES
from twohop.micro.parts import build_tokenizer
from twohop.pairs import Pair
from twohop.protocol import Protocol
from twohop.running.pair_run import Settings
from twohop.running.study import run_study
from twohop.stages.recovery.transplants import sources, whole_arms
from twohop.stages.run import run_stages
from twohop.stages.table import BACKBONE_STAGES
from twohop.stages.timing import STATES, Timing, timing
from twohop.stages.windows import known_items
from twohop.statistics import Estimate, difference

READ_OUT = PLACES[5]
"""Last block behind which a swapped entity still changes the micro backbone's answer."""
FAR = 5
DELAYS = (1, RECALL[0], RECALL[1], FAR, READ_OUT)
"""Before the recall blocks; the first of them; the last, and so too late; further; past even the
read-out."""
FORGOTTEN = KNOWN[:2]
BY_LUCK = len(TEMPLATES)
"""Items of an entity. Where all pictures look the same to it, the transfer probe says one entity of
them all, and so reads that one rightly too early."""
FAST = replace(Protocol.preset("quick"), window_blocks=32, timetable_layers=16, gate_resamples=40)
"""A first look, but for the windows and the timetable, in which every block counts."""


@dataclass(frozen=True)
class Found:
    """What the stages of the study found of a pair."""

    study: Study
    stages: dict[str, xr.Dataset]

    @property
    def verdicts(self) -> dict[str, int]:
        """Number of items by verdict."""
        names, counts = np.unique(self.stages["diagnosis"]["verdict"].values, return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    @property
    def lost(self) -> int:
        """Items that are named, known in text, and wrong from the image."""
        return self.stages["recovery"].sizes["lost"]

    def right(self, gate: str, name: str = "right") -> np.ndarray:
        """Whether items are right at a gate."""
        return self.stages["recall"][name].sel(gate=gate).values.astype(bool)

    def gap(self, name: str = "right") -> Estimate:
        """What is lost from the image, as a share of all items."""
        entities = self.stages["recall"]["entity"].values
        return difference(
            self.right("backbone_text", name), self.right("vlm_image", name), entities
        )

    @property
    def timing(self) -> Timing:
        """When the entities come."""
        return timing(self.stages["resolution"], self.stages["timetable_vlm"])

    @property
    def times(self) -> dict[str, int]:
        """Number of entities by when they come."""
        state = self.timing.state.tolist()
        return {name: state.count(name) for name in STATES if name in state}

    def recovered(self, arm: str) -> float:
        """Share of the lost items that an arm gives back."""
        return float(self.stages["recovery"]["recovered"].sel(arm=arm).mean())


class Clinic:
    """Stores changed models and studies them; what is the backbone's is measured once."""

    def __init__(self, folder: Path, backbone: LlamaForCausalLM) -> None:
        self.folder = folder
        self.backbone = backbone
        self.stored = surgery.stored(backbone, folder / "backbone")
        self.language_model = load(self.stored)
        self.benchmark = surgery.benchmark()
        self.kept: dict[str, xr.Dataset] = {}

    def pair(self, name: str, vlm: LlavaForConditionalGeneration) -> Pair:
        """Store a VLM; the pair that it is with the backbone."""
        seen = surgery.stored(vlm, self.folder / name)
        return Pair(name, lambda: seen, lambda: self.stored, surgery.benchmark, name, COMPLETION)

    def study(self, pair: Pair) -> Study:
        """What the stages of a pair are given."""
        return Study(
            vlm=load(pair.vlm()),
            backbone=self.language_model,
            benchmark=self.benchmark,
            max_new_tokens=longest_answer(self.language_model, self.benchmark),
            protocol=FAST,
        )

    def diagnosed(self, name: str, vlm: LlavaForConditionalGeneration, *maps: str) -> Found:
        """Run the stages that a diagnosis needs, and maps."""
        study = self.study(self.pair(name, vlm))
        found = run_stages(["diagnosis", *maps], study, self.kept)
        self.kept = {stage: found[stage] for stage in BACKBONE_STAGES if stage in found}
        return Found(study, found)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Clinic:
    backbone = surgery.widened(surgery.plain_backbone())
    return Clinic(tmp_path_factory.mktemp("models"), backbone)


@pytest.fixture(scope="module")
def delayed(clinic: Clinic) -> Callable[[int], Found]:
    @cache
    def at(block: int) -> Found:
        maps = ("map_text", "map_image") if block < RECALL[0] else ()
        vlm = surgery.delayed(clinic.backbone, block)
        return clinic.diagnosed(f"delayed-{block}", vlm, *maps)

    return at


def test_the_wider_backbone_says_what_the_micro_backbone_says(clinic: Clinic) -> None:
    plain, moving = surgery.plain_backbone(), deepcopy(clinic.backbone)
    surgery.moves_at(moving, RECALL[0])
    surgery.says_names(moving, when=surgery.ALWAYS)
    texts = [t.fill(one.name) for t in (NAMING, *TEMPLATES.values()) for one in KNOWN]
    inputs = build_tokenizer()(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = plain(**inputs).logits
        for wider in (clinic.backbone, moving):
            torch.testing.assert_close(wider(**inputs).logits, wanted, atol=5e-4, rtol=0)


def test_the_recall_blocks_are_found_where_they_were_put(
    delayed: Callable[[int], Found],
) -> None:
    stages = delayed(1).stages
    assert stages["windows"].attrs["enrichment_end"] == RECALL[-1]
    assert stages["windows"].attrs["readout_end"] == READ_OUT
    assert stages["map_text"]["first_block"].values.tolist() == [*range(DEPTH)]
    for stage, mover in (("map_text", []), ("map_image", [1])):
        share = stages[stage]["share"].sel(group="right")
        mlp = share.sel(component="mlp_out", role="entity").values
        assert mlp[list(RECALL)].max() > 0.2
        assert mlp[mover] == pytest.approx(1, abs=0.01), "who is seen passes there, and only there"
        idle = [block for block in range(DEPTH) if block not in (*RECALL, *mover)]
        assert np.abs(mlp[idle]).max() < 1e-3


def test_the_deadlines_are_where_recall_was_put(delayed: Callable[[int], Found]) -> None:
    """A form that recall reads must be there before recall; what recall made, until read-out."""
    timetable = delayed(1).stages["timetable"]
    low, high = (timetable[f"deadline_{end}"].values for end in ("low", "high"))
    assert (RECALL[0] < low[: RECALL[0] + 1]).all()
    assert (high[: RECALL[0] + 1] < RECALL[-1]).all()
    made = slice(RECALL[-1] + 1, READ_OUT + 1)
    assert (low[made] > READ_OUT).all()
    assert (high[made] < READ_OUT + 2).all()


def test_an_entity_comes_behind_the_block_that_forms_it(delayed: Callable[[int], Found]) -> None:
    """As so many blocks are done then: one more than the number of the block."""
    for block in DELAYS:
        came = delayed(block).timing
        assert came.read.all()
        assert (came.blocks == block + 1).sum() >= len(KNOWN) - 3
        assert set(came.form[came.read]) <= {*range(RECALL[0] + 1)}


@pytest.mark.parametrize("block", DELAYS)
def test_late_is_said_exactly_where_the_delay_passes_the_deadline(
    delayed: Callable[[int], Found], block: int
) -> None:
    found = delayed(block)
    assert found.right("recognised").all()
    if block < RECALL[0]:
        assert found.gap().high < 0.25
        assert found.verdicts["right"] > 0.8 * len(found.study.benchmark.items)
        assert not {"late", "never_in_circuit"} & {*found.verdicts}
        assert found.times.get("late", 0) <= 1
        return
    assert found.gap().low > 0.3
    # The backbone's whole state gives facts back; its MLPs' outputs alone are wiped by the mover.
    assert found.recovered("transplant_all_image") > 0.9
    assert found.recovered("transplant_last_image") > 0.9
    assert found.recovered("transplant_all_image_mlp") < 0.1
    assert set(found.verdicts) <= {"right", "knowledge_missing", "late", "not_tested"}
    assert found.lost - BY_LUCK <= found.verdicts["late"] <= found.lost


@pytest.mark.parametrize("block", [one for one in DELAYS if one >= RECALL[0]])
def test_back_patching_gives_back_from_behind_the_delay_and_from_nowhere_else(
    delayed: Callable[[int], Found], block: int
) -> None:
    recovery = delayed(block).stages["recovery"]
    own, null = (recovery[name].mean("searched").values for name in ("own", "null"))
    formed, in_time = recovery["later"].values > block, recovery["earlier"].values <= RECALL[0]
    assert own[formed & in_time].max() > 0.85
    assert own[~formed].max(initial=0) < 0.25
    assert null.max() < 0.25
    assert formed[recovery["chosen_cell"].values].all()


def test_what_is_formed_behind_all_that_is_tested_is_not_called_late_or_never(
    delayed: Callable[[int], Found],
) -> None:
    """Of the layers that an onset takes, one is left; back-patching takes no state from there."""
    found = delayed(8)
    assert found.stages["recovery"]["later"].max() == 8
    assert found.recovered("transplant_all_image") > 0.9
    assert not {"late", "never_in_circuit"} & {*found.verdicts}
    assert found.verdicts["not_tested"] >= found.lost - 2 * BY_LUCK


def test_recall_that_fine_tuning_moved_is_held_to_where_it_is_now(
    clinic: Clinic,
) -> None:
    """One block later: what is in time for it would be late for the backbone's."""
    later = surgery.widened(surgery.plain_backbone(), places=surgery.MOVED)
    behind = surgery.MOVED[surgery.RECALL_BLOCKS[0]]
    found = clinic.diagnosed("moved-in-time", surgery.delayed(later, behind - 1), "windows_vlm")
    stages = found.stages
    assert stages["windows"].attrs["enrichment_end"] == RECALL[-1]
    assert stages["windows_vlm"].attrs["enrichment_end"] == RECALL[-1] + 1
    assert "late" not in found.verdicts
    assert found.verdicts["right"] > 0.7 * len(found.study.benchmark.items)
    late = clinic.diagnosed("moved-late", surgery.delayed(later, FAR))
    assert not {"never_in_circuit", "in_time"} & {*late.verdicts}


def test_what_is_late_in_another_basis_is_not_tested(clinic: Clinic) -> None:
    """The VLM's own text is not read by the probes: nothing is said of when entities come."""
    pair = clinic.pair("turned", surgery.turned(surgery.delayed(clinic.backbone, FAR)))
    found = run_stages(["diagnosis"], clinic.study(pair), clinic.kept)
    verdicts = set(found["diagnosis"]["verdict"].values.tolist())
    assert found["diagnosis"]["evidence_state"].sel(test="own_text").item() != "shown"
    assert not verdicts & {"late", "never_in_circuit", "in_time", "unexplained"}
    assert "not_tested" in verdicts


@pytest.mark.parametrize("key", ["micro-aligned", "micro-naming"])
def test_an_echo_is_never_late(clinic: Clinic, key: Any) -> None:
    found = clinic.diagnosed(f"echo-{key}", surgery.echoing(clinic.backbone, key))
    outcomes = found.stages["recall"]["outcome"].sel(gate="vlm_image").values
    assert (outcomes == "echo").all()
    assert found.right("recognised").all()
    assert "late" not in found.verdicts
    if key == "micro-aligned":  # behind the echo it knows the facts
        assert found.gap().value > 0.85
        assert found.gap().low > 0.5, "of twelve entities an interval is wide"
        assert abs(found.gap("choice_right").value) < 0.1
        assert found.verdicts["echo_or_format"] > 0.9 * found.lost
    else:  # in the forced choice its facts are lost as well
        assert found.gap("choice_right").value > 0.4
        assert found.gap("choice_right").low > 0.15


def test_what_the_backbone_has_forgotten_is_knowledge_missing_and_the_rest_is_late(
    tmp_path: Path,
) -> None:
    plain = surgery.plain_backbone()
    surgery.forget(plain, [KNOWN.index(one) for one in FORGOTTEN])
    clinic = Clinic(tmp_path, surgery.widened(plain))
    found = clinic.diagnosed("forgetful", surgery.delayed(clinic.backbone, FAR))
    verdicts = found.stages["diagnosis"]["verdict"]
    gone = verdicts["entity"].isin([one.name for one in FORGOTTEN])
    # A guess that is the same for all is right now and then, in text and from the image.
    of_gone = verdicts.values[gone].tolist()
    assert set(of_gone) <= {"knowledge_missing", "right"}
    assert of_gone.count("knowledge_missing") >= len(of_gone) / 2
    assert found.lost > 12
    assert (verdicts.values[~gone] == "late").sum() >= found.lost - BY_LUCK


@pytest.mark.parametrize("sees", ["Avaria", None])
def test_what_is_not_seen_is_not_recognised(clinic: Clinic, sees: str | None) -> None:
    """One entity is seen in all pictures, and so named rightly once; or noise is."""
    found = clinic.diagnosed(f"blind-{sees}", surgery.blind(clinic.backbone, sees=sees))
    assert found.right("recognised").mean() <= 1 / len(KNOWN)
    assert not {"late", "never_in_circuit"} & {*found.verdicts}
    assert found.verdicts["not_recognised"] > 0.6 * len(found.study.benchmark.items)


def test_where_nothing_is_recognised_the_gap_is_not_measured_and_the_report_says_so(
    clinic: Clinic, tmp_path: Path
) -> None:
    pair = clinic.pair("blind", surgery.blind(clinic.backbone, sees=surgery.UNASKED))
    found = run_study(pair, out=tmp_path, settings=Settings(protocol=FAST))
    assert found == json.loads((tmp_path / "blind" / "summary.json").read_text())
    assert found is not None
    assert found["recognised"]["value"] == 0
    assert found["gap_points"]["value"] is None
    assert found["diagnosis"]["late"]["value"] == 0
    assert not {"late", "never_in_circuit"} & {
        k for k, v in found["diagnosis"].items() if v["value"]
    }
    assert "the gap could not be measured" in (tmp_path / "blind" / "report.html").read_text()
    assert set(BACKBONE_STAGES) < set(read_tree(tmp_path / "blind").children)


def test_arms_that_put_in_nothing_of_the_answer_give_nothing_back(
    delayed: Callable[[int], Found],
) -> None:
    """Over seeds: no more than the best guess that is the same for all would give."""
    found = delayed(FAR)
    lost = found.right("backbone_text") & ~found.right("vlm_image")
    guess, given, followed = [], {"wrong_entity": [], "norm_matched": []}, []
    for seed in range(4):
        study = replace(found.study, seed=seed)
        items = known_items(study.benchmark.items, lost, seed=seed, limit=18)
        questions = Questions(study, items)
        read = sources(questions, last_block=RECALL[-1], last_mlp=RECALL[-1])
        arms = whole_arms(questions, read)
        for arm, shares in given.items():
            shares.append(arms[arm].right.mean())
        followed.append(np.nanmean(questions.follows(arms["wrong_entity"].texts)))
        answers = [(one.relation, one.answers[0]) for one in items]
        best = [max(answers.count(one) for one in answers if one[0] == r) for r in TEMPLATES]
        guess.append(sum(best) / len(items))
    assert np.mean(given["wrong_entity"]) < 0.05, "the other's answers are drawn to be wrong"
    assert np.mean(given["norm_matched"]) < np.mean(guess)
    assert np.mean(followed) > 0.8
