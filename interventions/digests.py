"""Short names of values: equal for equal content, in any process."""

import enum
import hashlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from interventions.errors import InterventionsError

HEX = 24  # characters of a digest, 4 bits each
ORIENTATION = ExifTags.Base.Orientation
WIDTH = 4096  # numbers of eight bytes in a line of which sums are taken
SMALL = 2**20  # bytes that are brought to the CPU, where one call tells of them
SETTLED = (
    "nnsight.",
    "accelerate.",
    "transformers.",
    "torch.",
    "interventions.",
)  # whose hooks are no edits
LIBRARIES = (
    *SETTLED,
    *("bitsandbytes.", "peft.", "tokenizers.", "builtins.", "functools.", "typing.", "contextlib."),
    *("numpy.", "scipy.", "sklearn.", "pandas.", "xarray.", "PIL.", "einops."),
    *("safetensors.", "huggingface_hub.", "tqdm.", "torchvision.", "triton.", "kernels."),
    *("collections.", "abc.", "enum.", "dataclasses.", "types.", "re.", "operator.", "itertools."),
    *("datetime.", "decimal.", "fractions.", "random.", "logging.", "threading.", "_thread."),
)
"""Whose code is told by its name; its version is another matter."""


class UnknownContent(InterventionsError):
    """A value of which it cannot be told whether it is the same as another."""


def digest_of(*values: Any) -> str:
    """Digest of values, told apart by type, size and content.

    Tensors, arrays and pictures count by their shape, number format and every element; functions
    by their code and what they close over; a :class:`pathlib.Path` by what is written in the
    file, if there is one.

    Raises
    ------
    UnknownContent
        For an object that none of this can be said of.

    Examples
    --------
    >>> digest_of([1, 2]) == digest_of([1, 2]), digest_of([1, 2]) == digest_of([1, 2.0])
    (True, False)
    """
    digest = hashlib.sha256()
    for value in values:
        add(digest, value)
    return digest.hexdigest()[:HEX]


def add(digest: Any, value: Any, within: tuple[Any, ...] = ()) -> None:
    """Feed a value to a digest of hashlib's; see :func:`digest_of`.

    ``within``: the functions that are being added, which may name each other.
    """
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if torch.is_tensor(value):
        digest.update(f"{kind}{value.dtype}{tuple(value.shape)}".encode())
        if value.numel():
            digest.update(_bytes_of(value).cpu().numpy().tobytes())
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
        digest.update(f"{kind}{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
        if isinstance(value, np.ma.MaskedArray):
            digest.update(np.ascontiguousarray(np.ma.getmaskarray(value)).tobytes())
    elif isinstance(value, Image.Image):
        digest.update(f"PIL{value.mode}{value.size}".encode())
        digest.update(value.tobytes())
        # What decides how it is shown, beside its pixels.
        known = {key: value.info[key] for key in ("transparency", "exif") if key in value.info}
        orientation = _turned(value)
        if orientation is not None:  # which may be set on the object, or come from elsewhere
            known["orientation"] = repr(orientation)
        if value.mode.startswith("I"):
            known["format"] = value.format
        add(digest, [value.getpalette(None), known], within)
    elif isinstance(value, Path):
        digest.update(f"path{os.fspath(value)}".encode())
        if value.is_file():
            with value.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    elif is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{kind}(".encode())
        for field in fields(value):
            digest.update(f"{field.name}=".encode())
            add(digest, getattr(value, field.name), within)
    elif isinstance(value, Mapping):
        digest.update(f"{kind}{len(value)}".encode())
        for key in sorted(value, key=repr):
            add(digest, key, within)
            add(digest, value[key], within)
    elif isinstance(value, Set):
        add(digest, sorted(value, key=repr), within)
    elif value is None or isinstance(
        value, str | bytes | int | float | complex | slice | range | enum.Enum | torch.dtype
    ):
        text = repr(value)
        digest.update(f"{kind}{len(text)}:{text}".encode())
    elif isinstance(value, Sequence | np.ndarray):
        digest.update(f"{kind}{len(value)}".encode())
        for entry in value:
            add(digest, entry, within)
    elif isinstance(value, partial):
        add(digest, [value.func, value.args, value.keywords], within)
    elif inspect.ismethod(value):
        add(digest, value.__func__, within)
        add(digest, value.__self__, within)
    elif inspect.isfunction(value):
        _add_function(digest, value, within)
    elif isinstance(value, type | ModuleType) or inspect.isbuiltin(value):
        digest.update(f"{kind}{getattr(value, '__qualname__', value.__name__)}".encode())
    else:
        raise UnknownContent(
            f"whether a {kind} is the same as another cannot be told. Pass tensors, arrays, "
            "numbers, strings, functions, dataclasses, or containers of them."
        )


def _turned(picture: Image.Image) -> Any:
    try:
        return picture.getexif().get(ORIENTATION)
    except Exception:  # tags that cannot be read raise what they like, and turn nothing
        return None


def _add_function(digest: Any, function: Any, within: tuple[Any, ...]) -> None:
    digest.update(f"{function.__module__}.{function.__qualname__}".encode())
    if any(function is outer for outer in within):
        return
    within = (*within, function)
    _add_code(digest, function.__code__)
    add(digest, [cell.cell_contents for cell in function.__closure__ or ()], within)
    add(digest, [function.__defaults__, function.__kwdefaults__], within)
    for name, value in globals_of(function).items():
        part = hashlib.sha256()
        try:
            add(part, value, within)
        except UnknownContent:
            continue
        digest.update(f"{name}={part.hexdigest()}".encode())


def globals_of(function: Any) -> dict[str, Any]:
    """The global values that a function names, without modules, classes and code of libraries."""
    if of_library(function.__module__):
        return {}
    return {
        name: value
        for name, value in named_globals(function).items()
        if not isinstance(value, type | ModuleType)
        and not (callable(value) and of_library(getattr(value, "__module__", None)))
    }


def named_globals(function: Any) -> dict[str, Any]:
    """The global values that a function names, by name."""
    names = sorted(names_in(function.__code__) & function.__globals__.keys())
    return {name: function.__globals__[name] for name in names}


def names_in(code: CodeType) -> set[str]:
    """The names that code, and the functions in it, look up outside of themselves."""
    inner = [names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names}.union(*inner)


def of_library(*names: str | None) -> bool:
    """Whether one of the names is of a module of a library."""
    return any(f"{name}.".startswith(LIBRARIES) for name in names)


def code_digest(code: CodeType) -> str:
    """Digest of what a function does, without what it closes over."""
    digest = hashlib.sha256()
    _add_code(digest, code)
    return digest.hexdigest()[:HEX]


def _add_code(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code + repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(digest, constant)
        else:
            add(digest, "..." if constant is ... else constant)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Digest of a tensor's bits, the same wherever they lie; large ones are not moved for it.

    Sums are as fast as memory is on any device, and whole numbers add up to the same everywhere.
    """
    if tensor.device.type == "meta" or not tensor.numel():
        return "none"
    flat = _bytes_of(tensor)
    digest = fast_digest() if flat.numel() <= SMALL else None
    if digest is not None:
        return digest(flat.cpu().numpy().data)
    if flat.storage_offset() % 8:  # numbers of eight bytes are told of from a multiple of these on
        flat = flat.clone()
    whole = flat.numel() // (8 * WIDTH) * 8 * WIDTH
    lines = flat[:whole].view(torch.int64).view(-1, WIDTH)
    rest = torch.nn.functional.pad(flat[whole:], (0, 8 * WIDTH - (flat.numel() - whole)))
    # Sums wrap around. Those along both axes, each weighed by its place, tell of any exchange.
    sums = [rest.view(torch.int64).view(1, WIDTH).sum(0)]
    sums += _both_sums(lines) if whole else []
    return ".".join(
        f"{int((axis_sum * _weights(len(axis_sum), axis_sum.device)).sum()):x}" for axis_sum in sums
    )


def _both_sums(lines: torch.Tensor) -> list[torch.Tensor]:
    """Sums of [line, place] along both axes."""
    if lines.device.type != "cpu":
        return [lines.sum(0), lines.sum(1)]
    # Some at a time stay near the processor for the second sum: twice as fast.
    of_places, of_lines = torch.zeros(WIDTH, dtype=lines.dtype), []
    for part in lines.split(32):
        of_places += part.sum(0)
        of_lines.append(part.sum(1))
    return [of_places, torch.cat(of_lines)]


def fast_digest() -> Callable[[Any], str] | None:
    """A digest of bytes at the speed of memory; None on a server that has no such library."""
    try:
        from xxhash import xxh3_128_hexdigest

        xxh3_128_hexdigest(b"")  # a stand-in may have been imported
    except ImportError:
        return None
    return xxh3_128_hexdigest


def _weights(n: int, device: torch.device) -> torch.Tensor:
    """Odd numbers, one for each place, that are unlike each other in all their bits."""
    places = torch.arange(1, n + 1, device=device, dtype=torch.int64)
    mixed = places * -7046029254386353131
    return (mixed ^ (mixed >> 29)) * -4658895280553007687 | 1


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor, [byte], where they are."""
    plain = tensor.detach()
    if plain.is_quantized:
        plain = torch.cat([plain.dequantize().flatten(), plain.int_repr().flatten().float()])
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    plain = plain.resolve_conj().resolve_neg().contiguous()
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)  # of one, any stride will do
