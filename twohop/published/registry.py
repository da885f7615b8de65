"""The pairs, as data: which models, of which class, in which layout, with how many parameters.

The first 14 are our reading of "14 VLMs, 7B to 124B" in *Too Late to Recall* (arXiv 2512.03276);
those behind them are newer families, with the language model that their makers say they were
built on.
"""

from dataclasses import dataclass
from typing import Any, Literal

from twohop.published.sizes import SHAPES, Shape

Architecture = Literal["llava", "native", "cross-attention"]
Layout = Literal["transformers", "llava_llama", "mistral"]
BYTES_BF16 = 2


@dataclass(frozen=True)
class Count:
    """How many parameters a model is published with; tied weights count once.

    Attributes
    ----------
    value : int
        The total.
    tolerance : int
        0 for an exact total; what a rounded figure may be off by.
    """

    value: int
    tolerance: int = 0

    @property
    def exact(self) -> bool:
        """Whether every digit is published."""
        return self.tolerance == 0

    def __str__(self) -> str:
        return f"{'' if self.exact else '~'}{self.value / 1e9:.4g}B"


def _about(billions: float, digits: int) -> Count:
    return Count(round(billions * 1e9), round(0.5 * 10 ** (9 - digits)))


# Exact totals are those of the hub's safetensors metadata, or of a public count of the loaded
# model's parameters; buffers that old checkpoints store (rotary frequencies, position ids) are not
# parameters and not in them. Others are derived from exact ones, or rounded, as it says beside.
PARAMETERS: dict[str, Count] = {
    # Counted on the loaded model, in several public runs.
    "llava-hf/llava-1.5-7b-hf": Count(7_063_427_072),
    "lmsys/vicuna-7b-v1.5": Count(6_738_415_616),
    "lmsys/vicuna-13b-v1.5": Count(13_015_864_320),
    # Rounded figures of the hub, as tables of later papers and projects cite them.
    "llava-hf/llava-1.5-13b-hf": _about(13.35, 2),
    "llava-hf/llava-v1.6-mistral-7b-hf": _about(7.57, 2),
    "llava-hf/llama3-llava-next-8b-hf": _about(8.36, 2),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": _about(8.03, 2),
    "mistral-community/pixtral-12b": _about(12.68, 2),
    # Only the name gives a figure, that of the language model.
    "aimagelab/LLaVA_MORE-llama_3_1-8B-finetuning": _about(8, 0),
    # The model card: 123B and a vision encoder of 1B.
    "mistralai/Pixtral-Large-Instruct-2411": _about(124, 0),
    # Safetensors metadata. Llama 3.1 8B has the shapes of Llama 3 8B.
    "mistralai/Mistral-7B-Instruct-v0.2": Count(7_241_732_096),
    "meta-llama/Meta-Llama-3-8B-Instruct": Count(8_030_261_248),
    "meta-llama/Llama-3.1-8B-Instruct": Count(8_030_261_248),
    "meta-llama/Llama-3.1-70B-Instruct": Count(70_553_706_496),
    "Qwen/Qwen2-7B-Instruct": Count(7_615_616_512),
    "Qwen/Qwen2.5-7B-Instruct": Count(7_615_616_512),
    "Qwen/Qwen2.5-72B-Instruct": Count(72_706_203_648),
    "Qwen/Qwen2.5-VL-7B-Instruct": Count(8_292_166_656),
    "mistralai/Mistral-Nemo-Instruct-2407": Count(12_247_782_400),
    "mistralai/Mistral-Large-Instruct-2411": Count(122_610_069_504),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": Count(10_670_220_835),
    "Qwen/Qwen3-VL-8B-Instruct": Count(8_767_123_696),
    "Qwen/Qwen3-8B": Count(8_190_735_360),
    "OpenGVLab/InternVL3_5-8B-HF": Count(8_528_318_464),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": Count(2_246_784_880),
    # Less the block that guesses a second token, which checkpoints beside it leave out.
    "Qwen/Qwen3.5-9B": Count(9_409_813_744),
    # That of GLM-4.6V-Flash, which has the same shapes; and what GGUF files of the 9B state.
    "zai-org/GLM-4.1V-9B-Thinking": Count(10_292_777_472),
    "zai-org/GLM-4-9B-0414": Count(9_400_279_040),
    # Safetensors metadata; the head is the embedding and is not stored twice.
    "google/gemma-3-12b-it": Count(12_187_325_040),
    "google/gemma-3-27b-it": Count(27_432_406_640),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Count(1_711_376_384),
    # Less 60 factors of blocks and 2,304 numbers behind the tower, which are buffers.
    "google/gemma-4-31B-it": Count(31_273_086_512),
    # Derived: Qwen2.5-72B, the tower of Qwen2.5-VL-32B (33,452,718,336 - 32,763,876,352), and a
    # last projection to 8192 instead of 5120 ((5120 + 1) x 3072).
    "Qwen/Qwen2.5-VL-72B-Instruct": Count(73_410_777_344),
    # The model card says 88.8B, as loosely as it says 10.6B of the 11B.
    "meta-llama/Llama-3.2-90B-Vision-Instruct": Count(88_800_000_000, 250_000_000),
}
# A native VLM without its tower and projector: what GGUF files of the text model state. Some say
# 11,765,788,416 of the 12B: they leave out 64 rows of 3840 that no token uses.
TEXT_PARAMETERS: dict[str, Count] = {
    "google/gemma-3-12b-it": Count(11_766_034_176),
    "google/gemma-3-27b-it": Count(27_009_346_304),
    "Qwen/Qwen3.5-9B": Count(8_953_803_264),
    "google/gemma-4-31B-it": Count(30_697_345_280),  # without the tower's 575,741,232
}


@dataclass(frozen=True)
class PublishedPair:
    """A published VLM and the language model it was built on.

    Attributes
    ----------
    key : str
        What the command line calls it.
    vlm, backbone : str
        Ids on the Hugging Face hub; the same id where the backbone is the VLM's own weights
        without an image.
    architecture : {"llava", "native", "cross-attention"}
        How the image enters: projected into the text of a language model that was trained without
        images, of one trained with them, or read by cross-attention blocks put between its own.
    layout : {"transformers", "llava_llama", "mistral"}
        How the VLM's checkpoint is stored: as transformers opens it; as the original LLaVA code
        does; or in Mistral's own format, from which it has to be converted first.
    """

    key: str
    vlm: str
    backbone: str
    architecture: Architecture
    layout: Layout = "transformers"

    @property
    def shape(self) -> Shape:
        """Sizes of its language model."""
        return SHAPES[self.key]

    @property
    def same_weights(self) -> bool:
        """Whether the backbone is the VLM itself, text only."""
        return self.vlm == self.backbone

    @property
    def vlm_parameters(self) -> Count:
        """Published number of parameters of the VLM."""
        return PARAMETERS[self.vlm]

    @property
    def backbone_parameters(self) -> Count:
        """Published number of parameters of the backbone."""
        return (TEXT_PARAMETERS if self.same_weights else PARAMETERS)[self.backbone]

    @property
    def vlm_bytes(self) -> int:
        """Memory of the VLM's weights at bfloat16."""
        return BYTES_BF16 * self.vlm_parameters.value

    @property
    def backbone_bytes(self) -> int:
        """Memory of the backbone's weights at bfloat16."""
        return BYTES_BF16 * self.backbone_parameters.value

    @property
    def total_bytes(self) -> int:
        """Memory of both at bfloat16; the same weights count once."""
        return self.vlm_bytes + (0 if self.same_weights else self.backbone_bytes)

    def record(self) -> dict[str, Any]:
        """Return the pair as plain data, with the names of its attributes as keys."""
        return {
            "key": self.key,
            "architecture": self.architecture,
            "layout": self.layout,
            "vlm": self.vlm,
            "backbone": self.backbone,
            "same_weights": self.same_weights,
            "vlm_parameters": self.vlm_parameters.value,
            "vlm_parameters_tolerance": self.vlm_parameters.tolerance,
            "backbone_parameters": self.backbone_parameters.value,
            "backbone_parameters_tolerance": self.backbone_parameters.tolerance,
            "vlm_bytes": self.vlm_bytes,
            "backbone_bytes": self.backbone_bytes,
            "total_bytes": self.total_bytes,
        }


PUBLISHED: dict[str, PublishedPair] = {
    pair.key: pair
    for pair in (
        PublishedPair("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "lmsys/vicuna-7b-v1.5", "llava"),
        PublishedPair(
            "llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", "lmsys/vicuna-13b-v1.5", "llava"
        ),
        PublishedPair(
            "llava-next-mistral-7b",
            "llava-hf/llava-v1.6-mistral-7b-hf",
            "mistralai/Mistral-7B-Instruct-v0.2",
            "llava",
        ),
        PublishedPair(
            "llava-next-llama3-8b",
            "llava-hf/llama3-llava-next-8b-hf",
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "llava",
        ),
        PublishedPair(
            "llava-more-8b",
            "aimagelab/LLaVA_MORE-llama_3_1-8B-finetuning",
            "meta-llama/Llama-3.1-8B-Instruct",
            "llava",
            "llava_llama",
        ),
        PublishedPair(
            "llava-onevision-7b",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "Qwen/Qwen2-7B-Instruct",
            "llava",
        ),
        PublishedPair(
            "pixtral-12b",
            "mistral-community/pixtral-12b",
            "mistralai/Mistral-Nemo-Instruct-2407",
            "llava",
        ),
        PublishedPair(
            "pixtral-large-124b",
            "mistralai/Pixtral-Large-Instruct-2411",
            "mistralai/Mistral-Large-Instruct-2411",
            "llava",
            "mistral",
        ),
        PublishedPair("gemma-3-12b", "google/gemma-3-12b-it", "google/gemma-3-12b-it", "native"),
        PublishedPair("gemma-3-27b", "google/gemma-3-27b-it", "google/gemma-3-27b-it", "native"),
        PublishedPair(
            "qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "native"
        ),
        PublishedPair(
            "qwen2.5-vl-72b", "Qwen/Qwen2.5-VL-72B-Instruct", "Qwen/Qwen2.5-72B-Instruct", "native"
        ),
        PublishedPair(
            "llama-3.2-vision-11b",
            "meta-llama/Llama-3.2-11B-Vision-Instruct",
            "meta-llama/Llama-3.1-8B-Instruct",
            "cross-attention",
        ),
        PublishedPair(
            "llama-3.2-vision-90b",
            "meta-llama/Llama-3.2-90B-Vision-Instruct",
            "meta-llama/Llama-3.1-70B-Instruct",
            "cross-attention",
        ),
        PublishedPair("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-8B", "native"),
        PublishedPair("internvl3.5-8b", "OpenGVLab/InternVL3_5-8B-HF", "Qwen/Qwen3-8B", "native"),
        PublishedPair(
            "smolvlm2-2.2b",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            "HuggingFaceTB/SmolLM2-1.7B-Instruct",
            "llava",
        ),
        PublishedPair(
            "glm-4.1v-9b", "zai-org/GLM-4.1V-9B-Thinking", "zai-org/GLM-4-9B-0414", "native"
        ),
        PublishedPair("gemma-4-31b", "google/gemma-4-31B-it", "google/gemma-4-31B-it", "native"),
        PublishedPair("qwen3.5-9b", "Qwen/Qwen3.5-9B", "Qwen/Qwen3.5-9B", "native"),
    )
}
