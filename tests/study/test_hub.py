"""Published pairs by their keys, from a hub on loopback: what opens, and what a hub may refuse."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import twins
from hub import COMMIT, serve
from original_llava import RESERVED, write_model
from tiny.tokens import tiny_tokenizer

from twohop.published import PUBLISHED

PAIR = PUBLISHED["llava-more-8b"]
TOWER = "openai/clip-vit-large-patch14-336"


def told(address: str, cache: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose hub is the one at an address."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORM"))}
    there = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", **more}
    return subprocess.run(
        [sys.executable, "-m", *command],
        env=kept | there | {"HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """The repos of `llava-more-8b` as they lie on the hub, its tower in a repo of its own."""
    folder = tmp_path_factory.mktemp("hub")
    both = twins.make(PAIR.key, folder / "twins")
    module, processor = twins.module_of(PAIR.vlm)
    tokenizer = tiny_tokenizer("llama3")
    tokenizer.add_tokens([RESERVED], special_tokens=True)
    original = folder / "original"
    write_model(
        original,
        module,
        processor.image_processor,
        tokenizer,
        inside=False,
        mm_vision_tower=TOWER,
        mm_vision_select_layer=module.config.vision_feature_layer,
    )
    (original / "tower").rename(folder / "tower")
    (original / "generation_config.json").write_text(
        (both.vlm / "generation_config.json").read_text()
    )
    repos = {PAIR.vlm: original, PAIR.backbone: both.backbone, TOWER: folder / "tower"}
    return repos, both.data


def test_a_pair_in_llavas_original_layout_runs_by_its_key(
    made: tuple[dict[str, Path], Path], tmp_path: Path
) -> None:
    repos, data = made
    with serve(repos) as (address, asked):
        command = ["study", PAIR.key, "--data", str(data), "--out", str(tmp_path / "runs")]
        done = told(address, tmp_path / "cache", "twohop", *command, "--stage", "recall")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / f"{PAIR.key}-items"
    assert f"{PAIR.vlm}/model-00001-of-00001.safetensors" in asked
    assert f"{TOWER}/model.safetensors" in asked
    both, kept, lost = map(
        int, re.findall(r"(\d+) both; of these (\d+) kept and (\d+) lost", done.stderr)[0]
    )
    assert both == kept + lost > 0
    settings = json.loads((run / "settings.json").read_text())
    assert {PAIR.vlm, PAIR.backbone, COMMIT} <= set(re.findall(r"[\w./-]+", json.dumps(settings)))


GATED = {PAIR.vlm: "hf_right", PAIR.backbone: "hf_right"}
OWNERS_TERMS = "is gated: its owner gives it to accounts that accept the terms at http://"
NOT_LOGGED_IN = "Nobody is logged in here. Accept them, then: Run `hf auth login`, or set HF_TOKEN"
NO_ACCESS = "The account of the token that is set here has no access (HTTP 403)"


@pytest.mark.parametrize(
    ("token", "reason"), [({}, NOT_LOGGED_IN), ({"HF_TOKEN": "hf_wrong"}, NO_ACCESS)]
)
def test_a_gated_repo_says_what_to_do(
    made: tuple[dict[str, Path], Path], tmp_path: Path, token: dict[str, str], reason: str
) -> None:
    repos, data = made
    study = ("twohop", "study", PAIR.key, "--data", str(data), "--out", str(tmp_path / "runs"))
    with serve(repos, gated=GATED) as (address, asked):
        commands = [("interventions", "doctor", PAIR.vlm), study][: 1 if token else 2]
        answers = [told(address, tmp_path / "cache", *command, **token) for command in commands]
    for done in answers:
        said = " ".join(done.stderr.split())
        assert done.returncode == 2
        assert f"{PAIR.vlm}' {OWNERS_TERMS}" in said
        assert reason in said
        assert f"accept the terms at {address}/{PAIR.vlm}." in said
        assert "Traceback" not in said
    assert not any(name.endswith(".safetensors") for name in asked)


def test_a_token_that_has_access_opens_a_gated_repo(
    made: tuple[dict[str, Path], Path], tmp_path: Path
) -> None:
    with serve(made[0], gated=GATED) as (address, _):
        command = ("interventions", "doctor", PAIR.vlm)
        done = told(address, tmp_path / "cache", *command, HF_TOKEN="hf_right")
    assert done.returncode == 0, done.stderr
    assert 'prompt.at("image")     yes' in done.stdout


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ({}, "there is no such repo, or it is private. Look for a slip in its name"),
        ({"HF_TOKEN": "hf_any"}, "cannot be examined"),
    ],
)
def test_a_repo_that_is_not_there_is_not_called_gated(
    tmp_path: Path, token: dict[str, str], reason: str
) -> None:
    with serve({}, gated={}) as (address, _):
        command = ("interventions", "doctor", "nobody/here")
        done = told(address, tmp_path / "cache", *command, **token)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert reason in said
    assert OWNERS_TERMS not in said
