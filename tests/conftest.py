"""Models shared by the tests: the micro pair, which is trained, tiny and fast."""

import gc
from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch
from floors import NAMES
from hypothesis import settings
from micro import EVALUATION_START, micro_folder, view
from PIL import Image

import interventions as iv
from interventions.errors import UpstreamError

# Imported where the pretended device is on, and nowhere else.
collect_ignore = ["support/pretend_device/checks.py"]

# The same examples in every run, so that what passed here passes elsewhere. Others are drawn with
# --hypothesis-profile=default, and --hypothesis-seed=N says which.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


@contextmanager
def skipped_if_broken() -> Generator[None]:
    """Skip what runs a model that the installed libraries break; test_faults.py says which is."""
    try:
        yield
    except UpstreamError as error:
        pytest.skip(str(error))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    with skipped_if_broken():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    with skipped_if_broken():
        return (yield)


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


@pytest.fixture(scope="session")
def named(llm: iv.Model) -> iv.Prompt:
    texts = [f"Question : What is the capital of {name} ? Answer :" for name in NAMES]
    return llm.prompt(texts, spans={"entity": list(NAMES)})


@pytest.fixture(scope="session")
def shown(vlm: iv.Model, pictures: list[Image.Image]) -> iv.Prompt:
    text = f"Question : What is the capital of {vlm.image_token} ? Answer :"
    return vlm.prompt([text] * len(pictures), images=pictures)
