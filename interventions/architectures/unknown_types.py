"""Checkpoints of model types that transformers has no class for, and what can be done with them."""

from pathlib import Path
from typing import Any

from interventions.architectures.contents import CONFIG, as_json
from interventions.architectures.llava_layout import LAYOUTS

AKIN = {
    "llavaonevision15": (
        "LLaVA-OneVision-1.5: a RICE vision tower at native resolution before Qwen3. It is another "
        "model than the LLaVA-OneVision of transformers (llava-hf/llava-onevision-qwen2-7b-ov-hf), "
        "which its weights cannot be converted to"
    ),
}
"""What is known of such types, by their names without marks between letters."""


def unknown_type(place: str, *, revision: str | None = None) -> str | None:
    """Say of what type a checkpoint is, where transformers has no class for it; else None.

    Parameters
    ----------
    place : str
        Folder or repo id.
    revision : str, optional

    Returns
    -------
    str or None
        The predicate of a sentence about it, and what to do.
    """
    import transformers
    from transformers import CONFIG_MAPPING

    said = _config_of(place, revision)
    kind = said.get("model_type")
    if not isinstance(kind, str) or kind in CONFIG_MAPPING or kind in LAYOUTS:
        return None
    akin = AKIN.get("".join(filter(str.isalnum, kind)).lower())
    known = f" ({akin})" if akin else ""
    first = f"is of type {kind!r}{known}, for which transformers {transformers.__version__} has no"
    if not said.get("auto_map"):
        return (
            f"{first} class. Upgrade transformers if a newer one has it, or give a checkpoint that "
            "is in transformers' layout."
        )
    return (
        f"{first} class, so it runs only by the Python code that comes with it. If you trust that "
        f"code, load it yourself: module = AutoModelForCausalLM.from_pretrained({place!r}, "
        f"trust_remote_code=True), processor = AutoProcessor.from_pretrained({place!r}, "
        "trust_remote_code=True), and iv.load(module, processor=processor); whether this "
        "transformers runs the code, and whether its parts are understood, is said then. Else "
        "give a model that transformers has: `interventions families`."
    )


def _config_of(place: str, revision: str | None) -> dict[str, Any]:
    """What a checkpoint's config says; nothing where that cannot be had."""
    if Path(place).is_dir():
        return as_json(Path(place) / CONFIG) or {}
    from huggingface_hub import hf_hub_download

    try:
        return as_json(Path(hf_hub_download(place, CONFIG, revision=revision))) or {}
    except Exception:  # no network, no such repo: the first error says so
        return {}
