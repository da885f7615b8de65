"""Every mode, depth and number type is the picture that was meant, or is refused."""

import colorsys
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from picture_forms import (
    HEIGHT,
    WIDTH,
    Pixels,
    encoded,
    grey,
    noise,
    on_white,
    pixels,
    png,
    refusal,
    reopened,
)
from PIL import Image

import interventions as iv
from interventions.errors import PictureError


def dark(numbers: Pixels) -> bool:
    """Whether the colours or the alpha could be 8 bits in a wider type."""
    channels = numbers.shape[-1] if numbers.ndim > 2 else 1
    parts = [numbers[..., :3], numbers[..., 3:]] if channels == 4 else [numbers]
    return any(0 < part.max() <= 255 for part in parts)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint16, st.tuples(st.integers(5, 9), st.integers(5, 9), st.just(4))))
def test_sixteen_bits_are_their_high_bytes_or_refused(a: Pixels) -> None:
    high = (a >> 8).astype(np.uint8)
    one, colours = np.ascontiguousarray(a[..., 0]), a[..., :3]
    cases: list[tuple[Any, Pixels, Pixels]] = [
        (png(one[..., None], 16, 0), one, grey(high[..., 0])),
        (reopened(png(one[..., None], 16, 0)), one, grey(high[..., 0])),
        (encoded(Image.fromarray(one), "TIFF"), one, grey(high[..., 0])),
        (b"P5 %d %d 65535\n" % one.shape[::-1] + one.astype(">u2").tobytes(), one,
         grey(high[..., 0])),
        (Image.fromarray(one), one, grey(high[..., 0])),
        (Image.fromarray(one.astype(">u2")), one, grey(high[..., 0])),
        (one, one, grey(high[..., 0])),
        (png(colours, 16, 2), colours, high[..., :3]),
        (colours, colours, high[..., :3]),
        (torch.from_numpy(colours.copy()), colours, high[..., :3]),
        (png(a[..., [0, 3]], 16, 4), a, on_white(grey(high[..., 0]), high[..., 3])),
        (png(a, 16, 6), a, on_white(high[..., :3], high[..., 3])),
        (a, a, on_white(high[..., :3], high[..., 3])),
    ]  # fmt: skip
    for value, numbers, expected in cases:
        a_file = isinstance(value, bytes) or getattr(value, "format", None) is not None
        if not a_file and dark(numbers):
            with pytest.raises(PictureError, match="almost black, or 8 bits in a wider type"):
                iv.as_picture(value)
        else:
            np.testing.assert_array_equal(pixels(value), expected)


def by_formula(mode: str, parts: Pixels) -> Pixels:
    """Red, green and blue from what a mode means, without PIL."""
    first, *rest = np.moveaxis(parts.astype(float), -1, 0)
    if mode == "CMYK":
        key = rest[2]
        return np.stack([(255 - one) * (255 - key) / 255 for one in (first, *rest[:2])], -1)
    if mode == "HSV":
        rgb = [colorsys.hsv_to_rgb(*one) for one in (parts / 255).reshape(-1, 3)]
        return 255 * np.array(rgb).reshape(parts.shape)
    blue, red = (one - 128 for one in rest)
    found = (first + 1.402 * red, first - 0.344136 * blue - 0.714136 * red, first + 1.772 * blue)
    return np.stack(found, -1).clip(0, 255)


@pytest.mark.parametrize("mode", ["CMYK", "HSV", "YCbCr"])
def test_modes_of_other_colours(mode: str) -> None:
    a = noise(channels=len(Image.new(mode, (1, 1)).getbands()))
    image = Image.frombytes(mode, (WIDTH, HEIGHT), a.tobytes())
    found = pixels(image).astype(float)
    far = 3 if mode == "HSV" else 1  # PIL's hue has 256 steps
    assert np.abs(found - by_formula(mode, a)).max() <= far
    if mode == "CMYK":
        np.testing.assert_array_equal(pixels(encoded(image, "TIFF")), found)
        data = encoded(image, "JPEG", quality=100)  # stored inverted, as Adobe does
        assert np.abs(pixels(data).astype(float) - found).mean() < 12
        np.testing.assert_array_equal(pixels(data), pixels(reopened(data)))


def test_modes_of_grey_and_without_alpha() -> None:
    a = noise()
    one = np.ascontiguousarray(a[..., 0])
    np.testing.assert_array_equal(pixels(Image.fromarray(a).convert("RGBX")), a)
    floats = one.astype(np.float32)
    for form in (
        one, one[..., None], one[None], Image.fromarray(one), encoded(Image.fromarray(one)),
        Image.fromarray(one.astype(np.int32)), Image.fromarray(floats),
        Image.fromarray(floats / 255), encoded(Image.fromarray(floats), "TIFF"),
        torch.from_numpy(one), torch.from_numpy(one)[None],
    ):  # fmt: skip
        np.testing.assert_array_equal(pixels(form), grey(one))
    bits = one > 99
    for form in (bits, Image.fromarray(bits), encoded(Image.fromarray(bits)),
                 torch.from_numpy(bits), encoded(Image.fromarray(bits), "TIFF")):  # fmt: skip
        np.testing.assert_array_equal(pixels(form), grey(bits * 255))


def test_lab_is_the_colour_that_it_was() -> None:
    a = noise() // 2 + 64  # the colours that 8 bits of LAB can tell apart
    found = pixels(Image.fromarray(a).convert("LAB")).astype(int)
    assert np.abs(found - a).max() <= 4


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.just(6), st.just(7), st.just(3))),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([1, 255]),
    st.floats(-2, 2),
    st.floats(0.25, 4),
)
def test_floats_are_the_picture_or_refused(
    a: Pixels, dtype: Any, white: int, shift: float, stretch: float
) -> None:
    """Shifted or stretched floats give what was meant, or its nearest, and never another range."""
    meant = a.astype(dtype) / 255 * white
    for value in (meant, (meant + shift).astype(dtype), (meant * stretch).astype(dtype)):
        refused, highest = refusal(value), value.max()
        if refused is not None:
            assert refused.reason == "image_values"
        elif white == 255 and highest <= 1.001:  # fractions of 1, as far as anyone can tell
            assert highest == 0 or not (value == np.rint(value)).all()
        else:
            exact = (value.astype(float) * 255 / white).clip(0, 255)
            assert np.abs(pixels(value) - exact).max() <= 0.51


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_off_by_rounding_are_rounded(dtype: Any, white: int) -> None:
    a = noise()
    a[0, 0], a[0, 1] = 0, 255
    for off in (-0.3, 0.3):
        value = ((a + off) * (white / 255)).astype(dtype)
        np.testing.assert_array_equal(pixels(value), a)


def test_twelve_bits_of_a_tiff() -> None:
    a = np.array([[0, 0xABC], [0x800, 0xFFF]])
    rows = [bytes([left >> 4, (left & 15) << 4 | right >> 8, right & 255]) for left, right in a]
    tags = [(256, 2), (257, 2), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4),
            (277, 1), (278, 2), (279, 6)]  # fmt: skip
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags))
    body = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, n) for tag, n in tags
    )
    data = head + body + bytes(4) + b"".join(rows)
    for form in (data, reopened(data)):
        np.testing.assert_array_equal(pixels(form), grey(a >> 4))
