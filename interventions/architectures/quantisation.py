"""How the weights of a model are quantised, and whether its rows are still their own.

Most formats pack weights, and compute each token by itself. Some choose how to round a layer's
input by everything that goes through it at once: then the numbers of a row depend on the rows (and
the padding) that it is run with.
"""

from typing import Any

from torch import nn

EACH_ITS_OWN = (
    *("gptq", "awq", "hqq", "quanto", "aqlm", "eetq", "higgs", "vptq", "spqr", "bitnet", "sinq"),
    *("auto-round", "fbgemm_fp8", "gguf", "mxfp4"),
)
"""Formats that keep inputs as they are, or round each token's by itself."""
REPACKS = "support_avx512bf16_for_cpu"
"""Where a 4-bit layer of bitsandbytes remembers that its CPU has a kernel for other packing."""


def quantisation_of(module: nn.Module) -> str | None:
    """Return how the weights of a model are quantised, such as "bitsandbytes int8"; None if not.

    Parameters
    ----------
    module : torch.nn.Module
        A transformers model, loaded or on meta.
    """
    kinds = sorted(
        {kind for part in module.modules() if (kind := _bitsandbytes(part) or _torchs_own(part))}
    )
    if kinds:
        return " and ".join(kinds)
    settings = settings_in(getattr(module, "config", None))
    return described(settings) if settings else None


def dependent_rows(module: nn.Module) -> str | None:
    """Return why the numbers of a row depend on those it is run with; None if they do not."""
    for part in module.modules():
        if _bitsandbytes(part) == "bitsandbytes int8":
            state: Any = getattr(part, "state", None)
            if float(getattr(state, "threshold", 0.0) or 0.0) > 0:
                return _why("bitsandbytes int8")
        if (kind := _torchs_own(part)) == "torch dynamic int8":
            return _why(kind)
    settings = settings_in(getattr(module, "config", None))
    if not settings:
        return None
    method, kind = method_of(settings), described(settings)
    if method == "bitsandbytes":
        loaded = any(_bitsandbytes(part) for part in module.modules())
        coming = settings.get("load_in_8bit") and settings.get("llm_int8_threshold", 6.0) > 0
        return _why(kind) if coming and not loaded else None
    if method in EACH_ITS_OWN:
        return None
    if method == "fp8" and (
        settings.get("weight_block_size") or settings.get("activation_scheme") == "static"
    ):
        return None
    if method == "torchao" and "Dynamic" not in str(settings):
        return None
    if method == "compressed-tensors" and not _by_tensor(settings):
        return None
    return _why(kind)


def keep_packed(module: nn.Module) -> None:
    """Let bitsandbytes leave 4-bit weights as they are packed.

    Where a CPU has AVX512-BF16, its first forward pass packs them anew, for a kernel that computes
    in bfloat16: a model's weights and numbers would depend on the machine and on whether it has
    run, and layers whose outputs are not a multiple of 32 fail.
    """
    for part in module.modules():
        if hasattr(part, REPACKS):
            setattr(part, REPACKS, False)


def without_gradients(module: nn.Module) -> str | None:
    """Return the format of weights through which no gradient comes back; None if there is none."""
    return next((kind for part in module.modules() if (kind := _torchs_own(part))), None)


def settings_in(config: Any) -> dict[str, Any]:
    """Return what a model's config says of quantisation, as a dict; empty if it says nothing."""
    settings = getattr(config, "quantization_config", None)
    if settings is None and hasattr(config, "get_text_config"):
        settings = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    if settings is None:
        return {}
    return dict(settings) if isinstance(settings, dict) else dict(settings.to_dict())


def described(settings: dict[str, Any]) -> str:
    """Return a short name of a format: its method, and how many bits.

    Examples
    --------
    >>> described({"quant_method": "gptq", "bits": 4})
    'gptq 4 bit'
    >>> described({"load_in_8bit": True})
    'bitsandbytes int8'
    """
    method = method_of(settings)
    if method == "bitsandbytes":
        if settings.get("load_in_8bit"):
            return "bitsandbytes int8"
        return f"bitsandbytes {settings.get('bnb_4bit_quant_type', 'fp4')}"
    bits = next((settings[key] for key in ("bits", "w_bit", "nbits") if settings.get(key)), None)
    return method if bits is None else f"{method} {bits} bit"


def _bitsandbytes(part: nn.Module) -> str | None:
    """The format of one of bitsandbytes' layers."""
    kind = {base.__name__ for base in type(part).__mro__ if "bitsandbytes" in base.__module__}
    if "Linear8bitLt" in kind:
        return "bitsandbytes int8"
    packed = getattr(part.weight, "quant_type", None) if "Linear4bit" in kind else None
    return packed and f"bitsandbytes {packed}"  # a tied head is left as it was


def _torchs_own(part: nn.Module) -> str | None:
    """The format of a layer that torch.ao made, which a model's config does not tell of."""
    made_in = type(part).__module__
    packed: Any = getattr(part, "_packed_params", None)
    if not made_in.startswith("torch.ao.nn.") or not isinstance(packed, nn.Module):
        return None
    size = str(getattr(packed, "dtype", "int8")).removeprefix("torch.q").removeprefix("torch.")
    return f"torch {'dynamic' if '.dynamic' in made_in else 'static'} {size}"


def method_of(settings: dict[str, Any]) -> str:
    """Name of the format that a quantisation config's settings say, as transformers calls it."""
    method = settings.get("quant_method")
    if method is None:  # as it was in checkpoints of old
        return "bitsandbytes" if any(key.startswith("load_in_") for key in settings) else "unknown"
    return str(getattr(method, "value", method))


def _by_tensor(settings: dict[str, Any]) -> bool:
    """Whether a layer's whole input is scaled by one number that is found while it runs."""
    groups = (settings.get("config_groups") or {}).values()
    inputs = [group.get("input_activations") for group in groups if isinstance(group, dict)]
    return any(
        scheme.get("dynamic") and scheme.get("strategy") != "token" for scheme in inputs if scheme
    )


def _why(kind: str) -> str:
    return (
        f"{kind} rounds a layer's input by all the tokens of a pass, so a row's numbers depend on "
        "what is run with it"
    )
