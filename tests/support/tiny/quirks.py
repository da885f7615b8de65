"""What differs from family to family, as data: found by trying, and held by ``test_tiny.py``."""

from dataclasses import dataclass, field, replace
from typing import Literal

from tiny.templates import PLACEHOLDERS


@dataclass(frozen=True)
class Quirks:
    """How one VLM and its processor meet.

    Attributes
    ----------
    placeholder : str
        What a text says where an image goes. Qwen's carries its two marks: without them, images
        that follow one another are taken for one.
    holds : str
        The token whose positions image features are written to. Mllama's holds nothing: its
        features enter by cross-attention.
    among : tuple of str
        Other special tokens of an image's run: separators, rows and columns, begin and end.
    axes : dict of str to str
        Keys the processor returns beside ``input_ids`` and ``attention_mask``, each with the names
        of its axes. ``image``, ``tile`` and ``patch`` in front run over all rows, one behind the
        other; ``~`` says that an axis is padded to the longest of the call.
    positions : str
        ``"count"``: from 0 over the real tokens. ``"one"``: from 1. ``"m-rope"``: three numbers
        per token, by the model's ``get_rope_index``.
    sees_ahead : str
        Which tokens attend to later ones: ``"none"``, ``"images"`` (within an image), or
        ``"prompt"`` (all of it).
    text_alone : bool
        Whether the processor takes a text without images.
    one_count : bool
        Whether all rows of a batch must have equally many images to be what they are alone.
    auto_processor : bool
        Whether ``AutoProcessor`` opens a folder without torchvision and num2words.
    rounding : float
        What padding may change in float64: 1e-12, unless a part computes in float32.
    most_tokens : int
        Of an image of the tests.
    """

    placeholder: str
    holds: str
    axes: dict[str, str]
    among: tuple[str, ...] = ()
    positions: Literal["count", "one", "m-rope"] = "count"
    sees_ahead: Literal["none", "images", "prompt"] = "none"
    text_alone: bool = True
    one_count: bool = False
    auto_processor: bool = True
    rounding: float = 1e-12
    most_tokens: int = 40
    notes: tuple[str, ...] = field(default=())


WITHOUT_SDPA = frozenset({"gemma2"})
"""Families that run with eager attention only: their scores are capped. In float64 transformers'
eager attention makes left-padded rows NaN (its mask, -1.8e308, becomes -inf in the softmax, which
is always float32), so these cannot be padded in float64."""

PIXELS = "channel height width"
TYPES = "row position"


def _llava(name: str) -> Quirks:
    return Quirks(PLACEHOLDERS[name], "<image>", {"pixel_values": f"image {PIXELS}"})


def _pixtral(name: str) -> Quirks:
    axes = {"pixel_values": "image channel ~height ~width", "image_sizes": "image size"}
    marks = ("[IMG_BREAK]", "[IMG_END]")
    return Quirks(PLACEHOLDERS[name], "[IMG]", axes, among=marks, auto_processor=False)


def _qwen(name: str) -> Quirks:
    return Quirks(
        PLACEHOLDERS[name],
        "<|image_pad|>",
        {
            "pixel_values": "patch pixel",
            "image_grid_thw": "image grid",
            "mm_token_type_ids": TYPES,
        },
        positions="m-rope",
        auto_processor=False,
        notes=(
            "without mm_token_type_ids Qwen2.5 silently takes plain positions; the others refuse",
            "the model keeps rope_deltas of the last images: a cached step needs position_ids",
        ),
    )


def _glm(name: str) -> Quirks:
    return replace(
        _qwen(name),
        holds="<|image|>",
        among=("<|begin_of_image|>", "<|end_of_image|>"),
        notes=("a token of a picture between the marks of a video is taken for a frame's",),
    )


def _idefics(name: str) -> Quirks:
    rows = tuple(f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6))
    return Quirks(
        PLACEHOLDERS[name],
        "<image>",
        {
            "pixel_values": f"row ~tile {PIXELS}",
            "pixel_attention_mask": "row ~tile height width",
        },
        among=("<fake_token_around_image>", "<global-img>", *rows),
        auto_processor=name == "idefics3",
        notes=("newlines stand between rows of tiles", "a tile of zeros is padding"),
    )


QUIRKS: dict[str, Quirks] = {
    "llava": _llava("llava"),
    "vipllava": _llava("vipllava"),
    "llava_next": Quirks(
        PLACEHOLDERS["llava_next"],
        "<image>",
        {"pixel_values": f"image ~tile {PIXELS}", "image_sizes": "image size"},
    ),
    "llava_onevision": Quirks(
        PLACEHOLDERS["llava_onevision"],
        "<image>",
        {
            "pixel_values": f"image ~tile {PIXELS}",
            "image_sizes": "image size",
            "batch_num_images": "imaged_row",
        },
        auto_processor=False,
        notes=("two images in a row are not split into tiles: pass images as a list of lists",),
    ),
    "pixtral": _pixtral("pixtral"),
    "mistral3": _pixtral("mistral3"),
    "gemma3": Quirks(
        PLACEHOLDERS["gemma3"],
        "<image_soft_token>",
        {"pixel_values": f"image {PIXELS}", "token_type_ids": TYPES},
        among=("<start_of_image>", "<end_of_image>"),
        sees_ahead="images",
        notes=("two newlines stand before and behind an image",),
    ),
    "gemma4": Quirks(
        PLACEHOLDERS["gemma4"],
        "<|image|>",
        {
            "pixel_values": "image ~patch pixel",
            "image_position_ids": "image ~patch size",
            "mm_token_type_ids": TYPES,
        },
        among=("<|image>", "<image|>"),
        sees_ahead="images",
        auto_processor=False,
        most_tokens=70,
        notes=("tokens of an image see each other in blocks with windows only",),
    ),
    "qwen2_vl": _qwen("qwen2_vl"),
    "qwen2_5_vl": _qwen("qwen2_5_vl"),
    "qwen3_vl": _qwen("qwen3_vl"),
    "qwen3_5": replace(_qwen("qwen3_5"), rounding=1e-4),
    "glm4v": _glm("glm4v"),
    "glm46v": _glm("glm46v"),
    "internvl": Quirks(
        PLACEHOLDERS["internvl"],
        "<IMG_CONTEXT>",
        {"pixel_values": f"tile {PIXELS}"},
        among=("<img>", "</img>"),
        auto_processor=False,
        notes=("how many tiles an image has is told by its tokens only",),
    ),
    "idefics3": _idefics("idefics3"),
    "smolvlm": _idefics("smolvlm"),
    "paligemma": Quirks(
        PLACEHOLDERS["paligemma"],
        "<image>",
        {"pixel_values": f"image {PIXELS}", "token_type_ids": TYPES, "labels": TYPES},
        positions="one",
        sees_ahead="prompt",
        text_alone=False,
        notes=(
            "<bos> stands behind the last image, and a newline ends the text",
            "labels are for training: passed on, they cost a loss",
            "without token_type_ids a text is causal in eager, and in sdpa only where padded",
            "its processor trips over numpy's deprecation of tensors as arrays",
        ),
    ),
    "mllama": Quirks(
        PLACEHOLDERS["mllama"],
        "<|image|>",
        {
            "pixel_values": f"row ~image tile {PIXELS}",
            "aspect_ratio_ids": "row ~image",
            "aspect_ratio_mask": "row ~image tile",
            "cross_attention_mask": "row position ~image tile",
        },
        one_count=True,
        notes=(
            "a text that begins with images gets a second <|begin_of_text|> behind them",
            "tokens before the first image attend evenly to all tiles, padding too, since"
            " transformers silences the MLP of such tokens but not their cross-attention",
            "without images, cross-attention blocks are not run at all",
        ),
    ),
    "llama4": Quirks(
        PLACEHOLDERS["llama4"],
        "<|patch|>",
        {"pixel_values": f"tile {PIXELS}"},
        among=(
            *("<|image_start|>", "<|image|>", "<|image_end|>"),
            *("<|tile_x_separator|>", "<|tile_y_separator|>"),
        ),
        auto_processor=False,
        notes=("how many tiles an image has is told by its tokens only",),
    ),
}
