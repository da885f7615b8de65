"""How many bytes the weights of a checkpoint take that is packed already, by its config."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from interventions.architectures.quantisation import method_of, settings_in
from interventions.architectures.quantised_opening import as_device_map

BLOCK = 64
"""Weights of a scale in bitsandbytes' 4-bit formats."""
TILE = 128
"""Rows and columns of a scale in transformers' fp8, unless a config says others."""
FLOAT32, FLOAT16 = 4, 2
SKIPPED = (
    *("llm_int8_skip_modules", "modules_to_not_convert", "linear_weights_not_to_quantize"),
    *("ignored_layers", "ignore"),
)
"""Where configs list the modules that are left whole."""
LISTED_BESIDE_HEAD = ("awq", "gptq", "auto-round")
"""Formats that leave the head whole even where a list of modules does not say so."""
IN_BLOCKS = ("gptq", "auto-round")
"""Formats of which only modules of the decoder's blocks are packed."""
Count = Callable[[int, int], float]


@dataclass(frozen=True)
class PackedWeights:
    """What is packed of a model.

    Attributes
    ----------
    parameters : int
        Weights that are packed.
    nbytes : int
        What they take, their scales included.
    """

    parameters: int
    nbytes: int


def packed_weights(module: nn.Module, *, blocks: str, device: Any) -> PackedWeights | None:
    """Count what is packed of a model that was built from its config alone, without weights.

    Parameters
    ----------
    module : torch.nn.Module
        A transformers model whose layers are whole ones, on meta.
    blocks : str
        Path of the decoder's blocks.
    device : str or device
        Where it is to be loaded: formats that it cannot compute with are unpacked there.

    Returns
    -------
    PackedWeights or None
        None if nothing is packed when it is loaded, or the format's size is not known.
    """
    settings = settings_in(getattr(module, "config", None))
    count = bytes_of(settings) if settings else None
    if count is None or unpacked_at_loading(settings, device):
        return None
    shapes = [*_packed_shapes(module, settings, blocks)]
    return PackedWeights(
        sum(rows * columns for rows, columns in shapes),
        math.ceil(sum(count(rows, columns) for rows, columns in shapes)),
    )


def bytes_of(settings: dict[str, Any]) -> Count | None:
    """Return how many bytes a matrix of so many rows and columns takes; None if that is not known.

    Examples
    --------
    >>> count = bytes_of({"quant_method": "bitsandbytes", "load_in_4bit": True})
    >>> count(4096, 4096) / 4096**2
    0.5625
    >>> awq = bytes_of({"quant_method": "awq", "bits": 4, "group_size": 128})
    >>> awq(4096, 4096) / 4096**2
    0.51953125
    """
    method = method_of(settings)
    if method == "bitsandbytes":
        return _rowwise if settings.get("load_in_8bit") else _four_bits(settings)
    if method == "fp8":
        return _tiled(*(settings.get("weight_block_size") or (TILE, TILE)))
    if method in ("fbgemm_fp8", "eetq"):
        return _rowwise
    bits = next((settings[key] for key in ("bits", "w_bit", "nbits") if settings.get(key)), None)
    group = settings.get("group_size") or settings.get("q_group_size") or TILE
    if method in ("gptq", "awq", "auto-round") and bits is not None:
        return _grouped(bits, group, order=method == "gptq")
    return None


def unpacked_at_loading(settings: dict[str, Any], device: Any) -> bool:
    """Whether transformers will unpack such weights, as this machine does not compute with them.

    It is transformers that is asked; where it cannot say, as a package is missing, they are not.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        # A copy: a quantiser that finds no GPU writes into its settings that it will unpack.
        quantiser = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=True)
        quantiser.validate_environment(
            device_map=as_device_map(device), dtype=None, weights_only=True
        )
    except Exception:  # each format raises what it likes; opening the checkpoint says what
        return False
    return bool(getattr(quantiser.quantization_config, "dequantize", False))


def _packed_shapes(
    module: nn.Module, settings: dict[str, Any], blocks: str
) -> Iterator[tuple[int, int]]:
    """Rows and columns of every matrix that is packed."""
    method = method_of(settings)
    listed = next((settings[key] for key in SKIPPED if settings.get(key) is not None), None)
    head: Any = getattr(module, "get_output_embeddings", lambda: None)()
    embedding: Any = getattr(module, "get_input_embeddings", lambda: None)()
    tied = head is not None and head.weight is getattr(embedding, "weight", None)
    head_stays = tied or listed is None or method in LISTED_BESIDE_HEAD
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if not isinstance(part, nn.Linear) or weight is None or (part is head and head_stays):
            continue
        if method in IN_BLOCKS and not name.startswith(f"{blocks}."):
            continue
        if not _stays(name, listed):
            yield weight.shape[0], weight.shape[1]


def _stays(name: str, listed: list[str] | None) -> bool:
    """Whether a list of whole modules has one, under its path or what it was of old."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    entries = [entry.removeprefix("re:") for entry in listed or ()]
    paths = (name, name.removeprefix("model."))
    return not all(should_convert_module(path, entries) for path in paths)


def _rowwise(rows: int, columns: int) -> float:
    """A byte each, and a scale of each row."""
    return rows * columns + FLOAT32 * rows


def _four_bits(settings: dict[str, Any]) -> Count:
    """Half a byte each and a scale of each block, which may be packed itself, with 256 a scale."""

    def count(rows: int, columns: int) -> float:
        scales = math.ceil(rows * columns / BLOCK)
        if not settings.get("bnb_4bit_use_double_quant"):
            return rows * columns / 2 + FLOAT32 * scales
        return rows * columns / 2 + scales + FLOAT32 * math.ceil(scales / 256)

    return count


def _tiled(high: int, wide: int) -> Count:
    """A byte each, and a scale of each tile."""
    return lambda rows, columns: (
        rows * columns + FLOAT32 * math.ceil(rows / high) * math.ceil(columns / wide)
    )


def _grouped(bits: int, group: int, *, order: bool) -> Count:
    """Bits of each; of each group of a row's columns a scale and a zero; in gptq their order."""

    def count(rows: int, columns: int) -> float:
        groups = math.ceil(columns / group) if group > 0 else 1
        scales = rows * groups * (FLOAT16 + bits / 8)
        return rows * columns * bits / 8 + scales + (FLOAT32 * columns if order else 0)

    return count
