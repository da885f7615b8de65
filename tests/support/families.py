"""The conformance suite's models, and an independent map of where their parts are.

The paths are written down by hand here, and not taken from the engine, so that a part that the
engine misses is not missed by its reference too.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from published_configs import published_config

import interventions as iv
from interventions.architectures.faults import check_unbroken
from twohop.published import PUBLISHED

Edit = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Paths:
    """Where a family's parts are, and in what it is special."""

    blocks: str = "model.language_model.layers"
    mlp: str = "mlp"
    behind_norm: bool = False
    norms: tuple[str, str] = ("post_attention_layernorm", "post_feedforward_layernorm")
    scale: str = ""  # a block's factor on what it gives
    headless: tuple[int, ...] = ()  # blocks whose heads are of another size
    recurrent: tuple[int, ...] = ()  # blocks with a gated delta net
    float32_inside: bool = False  # parts compute in float32, whatever the weights are
    cross_blocks: tuple[int, ...] = ()
    added_between: tuple[int, ...] = ()  # blocks behind which something else is added
    two_way: bool = False  # image tokens see each other in both directions
    no_sdpa: bool = False  # transformers has no such attention for it
    image_first: bool = False  # its processor wants images in front of the text
    mid: str = "post_attention_layernorm"  # the norm in front of the MLP
    normed: tuple[str, ...] = ()  # of q, k and v, those behind a norm
    heads_first: bool = False  # which sees them as [row, head, position, width]
    gate: str = "gate_proj"  # what gives the gate, first where it gives more
    experts: bool = False  # mixtures of experts in the place of MLPs


RECURRENT: Any = {
    **{"recurrent": (0, 1, 2), "headless": (0, 1, 2), "float32_inside": True},
    "normed": ("q", "k"),
}
GEMMA_MID = "pre_feedforward_layernorm"
GEMMA3: Any = {"mid": GEMMA_MID, "normed": ("q", "k"), "heads_first": True}
GEMMA4: Any = {
    **{"mid": GEMMA_MID, "normed": ("q", "k", "v")},
    **{"scale": "layer_scalar", "headless": (5,)},
}
GLM_NORMS = ("post_self_attn_layernorm", "post_mlp_layernorm")
PATHS: dict[str, Paths] = {
    **dict.fromkeys(tiny.TEXT, Paths("model.layers")),
    **dict.fromkeys(tiny.VLMS, Paths()),
    "qwen3": Paths("model.layers", normed=("q", "k")),
    "gemma2": Paths("model.layers", behind_norm=True, no_sdpa=True, mid=GEMMA_MID),
    "gemma3_text": Paths("model.layers", behind_norm=True, **GEMMA3),
    "glm4": Paths("model.layers", behind_norm=True, norms=GLM_NORMS, gate="gate_up_proj"),
    **dict.fromkeys(
        ("glm4v", "glm46v"), Paths(behind_norm=True, norms=GLM_NORMS, gate="gate_up_proj")
    ),
    "gemma3": Paths(behind_norm=True, two_way=True, **GEMMA3),
    "gemma4_text": Paths("model.layers", behind_norm=True, **GEMMA4),
    "gemma4": Paths(behind_norm=True, two_way=True, **GEMMA4),
    "paligemma": Paths(two_way=True, image_first=True),
    "qwen3_vl": Paths(added_between=(0, 1, 2), normed=("q", "k")),
    "qwen3_5_text": Paths("model.layers", **RECURRENT),
    "qwen3_5": Paths(**RECURRENT),
    "idefics3": Paths("model.text_model.layers"),
    "smolvlm": Paths("model.text_model.layers"),
    "mllama": Paths(cross_blocks=(1, 4), image_first=True),
    "llama4": Paths("language_model.model.layers", mlp="feed_forward", experts=True),
}


TWINS: dict[str, tuple[str, bool]] = {
    f"{repo}{' text' if text_only else ''}": (repo, text_only)
    for pair in PUBLISHED.values()
    for repo, text_only in ((pair.vlm, False), (pair.backbone, pair.same_weights))
}
"""Tiny twins of the published models: name to repo id, and whether only its text half."""


def twin_config(name: str) -> Any:
    """A new config: a model that is built from one writes its attention into it."""
    repo, text_only = TWINS[name]
    return tiny.shrink(published_config(repo, text_only=text_only))


PATHS |= {name: PATHS[twin_config(name).model_type] for name in TWINS}
for _name in TWINS:  # of VLMs whose language model is another than that of the family's tiny one
    if "qwen3" in getattr(twin_config(_name).get_text_config(), "model_type", ""):
        PATHS[_name] = replace(PATHS[_name], normed=("q", "k"))


def sees(name: str) -> bool:
    """Whether a family or twin is a VLM."""
    return hasattr(twin_config(name), "vision_config") if name in TWINS else name in tiny.VLMS


def part(name: str, module: Any, component: str, layer: int) -> Any:
    """The module whose output (for resid_pre and head_out: input) a component is."""
    paths = PATHS[name]
    block = module.get_submodule(f"{paths.blocks}.{layer}")
    attention = "cross_attn" if layer in paths.cross_blocks else "self_attn"
    attention = "linear_attn" if layer in paths.recurrent else attention
    where = {
        "head_out": f"{attention}.o_proj",
        "attn_out": paths.norms[0] if paths.behind_norm else attention,
        "mlp_out": paths.norms[1] if paths.behind_norm else paths.mlp,
    }.get(component, "")
    return block.get_submodule(where)


@dataclass(frozen=True)
class Case:
    """A tiny model with a prompt of two rows of different length (and two pictures)."""

    name: str
    model: iv.Model
    prompt: iv.Prompt
    texts: tuple[str, ...]
    pictures: tuple[Any, ...]

    @property
    def place(self) -> iv.Positions:
        """A position in each row: the image's last token, or the entity where there is none."""
        return self.prompt.at("entity", -1)

    @property
    def arguments(self) -> dict[str, torch.Tensor]:
        """What the plain model is called with."""
        return arguments_of(self.prompt)

    @property
    def real(self) -> torch.Tensor:
        """True where a token is no padding, [row, position]."""
        return self.prompt.inputs["attention_mask"].bool()


def arguments_of(prompt: iv.Prompt) -> dict[str, torch.Tensor]:
    inputs = dict(prompt.inputs)
    if inputs["position_ids"].ndim == 3:
        inputs["position_ids"] = inputs["position_ids"].transpose(0, 1)
    return inputs


@cache
def model_of(name: str, dtype: torch.dtype = torch.float32, attn: str = "eager") -> iv.Model:
    if name in TWINS:
        config = twin_config(name)
        module = tiny.build_model(config, dtype=dtype, attn_implementation=attn)
        processor = tiny.tiny_processor(config)
    else:
        module, processor = tiny.build(name, dtype=dtype, attn_implementation=attn)
    if sees(name):
        return iv.load(module, processor=processor)
    return iv.load(module, tokenizer=processor)


@cache
def case_of(name: str, dtype: torch.dtype = torch.float32, attn: str = "eager") -> Case:
    model = model_of(name, dtype, attn)
    check_unbroken(model.module, model.anatomy.model_type)
    spans = {"entity": ["France", "the town"]}
    if not sees(name):
        texts = ("The capital of France is", "Who was the first mayor of the town in the north?")
        return Case(name, model, model.prompt(list(texts), spans=spans), texts, ())
    shown = model.image_token
    texts = (
        f"Q: what is {shown} to France? A:",
        f"Q: and which one is {shown} , the town or the big river of the north? A:",
    )
    if PATHS[name].image_first:
        texts = (f"{shown}what is it to France", f"{shown}is it the town or the big river here")
    pictures = (tiny.picture((40, 30)), tiny.picture((24, 60), seed=1))
    prompt = model.prompt(list(texts), images=list(pictures), spans=spans)
    return Case(name, model, prompt, texts, pictures)


def _first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def raw_run(
    case: Case,
    *,
    edits: Sequence[tuple[str, int, Edit]] = (),
    reads: Sequence[tuple[str, int]] = (),
    arguments: dict[str, torch.Tensor] | None = None,
    gradients: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One forward pass with plain PyTorch hooks: logits, and the values read."""
    shape = case.prompt.inputs["input_ids"].shape
    found: dict[tuple[str, int], torch.Tensor] = {}

    def before(edit: Edit) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

        return hook

    def after(edit: Edit) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            old = _first(output)
            new = edit(old.reshape(*shape, -1)).reshape(old.shape)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    with ExitStack() as stack, torch.set_grad_enabled(gradients):
        for component, layer, edit in edits:
            module = part(case.name, case.model.module, component, layer)
            if component in ("resid_pre", "head_out"):
                handle = module.register_forward_pre_hook(before(edit), with_kwargs=True)
            else:
                handle = module.register_forward_hook(after(edit))
            stack.callback(handle.remove)
        for component, layer in reads:

            def keep(value: torch.Tensor, key: Any = (component, layer)) -> torch.Tensor:
                found[key] = value.clone()
                return value

            module = part(case.name, case.model.module, component, layer)
            if component in ("resid_pre", "head_out"):
                handle = module.register_forward_pre_hook(before(keep), with_kwargs=True)
            else:
                handle = module.register_forward_hook(after(keep))
            stack.callback(handle.remove)
        logits = case.model.module(**(arguments or case.arguments)).logits
    return logits, [found[key] for key in reads]


def set_at(positions: iv.Positions, value: torch.Tensor) -> Edit:
    """Edit that writes value [row, width] at one position per row."""
    index = positions.index[:, 0]

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[torch.arange(len(index)), index] = value.to(hidden.dtype)
        return changed

    return edit


def some_layers(model: iv.Model) -> list[int]:
    return sorted({0, 1, model.n_layers // 2, *model.anatomy.cross_blocks, model.n_layers - 1})


def attending(case: Case) -> list[int]:
    """Blocks with attention between tokens, and heads."""
    paths, blocks = PATHS[case.name], case.model.anatomy.self_blocks
    return [layer for layer in blocks if layer not in (*paths.recurrent, *paths.headless)]


def width(model: iv.Model, component: str) -> int:
    heads = model.anatomy.n_heads * model.anatomy.head_dim
    return heads if component == "head_out" else model.d_model


def as_heads(model: iv.Model, component: str, value: torch.Tensor) -> torch.Tensor:
    dim = model.anatomy.head_dim
    return value.unflatten(-1, (-1, dim)) if component == "head_out" else value


def with_sdpa(case: Case, dtype: torch.dtype = torch.float32) -> Case:
    if PATHS[case.name].no_sdpa:
        pytest.skip("transformers has no sdpa attention for this family")
    return case_of(case.name, dtype, "sdpa")


def plainly(source: Any, text: str, images: list[Any] | None) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__", DeprecationWarning)  # PaliGemma's labels
        given = {"images": images} if images else {}
        encoded = source(text=[text], return_tensors="pt", **given)
    encoded.pop("labels", None)
    return encoded
