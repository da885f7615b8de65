"""A picture inside a message is the picture beside it, by every door; collections of chats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from families import model_of
from floors import FLOOR32, relative
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


# Collections


def test_chats_with_pictures_are_collected_like_prompts(tmp_path: Path) -> None:
    model, a, b = model_of("qwen2_5_vl"), noise(30, 40), noise(60, 24, seed=1)
    path = saved(tmp_path, encoded(Image.fromarray(a)))
    rows: list[Any] = [
        asked(image(Image.fromarray(a))),
        asked({"type": "image", "path": str(path)}),
        asked({"type": "image", "url": path.as_uri()}),
        {"text": asked(image(a))},
        {"text": asked({"type": "image"}), "images": path},
        {"text": asked(image(a))[0]},
        asked(image(a))[0],
        {"text": "Which <image> is it?", "images": b},
        asked(image(b), "Which town?"),
    ]
    collected = iv.collect(model, rows, SHOWN, out=tmp_path / "out", batch_rows=3)["shown"].values
    assert collected.shape[1] == len(rows)
    prompt = model.prompt(asked({"type": "image"}), images=a)
    [expected] = iv.read(model, prompt, [iv.Site("resid_post", [1], prompt.at("last_image"))])
    for row in range(7):
        assert relative(torch.from_numpy(collected[:, row]), expected[:, 0]) < FLOOR32, row
    assert relative(torch.from_numpy(collected[:, 8]), expected[:, 0]) > 0.01


def test_settings_reach_the_rows_that_they_are_for(tmp_path: Path) -> None:
    model, a = model_of("qwen2_5_vl"), Image.fromarray(noise(90, 120))
    rows: list[Any] = [
        "What is the capital?",
        asked("What is it?"),
        asked(image(a)),
        {"text": "Which <image> is it?", "images": a},
    ]
    template = "{{ greeting }}{% for m in messages %}{{ m.content }}{% endfor %}"
    told: Any = {
        "template_kwargs": {"chat_template": template, "greeting": "Good day. "},
        "processor_kwargs": {"max_pixels": 2_000, "min_pixels": 1_000},
    }
    out = tmp_path / "out"
    found = iv.collect(model, rows, LAST, out=out, batch_rows=1, **told)["last"].values
    for i, row in enumerate(rows):
        given = row if isinstance(row, dict) else {"text": row}
        more = told if i == 2 else {}
        more = {"template_kwargs": told["template_kwargs"]} if i == 1 else more
        more = {"processor_kwargs": told["processor_kwargs"]} if i == 3 else more
        prompt = model.prompt(given["text"], images=given.get("images"), **more)
        [expected] = iv.read(model, prompt, [iv.Site("resid_post", [1], prompt.at("last"))])
        assert relative(torch.from_numpy(found[:, i]), expected[:, 0]) < FLOOR32, i
    together = iv.collect(model, rows, LAST, out=tmp_path / "all", batch_rows=4, **told)["last"]
    assert relative(torch.from_numpy(together.values), torch.from_numpy(found)) < FLOOR32
    for other in (
        {},
        {**told, "template_kwargs": {**told["template_kwargs"], "greeting": "Good night. "}},
        {**told, "processor_kwargs": {"max_pixels": 4_000, "min_pixels": 1_000}},
        {"template_kwargs": told["template_kwargs"]},
    ):
        with pytest.raises(ResultsError, match="other settings"):
            iv.collect(model, rows, LAST, out=out, batch_rows=1, **other)


def test_settings_that_change_nothing_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    vlm, llm, out = model_of("qwen2_5_vl"), model_of("llama"), tmp_path / "out"
    rows = [asked("What is it?")]
    made = [vlm.prompt("a")]
    cases: list[tuple[iv.Model, Any, dict[str, Any], str]] = [
        (vlm, rows, {"template_kwargs": {"dat_string": "today"}}, "no argument 'dat_string'"),
        (vlm, rows, {"template_kwargs": "thinking"}, "template_kwargs"),
        (vlm, rows, {"processor_kwargs": {"max_pixel": 3}}, "does not use 'max_pixel'"),
        (llm, rows, {"processor_kwargs": {"max_pixels": 3}}, "text-only model"),
        (vlm, made.__getitem__, {"processor_kwargs": {"max_pixels": 3}}, "made by a function"),
    ]
    for model, given, told, words in cases:
        with pytest.raises(PromptError, match=words):
            iv.collect(model, given, LAST, out=out, n_rows=1, **told)
        assert not out.exists()


@pytest.mark.parametrize(
    "part",
    [
        lambda path: {"type": "image", "path": str(path)},
        lambda path: {"type": "image", "image": path},
        lambda path: {"type": "image", "url": path.as_uri()},
        lambda path: {"type": "image_url", "image_url": {"url": str(path)}},
        lambda path: {"type": "image_url", "image_url": path.as_uri()},
        lambda path: {"type": "image", "source": {"path": str(path)}},
        lambda path: {"type": "image", "image": {"bytes": None, "path": str(path)}},
        lambda path: Image.open(path),
        lambda path: path.read_bytes(),
        lambda path: np.asarray(Image.open(path)),
    ],
)
def test_a_collection_knows_what_was_in_a_picture_of_a_message(part: Any, tmp_path: Path) -> None:
    model = model_of("llava")
    asks: Any = {"sites": LAST, "out": tmp_path / "out", "batch_rows": 1}
    path = saved(tmp_path, encoded(Image.fromarray(noise(16, 20))))
    rows: Any = ["What is it?", asked(part(path))]
    found = iv.collect(model, rows, **asks)
    assert iv.collect(model, ["What is it?", asked(part(path))], **asks).equals(found)
    saved(tmp_path, encoded(Image.fromarray(noise(16, 20, seed=1))))
    with pytest.raises(ResultsError, match="begun with other rows"):
        iv.collect(model, ["What is it?", asked(part(path))], **asks)


def test_rows_whose_pictures_are_long_texts_are_told_apart(tmp_path: Path) -> None:
    model = model_of("llava")
    texts: list[Any] = [DOORS["base64"](noise(30, 40, seed=seed), tmp_path) for seed in range(2)]
    texts.append(Path("long" * 2000))
    rows = [{"text": "<image> What is it?", "images": text} for text in texts]
    asks: Any = {"out": tmp_path / "out", "batch_rows": 1}
    assert iv.collect(model, rows, LAST, **asks).set_aside.values.tolist() == [2]
    with pytest.raises(ResultsError, match="begun with other rows"):
        iv.collect(model, [rows[0], rows[0], rows[2]], LAST, **asks)


def test_rows_that_cannot_stand_together_are_collected_by_themselves(tmp_path: Path) -> None:
    model, a = model_of("mllama"), noise(30, 40)
    rows: list[Any] = [
        "What is it?",
        asked(image(a)),
        {"text": "<image>What is it?", "images": tmp_path / "lost.png"},
        asked("Who is it?"),
        {"text": "<image><image>What are these?", "images": [a, a]},
    ]
    site = {"last": iv.RoleSite("resid_post", [0], "last")}
    ways = [iv.collect(model, rows, site, out=tmp_path / str(n), batch_rows=n) for n in (1, 5)]
    for found in ways:
        assert found.row.values.tolist() == [0, 1, 3, 4]
        assert found.set_aside.values.tolist() == [2]
        assert "there is no" in found.reason.values[0]
    np.testing.assert_array_equal(ways[0]["last"].values, ways[1]["last"].values)
    iv.collect(model, rows, site, out=tmp_path / "5", batch_rows=5)


def test_rows_of_a_collection_are_judged_one_by_one(tmp_path: Path) -> None:
    model, a, b = model_of("llava"), noise(30, 40), noise(24, 24, seed=1)
    rows = [{"text": "<image> What?", "images": one} for one in (a / 255, b.astype(float), a)]
    with pytest.raises(PictureError, match="Give all in one range"):
        model.prompt([row["text"] for row in rows], images=[row["images"] for row in rows])
    one, all_three = (
        iv.collect(model, rows, LAST, out=tmp_path / str(n), batch_rows=n)["last"].values
        for n in (1, 3)
    )
    assert one.shape[1] == 3
    np.testing.assert_array_equal(one, all_three)
    np.testing.assert_array_equal(one[:, 0], one[:, 2])
