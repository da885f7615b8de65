"""PopVQA by its name: a sample of its entities from a hub, with their pictures alone."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import serve
from test_data import drawn as picture

from twohop.items.popvqa_hub import REPO, drawn
from twohop.items.reading import open_table
from twohop.items.rows import DataError

TYPES = ("landmarks", "paintings", "brands")
N_ENTITIES = 24
HEADS = {
    "entities.csv": ("type", "s_uri", "subject", "aliases", "resized_path"),
    "questions.csv": (
        *("s_uri", "subject", "relation", "question"),
        *("question_for_image", "possible_answers"),
    ),
}


def published(folder: Path, *, pictures: bool = True) -> Path:
    """Tables in a folder of their own, pictures beside it."""
    (folder / "dataset").mkdir(parents=True)
    (folder / "images").mkdir()
    lines: dict[str, list[tuple[str, ...]]] = {name: [head] for name, head in HEADS.items()}
    for i in range(N_ENTITIES):
        kind, uri, name = TYPES[0 if i < N_ENTITIES // 2 else i % 2 + 1], f"Q{i}", f"Thing {i}"
        lines["entities.csv"].append((kind, uri, name, "[]", f"images/{i}[1].png"))
        for relation in ("city", "maker"):
            asked = (
                f"The {relation} of {name}?",
                f"The {relation} of this?",
                f"['{relation} {i}']",
            )
            lines["questions.csv"].append((uri, name, relation, *asked))
        if pictures:
            picture(folder / "images" / f"{i}[1].png")
    for table, rows in lines.items():
        with (folder / "dataset" / table).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def checked(cache: Path, source: str, **more: str) -> subprocess.CompletedProcess[str]:
    """``twohop data check``, with a cache of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment = kept | {"HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", **more}
    command = [sys.executable, "-m", "twohop", "data", "check", source, "--json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    with serve({REPO: published(tmp_path / "repo")}) as served:
        yield served


def test_a_sample_fetches_its_own_pictures_once(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    done = checked(tmp_path / "cache", "popvqa:6", HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["items"], report["entities"], report["set_aside"]) == (12, 6, [])
    fetched = {name for name in asked if name.endswith(".png")}
    assert len(fetched) == 6
    again = checked(tmp_path / "cache", "popvqa:6", HF_HUB_OFFLINE="1")
    assert json.loads(again.stdout) == report


def test_what_cannot_be_had_is_said_in_a_line(tmp_path: Path) -> None:
    done = checked(tmp_path / "cache", "popvqa", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert f"{REPO} cannot be had from the hub" in done.stderr
    assert "--local-dir PopVQA" in done.stderr
    assert "Traceback" not in done.stderr


def test_pictures_in_an_archive_are_to_be_unpacked(tmp_path: Path) -> None:
    folder = published(tmp_path / "repo", pictures=False)
    with serve({REPO: folder}) as (address, _):
        done = checked(tmp_path / "cache", "popvqa:4", HF_ENDPOINT=address)
    assert done.returncode == 2
    assert "none of the 4 pictures" in done.stderr
    assert "unpack" in done.stderr


@pytest.mark.parametrize("source", ["popvqa:0", "popvqa:1", "popvqa:many", "popvqa:"])
def test_a_sample_has_a_size(source: str) -> None:
    with pytest.raises(DataError, match="expected a number of entities"):
        open_table(source)


def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    published(Path("popvqa"))
    (tmp_path / "popvqa" / "images").rename(tmp_path / "popvqa" / "dataset" / "images")
    assert len(open_table("popvqa/dataset").rows) == 2 * N_ENTITIES
    (tmp_path / "popvqa" / "dataset").rename(tmp_path / "moved")
    (tmp_path / "popvqa").rmdir()
    (tmp_path / "moved").rename(tmp_path / "popvqa")
    assert len(open_table("popvqa").rows) == 2 * N_ENTITIES


def test_types_take_turns_in_proportion_and_samples_are_nested() -> None:
    types = {f"Q{i}": "rare" if i % 10 == 0 else "common" for i in range(200)}
    order = drawn(types)
    assert sorted(order) == sorted(types)
    for n in (10, 50, 120):
        counts = Counter(types[entity] for entity in order[:n])
        assert abs(counts["rare"] - n / 10) <= 1
    assert order == drawn(dict(reversed(types.items())))
    assert order != drawn(types, seed=1)
    assert order[:100] != sorted(order[:100])
