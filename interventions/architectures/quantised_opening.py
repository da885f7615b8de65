"""Whether a quantised checkpoint can be opened here, or what it takes."""

import copy
from typing import Any

from interventions.architectures.quantisation import described, method_of, settings_in
from interventions.errors import LoadError

PACKAGES = {
    "gptq": "optimum gptqmodel",
    "awq": "gptqmodel",
    "auto-round": "auto-round",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "torchao": "torchao",
    "quanto": "optimum-quanto",
    "hqq": "hqq",
    "aqlm": "aqlm[gpu,cpu]",
    "eetq": "eetq",
    "fbgemm_fp8": "fbgemm-gpu",
    "quark": "amd-quark",
    "vptq": "vptq",
    "spqr": "spqr_quant[gpu]",
}
"""What each needs beside transformers, as pip is told."""


def check_opens(config: Any, place: str, *, device_map: Any) -> None:
    """Refuse a quantised checkpoint that transformers cannot open here.

    Parameters
    ----------
    config : PretrainedConfig
    place : str
        For messages.
    device_map : str, dict or device
        Where the weights are to go.

    Raises
    ------
    LoadError
        Says what the format is, what is missing, and what to install.
    """
    settings = settings_in(config)
    if not settings:
        if getattr(config, "quantization_config", None) is None:
            return
        raise LoadError(
            f"{place!r}: quantization_config in its config.json is empty, so it is not said how "
            "its weights are packed. Take it out if they are not quantised, or get the file again."
        )
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer

    method, kind = method_of(settings), described(settings)
    instead = "or use the checkpoint that it was made from, which is not quantised"
    known = {name.split("_4bit")[0].split("_8bit")[0] for name in AUTO_QUANTIZER_MAPPING}
    if method not in known:
        raise LoadError(
            f"{place!r} is quantised ({kind}), a format that transformers does not open: its "
            f"packed weights would be taken for missing ones. Use one of {', '.join(sorted(known))}"
            f"; {instead}."
        )
    try:
        # Copies: a quantiser that finds no GPU writes into the settings that it will unpack.
        quantiser = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=True)
        quantiser.validate_environment(
            device_map=as_device_map(device_map), dtype=None, weights_only=True
        )
    except Exception as error:  # each format raises what it likes
        needs = PACKAGES.get(method)
        how = f"Install what it needs (pip install {needs})" if needs else "See to that"
        raise LoadError(
            f"{place!r} is quantised ({kind}), and cannot be opened here: {error}\n"
            f"{how}, {instead}."
        ) from error


def as_device_map(device_map: Any) -> Any:
    """Return a device as the map that puts everything there; a map as it is."""
    if isinstance(device_map, dict) or str(device_map) in ("auto", "balanced", "sequential"):
        return device_map
    return {"": device_map}
