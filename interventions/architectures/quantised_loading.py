"""How the weights of a whole checkpoint are quantised while they are loaded."""

from typing import Any

import torch

from interventions.architectures.quantisation import described, settings_in
from interventions.architectures.quantised_opening import PACKAGES, as_device_map
from interventions.errors import LoadError, did_you_mean

FORMATS = ("nf4", "int8", "fp8")
"""Formats by name; others as a config of transformers."""


def quantisation_config(
    asked: Any, config: Any, place: str, *, dtype: torch.dtype | str, device_map: Any
) -> Any:
    """Return what transformers is told to quantise by.

    Parameters
    ----------
    asked : str or quantisation config
        ``"nf4"`` and ``"int8"`` are bitsandbytes', ``"fp8"`` transformers' own (in blocks of
        128 x 128, and on GPUs that compute with it).
    config : PretrainedConfig
        Of the checkpoint.
    place : str
        For messages.
    dtype : torch.dtype or "auto"
        In which the unpacked weights are multiplied.
    device_map
        Where the weights are to go.

    Raises
    ------
    LoadError
        If the format is not known, cannot be used here, or the checkpoint is quantised already.
    """
    from transformers.quantizers.auto import AutoHfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if settings := settings_in(config):
        raise LoadError(
            f"{place!r} is quantised already ({described(settings)}). Leave quantization= out."
        )
    if isinstance(asked, QuantizationConfigMixin):
        packing: Any = asked
    elif asked in FORMATS:
        packing = _by_name(asked, dtype=dtype, config=config)
    else:
        raise LoadError(
            f"quantization={asked!r} is not known. {did_you_mean(str(asked), FORMATS)} Or a config "
            "of transformers, such as BitsAndBytesConfig(load_in_4bit=True)."
        )
    try:
        AutoHfQuantizer.from_config(packing, pre_quantized=False).validate_environment(
            device_map=as_device_map(device_map), dtype=None, weights_only=True
        )
    except Exception as error:  # each format raises what it likes
        method = str(getattr(packing.quant_method, "value", packing.quant_method))
        needs = PACKAGES.get(method.split("_4bit")[0].split("_8bit")[0])
        install = f" It needs: pip install {needs}." if needs else ""
        raise LoadError(
            f"quantization={asked if isinstance(asked, str) else method!r} cannot be used here: "
            f"{error}.{install} Or load the weights as they are, over more devices if they do not "
            'fit (device_map="auto").'
        ) from error
    return packing


def _by_name(name: str, *, dtype: torch.dtype | str, config: Any) -> Any:
    from transformers import BitsAndBytesConfig, FineGrainedFP8Config

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if name == "fp8":
        return FineGrainedFP8Config()
    if not isinstance(dtype, torch.dtype):
        text = config.get_text_config(decoder=True)
        dtype = getattr(config, "dtype", None) or getattr(text, "dtype", None) or torch.bfloat16
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
