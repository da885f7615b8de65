"""A whole study on models that run elsewhere, beside the same study here."""

from collections.abc import Iterator

import pytest
from elsewhere import Worker, sends_to, without_weights
from remote_operations import same_dataset

import interventions as iv
from twohop.ask.study import Study, longest_answer
from twohop.micro import micro_folder
from twohop.pairs import find_pair
from twohop.stages.run import run_stages
from twohop.stages.table import STAGES

FOLDERS = [str(micro_folder(key)) for key in ("micro-naming", "micro-backbone")]
ENTITIES = 4
# Ten are the recovery's; one asks about no entity, and one reads pictures for a report's examples.
MOST_REQUESTS = {"vlm": 25, "backbone": 16}


def study_on(vlm: iv.Model, backbone: iv.Model) -> Study:
    benchmark = find_pair("micro-naming").benchmark().limited(ENTITIES)
    tokens = longest_answer(backbone, benchmark)
    return Study(vlm=vlm, backbone=backbone, benchmark=benchmark, max_new_tokens=tokens)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker(FOLDERS)
    yield made
    made.stop()


def test_a_study_elsewhere_gives_what_it_gives_here(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run_stages(STAGES, study_on(*map(iv.load, FOLDERS)))
    sizes: list[int] = []
    sends_to(worker, monkeypatch, sizes)
    vlm, backbone = (without_weights(iv.load(one), one) for one in FOLDERS)
    there = run_stages(STAGES, study_on(vlm, backbone))
    for stage in STAGES:
        same_dataset(there[stage], here[stage])
    assert vlm.requests <= MOST_REQUESTS["vlm"]
    assert backbone.requests <= MOST_REQUESTS["backbone"]
