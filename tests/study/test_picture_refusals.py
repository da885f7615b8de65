"""What is no picture, or could be two, is refused with the reason."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_forms import (
    HEIGHT,
    WIDTH,
    encoded,
    noise,
    on_white,
    pixels,
    reopened,
    saved,
)
from PIL import Image, ImageFile

import interventions as iv
from interventions.errors import PictureError, PromptError
from twohop.items.pictures import picture_of
from twohop.items.reasons import REASONS


def tiff_with_white_as_zero() -> bytes:
    image = Image.fromarray(np.full((6, 6), 40_000, np.uint16))
    return encoded(image, "TIFF", tiffinfo={262: 0})


def tiff(samples: np.ndarray, photometric: int, sample_format: int) -> bytes:
    """A grey TIFF, written by hand."""
    (height, width), bits = samples.shape, samples.itemsize * 8
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric),
            (273, 8 + 2 + 10 * 12 + 4), (277, 1), (278, height), (279, samples.nbytes),
            (339, sample_format)]  # fmt: skip
    body = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, n) for tag, n in tags
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + body + bytes(4) + samples.tobytes()


def with_damaged_exif() -> Image.Image:
    image = Image.fromarray(noise())
    image.info["exif"] = b"Exif\0\0garbage"
    return image


REFUSED: dict[str, tuple[str, Any]] = {
    "on the web": ("image_on_the_web", "https://example.org/a.png"),
    "on another machine": ("image_on_the_web", "file://server/share/a.png"),
    "in a bucket": ("image_on_the_web", "gs://bucket/a.png"),
    "no such file": ("image_missing", "nowhere/a.png"),
    "no such Path": ("image_missing", Path("nowhere/a.png")),
    "no such file address": ("image_missing", "file:///nowhere/a.png"),
    "no such home": ("image_missing", "~nobody-at-all/a.png"),
    "a folder": ("image_unreadable", Path(__file__).parent),
    "a long text": ("image_unreadable", "What is this? " * 500),
    "a base64 of nothing": ("image_missing", "QUJD" * 40),
    "a cut data address": ("image_unreadable", "data:image/png;base64"),
    "a picture in words": ("image_unreadable", "data:image/svg+xml,%3Csvg/%3E"),
    "an empty text": ("no_image", " "),
    "an empty dict": ("no_image", {}),
    "None": ("no_image", {"bytes": None, "path": None}),
    "no bytes": ("image_empty", b""),
    "a file of no image": ("image_unreadable", b"this is no image"),
    "a file of text": ("wrong_type", io.StringIO("this is no image")),
    "a number": ("wrong_type", 3),
    "lists of numbers": ("wrong_type", [[[0, 0, 0]] * 8] * 8),
    "processed": ("wrong_type", {"pixel_values": torch.zeros(1, 3, 8, 8)}),
    "normalised": ("image_values", torch.randn(3, 8, 8)),
    "barely negative": ("image_values", np.linspace(-0.01, 1, 64).reshape(8, 8)),
    "NaN": ("image_values", np.where(noise() > 9, 0.5, np.nan)),
    "infinite": ("image_values", np.where(noise() > 9, 0.5, np.inf)),
    "over 255": ("image_values", noise() * 2.0),
    "over 255, as integers": ("image_values", noise().astype(int) * 2),
    "negative integers": ("image_values", noise().astype(int) - 3),
    "int8": ("image_values", (noise() // 2).astype(np.int8)),
    "black and white, or almost black": ("image_values", (noise() > 99).astype(float)),
    "over 1, or dark": ("image_values", noise() / 255 * 1.2),
    "8 bits, or dark": ("image_values", noise().astype(np.uint16)),
    "8 bits, or dark, in PIL": (
        "image_values", Image.fromarray(noise(channels=1).astype(np.uint16))
    ),
    "32 bits": ("image_values", Image.fromarray(noise(channels=1).astype(np.int32) * 300)),
    "white as zero": ("image_values", tiff_with_white_as_zero()),
    "alpha to 1": ("image_values", np.dstack([noise() * 1.0, np.ones((HEIGHT, WIDTH))])),
    "alpha to 255": ("image_values", np.dstack([noise() / 255, np.full((HEIGHT, WIDTH), 255)])),
    "alpha of 0 and 1": ("image_values", np.dstack([noise(), noise()[..., 0] > 99])),
    "alpha of 0 and 1, int64": (
        "image_values", np.dstack([noise(), noise()[..., 0] > 99]).astype(int)
    ),
    "8 bits of alpha, 16 of colour": (
        "image_values", np.dstack([noise().astype(np.uint16) * 257, noise()[..., 0]])
    ),
    "8 bits of colour, 16 of alpha": (
        "image_values", np.dstack([noise(), np.full((HEIGHT, WIDTH), 65535, np.uint16)])
    ),
    "white as zero, in floats": (
        "image_values", tiff((noise(channels=1) / 255).astype("<f4"), 0, 3)
    ),
    "8 bits with a sign, in a TIFF": ("image_values", tiff((noise(channels=1) >> 1), 1, 2)),
    "damaged EXIF": ("image_unreadable", with_damaged_exif()),
    "a mask of int64": ("image_values", (noise(channels=1) > 99).astype(np.int64)),
    "a mask of int32 in torch": (
        "image_values", torch.from_numpy((noise() > 99).astype(np.int32))
    ),
    "a mask of int16, with alpha": (
        "image_values", (noise(channels=4) > 99).astype(np.int16)
    ),
    "a mask in PIL's I": (
        "image_values", Image.fromarray((noise(channels=1) > 99).astype(np.int32))
    ),
    "masked": ("image_values", np.ma.masked_less(noise(), 9)),
    "objects": ("wrong_type", noise().astype(object)),
    "complex": ("wrong_type", noise().astype(complex)),
    "complex in torch": ("wrong_type", torch.zeros(3, 8, 8, dtype=torch.complex64)),
    "structured": ("wrong_type", np.zeros((8, 8), [("red", "u1")])),
    "sparse": ("wrong_type", torch.eye(8).to_sparse()),
    "meta": ("wrong_type", torch.zeros(3, 8, 8, device="meta")),
    "one axis": ("image_shape", np.frombuffer(encoded(Image.fromarray(noise())), np.uint8)),
    "five channels": ("image_shape", np.zeros((8, 8, 5), np.uint8)),
    "no axis": ("image_shape", np.uint8(3)),
    "three of three": ("image_shape", np.zeros((3, 3, 3), np.uint8)),
    "3 x H x 3": ("image_shape", np.zeros((3, 40, 3), np.uint8)),
    "4 x H x 3": ("image_shape", torch.zeros(4, 40, 3)),
    "1 x W x 3": ("image_shape", np.zeros((1, 40, 3), np.uint8)),
    "2 x H x W": ("image_shape", np.zeros((2, 40, 50), np.uint8)),
    "nothing high": ("image_empty", np.zeros((0, 40, 3), np.uint8)),
    "nothing wide": ("image_empty", Image.new("RGB", (0, 3))),
    "a line": ("image_too_small", np.zeros((1, 1000), np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_with_the_reason(
    name: str, vlm: iv.Model, tmp_path: Path
) -> None:
    reason, value = REFUSED[name]
    for door in (iv.as_picture, lambda one: picture_of(one, tmp_path)):
        with pytest.raises(PictureError) as refused:
            door(value)
        assert refused.value.reason == reason
        assert reason in REASONS
        assert len(str(refused.value)) > 10
    with pytest.raises(PromptError):
        vlm.prompt(f"Which {vlm.image_token} is it", images=value)
    good = Image.fromarray(noise(16, 20))
    with pytest.raises(PromptError):
        vlm.prompt([f"Which {vlm.image_token} is it"] * 2, images=[good, value])


def test_too_many_pixels_are_refused_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    a = noise(40, 40)
    data = encoded(Image.fromarray(a))
    image = reopened(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for form in (data, image, Image.fromarray(a), a, torch.from_numpy(a)):
        with pytest.raises(PictureError) as refused:
            iv.as_picture(form)
        assert refused.value.reason == "image_too_large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    np.testing.assert_array_equal(pixels(data), a)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_half_a_picture_is_refused_where_others_let_pil_read_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.fromarray(noise(64, 64)), kind)
    cut = data[: len(data) // 2]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for form in (cut, reopened(cut), io.BytesIO(cut)):
        with pytest.raises(PictureError) as refused:
            iv.as_picture(form)
        assert refused.value.reason == "image_truncated"
        assert ImageFile.LOAD_TRUNCATED_IMAGES
    assert pixels(data).shape == (64, 64, 3)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_file_opened_as_text_is_said_to_be_and_stays_where_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path, encoded(Image.fromarray(noise())))
    for encoding in ("utf-8", "latin-1"):
        with path.open(encoding=encoding) as file:
            with pytest.raises(PictureError, match="binary mode, 'rb'") as refused:
                iv.as_picture(file)
            assert refused.value.reason == "wrong_type"
            assert file.tell() == 0


def test_damaged_exif_is_said_to_be() -> None:
    with pytest.raises(PictureError, match="EXIF or XMP data are damaged"):
        iv.as_picture(with_damaged_exif())


def test_an_array_without_doubt_about_its_axes_is_read() -> None:
    for shape in ((2, 40, 3), (3, 40, 50), (40, 3, 3), (5, 5, 3), (3, 5, 5), (4, 40, 50)):
        a = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        last = a if shape[-1] == 3 else a.transpose(1, 2, 0)
        expected = last if last.shape[-1] == 3 else on_white(last[..., :3], last[..., 3])
        np.testing.assert_array_equal(pixels(a), expected)


def test_paths_are_relative_to_the_folder_and_to_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = noise()
    saved(tmp_path, encoded(Image.fromarray(a)))
    np.testing.assert_array_equal(np.asarray(iv.as_picture("a.png", folder=tmp_path)), a)
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_array_equal(pixels("~/a.png"), a)
    np.testing.assert_array_equal(pixels(Path("~/a.png")), a)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(pixels("a.png"), a)
