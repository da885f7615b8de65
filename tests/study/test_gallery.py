"""The gallery: each of its pictures is there, small, shown with its lines, and made again."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import interventions as iv

ROOT = Path(iv.__file__).parents[1]
SCRIPT, PAGE = ROOT / "examples" / "gallery.py", ROOT / "docs" / "gallery.md"
LARGEST, LARGEST_OF_ALL = 120_000, 1_500_000  # bytes


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_each_picture_and_its_lines() -> None:
    page, script = PAGE.read_text(encoding="utf-8"), SCRIPT.read_text(encoding="utf-8")
    begun, ended = (re.findall(rf"\[{end}:(\w+)\]", script) for end in ("start", "end"))
    assert begun == ended
    shown = re.findall(r'^--8<-- "examples/gallery.py:(\w+)"$', page, re.MULTILINE)
    assert shown == begun
    assert [*re.findall(r"^def (\w+)\(\) -> ", script, re.MULTILINE)] == begun[1:]
    pictured = re.findall(r"(!?)\[([^\]]+)\]\(gallery/(\w+)\.(?:png|html)\)", page)
    assert [name for *_, name in pictured] == begun[1:]
    assert all(len(alt) > 40 for drawn, alt, _ in pictured if drawn)


def test_files_are_those_of_the_script_and_small() -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    files = [*(ROOT / "docs" / "gallery").iterdir()]
    assert {path.stem for path in files} == {*re.findall(r"start:(\w+)", script)} - {"scene"}
    sizes = {path.name: path.stat().st_size for path in files}
    assert {name: size for name, size in sizes.items() if size > LARGEST} == {}
    assert sum(sizes.values()) < LARGEST_OF_ALL


def test_every_picture_is_made_again(gallery: ModuleType, tmp_path: Path) -> None:
    gallery.main(["--out", str(tmp_path)])
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in (ROOT / "docs" / "gallery").iterdir()}
    for path in tmp_path.glob("*.png"):
        with Image.open(ROOT / "docs" / "gallery" / path.name) as kept, Image.open(path) as anew:
            assert anew.size == kept.size
