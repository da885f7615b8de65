"""What the examples of docstrings and of pages find: two models, prompts, and a folder of files."""

import json
from pathlib import Path
from typing import Any

import pages
import pytest
import tiny
from published_configs import published_config
from raw_dictionary import written

from twohop.micro import view

pytest_plugins = ["tenth"]
ROOT = Path(__file__).parent
MODELS = ROOT / "docs" / "models.md"
NAMES = ("torch", "iv", "llm", "vlm", "question", "flag", "named", "other", "shown")
"""What examples may use without saying where it comes from."""
CHECKPOINTS = ("lmsys/vicuna-7b-v1.5", "llava-hf/llava-1.5-7b-hf")
ITEM = {
    "entity": "France",
    "aliases": ["French Republic"],
    "image": ["flags/fr.png", "flags/fr-2.png", "flags/fr-3.png"],
    "relation": "capital",
    "question": "What is the capital of France?",
    "image_question": "What is this country's capital?",
    "answers": ["Paris"],
}
POPVQA = {
    "entities.csv": "s_uri,type,subject,aliases,resized_path\n"
    "Q243,landmarks,Eiffel Tower,[],a.png\n",
    "questions.csv": "s_uri,subject,relation,question,question_for_image,possible_answers\n"
    "Q243,Eiffel Tower,city,Where is Eiffel Tower?,Where is this?,\"['Paris']\"\n",
}


@pytest.fixture(scope="session")
def day() -> dict[str, Any]:
    """What every example may use, by name, as the code of ``docs/models.md`` makes it."""
    made = pages.run(MODELS, {})
    return {name: made[name] for name in NAMES}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models in folders that are called as checkpoints of the hub are, and some data."""
    folder = tmp_path_factory.mktemp("desk")
    for repo in CHECKPOINTS:
        config = tiny.shrink(published_config(repo))
        tiny.save_model(tiny.build_model(config), tiny.tiny_processor(config), folder / repo)
    (folder / "flags").mkdir()
    for index, name in enumerate(("fr", "fr-2", "fr-3")):
        view("ava", index).resize((48, 32)).save(folder / "flags" / f"{name}.png")
    written(folder / "sae", "standard", 64, 96, hook_name="blocks.3.hook_resid_post")
    (folder / "items.jsonl").write_text(json.dumps(ITEM) + "\n", encoding="utf-8")
    (folder / "PopVQA").mkdir()
    for name, text in POPVQA.items():
        (folder / "PopVQA" / name).write_text(text, encoding="utf-8")
    view("ava", 0).save(folder / "PopVQA" / "a.png")
    return folder


@pytest.fixture
def desk(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own to work in, with the checkpoints and the data in it."""
    for path in checkpoints.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _examples_of_docstrings(
    request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]
) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("desk")
        doctest_namespace.update(request.getfixturevalue("day"))
