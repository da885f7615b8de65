"""Vision towers of the suite's models, with plain PyTorch hooks at paths written down by hand."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from families import TWINS, Case, twin_config
from raw_attention import attending_with

Edit = Callable[[torch.Tensor], torch.Tensor]
BESIDE = ("resid_pre", "head_out", "projector_in")


@dataclass(frozen=True)
class TowerPaths:
    """Where the parts of a family's tower are.

    Attributes
    ----------
    stacks : tuple of str
        Lists of blocks.
    attention, projection, mlp : str
        In a block; the projection in its attention.
    norms : (str, str)
        Norms behind attention and MLP, where there are any.
    projector : str
    unused : int
        Blocks at the end that give nothing.
    """

    stacks: tuple[str, ...]
    attention: str = "self_attn"
    projection: str = "out_proj"
    mlp: str = "mlp"
    norms: tuple[str, str] | None = None
    projector: str = "model.multi_modal_projector"
    unused: int = 0


_ENCODER = ("model.vision_tower.encoder.layers",)
_CLIP = TowerPaths(_ENCODER, unused=1)
_SIGLIP = TowerPaths(_ENCODER)
_PIXTRAL = TowerPaths(
    ("model.vision_tower.transformer.layers",), "attention", "o_proj", "feed_forward"
)
_QWEN = TowerPaths(("model.visual.blocks",), "attn", "proj", projector="model.visual.merger")
_IDEFICS = TowerPaths(("model.vision_model.encoder.layers",), projector="model.connector")
TOWER: dict[str, TowerPaths] = {
    "llava": _CLIP,
    "llava_next": _CLIP,
    "vipllava": _CLIP,
    "llava_onevision": _SIGLIP,
    "gemma3": _SIGLIP,
    "paligemma": _SIGLIP,
    "pixtral": _PIXTRAL,
    "mistral3": _PIXTRAL,
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "glm46v"), _QWEN),
    "internvl": TowerPaths(("model.vision_tower.encoder.layer",), "attention", "projection_layer"),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "gemma4": TowerPaths(
        _ENCODER,
        projection="o_proj",
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        projector="model.embed_vision",
    ),
    "mllama": TowerPaths(
        ("model.vision_model.transformer.layers", "model.vision_model.global_transformer.layers"),
        projection="o_proj",
    ),
    "llama4": TowerPaths(
        ("vision_model.model.layers",), projection="o_proj", projector="multi_modal_projector"
    ),
}


def tower_paths(name: str) -> TowerPaths:
    """Of a family, or of the twin of a published model."""
    if name not in TWINS:
        return TOWER[name]
    config = twin_config(name)
    pixtral = config.model_type == "llava" and config.vision_config.model_type == "pixtral"
    return _PIXTRAL if pixtral else TOWER[config.model_type]


def blocks(case: Case) -> list[Any]:
    """Every block of the tower, in the order in which they run."""
    stacks = tower_paths(case.name).stacks
    return [block for path in stacks for block in case.model.module.get_submodule(path)]


def _module(case: Case, component: str, layer: int) -> Any:
    paths = tower_paths(case.name)
    if component.startswith("projector"):
        return case.model.module.get_submodule(paths.projector)
    norms = paths.norms or (paths.attention, paths.mlp)
    where = {
        "head_out": f"{paths.attention}.{paths.projection}",
        "attn_out": norms[0],
        "mlp_out": norms[1],
    }.get(component, "")
    return blocks(case)[layer].get_submodule(where)


def raw_tower(
    case: Case,
    *,
    edits: Sequence[tuple[str, int, Edit]] = (),
    reads: Sequence[tuple[str, int]] = (),
    arguments: dict[str, torch.Tensor] | None = None,
    gradients: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One forward pass: logits, and what was read, [token, width], all rows behind one another.

    An edit is given, and gives, such a list of tokens. Hooks come before those by which
    transformers records what a block gives, so that it records what an edit makes of it.
    """
    kept: dict[tuple[str, int], torch.Tensor] = {}

    def flat(edit: Edit) -> Edit:
        def of_tokens(value: torch.Tensor) -> torch.Tensor:
            return edit(value.reshape(-1, value.shape[-1])).reshape(value.shape)

        return of_tokens

    def before(edit: Edit) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (flat(edit)(args[0]), *args[1:]), kwargs
            key = next(iter(kwargs))
            return args, {**kwargs, key: flat(edit)(kwargs[key])}

        return hook

    def after(edit: Edit) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (flat(edit)(output[0]), *output[1:])
            return flat(edit)(output)

        return hook

    def keeping(key: tuple[str, int]) -> Edit:
        def keep(value: torch.Tensor) -> torch.Tensor:
            kept[key] = value.clone()
            return value

        return keep

    with ExitStack() as stack, torch.set_grad_enabled(gradients):
        for component, layer, edit in [*((*r, keeping(r)) for r in reads), *edits]:
            module = _module(case, component, layer)
            if component in BESIDE:
                handle = module.register_forward_pre_hook(
                    before(edit), with_kwargs=True, prepend=True
                )
            else:
                handle = module.register_forward_hook(after(edit), prepend=True)
            stack.callback(handle.remove)
        logits = case.model.module(**(arguments or case.arguments)).logits
    return logits, [kept[key] for key in reads]


def raw_patterns(
    case: Case, *, layer: int, change: Edit | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the weights of a block [token, head, token], 0 where nothing is attended to.

    ``change`` is given, and gives, these weights.
    """
    attention = getattr(blocks(case)[layer], tower_paths(case.name).attention)
    starts: list[int] = []
    calls: list[torch.Tensor] = []

    def weights_of(module: Any, *given: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        source = sys.modules[type(module).__module__]
        named = "eager_attention_forward"
        eager = getattr(source, f"vision_{named}", None) or getattr(source, named)
        return eager(module, *given, **settings)

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **settings: Any
    ) -> Any:
        output, weights = weights_of(module, query, key, value, attention_mask, **settings)
        if module is not attention:
            return output, weights
        first = sum(len(call) * call.shape[2] for call in calls)
        starts.append(first)
        calls.append(weights)
        if change is not None:
            whole = change(
                put_together(first, weights, first + weights.shape[0] * weights.shape[2])
            )
            n = weights.shape[2]
            rows = range(first, first + len(weights) * n, n)
            weights = torch.stack([whole[i : i + n, :, i : i + n].transpose(0, 1) for i in rows])
            output = torch.einsum("rhqk,rhkd->rqhd", weights, value)
        return output, weights

    def put_together(first: int, weights: torch.Tensor, total: int) -> torch.Tensor:
        whole = weights.new_zeros(total, weights.shape[1], total)
        n = weights.shape[2]
        for row, own in enumerate(weights):
            here = slice(first + row * n, first + (row + 1) * n)
            whole[here, :, here] = own.transpose(0, 1)
        return whole

    with attending_with(case, attend, tower=True), torch.no_grad():
        logits = case.model.module(**case.arguments).logits
    total = starts[-1] + len(calls[-1]) * calls[-1].shape[2]
    pairs = zip(starts, calls, strict=True)
    return logits, sum(
        (put_together(first, weights, total) for first, weights in pairs), torch.zeros(())
    )
