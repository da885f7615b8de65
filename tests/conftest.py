"""Models shared by the tests: the micro pair, which is trained, tiny and fast."""

import numpy as np
import pytest
import torch
from PIL import Image

import interventions as iv
from twohop.micro.folders import micro_folder
from twohop.micro.world import EVALUATION_START, view

# Noise floors, as a share of the largest value compared. float32 through 8 blocks differs by the
# order of its sums: batching and padding change it. float64 must fall by eight orders.
# bfloat16 keeps 8 bits, so each of a few blocks adds some 2**-8 of the largest value.
FLOOR16 = 1e-1
FLOOR32 = 2e-5
FLOOR64 = 1e-12


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)  # the models are tiny: a second thread only gets in the way


@pytest.fixture(scope="session")
def llm() -> iv.Model:
    return iv.load(micro_folder("micro-backbone"))


@pytest.fixture(scope="session")
def vlm() -> iv.Model:
    return iv.load(micro_folder("micro-aligned"))


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [view(code, EVALUATION_START) for code in ("ava", "bel", "num", "que")]


NAMES = ("Avaria", "Belmora", "North Umbra", "Quenlo")


@pytest.fixture(scope="session")
def named(llm: iv.Model) -> iv.Prompt:
    texts = [f"Question : What is the capital of {name} ? Answer :" for name in NAMES]
    return llm.prompt(texts, spans={"entity": list(NAMES)})


@pytest.fixture(scope="session")
def shown(vlm: iv.Model, pictures: list[Image.Image]) -> iv.Prompt:
    text = f"Question : What is the capital of {vlm.image_token} ? Answer :"
    return vlm.prompt([text] * len(pictures), images=pictures)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def noise(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()
