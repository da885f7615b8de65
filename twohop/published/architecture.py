"""The class of any pair's architecture: registered, or known from how its VLM is built."""

from typing import Literal

from twohop.published.registry import PUBLISHED, Architecture

Class = Architecture | Literal["other"]

# Types that were made both ways, such as InternVL's, are in no class: a config does not tell.
CLASS_OF_TYPE: dict[str, Architecture] = {
    **dict.fromkeys(("llava", "vipllava", "llava_next", "llava_onevision"), "llava"),
    **dict.fromkeys(("idefics3", "smolvlm"), "llava"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "llama4"), "native"),
    **dict.fromkeys(("glm4v", "glm46v", "gemma4", "qwen3_5"), "native"),
    "mllama": "cross-attention",
}
"""Class of a VLM by ``config.model_type``, for those that are always built in one way."""


def architecture_of(
    vlm: str, backbone: str, *, model_type: str | None, image_tokens: bool
) -> Class:
    """Class of a pair, as in :class:`twohop.published.PublishedPair`.

    Parameters
    ----------
    vlm, backbone : str
        Repo ids or folders. A registered VLM is of its registered class; one that is its own
        backbone is native.
    model_type : str or None
        Of the VLM's config; None where it was not recorded.
    image_tokens : bool
        Whether the image has positions in the text's sequence.

    Examples
    --------
    >>> architecture_of("my/vlm", "my/llm", model_type="llava", image_tokens=True)
    'llava'
    >>> architecture_of("my/vlm", "my/llm", model_type="internvl", image_tokens=True)
    'other'
    """
    registered: dict[str, Architecture] = {
        pair.vlm: pair.architecture for pair in PUBLISHED.values()
    }
    if vlm in registered:
        return registered[vlm]
    if model_type in CLASS_OF_TYPE:
        return CLASS_OF_TYPE[model_type]
    if not image_tokens:
        return "cross-attention"
    return "native" if vlm == backbone else "other"
