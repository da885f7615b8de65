"""The notebooks run, and say what their text says they do; so do the outputs that they keep."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import tiny
from elsewhere import Worker
from hub import serve
from loopback import doors
from notebooks import EXAMPLES, kept_and_said

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
OF_ONE_MACHINE = re.compile(r"/(home|root|tmp|work|Users)/\w")
LARGEST_PICTURE = 100_000  # bytes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them run: a study that one has stored is there for the next."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_keeps(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for output in (one for cell in cells for one in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
        for kind, content in output.get("data", {}).items():
            if kind.startswith("image/"):
                assert len(base64.b64decode(content)) < LARGEST_PICTURE
            else:
                assert not OF_ONE_MACHINE.search(str(content))
        assert not OF_ONE_MACHINE.search(output.get("text", ""))


def test_the_index_names_every_notebook() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in NOTEBOOKS} == {*re.findall(r"\]\((\w+\.ipynb)\)", index)}


def test_first_patch(folder: Path) -> None:
    for found in kept_and_said("first_patch", folder):
        assert "backbone, from the name: ['Paris']" in found
        assert "VLM, from the flag:      ['Paris']" not in found
        assert "VLM, after the patch:    [' Paris" in found
        assert "Japan   ['Tokyo']" in found
        drawn = re.search(r"noise   (\d+) of 20 draws say Paris", found)
        assert drawn is not None
        assert int(drawn[1]) < 5


def test_patch_your_own(folder: Path) -> None:
    right = "['Marlow .', 'Port Mira .']"
    for found in kept_and_said("patch_your_own", folder):
        assert f"backbone, from the names: {right}" in found
        assert f"VLM, from the flags:      {right}" not in found
        assert "equal to a plain hook: True" in found
        assert "SiteError - resid_post of block 1 was touched too late" in found
        assert f"transplant       {right}" in found
        assert "another country  ['Port Mira .', 'Marlow .']" in found
        assert f"random vector    {right}" not in found
        assert "blocks 0-2: log-probability of the answer" in found
        assert f"0.0 {right}" in found
        assert "1.0 ['Port Mira ." in found
        assert "0, 0, 0, 0, 0]  North Umbra:" in found
        assert f"edit in the prefill: {right}" in found
        assert "edit on step 1:      ['Tessin" in found


def test_where_is_the_country(folder: Path) -> None:
    for found in kept_and_said("where_is_the_country", folder):
        assert "named right: 16 of 16" in found
        by_token = {
            (source, where): [float(one) for one in re.findall(r"-?\d+\.\d", numbers)]
            for source, where, numbers in re.findall(
                r"^(another|same) country's +(\w+ \w+) +layer 0 (.*)$", found, re.MULTILINE
            )
        }
        assert len(by_token) == 8
        early, low, high = by_token["another", "top left"][:3]
        assert low <= early <= high < -15
        for (source, where), (change, *_) in by_token.items():
            assert (change < -15) == ((source, where) == ("another", "top left"))
        named = r"^(nothing cut|top left|a random other box) +(\d\.\d+) \["
        cut = dict(re.findall(named, found, re.MULTILINE))
        assert float(cut["top left"]) < float(cut["a random other box"]) - 0.2
        [(points, least)] = re.findall(r"random less top left: +([\d.]+) \[ *([\d.]+),", found)
        assert float(points) > float(least) > 10
        ranks = re.findall(r"layer ([ \d]\d): median rank of the name +(\d+),", found)
        assert all(int(own) > 1000 for layer, own in ranks if int(layer) <= 24)


# The cells of the three notebooks below hold asserts of their own.


def test_study(folder: Path) -> None:
    for found in kept_and_said("study", folder):
        assert re.search(
            r"only too late in [89]\d % .* of 12\. On 27 lost items it is shown", found
        )
        assert re.search(r"Of 35 items: .*6\d % \[\d\d, \d\d\] late", found)
        assert re.search(r"^back_patching .*\(n\s27\) +shown$", found, re.MULTILINE)
        assert "last block of the window:     1" in found
        assert "vlm_image        Tessin  False" in found


def test_your_pair_and_data(folder: Path) -> None:
    for found in kept_and_said("your_pair_and_data", folder):
        assert "16 of 21 rows are usable, 16 items" in found
        for reason in (
            "image_missing",
            "image_unreadable",
            "answer_is_entity",
            "other_answers",
            "no_answer",
        ):
            assert reason in found
        assert "micro-naming-" in found
        assert re.search(r"loses \d+ points of factual recall", found)


def test_reading_results(folder: Path) -> None:
    for found in kept_and_said("reading_results", folder):
        whole, by_item = (
            [float(one) for one in re.findall(rf"by {how}: +\S+ \[(\S+), (\S+)\]", found)[0]]
            for how in ("entity", "item")
        )
        assert whole[1] - whole[0] > by_item[1] - by_item[0]
        assert re.search(r"lateness\.late +[89]\d\s% \[\d+, \d+\] +0\s% \[0, ", found)
        assert re.search(r"diagnosis\.late +\d\d", found)


@pytest.fixture
def ndif(folder: Path) -> Iterator[dict[str, str]]:
    """A server on loopback with two small models, as the environment names it and them."""
    names = ("llama", "llava")
    repos = {f"tiny/{name}": tiny.save(name, folder / "hub" / name) for name in names}
    worker = Worker(names)
    try:
        with serve(repos) as (hub, _), doors(worker) as host:
            there = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "cache"), "NDIF_HOST": host}
            yield {**there, "BACKBONE": "tiny/llama", "VLM": "tiny/llava"}
    finally:
        worker.stop()


def test_ndif(folder: Path, ndif: dict[str, str]) -> None:
    kept, found = kept_and_said("ndif", folder, settings=ndif)
    assert "from the image:  ['France']" in kept
    assert "after the patch: [' Paris" in kept
    assert "tiny/llava" in found
    for one in (kept, found):
        assert "cells, 1 request\n" in one
        assert "complete: done, sent 1 time(s)" in one
