"""A picture inside a message is the picture beside it, by every door, in prompts and collections."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from families import model_of
from picture_forms import DOORS, encoded, noise, saved
from PIL import Image

import interventions as iv
from interventions.errors import PictureError, PromptError, ResultsError

LAST = {"last": iv.RoleSite("resid_post", [1], "last")}
SHOWN = {"shown": iv.RoleSite("resid_post", [1], "last_image")}


def asked(part: Any, text: str = "What is it?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def image(value: Any) -> dict[str, Any]:
    return {"type": "image", "image": value}


def check_same(found: iv.Prompt, expected: iv.Prompt) -> None:
    assert found.texts == expected.texts
    assert found.roles == expected.roles
    assert set(found.inputs) == set(expected.inputs)
    for key, value in expected.inputs.items():
        assert torch.equal(found.inputs[key], value), key


@pytest.mark.parametrize("door", DOORS)
def test_every_door_is_open_inside_a_message(door: str, tmp_path: Path) -> None:
    model, a = model_of("llava"), noise(16, 20)
    value = DOORS[door](a, tmp_path)
    expected = model.prompt(asked({"type": "image"}), images=Image.fromarray(a))
    parts: list[Any] = [
        image(value),
        {"image": value},
        {"type": "image", "source": {"type": "base64", "data": value}},
    ]
    if not isinstance(value, Mapping):  # whose keys would be those of its holder
        parts += [{"type": "image_url", "image_url": one} for one in (value, {"url": value})]
        parts += [] if isinstance(value, str) else [value]  # a text by itself is said
    for part in parts:
        check_same(model.prompt(asked(part)), expected)


@pytest.mark.parametrize("name", tiny.VLMS)
def test_arrays_in_messages_of_every_family(name: str) -> None:
    model, a, b = model_of(name), noise(30, 40), noise(40, 24, seed=1)
    rows = [asked(image(a)), asked(image(torch.from_numpy(b)), "Which town is it?")]
    plain = [asked({"type": "image"}), asked({"type": "image"}, "Which town is it?")]
    expected = model.prompt(plain, images=[Image.fromarray(a), Image.fromarray(b)])
    check_same(model.prompt(rows), expected)


def test_what_is_no_picture_in_a_message_is_said_with_its_row(tmp_path: Path) -> None:
    model, good = model_of("llava"), noise(16, 20)
    for wrong, words in (
        (5, "cannot be of type int"),
        ([good], "a list where one picture"),
        (good[None], "of one picture; several go in a list"),
        (tmp_path / "lost.png", "there is no"),
        ({"bytes": None}, "neither bytes nor a path"),
        (b"", "no bytes in it"),
    ):
        with pytest.raises(PictureError, match=f"row 1: .*{words}"):
            model.prompt([asked(image(good)), asked(image(wrong))])
