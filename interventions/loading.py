"""From a repo id, a folder or a ready module to a :class:`~interventions.model.Model`."""

from pathlib import Path
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel
from safetensors import SafetensorError

from interventions.errors import LoadError
from interventions.model import Model


def load(
    source: str | Path | torch.nn.Module,
    *,
    processor: Any | None = None,
    tokenizer: Any | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a language model or a VLM.

    Parameters
    ----------
    source : str, Path or torch.nn.Module
        Hub repo id, local folder, or a ready transformers model (then give its processor or
        tokenizer). A ready model is put in eval mode, its parameters need no gradients afterwards,
        and a tokenizer without a pad token gets one.
    processor, tokenizer : optional
        Used instead of those that belong to ``source``.
    dtype : torch.dtype or str, optional
        Default: float32 on a CPU, what the checkpoint says elsewhere.
    device : str, optional
        Default: CUDA when there is one, else CPU.
    attn_implementation : str, optional
        ``"eager"``, ``"sdpa"`` or others of transformers.
    revision : str, optional
        Branch, tag or commit on the hub.
    trust_remote_code : bool
        Run code that comes with the checkpoint. Off unless asked for.

    Returns
    -------
    Model

    Raises
    ------
    LoadError
        If the source cannot be found, opened, or is of an architecture that is not supported.

    Examples
    --------
    >>> vlm = load("llava-hf/llava-1.5-7b-hf")      # doctest: +SKIP
    """
    if isinstance(source, torch.nn.Module):
        return _wrap(source, processor, tokenizer, name=_name_of(source), revision=revision)

    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    from transformers.utils import logging

    place = str(source)
    device = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is None:
        dtype = torch.float32 if str(device) == "cpu" else "auto"
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    bars = logging.is_progress_bar_enabled()
    if Path(place).is_dir():
        logging.disable_progress_bar()  # a local folder opens in a blink; its bar is only noise
    try:
        config = AutoConfig.from_pretrained(place, **common)
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        loaded: Any = auto.from_pretrained(
            place,
            dtype=dtype,
            device_map=device,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            **common,
        )
        module, report = loaded
        if sees and processor is None:
            processor = AutoProcessor.from_pretrained(place, **common)
        elif not sees and tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(place, **common)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise LoadError(
            f"{place!r} cannot be loaded: {error}\nExpected a Hugging Face repo id, or a folder "
            "with config.json, safetensors weights and the tokenizer or processor files."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise LoadError(
            f"{place!r} is a half-loaded model: {len(missing)} weights are not in the checkpoint, "
            f"such as {missing[0]!r}, and would be random. Use a complete checkpoint."
        )
    name = Path(place).name if Path(place).is_dir() else place
    return _wrap(module, processor, tokenizer, name=name, revision=revision)


def _name_of(module: torch.nn.Module) -> str:
    return Path(getattr(module, "name_or_path", "") or type(module).__name__).name


def _wrap(
    module: torch.nn.Module,
    processor: Any | None,
    tokenizer: Any | None,
    *,
    name: str,
    revision: str | None,
) -> Model:
    if processor is None and tokenizer is None:
        raise LoadError(
            f"{type(module).__name__} was given as a module without its processor or tokenizer. "
            "Pass processor= for a VLM, tokenizer= for a language model."
        )
    tokens: Any = processor.tokenizer if processor is not None else tokenizer
    if not getattr(tokens, "is_fast", False):
        raise LoadError(
            f"the tokenizer of {name} is not a fast one, so character offsets are not to be had. "
            "Use a checkpoint with a tokenizer.json."
        )
    if tokens.pad_token_id is None and tokens.eos_token is not None:
        tokens.pad_token = tokens.eos_token
    module.eval().requires_grad_(False)
    task = "image-text-to-text" if processor is not None else "text-generation"
    given = {"processor": processor} if processor is not None else {"tokenizer": tokenizer}
    nn = TransformersModel(module, task=task, **given)
    return Model(nn, name=name, revision=revision)
