"""The same picture is the same pixels by every door."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from families import model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from picture_forms import DOORS, Pixels, encoded, noise, pixels, png, prompted, reopened
from PIL import Image

import interventions as iv
from interventions.errors import PictureError, PromptError
from interventions.prompt.pictures import LONGEST_TO_SHORTEST
from twohop.items.pictures import LEAST_SIDE, picture_of
from twohop.items.validation import check


def could_be_two(name: str, a: Pixels) -> bool:
    """Whether the form leaves open what the picture is; said to be so in the documentation."""
    if "to 255" in name:
        return a.max() == 1
    to_one = "float" in name or name in ("longdouble", "torch, with a gradient")
    return to_one and a.max() == 255 and set(np.unique(a)) <= {0, 255}


SHAPES = st.tuples(st.integers(5, 14), st.integers(5, 14), st.just(3))


@pytest.mark.parametrize("door", DOORS)
def test_every_door_gives_the_pixels_themselves(
    door: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("doors")

    @settings(max_examples=40, deadline=None)
    @given(hnp.arrays(np.uint8, SHAPES))
    def same(a: Pixels) -> None:
        value = DOORS[door](a, folder)
        if could_be_two(door, a):
            with pytest.raises(PictureError, match="nothing but 0 and 1"):
                iv.as_picture(value)
        else:
            np.testing.assert_array_equal(pixels(value), a)

    same()


@pytest.mark.parametrize("door", DOORS)
def test_prompts_studies_and_collections_use_the_one_rule(
    door: str, vlm: iv.Model, tmp_path: Path
) -> None:
    a = noise(16, 20)
    value = DOORS[door](a, tmp_path)
    processor: Any = vlm.processor
    expected = processor(
        text=[vlm.image_token], images=[[Image.fromarray(a)]], return_tensors="pt"
    )["pixel_values"]
    text = f"Which {vlm.image_token} is it"
    assert torch.equal(vlm.prompt(text, images=value).inputs["pixel_values"], expected)
    found, other = (picture_of(one, tmp_path) for one in (value, Image.fromarray(a)))
    np.testing.assert_array_equal(np.asarray(found.open()), a)
    assert found.digest == other.digest
    assert found.digest != picture_of(a[::-1], tmp_path).digest
    rows = [{"text": text, "images": one} for one in (Image.fromarray(a), value, [value])]
    site = {"last": iv.RoleSite("resid_post", [1], "last")}
    collected = iv.collect(vlm, rows, site, out=tmp_path / "out", batch_rows=1)["last"].values
    assert collected.shape[1] == 3
    assert (collected == collected[:, :1]).all()


@pytest.mark.parametrize("name", ["qwen2_vl", "internvl", "mllama", "llama4"])
@pytest.mark.parametrize("shape", [(5, 5), (6, 40), (40, 6)])
def test_a_processor_that_resizes_tiny_pictures_sees_the_same(
    name: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    model, a = model_of(name), noise(*shape)
    expected = prompted(model, Image.fromarray(a))
    for door, make in DOORS.items():
        found = prompted(model, make(a, tmp_path))
        for key, value in expected.items():
            assert torch.equal(found[key], value), (door, key)


@pytest.mark.parametrize("name", ["llava", "pixtral", "qwen2_5_vl", "gemma3", "idefics3"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (3, 40), (40, 3), (1, 150), (150, 1), (1, 500)])
def test_extreme_shapes_are_read_or_refused_by_name(name: str, shape: tuple[int, int]) -> None:
    model, a = model_of(name), noise(*shape)
    image = Image.fromarray(a)
    if max(shape) > LONGEST_TO_SHORTEST * min(shape):
        with pytest.raises(PictureError, match="at most 200 : 1"):
            prompted(model, image)
    elif name == "pixtral" and max(shape) > 24 * min(shape):  # less than a pixel when made smaller
        with pytest.raises(PromptError, match="takes such images"):
            prompted(model, image)
    else:
        found = [prompted(model, form)["pixel_values"] for form in (image, encoded(image))]
        assert torch.equal(*found)


def test_every_way_to_give_one_picture_per_row(vlm: iv.Model) -> None:
    batch = np.stack([noise(16, 20, seed=seed) for seed in range(3)])
    texts = [f"Which {vlm.image_token} is it"] * 3
    images = [Image.fromarray(one) for one in batch]
    expected = vlm.prompt(texts, images=images).inputs["pixel_values"]
    objects = np.empty(3, object)
    objects[:] = images
    ways: list[Any] = [
        tuple(images), (one for one in images), iter(images), [[one] for one in images], batch,
        batch.transpose(0, 3, 1, 2), list(batch), torch.from_numpy(batch / 255), batch[:, None],
        dict(enumerate(images)).values(), objects, pd.Series(images), batch.astype(float) / 255,
        (encoded(one) for one in images), map(encoded, images),
    ]  # fmt: skip
    for images_given in ways:
        found = vlm.prompt(texts, images=images_given).inputs["pixel_values"]
        assert torch.equal(found, expected), type(images_given)


def test_every_way_to_give_several_pictures_to_one_row(vlm: iv.Model) -> None:
    batch = np.stack([noise(16, 20, seed=seed) for seed in range(2)])
    images = [Image.fromarray(one) for one in batch]
    text = f"Which {vlm.image_token} is it, or {vlm.image_token} is it"
    expected = vlm.prompt(text, images=[images]).inputs["pixel_values"]
    for given_as in (images, tuple(images), iter(images), batch, [batch], batch[None], [*batch],
                     [iter(images)], torch.from_numpy(batch)):  # fmt: skip
        assert torch.equal(vlm.prompt(text, images=given_as).inputs["pixel_values"], expected)


def test_a_dark_picture_of_a_batch_is_in_the_range_of_the_others(vlm: iv.Model) -> None:
    dark = np.stack([noise(16, 20), noise(16, 20) // 255])
    texts = [f"Which {vlm.image_token} is it"] * 2
    expected = vlm.prompt(texts, images=list(dark)).inputs["pixel_values"]
    for batch in (dark.astype(float), torch.from_numpy(dark).float().permute(0, 3, 1, 2)):
        assert torch.equal(vlm.prompt(texts, images=batch).inputs["pixel_values"], expected)


def test_a_dark_picture_beside_others_is_not_taken_for_one_of_another_range(
    vlm: iv.Model,
) -> None:
    bright = np.stack([noise(16, 20, seed=seed) for seed in range(3)]).astype(np.float32)
    dark = bright[1] * np.float32(0.003)
    mark = vlm.image_token or ""
    texts = [f"Which {mark} is it"] * 2
    for first, other in (
        (bright[0], dark),
        (dark, bright[0]),
        (torch.from_numpy(dark), bright[0]),
        (Image.fromarray(bright[0, ..., 0]), Image.fromarray(dark[..., 0])),
        (bright[0] / 255, bright[1]),
    ):
        with pytest.raises(PictureError, match=r"row \d has floats up to [01][.\d]*, and"):
            vlm.prompt(texts, images=[first, other])
        with pytest.raises(PictureError, match="may be a dark one in 0 to 255"):
            vlm.prompt(mark * 2, images=[first, other])
    expected = vlm.prompt(texts, images=np.stack([bright[0], dark])).inputs["pixel_values"]
    for dark_one in (np.rint(dark).astype(np.uint8), dark * 0):
        found = vlm.prompt(texts, images=[bright[0], dark_one]).inputs["pixel_values"]
        assert torch.equal(found[:1], expected[:1])
        assert torch.equal(found, expected) == bool(dark_one.any())
    for few in ([bright[0], bright[1]], [bright[0] / 255, dark], [dark, Image.fromarray(noise())]):
        assert len(vlm.prompt(texts, images=few)) == 2


def test_images_that_are_not_as_many_as_rows_are_refused(vlm: iv.Model, llm: iv.Model) -> None:
    batch = np.stack([noise(16, 20, seed=seed) for seed in range(3)])
    texts = [f"Which {vlm.image_token} is it"] * 2
    image = Image.fromarray(batch[0])
    with pytest.raises(PromptError, match="3 images for 2 rows"):
        vlm.prompt(texts, images=batch)
    with pytest.raises(PromptError, match="1 images for 2 rows"):
        vlm.prompt(texts, images=image)
    with pytest.raises(PromptError, match="in no order"):
        vlm.prompt(texts, images={b"a", b"b"})
    with pytest.raises(PromptError, match="picture of row 1: there is no nowhere"):
        vlm.prompt(texts, images=[image, "nowhere.png"])
    with pytest.raises(PromptError, match="row 0, picture 1: None"):
        vlm.prompt(texts[0], images=[image, None])
    with pytest.raises(PromptError, match=r"0 image\(s\).*1 image placeholder"):
        vlm.prompt(texts[0], images=[None])
    with pytest.raises(PromptError, match="numbers in a list"):
        vlm.prompt(texts[0], images=batch[0].tolist())
    with pytest.raises(PromptError, match="a list where one picture is expected"):
        vlm.prompt(texts, images=[[[image]], [image]])
    with pytest.raises(PromptError, match="text-only"):
        llm.prompt("Which", images=batch)
    assert vlm.prompt(["no picture", texts[0]], images=[None, image]).has_images


def test_one_picture_in_many_forms_is_one_picture_of_an_item(tmp_path: Path) -> None:
    a = noise(16, 20)
    row = {"entity": "France", "question": "What is the capital of {entity}?", "answers": "Paris"}
    forms = [DOORS[door](a, tmp_path) for door in DOORS]
    others = [a[::-1], np.stack([a[:, ::-1], a])]
    found = check([{**row, "image": form} for form in (*forms, forms, *others)])
    assert len(found.pictures["france"]) == 3
    assert {one.reason for one in found.report.set_aside} == {"duplicate_row"}
    assert len(found.report.set_aside) == len(forms)


def test_a_picture_of_the_study_has_its_least_side(tmp_path: Path) -> None:
    small = Image.fromarray(noise(LEAST_SIDE - 1, 9))
    with pytest.raises(PictureError) as refused:
        picture_of(small, tmp_path)
    assert refused.value.reason == "image_too_small"
    assert iv.as_picture(small).size == (9, LEAST_SIDE - 1)


def test_a_picture_of_the_study_stays_what_was_checked(tmp_path: Path) -> None:
    levels = noise(channels=1)[..., None] % 4
    data = png(levels, 2, 0, (b"tRNS", struct.pack(">H", 2)))  # a depth that PIL forgets
    a = noise()
    frames = [Image.fromarray(a), Image.fromarray(a[::-1])]
    moving = reopened(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    forms = [reopened(data), moving, a.copy()]
    made = [picture_of(form, tmp_path) for form in forms]
    moving.seek(1)
    forms[2][:] = 0
    expected = [pixels(data), a, a]
    for picture, shown in zip(made, expected, strict=True):
        for _ in range(2):
            np.testing.assert_array_equal(np.asarray(picture.open()), shown)
