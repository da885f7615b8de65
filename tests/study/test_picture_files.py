"""Files and image objects are shown as people see them: upright, first frame, on white."""

import copy
import io
import mmap
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from picture_forms import (
    Pixels,
    encoded,
    grey,
    noise,
    on_white,
    pixels,
    png,
    prompted,
    refusal,
    reopened,
    saved,
)
from PIL import Image, ImageOps

import interventions as iv
from interventions.errors import PictureError
from twohop.items.pictures import picture_of

UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def oriented(a: Pixels, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"lossless": True} if kind == "WEBP" else {}
    return encoded(Image.fromarray(a), kind, exif=exif, **more)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_turned_by_exif_once(
    kind: str, orientation: int, vlm: iv.Model, tmp_path: Path
) -> None:
    a = noise(16, 20)
    data = oriented(a, orientation, kind)
    if kind == "JPEG":
        a = np.asarray(reopened(encoded(Image.fromarray(a), kind)))
    upright = UPRIGHT[orientation](a)
    path = saved(tmp_path, data)
    loaded = reopened(data)
    loaded.load()
    turned = ImageOps.exif_transpose(reopened(data))
    forms = [path, data, reopened(data), loaded, loaded.copy(), turned, iv.as_picture(data)]
    for form in forms:
        np.testing.assert_array_equal(pixels(form), upright)
        np.testing.assert_array_equal(np.asarray(picture_of(form, tmp_path).open()), upright)
    found = prompted(vlm, *forms, np.ascontiguousarray(upright))["pixel_values"]
    assert (found == found[-1]).all()


@pytest.mark.parametrize("wrong", [0, 9, 65535])
def test_an_orientation_that_there_is_not_is_none(wrong: int) -> None:
    a = noise()
    np.testing.assert_array_equal(pixels(oriented(a, wrong, "PNG")), a)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(5, 9), st.integers(5, 9), st.just(4))))
def test_what_is_transparent_is_on_white(a: Pixels) -> None:
    expected = on_white(a[..., :3], a[..., 3])
    image = Image.fromarray(a)
    forms: list[Any] = [
        image, encoded(image), encoded(image, "WEBP", lossless=True, exact=True), a,
        a.transpose(2, 0, 1), torch.from_numpy(a.copy()), a.astype(np.uint16) * 257,
        encoded(image, "TIFF"),
    ]  # fmt: skip
    if a.max() > 1:
        forms.append(a.astype(float))
    if not set(np.unique(a)) <= {0, 255}:
        forms.append(a / 255)
    for form in forms:
        refused = refusal(form)
        if refused is None:
            np.testing.assert_array_equal(pixels(form), expected)
        else:  # as the alpha of a whole picture seems to be in 0 to 1, or its colours
            tops = a[..., :3].max(), a[..., 3].max()
            assert re.search("different ranges|8 bits in a wider type", str(refused))
            assert isinstance(form, np.ndarray | torch.Tensor)
            assert min(tops) == 1 or form.dtype == np.uint16
    pair = np.ascontiguousarray(a[..., [0, 3]])
    uneven = pair[..., 1].max() == 1 < pair[..., 0].max()
    assert (refusal(pair) is not None) == uneven
    for form in (Image.fromarray(pair), encoded(Image.fromarray(pair)), *[pair] * (not uneven)):
        np.testing.assert_array_equal(pixels(form), on_white(grey(a[..., 0]), a[..., 3]))


def test_colours_multiplied_by_alpha_are_on_white() -> None:
    a = noise(channels=4)
    many = Image.fromarray(a).convert("RGBa")
    parts = np.asarray(many).astype(int)
    np.testing.assert_array_equal(pixels(many), parts[..., :3] + 255 - parts[..., 3:])
    pair = Image.fromarray(a).convert("LA").convert("La")
    parts = np.asarray(pair).astype(int)
    np.testing.assert_array_equal(pixels(pair), grey(parts[..., 0] + 255 - parts[..., 1]))


def test_palettes_and_their_transparency() -> None:
    index = noise(channels=1) % 4
    colours = np.array([[9, 20, 30], [200, 0, 0], [1, 250, 1], [0, 0, 99]], np.uint8)
    for alpha in ([255, 255, 255, 255], [0, 255, 255, 255], [255, 0, 255, 255], [0, 128, 3, 250]):
        image = Image.fromarray(index).convert("P")
        image.putdata(index.reshape(-1).tolist())
        image.putpalette(colours.tobytes())
        expected = on_white(colours[index], np.array(alpha)[index])
        written = png(index[..., None], 8, 3, (b"PLTE", colours.tobytes()), (b"tRNS", bytes(alpha)))
        few = png(index[..., None], 2, 3, (b"PLTE", colours.tobytes()), (b"tRNS", bytes(alpha)))
        image.info["transparency"] = bytes(alpha)
        forms: list[Any] = [written, few, image, reopened(written), encoded(image)]
        if alpha.count(0) == 1 and alpha.count(255) == 3:
            one = image.copy()
            one.info["transparency"] = alpha.index(0)
            forms += [one, encoded(one, "GIF")]
        forms.append(Image.merge("PA", (image, Image.fromarray(np.array(alpha, np.uint8)[index]))))
        del forms[-1].info["transparency"]
        forms[-1].putpalette(colours.tobytes())
        for form in forms:
            np.testing.assert_array_equal(pixels(form), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_level_that_is_seen_through_at_every_depth(depth: int) -> None:
    top = 2**depth - 1
    levels = np.random.default_rng(depth).integers(0, top + 1, (6, 8, 1))
    for level in {0, 1, min(top, 5), top, int(levels[2, 3, 0])}:
        data = png(levels, depth, 0, (b"tRNS", struct.pack(">H", level)))
        bright = levels >> 8 if depth == 16 else levels * 255 // top
        expected = np.where(levels == level, 255, bright)[..., 0]
        np.testing.assert_array_equal(pixels(data), grey(expected))
        image = reopened(data)
        np.testing.assert_array_equal(pixels(image), grey(expected))
        refused = refusal(image)
        if refused is None:
            np.testing.assert_array_equal(pixels(image), grey(expected))
        else:  # PIL has forgotten the depth
            assert depth in (2, 4)
            assert f"of {top + 1} or 256 levels" in str(refused)


def test_a_colour_that_is_seen_through() -> None:
    a = noise()
    key = tuple(int(one) for one in a[2, 3])
    data = png(a, 8, 2, (b"tRNS", struct.pack(">HHH", *key)))
    expected = np.where((a == key).all(-1)[..., None], 255, a)
    for form in (data, reopened(data), reopened(data).copy()):
        np.testing.assert_array_equal(pixels(form), expected)
    deep = a.astype(np.uint16) * 256 + 7
    absent = png(deep, 16, 2, (b"tRNS", struct.pack(">HHH", 60_000, 3, 60_000)))
    np.testing.assert_array_equal(pixels(absent), a)
    with pytest.raises(PictureError, match="16-bit colours is seen through"):
        iv.as_picture(png(deep, 16, 2, (b"tRNS", struct.pack(">HHH", *deep[2, 3].tolist()))))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_shown(kind: str, vlm: iv.Model, tmp_path: Path) -> None:
    frames = [Image.fromarray(grey(np.full((16, 20), level))) for level in (40, 90, 200)]
    more = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    assert getattr(reopened(data), "n_frames") == 3  # noqa: B009 - PIL does not declare it
    first = np.asarray(frames[0])
    back = reopened(data)
    back.seek(2)
    with pytest.raises(PictureError, match=r"at frame 2, .*image\.copy\(\).* image\.seek\(0\)"):
        iv.as_picture(back)
    np.testing.assert_array_equal(pixels(back.copy()), np.asarray(frames[2]))
    back.seek(0)
    forms = [data, saved(tmp_path, data), reopened(data), back]
    for form in forms:
        np.testing.assert_array_equal(pixels(form), first)
    found = prompted(vlm, *forms, first)["pixel_values"]
    assert (found == found[-1]).all()


def test_an_image_object_is_left_as_it_was() -> None:
    a = noise(channels=4)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(a), exif=exif)
    image = reopened(data)
    once = pixels(image)
    np.testing.assert_array_equal(np.asarray(image), a)
    assert image.getexif()[0x0112] == 6
    np.testing.assert_array_equal(pixels(image), once)
    palette = Image.fromarray(a[..., :3]).quantize(8)
    palette.info["transparency"] = 3
    before = np.asarray(palette.convert("RGB"))
    once = pixels(palette)
    assert palette.info["transparency"] == 3
    np.testing.assert_array_equal(np.asarray(palette.convert("RGB")), before)
    np.testing.assert_array_equal(pixels(palette), once)
    file = io.BytesIO(encoded(Image.fromarray(a)))
    file.seek(11)
    iv.as_picture(file)
    assert file.tell() == 11


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("again", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy])
def test_an_image_object_that_was_pickled_is_what_it_was(kind: str, again: Any) -> None:
    a = noise(32, 24)
    data = oriented(a, 6, kind) if kind not in ("GIF", "BMP") else encoded(Image.fromarray(a), kind)
    loaded = reopened(data)
    loaded.load()
    for image in (reopened(data), loaded):
        np.testing.assert_array_equal(pixels(again(image)), pixels(data))
    chat = [{"role": "user", "content": [{"type": "image", "image": reopened(data)}]}]
    (part,) = again(chat)[0]["content"]
    np.testing.assert_array_equal(pixels(part["image"]), pixels(data))


def test_files_that_say_little_of_themselves(tmp_path: Path) -> None:
    class Answer:
        """As of a request: it can be read, once."""

        def read(self) -> bytes:
            return data

    data = encoded(Image.fromarray(noise()))
    with (
        saved(tmp_path, data).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        mapped.seek(5)
        np.testing.assert_array_equal(pixels(mapped), noise())
        assert mapped.tell() == 5
    np.testing.assert_array_equal(pixels(Answer()), noise())


def test_objects_whose_file_is_gone(tmp_path: Path) -> None:
    path = saved(tmp_path, encoded(Image.fromarray(noise(64, 64))))
    closed = Image.open(path)
    closed.close()
    cut = path.read_bytes()[:4000]
    shut = path.open("rb")
    shut.close()
    for value, reason in (
        (closed, "image_unreadable"),
        (reopened(cut), "image_truncated"),
        (cut, "image_truncated"),
        (shut, "image_unreadable"),
    ):
        with pytest.raises(PictureError) as refused:
            iv.as_picture(value)
        assert refused.value.reason == reason
