"""The table of families in README.md: which are tested, and in what they are special."""

from collections.abc import Iterator
from dataclasses import dataclass

from interventions.architectures.families import FAMILIES, family


@dataclass(frozen=True)
class Group:
    """Families that are alike in what matters to streams, positions and prompts.

    Attributes
    ----------
    names : tuple of str
        As in ``config.model_type``.
    examples : str
        Checkpoints.
    cross, windowed, three_axis, behind_norm, headless, recurrent : bool
        Cross-attention blocks; blocks that see a window or chunk; image positions of three axes;
        norms behind the sublayers; blocks whose heads cannot be told apart; blocks with a
        recurrent state.
    note : str
        What else there is to know.
    """

    names: tuple[str, ...]
    examples: str
    cross: bool = False
    windowed: bool = False
    three_axis: bool = False
    behind_norm: bool = False
    headless: bool = False
    recurrent: bool = False
    note: str = ""


GROUPS = (
    Group(("llama", "qwen2", "qwen3"), "Llama 3.1, Vicuna, Qwen2.5"),
    Group(
        ("mistral",), "Mistral 7B, Nemo", windowed=True, note="the window is in version 0.1 only"
    ),
    Group(("glm4",), "GLM-4 9B 0414", behind_norm=True),
    Group(("gemma2", "gemma3_text"), "Gemma 2, Gemma 3 1B", windowed=True, behind_norm=True),
    Group(
        ("llava", "vipllava", "llava_next", "llava_onevision", "mistral3"),
        "LLaVA 1.5 to OneVision, Pixtral 12B",
        note="also checkpoints in LLaVA's original layout",
    ),
    Group(("internvl", "idefics3", "smolvlm"), "InternVL3-hf, Idefics3, SmolVLM"),
    Group(("qwen2_vl", "qwen2_5_vl"), "Qwen2.5-VL 7B, 72B", three_axis=True),
    Group(
        ("qwen3_vl",),
        "Qwen3-VL 8B",
        three_axis=True,
        note="features are also added behind the first blocks",
    ),
    Group(("qwen3_5_text",), "Qwen3.5 9B without its tower", headless=True, recurrent=True),
    Group(("qwen3_5",), "Qwen3.5 9B", three_axis=True, headless=True, recurrent=True),
    Group(("glm4v", "glm46v"), "GLM-4.1V 9B, GLM-4.6V-Flash", three_axis=True, behind_norm=True),
    Group(("gemma3",), "Gemma 3 12B, 27B", windowed=True, behind_norm=True),
    Group(
        ("gemma4_text",),
        "Gemma 4 31B without its tower",
        windowed=True,
        behind_norm=True,
        headless=True,
    ),
    Group(
        ("gemma4",),
        "Gemma 4 31B",
        windowed=True,
        behind_norm=True,
        headless=True,
        note="blocks are scaled; not E2B, E4B, 26B A4B",
    ),
    Group(("paligemma",), "PaliGemma 3B"),
    Group(
        ("llama4",),
        "Llama 4 Scout",
        windowed=True,
        note="experts; needs torchvision; broken in transformers 5.24.0",
    ),
    Group(
        ("mllama",),
        "Llama 3.2 Vision 11B, 90B",
        cross=True,
        note="gates; equally many images in all rows",
    ),
)
"""Each family of the conformance suite, once; the tests hold the facts against the models."""

COLUMNS = ("`model_type`", "such as", "images", "`share_prefix`", "notes")


def markdown() -> str:
    """Return the table in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for group in GROUPS:
        names = ", ".join(f"`{name}`" for name in group.names)
        cells = names, group.examples, _images(group), _sharing(group), "; ".join(_notes(group))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _images(group: Group) -> str:
    if not any(name in FAMILIES for name in group.names):
        return "none"
    if group.cross:
        return "any number, by cross-attention"
    return "any number, at positions" + (" of three axes" if group.three_axis else "")


def _sharing(group: Group) -> str:
    """Where a prefix is computed once, by what :meth:`interventions.Model.prompt` does."""
    two_way = family(group.names[0]).two_way
    if two_way == "prompt" or group.recurrent:
        return "no"
    conditions = ["text only"] if two_way == "image" or group.cross else []
    conditions += ["rows of equal length"] if group.windowed else []
    return ", ".join(conditions) or "yes"


def _notes(group: Group) -> Iterator[str]:
    two_way = family(group.names[0]).two_way
    if two_way:
        whose = {"image": "tokens of an image", "prompt": "tokens of a prompt with images"}
        yield f"{whose[two_way]} see each other both ways"
    if group.windowed:
        yield "blocks with windows" if group.names != ("llama4",) else "blocks with chunks"
    if group.behind_norm:
        yield "outputs are taken behind norms"
    if group.recurrent:
        yield "blocks with a recurrent state"
    if group.headless:
        yield "heads in some blocks only"
    if group.note:
        yield group.note
