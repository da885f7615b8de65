"""Where weights go and what they are there, as a caller says it and transformers wants it said."""

from collections.abc import Mapping
from typing import Any

import torch

from interventions.architectures.blueprints import default_device
from interventions.errors import LoadError, did_you_mean

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps by name: how accelerate spreads blocks over the GPUs there are."""


def placement(
    device: str | torch.device | None,
    device_map: str | Mapping[str, Any] | None,
    dtype: torch.dtype | str | None,
    attn_implementation: str | None,
) -> dict[str, Any]:
    """Return it as arguments of transformers' ``from_pretrained``.

    Raises
    ------
    LoadError
        If there is no such device, number format or attention here.
    """
    if device is not None and device_map is not None:
        raise LoadError("device and device_map were both given. Give one of them.")
    if device is None and device_map is None:
        device = default_device()
    where = checked_device(device) if device_map is None else checked_map(device_map)
    if dtype is None:
        places = [*where.values()] if isinstance(where, Mapping) else [where]
        on_cpu = {*map(str, places)} == {"cpu"} or not torch.cuda.is_available()
        dtype = torch.float32 if on_cpu else "auto"
    return {
        "device_map": where,
        "dtype": checked_dtype(dtype),
        "attn_implementation": checked_attention(attn_implementation),
    }


def checked_device(device: Any) -> Any:
    """Return a device, if there is such a one here.

    Raises
    ------
    LoadError
        With those that are here.

    Examples
    --------
    >>> checked_device("cpu")
    'cpu'
    """
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        place = None
    if place is None or not _is_here(place):
        raise LoadError(
            f"device={device!r} is not here. Expected one of {', '.join(devices_here())}; or leave "
            "it out for the first GPU, else the CPU."
        )
    return device


def devices_here() -> list[str]:
    """Every device that a model could go to, such as ``cpu`` and ``cuda:0``."""
    kinds = ("cuda", "xpu", "mps", torch._C._get_privateuse1_backend_name())
    return ["cpu", *(f"{kind}:{index}" for kind in kinds for index in range(_count_of(kind)))]


def _count_of(kind: str) -> int:
    count = getattr(getattr(torch, kind, None), "device_count", None)
    return count() if count else 0


def _is_here(place: torch.device) -> bool:
    return place.type == "cpu" or (place.index or 0) < _count_of(place.type)


def checked_map(device_map: Any) -> Any:
    """Return a device map, if it is one.

    Raises
    ------
    LoadError
        With the names there are.

    Examples
    --------
    >>> checked_map("auto")
    'auto'
    """
    if isinstance(device_map, str) and device_map not in SPREAD and device_map != "disk":
        try:
            return checked_device(device_map)
        except LoadError as error:
            raise LoadError(
                f"device_map={device_map!r} is neither a way to spread a model nor a device that "
                f"is here. {did_you_mean(device_map, SPREAD)} Or {', '.join(devices_here())}."
            ) from error
    return device_map


def checked_dtype(dtype: Any) -> Any:
    """Return a number format, if weights can be in it; or ``"auto"``.

    Raises
    ------
    LoadError
        With those there are.

    Examples
    --------
    >>> checked_dtype("bfloat16")
    'bfloat16'
    """
    known = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    value = known.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if value == "auto" or (isinstance(value, torch.dtype) and value.is_floating_point):
        return dtype
    formats = ("float32", "bfloat16", "float16", "float64", "auto")
    close = did_you_mean(dtype, formats) if isinstance(dtype, str) else ""
    raise LoadError(
        f"dtype={dtype!r} is no number format of weights. {close or 'Expected ' + formats[0] + '.'}"
        ' "auto" is what the checkpoint says; for weights in 4 or 8 bits: quantization=.'
    )


def checked_attention(attention: Any) -> Any:
    """Return the name of an attention implementation, if transformers has it and can use it here.

    Raises
    ------
    LoadError
        With those there are, or what is missing.

    Examples
    --------
    >>> checked_attention("eager")
    'eager'
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ("eager", *sorted({*ALL_ATTENTION_FUNCTIONS.valid_keys()}))
    # Parts may have one each, and the hub has kernels by repo id.
    if isinstance(attention, str) and "/" not in attention and attention not in known:
        raise LoadError(
            f"attn_implementation={attention!r} is not known. {did_you_mean(attention, known)}"
        )
    return attention
