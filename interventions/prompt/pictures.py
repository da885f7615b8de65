"""A picture in whatever form it is given becomes the pixels that people see: one rule for all.

Pixels are those of a file as PIL decodes it, of its first frame, upright by its EXIF orientation,
with what is transparent on white, in 8 bits of red, green and blue. Of 16 bits the high byte is
taken. Colour profiles are not applied, as transformers does not. Numbers become the same pixels
by the rules of :mod:`interventions.prompt.picture_numbers`.
"""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from interventions.errors import PictureError
from interventions.prompt.picture_numbers import eight_bits, image_of_numbers
from interventions.prompt.picture_sources import located

LONGEST_TO_SHORTEST = 200
"""Of a longer picture, some processors refuse the shape, and others blow it up beyond memory."""
WHITE = 255
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Of TIFF: the depth, whether 0 is black, and whether numbers have a sign."""
GREY_STEPS = {"L;2": (3, 85), "L;4": (15, 17)}
"""Of PNGs of few grey levels, as PIL calls them: the highest level, and how far two are apart."""


def as_picture(value: Any, *, folder: str | os.PathLike[str] | None = None) -> Image.Image:
    """Return a picture as a model is shown it: in RGB, upright, what is transparent on white.

    The same picture gives the same pixels in whatever form it comes. Where a form does not say
    what the picture is, it is refused, with the reason.

    Parameters
    ----------
    value : path, text, bytes, file, dict, PIL.Image.Image, array or tensor
        A path or ``file://`` address; an image file as bytes, as an open binary file (read from
        its beginning), in base64 or as a ``data:`` address; ``{"bytes": ..., "path": ...}``, as
        data sets keep images; a PIL image of any mode, at its first frame; or anything that numpy
        or torch takes for an array:

        - [height, width], or [height, width, channel] or [channel, height, width] with 1 (grey),
          3 or 4 (RGB, and alpha) channels, or 2 (grey and alpha) as the last axis. Where first
          and last axis could both be the channels, as in 3 x 40 x 3, it is refused.
        - bool: white where true. uint8: 0 to 255. uint16: 0 to 65535; refused where nothing is
          above 255, as it may then be 8 bits in a wider type. Other integers: 0 to 255; refused
          where the highest is 1, as in a mask.
        - Floats: 0 to 1 where nothing is above 1, else 0 to 255, rounded. Refused are negative
          numbers (normalised already), NaN, and what could be either range: nothing but zeros
          and ones, or fractions of which the highest is between 1 and 16.
        - Alpha is in the range of the colours; refused where it seems to be in another.
        - PIL's modes I;16, I and F are taken by the same rules, unless a file says their depth.
    folder : path, optional
        What paths are relative to; default the working directory.

    Returns
    -------
    PIL.Image.Image
        Of mode RGB, [height, width] as people see it; the value itself is left as it was.

    Raises
    ------
    PictureError
        If it cannot be read, is on the web, is larger than ``PIL.Image.MAX_IMAGE_PIXELS``, has
        sides of which one is over 200 times the other, or can be read in more ways than one.

    Examples
    --------
    >>> red = np.zeros((2, 3, 4))
    >>> red[..., 0] = red[..., 3] = 0.5  # half transparent, half red
    >>> picture = as_picture(red)
    >>> picture.size, picture.getpixel((0, 0))
    ((3, 2), (191, 127, 127))
    """
    return opened(located(value, Path(folder or "")))


def opened(source: Path | bytes | Image.Image | Any) -> Image.Image:
    """Return the pixels of what :func:`interventions.prompt.picture_sources.located` found.

    Raises
    ------
    PictureError
        As :func:`as_picture`.
    """
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES  # other libraries set it, to see half a picture
    try:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        # A file may be larger than it says; what PIL only warns of is refused.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(source, Path):
                source = _content(source)
            if isinstance(source, bytes):
                if not source:
                    raise PictureError("image_empty", "there are no bytes in it")
                with Image.open(io.BytesIO(source)) as image:
                    return _shown(image)
            return _shown(source if isinstance(source, Image.Image) else image_of_numbers(source))
    except PictureError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError("image_too_large", str(error)) from error
    except UnidentifiedImageError as error:
        said = "not an image format known here; convert it to PNG or JPEG"
        raise PictureError("image_unreadable", said) from error
    except Exception as error:  # damaged files raise whatever their bytes lead to
        said = str(error) or type(error).__name__
        reason = "image_truncated" if "truncated" in said.lower() else "image_unreadable"
        raise PictureError(reason, said) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise PictureError("image_unreadable", f"{path} is no file; give one picture's path")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PictureError("image_missing", f"there is no {path}") from error
    except (OSError, ValueError) as error:
        raise PictureError("image_unreadable", str(error)) from error


def _shown(image: Image.Image) -> Image.Image:
    if isinstance(image, ImageFile.ImageFile) and not hasattr(image, "fp"):
        image = image.copy()  # one that was pickled: its pixels are there, its file is not
    _check_size(*image.size)
    frame, first = image.tell(), getattr(image, "_min_frame", 0)  # the first of a PSD is 1
    if frame != first:
        raise PictureError(
            "image_frame",
            f"the image object stands at frame {frame}, while the first is what is shown. Give "
            f"image.copy() to show this frame, or image.seek({first}) before",
        )
    raw, bits = _raw_mode(image), _bits(image)  # the file knows; forgotten once it is loaded
    upright = _upright(image)
    _check_size(*upright.size)  # a file may hold more than its header says
    key = upright.info.get("transparency")  # a colour that is seen through
    if upright.mode.startswith("I") or upright.mode == "F":
        numbers = np.asarray(upright)
        grey = eight_bits(numbers) if bits is None else (numbers >> (bits - 8)).astype(np.uint8)
        flat = Image.fromarray(grey if key is None else np.where(numbers == key, WHITE, grey))
    elif upright.mode in ("La", "RGBa"):  # colours that are multiplied by alpha already
        parts = np.asarray(upright).astype(np.int16)
        on_white = (parts[..., :-1] + WHITE - parts[..., -1:]).clip(0, WHITE).astype(np.uint8)
        flat = Image.fromarray(on_white.squeeze(-1) if upright.mode == "La" else on_white)
    else:
        if key is not None and upright.mode in ("L", "RGB"):
            upright.putalpha(_solid(upright, upright.info.pop("transparency"), raw))
        flat = upright
        if upright.has_transparency_data:
            seen = upright.convert("RGBA")
            flat = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    shown = flat.convert("RGB")
    shown.info.clear()  # what it says of the file's pixels is no longer so
    return shown


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # so that what is wrong with the pixels is not said of EXIF
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # as with files, damaged data raise whatever they lead to
        image._exif = None  # PIL keeps what it has read so far, and would not complain again
        said = f"its EXIF or XMP data are damaged, so which side is up is not known: {error}"
        raise PictureError("image_unreadable", f"{said}. Save it without them") from error


def _raw_mode(image: Image.Image) -> str | None:
    """How an unloaded PNG keeps its pixels; empty for another file; None where it is not known."""
    if image.format not in (None, "PNG"):
        return ""
    tiles = getattr(image, "tile", None)
    return tiles[0][3] if tiles and isinstance(tiles[0][3], str) else None


def _bits(image: Image.Image) -> int | None:
    """How many bits of a wide mode are used, where the file has said so."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith(("I", "F")) and tags.get(PHOTOMETRIC) == 0:
        said = "a TIFF of more than 8 bits in which 0 is white is not read right"
        raise PictureError("image_values", f"{said}; save it with 0 as black")
    if image.mode == "L" and tags.get(SAMPLE_FORMAT) == (2,):
        said = "a TIFF of numbers with a sign, which are read as if they had none"
        raise PictureError("image_values", f"{said}; save it as uint8")
    if image.mode.startswith("I;16") and image.format is not None:
        return 12 if tags.get(BITS_PER_SAMPLE) == (12,) else 16
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _solid(image: Image.Image, key: Any, raw: str | None) -> Image.Image:
    """The alpha of an image of mode L or RGB of which one colour is seen through.

    The colour is written in the depth of the file, which may be another than the image's.
    """
    pixels = np.asarray(image)
    if image.mode == "RGB":
        deep = raw == "RGB;16B" or max(key) > WHITE
        clear = (pixels == np.asarray(key) // (256 if deep else 1)).all(-1)
        if deep and clear.any():
            said = "one of its 16-bit colours is seen through, which 8 bits cannot tell from others"
            raise PictureError("image_values", f"{said}; save it with an alpha channel")
    else:
        top, step = GREY_STEPS.get(raw or "", (WHITE, 1))
        clear = pixels == (key * step if key <= top else key)
        for most, far in GREY_STEPS.values() if raw is None and key else ():
            few = key <= most and not clear.any() and not (pixels % far).any()
            if few and (pixels == key * far).any():
                said = f"grey level {key} is seen through, of {most + 1} or {WHITE + 1} levels"
                raise PictureError("image_values", f"{said}; give the file or its bytes")
    return Image.fromarray(np.where(clear, 0, WHITE).astype(np.uint8))


def _check_size(width: int, height: int) -> None:
    most = Image.MAX_IMAGE_PIXELS
    if not width or not height:
        raise PictureError("image_empty", f"it has {width} x {height} pixels")
    if most is not None and width * height > most:
        said = f"it has {width} x {height} pixels, and more than {most} may be meant to do harm"
        raise PictureError("image_too_large", f"{said}; raise PIL.Image.MAX_IMAGE_PIXELS if not")
    if max(width, height) > LONGEST_TO_SHORTEST * min(width, height):
        said = f"it has {width} x {height} pixels, which no processor keeps the shape of"
        raise PictureError("image_too_small", f"{said}; at most {LONGEST_TO_SHORTEST} : 1")
