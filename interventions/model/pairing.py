"""Which block of a VLM corresponds to which block of its backbone, and whether the two fit."""

from dataclasses import dataclass
from typing import Any

from interventions.architectures.anatomy import Anatomy
from interventions.architectures.blocks import of_first_block
from interventions.errors import AlignmentError
from interventions.given import of_kind, text_of
from interventions.model.model import Model

SAMPLE = "The capital of France is Paris, and 1 + 1 = 2."


@dataclass(frozen=True)
class Difference:
    """Something in which a VLM and its backbone differ, without forbidding patches.

    Attributes
    ----------
    what : str
    vlm, backbone : object
        The two values.
    """

    what: str
    vlm: Any
    backbone: Any

    def __str__(self) -> str:
        return f"{self.what}: {self.vlm!r} in the VLM, {self.backbone!r} in the backbone"


@dataclass(frozen=True)
class ModelPair:
    """A VLM and its backbone, between which values can be patched.

    Made by :func:`pair`.

    Attributes
    ----------
    vlm, backbone : Model
    layer_map : tuple of int
        Entry ``l`` is the VLM's block for the backbone's block ``l``.
    differences : tuple of Difference
        Where the two differ; empty for a backbone that was left as it was.
    """

    vlm: Model
    backbone: Model
    layer_map: tuple[int, ...]
    differences: tuple[Difference, ...]

    def __repr__(self) -> str:
        lines = [
            f"<ModelPair {self.vlm.name} on {self.backbone.name}: {len(self.layer_map)} blocks"
        ]
        lines += [f"  {difference}" for difference in self.differences]
        return "\n".join(lines) + ">"


def pair(vlm: Model, backbone: Model, *, text: str = SAMPLE) -> ModelPair:
    """Match a VLM with its backbone, and report in what they differ.

    A native VLM is paired with itself: the same model, asked in text only.

    Parameters
    ----------
    vlm, backbone : Model
    text : str
        Is tokenised by both, to compare their tokens.

    Returns
    -------
    ModelPair

    Raises
    ------
    AlignmentError
        If nothing can be patched between the two; both sides are shown.

    Examples
    --------
    >>> pair(vlm, llm).layer_map[:3]
    (0, 1, 2)
    """
    for model, what in ((vlm, "the VLM"), (backbone, "the backbone")):
        of_kind(model, Model, what, error=AlignmentError)
    text = text_of(text, "text", error=AlignmentError)
    return ModelPair(
        vlm=vlm,
        backbone=backbone,
        layer_map=tuple(layer_map(vlm, backbone)),
        differences=tuple(_differences(vlm, backbone, text)),
    )


def layer_map(vlm: Model, backbone: Model) -> list[int]:
    """VLM block that corresponds to each block of the backbone.

    The same one, or, where cross-attention blocks were inserted, around them.

    Returns
    -------
    list of int
        Entry ``l`` is the VLM's block for the backbone's block ``l``.

    Raises
    ------
    AlignmentError
        If width or depth differ, so that nothing can be patched from one into the other.
    """
    return match_blocks(vlm.anatomy, backbone.anatomy, names=(vlm.name, backbone.name))


def match_blocks(
    vlm: Anatomy, backbone: Anatomy, *, names: tuple[str, str] = ("the VLM", "the backbone")
) -> list[int]:
    """Match the blocks of two anatomies, which need no weights; see :func:`layer_map`.

    Parameters
    ----------
    vlm, backbone : Anatomy
    names : tuple of str
        What the two are called in an error.
    """
    ours, theirs = vlm.self_blocks, backbone.self_blocks
    if len(ours) != len(theirs) or vlm.d_model != backbone.d_model:
        inserted = len(vlm.cross_blocks)
        raise AlignmentError(
            f"{names[0]} has {len(ours)} layers x {vlm.d_model}"
            + (f" beside {inserted} cross-attention blocks" if inserted else "")
            + f", {names[1]} has {len(theirs)} layers x {backbone.d_model}. "
            "Patching needs a VLM and the backbone it was built on."
        )
    return ours


def _differences(vlm: Model, backbone: Model, text: str) -> list[Difference]:
    if vlm is backbone:
        return []
    vlm_config, backbone_config = (
        of_first_block(model.module.config.get_text_config(decoder=True))
        for model in (vlm, backbone)
    )
    differences = []

    def compare(what: str, a: Any, b: Any) -> None:
        if a != b:
            differences.append(Difference(what, a, b))

    compare(
        "architecture",
        vlm_config.model_type.removesuffix("_text"),
        _bare(backbone_config.model_type),
    )
    for what in ("rms_norm_eps", "num_attention_heads", "num_key_value_heads", "rope_parameters"):
        compare(what, getattr(vlm_config, what, None), getattr(backbone_config, what, None))
    compare("vocabulary size", vlm.anatomy.vocab, backbone.anatomy.vocab)
    ours, theirs = vlm.tokenizer.get_vocab(), backbone.tokenizer.get_vocab()
    moved = sorted(token for token, i in theirs.items() if ours.get(token) != i)
    compare("tokens of other ids", moved[:8], [])
    compare(
        f"tokens of {text!r}",
        vlm.tokenizer(text)["input_ids"],
        backbone.tokenizer(text)["input_ids"],
    )
    return differences


def _bare(model_type: str) -> str:
    return model_type.removesuffix("_text")
