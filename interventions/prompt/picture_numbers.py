"""Arrays and tensors as images: which axis holds the channels, and what number is white."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image

from interventions.errors import PictureError

WHITE = 255
ROUNDED = 0.5
"""Numbers out of range by less than half a step of 8 bits are rounding, and are rounded away."""
SURE = 16
"""Fractions above 1 that reach this are on the scale of 255, and no overshoot of 1."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
WIDENED = ("bfloat16", "float8")  # numpy knows their names, and not how to count with them


def image_of_numbers(value: Any) -> Image.Image:
    """Return an array or tensor as an image of mode L, LA, RGB or RGBA.

    Raises
    ------
    PictureError
        If it is no array of numbers, has another shape than one picture's, or numbers that could
        mean more than one picture.
    """
    array = array_of(value)
    if array.ndim > 3:
        said = f"{_shape(array)}, of one picture; several go in a list"
        raise PictureError("image_shape", said)
    return _image(eight_bits(_channels_last(array)))


def images_of_batch(value: Any) -> list[Any]:
    """Return an array of four axes as a list of images; of more, as lists of lists.

    All are taken to be in one range, so that a dark one is not taken for one of a smaller range.

    Raises
    ------
    PictureError
        As :func:`image_of_numbers`.
    """
    return _listed(eight_bits(_channels_last(array_of(value))))


def _listed(pixels: np.ndarray) -> list[Any]:
    return [_image(entry) if entry.ndim == 3 else _listed(entry) for entry in pixels]


def _image(pixels: np.ndarray) -> Image.Image:
    grey = pixels.shape[-1] == 1
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if grey else pixels))


def array_of(value: Any) -> np.ndarray:
    """Return an array or tensor, wherever it is, as a numpy array of plain numbers.

    Raises
    ------
    PictureError
        If it is none.
    """
    if isinstance(value, torch.Tensor):
        return _array_of_tensor(value)
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise PictureError("image_values", "some of its pixels are masked; fill them first")
    if not is_array(value):
        raise PictureError("wrong_type", _no_picture(value))
    try:
        array = np.asarray(value)
        if array.dtype.name.startswith(WIDENED):
            array = array.astype(np.float32)
    except Exception as error:  # arrays on devices, of libraries of any kind
        said = f"{type(value).__name__} does not become a numpy array: {error}"
        raise PictureError("wrong_type", said) from error
    if array.dtype.kind not in "buif":
        said = f"an array of {array.dtype} holds no brightness; give numbers, such as uint8"
        raise PictureError("wrong_type", said)
    return array


def is_array(value: Any) -> bool:
    """Whether numpy takes a value for an array, other than by counting through a sequence."""
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _array_of_tensor(tensor: torch.Tensor) -> np.ndarray:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantised" if tensor.is_quantized else "without data"
        kind = kind if tensor.layout == torch.strided else str(tensor.layout)
        raise PictureError("wrong_type", f"a tensor that is {kind}; give a plain dense one")
    if tensor.is_complex():
        raise PictureError("wrong_type", f"a tensor of {tensor.dtype} holds no brightness")
    tensor = tensor.detach().as_subclass(torch.Tensor)
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        tensor = tensor.float()
    try:
        return tensor.cpu().numpy()
    except (RuntimeError, TypeError) as error:
        said = f"a tensor of {tensor.dtype} does not become a numpy array: {error}"
        raise PictureError("wrong_type", said) from error


def _no_picture(value: Any) -> str:
    known = "a path, bytes, a file, a PIL image, an array or a tensor"
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return f"a {kind} where one picture is expected: {known}; numbers as a numpy array"
    return f"a picture cannot be of type {kind}. Give {known}"


def _shape(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape)) or "no axis"


def _channels_last(array: np.ndarray) -> np.ndarray:
    """[..., height, width, channel], where the shape of the last axes leaves no doubt."""
    if array.ndim == 2:
        return array[..., None]
    last = array.ndim > 2 and array.shape[-1] in MODES
    first = array.ndim > 2 and array.shape[-3] in MODES and array.shape[-3] != 2
    if last and first:
        said = f"{_shape(array)}: the channels could be the last axis, or the third from behind"
        raise PictureError("image_shape", f"{said}. Give a PIL image")
    if last or first:
        return array if last else np.moveaxis(array, -3, -1)
    said = "where height x width x channels is expected, or channels x height x width"
    if array.ndim == 1:
        said += "; an image file in an array is given as array.tobytes()"
    raise PictureError("image_shape", f"{_shape(array)}, {said}")


def eight_bits(array: np.ndarray) -> np.ndarray:
    """Return numbers of any type as uint8, by what their type and range say.

    Parameters
    ----------
    array : ndarray of bool, integers or floats
        [height, width], or [..., height, width, channel], the last of 2 or 4 being alpha.

    Returns
    -------
    ndarray of uint8

    Raises
    ------
    PictureError
        If they are out of range, or could be of more than one range.
    """
    if not array.size:
        raise PictureError("image_empty", f"an array of {_shape(array)}")
    if array.dtype.kind == "b":
        return np.where(array, np.uint8(WHITE), np.uint8(0))
    with_alpha = array.ndim > 2 and array.shape[-1] in (2, 4)
    parts = (array[..., :-1], array[..., -1]) if with_alpha else (array,)
    tops = [float(part.max()) for part in parts]
    said = f"{array.dtype.name} from {array.min():.6g} to {max(tops):.6g}"
    uneven = with_alpha and max(tops) > 1 + ROUNDED / WHITE and 0 < min(tops) <= 1
    if uneven and (tops[1] <= 1 or array.dtype.kind == "f"):
        said += ", and colours and alpha are in different ranges, or one is next to nothing"
        raise PictureError("image_values", f"{said}. Give both in 0 to 1, or 0 to 255")
    if array.dtype.kind == "f":
        return _of_floats(array, said)
    if array.min() < 0 or array.dtype == np.int8:
        said += ": pictures have numbers from 0. Give uint8"
        raise PictureError("image_values", said)
    if array.dtype.name == "uint16":
        if any(0 < top <= WHITE for top in tops):
            said += ": almost black, or 8 bits in a wider type. Give uint8, or 0 to 65535"
            raise PictureError("image_values", said)
        return (array >> 8).astype(np.uint8)
    if max(tops) == 1 and array.dtype.itemsize > 1:
        said += ": white is 1, as in a mask, or 255 and this is almost black"
        raise PictureError("image_values", f"{said}. Give (value * 255).astype('uint8'), or bools")
    if max(tops) > WHITE:
        said += ": which number is white is not known. Give uint8, or uint16 for 16 bits"
        raise PictureError("image_values", said)
    return array.astype(np.uint8)


def _of_floats(array: np.ndarray, said: str) -> np.ndarray:
    array = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    lowest, highest = float(array.min()), float(array.max())
    if not np.isfinite([lowest, highest]).all():
        raise PictureError("image_values", f"{said}: not all of them are finite")
    white = _white(highest)
    if lowest < -ROUNDED * white / WHITE:
        said += ": negative, so probably normalised for a model already. Give the picture before"
        raise PictureError("image_values", f"{said}, in 0 to 1 or 0 to 255")
    if highest >= WHITE + ROUNDED:
        raise PictureError("image_values", f"{said}: above 255. Give 16 bits as uint16")
    in_doubt = highest == 1 or (white == WHITE and highest < SURE)
    whole = in_doubt and bool((array == np.rint(array)).all())
    if whole and highest == 1:
        said = "floats of nothing but 0 and 1: white is 1, or 255 and this is almost black"
        raise PictureError("image_values", f"{said}. Give (value * 255).astype('uint8'), or bools")
    if in_doubt and white == WHITE and not whole:
        said += ": fractions beyond 1 that do not come near 255, so white could be either"
        raise PictureError("image_values", f"{said}. Clip them to 0 to 1, or give uint8")
    return np.rint(array * (WHITE / white)).clip(0, WHITE).astype(np.uint8)


def _white(highest: float) -> int:
    return 1 if highest <= 1 + ROUNDED / WHITE else WHITE


def check_one_range(pictures: Iterable[tuple[str, Any]]) -> None:
    """Refuse arrays of floats of which some were taken to be in 0 to 1, others in 0 to 255.

    A dark frame among frames in 0 to 255 looks like one in 0 to 1.

    Parameters
    ----------
    pictures : iterable of (str, value)
        What to call each, and the picture as it was given; those that are no floats do not count.

    Raises
    ------
    PictureError
        Naming one of either kind.
    """
    ranges: dict[int, str] = {}
    for name, value in pictures:
        is_image = isinstance(value, Image.Image)
        if not (value.mode == "F" if is_image else is_array(value)):
            continue
        array = array_of(np.asarray(value) if is_image else value)
        if array.dtype.kind == "f" and (highest := float(array.max())) > 0:
            ranges.setdefault(_white(highest), f"{name} has floats up to {highest:.6g}")
    if len(ranges) > 1:
        said = f"{ranges[1]}, and {ranges[WHITE]}, so the first may be a dark one in 0 to 255"
        raise PictureError(
            "image_values",
            f"{said}. Give all in one range; for dark ones in 0 to 255 as uint8, or in one array",
        )
