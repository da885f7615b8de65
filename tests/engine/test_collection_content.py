"""A collection that goes on, or is opened again, is that of what was meant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

import interventions as iv
from interventions.errors import ResultsError

LAST = {"last": iv.RoleSite("resid_post", [1], "last")}
ASKED: dict[str, Any] = {"batch_rows": 1, "progress": False}


def fresh(name: str) -> iv.Model:
    module, processor = tiny.build(name)
    kind = {"processor": processor} if name in tiny.VLMS else {"tokenizer": processor}
    return iv.load(module, **kind)


def in_a_message(part: dict[str, Any]) -> dict[str, Any]:
    return {"text": [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]}


NAMED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "file address": lambda file: {"text": "What is it?", "images": file.as_uri()},
    "spaces": lambda file: {"text": "What is it?", "images": f" {file} "},
    "list": lambda file: {"text": "What is it?", "images": [file.as_uri()]},
    "dict": lambda file: {"text": "What is it?", "images": {"path": file.as_uri()}},
    "url of a part": lambda file: in_a_message({"type": "image", "url": file.as_uri()}),
    "image_url": lambda file: in_a_message({"type": "image_url", "image_url": str(file)}),
    "image_url with url": lambda file: in_a_message(
        {"type": "image_url", "image_url": {"url": file.as_uri()}}
    ),
}


@pytest.mark.parametrize("how", NAMED)
def test_what_is_in_a_file_counts_however_it_is_named(how: str, tmp_path: Path) -> None:
    model = fresh("llava")
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.new("RGB", (32, 32), (80 * i, 0, 0)).save(file)
    rows = [NAMED[how](file) for file in files]
    out = tmp_path / "out"
    first = iv.collect(model, rows, LAST, out=out, **ASKED).load()
    assert iv.collect(model, rows, LAST, out=out, **ASKED).load().identical(first)
    Image.new("RGB", (32, 32), (0, 90, 0)).save(files[1])
    with pytest.raises(ResultsError, match="some of 1 to 1 differ"):
        iv.collect(model, rows, LAST, out=out, **ASKED)


def other_mean(model: iv.Model) -> None:
    assert model.processor is not None
    model.processor.image_processor.image_mean = [0.1, 0.1, 0.1]


def other_template(model: iv.Model) -> None:
    model.tokenizer.chat_template = (model.tokenizer.chat_template or "") + " "


def other_tokens(model: iv.Model) -> None:
    model.tokenizer.add_tokens(["capital of"])


@pytest.mark.parametrize("change", [other_mean, other_template, other_tokens])
def test_what_makes_prompts_of_rows_counts(
    change: Callable[[iv.Model], None], tmp_path: Path
) -> None:
    model = fresh("llava")
    rows = [
        {"text": "The first row"},  # which none of the changes would show in
        {"text": "The capital of"},
        {"text": "What?", "images": Image.new("RGB", (32, 32), "red")},
    ]
    first = iv.collect(model, rows, LAST, out=tmp_path, **ASKED).load()
    again = iv.collect(fresh("llava"), rows, LAST, out=tmp_path, **ASKED).load()
    assert again.identical(first)
    change(model)
    with pytest.raises(ResultsError, match="processing: stored"):
        iv.collect(model, rows, LAST, out=tmp_path, **ASKED)
