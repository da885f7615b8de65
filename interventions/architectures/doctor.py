"""What the engine understands of a model, found without its weights: ``interventions doctor``."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from interventions.architectures.abilities import Ability, abilities
from interventions.architectures.anatomy import Anatomy
from interventions.architectures.anatomy_finding import WHOLE, find_anatomy, kinds_of
from interventions.architectures.blocks import Block
from interventions.architectures.blueprints import blueprint
from interventions.architectures.families import tested
from interventions.architectures.faults import fault_of
from interventions.architectures.wrapped import placeholder_of
from interventions.architectures.wrapping import original

EXPERTS = ("expert", "moe", "router")


@dataclass(frozen=True)
class Part:
    """One module of a model.

    Attributes
    ----------
    name : str
        What it is.
    path : str
        Dotted path from the root module; ``{L}`` stands for each of ``layers``.
    kind : str
        Its class.
    weight : tuple of int or None
        Shape of its weight; None if it is made of several, or has none.
    parameters : int
        How many it has (in one block).
    output : str
        Axes and sizes of what is read there: the module's output, for ``head_out`` its input.
    layers : tuple of int
        The blocks that have it; empty for what is not in a block.
    """

    name: str
    path: str
    kind: str
    weight: tuple[int, ...] | None
    parameters: int
    output: str
    layers: tuple[int, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The path in every block that has it."""
        if not self.layers:
            return (self.path,)
        return tuple(self.path.format(L=layer) for layer in self.layers)


@dataclass(frozen=True)
class Special:
    """Blocks that are not plain ones.

    Attributes
    ----------
    what : str
    layers : tuple of int
    note : str
        What it means for streams.
    """

    what: str
    layers: tuple[int, ...]
    note: str


@dataclass(frozen=True)
class Report:
    """The resolved map of one model.

    Attributes
    ----------
    source : str
        What was asked for.
    architecture, model_type : str
        The model's class, and its config's name for it.
    tested : bool
        Whether the conformance suite covers it; otherwise it is understood through structure, and
        its components are checked to add up when its weights are loaded.
    broken : str or None
        Why it cannot run with the transformers installed here, and what to do; None if it can.
    sizes : dict of str to int
        ``n_layers``, ``d_model``, ``n_heads``, ``n_kv_heads``, ``head_dim``, ``vocab``,
        ``parameters``.
    images : "tokens", "cross-attention" or None
        How images enter.
    placeholder : str or None
        How one image is written in the text of a prompt.
    image_token_id : int or None
        The token that image features replace, where known.
    image_token : str or None
        Its text.
    prompts_missing : str or None
        Why ``prompt()`` would not work here; None if it does.
    identity : str
        The identity that holds between the components of a block.
    parts : tuple of Part
    special : tuple of Special
    notes : tuple of str
    abilities : tuple of Ability
        Streams and operations.
    """

    source: str
    architecture: str
    model_type: str
    tested: bool
    broken: str | None
    sizes: dict[str, int]
    images: str | None
    placeholder: str | None
    image_token_id: int | None
    image_token: str | None
    prompts_missing: str | None
    identity: str
    parts: tuple[Part, ...]
    special: tuple[Special, ...]
    notes: tuple[str, ...]
    abilities: tuple[Ability, ...]

    def record(self) -> dict[str, Any]:
        """Return the report as plain data, with the names of its attributes as keys."""
        return asdict(self)


def examine(source: str | Path, *, revision: str | None = None) -> Report:
    """Report what the engine understands of a model; its weights are neither needed nor read.

    Parameters
    ----------
    source : str or Path
        Hub repo id or local folder, of which config and processor files are read.
    revision : str, optional
        Branch, tag or commit on the hub.

    Raises
    ------
    LoadError
        If there is no config, or its architecture is not supported.

    Examples
    --------
    >>> examine("llava-hf/llava-1.5-7b-hf").placeholder
    '<image>'
    """
    plan = blueprint(source, revision=revision)
    examined = report(
        plan.module,
        source=str(source),
        processor=plan.processor,
        prompts_missing=plan.prompts_missing,
    )
    if plan.original_layout and plan.processor is None:
        return replace(examined, image_token_id=None)  # which one it will be, its tokenizer says
    return examined


def report(
    module: Any, *, source: str, processor: Any | None = None, prompts_missing: str | None = None
) -> Report:
    """Report on a transformers model, on whatever device (meta too).

    Parameters
    ----------
    module : torch.nn.Module
    source : str
        What it is called.
    processor : optional
        Its processor or tokenizer, for how images are written.
    prompts_missing : str, optional
        Why there is none.
    """
    anatomy = find_anatomy(module)
    if processor is None and prompts_missing is None:
        prompts_missing = "no processor or tokenizer was given"
    tokenizer = getattr(processor, "tokenizer", processor)
    placeholder = token = None
    if processor is not None and anatomy.is_vlm:
        placeholder = placeholder_of(processor, tokenizer, anatomy.image_token_id)
        placeholder = placeholder and anatomy.family.placeholder.format(image_token=placeholder)
    if tokenizer is not None and anatomy.image_token_id is not None:
        token = tokenizer.convert_ids_to_tokens(anatomy.image_token_id)
    sizes = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "vocab")
    images = "cross-attention" if anatomy.cross_blocks else "tokens"
    can = abilities(anatomy)
    if broken := fault_of(module, anatomy.model_type):
        can = tuple(
            replace(ability, state="no", note="the model does not run here") for ability in can
        )
    return Report(
        source=source,
        architecture=type(module).__name__,
        model_type=anatomy.model_type,
        tested=tested(anatomy.model_type),
        broken=broken,
        sizes={
            **{name: getattr(anatomy, name) for name in sizes},
            "parameters": _count(module),
        },
        images=images if anatomy.is_vlm else None,
        placeholder=placeholder,
        image_token_id=anatomy.image_token_id,
        image_token=token,
        prompts_missing=prompts_missing,
        identity=anatomy.identity,
        parts=tuple(_parts(module, anatomy)),
        special=tuple(_special(module, anatomy)),
        notes=anatomy.notes,
        abilities=can,
    )


def _count(module: Any) -> int:
    return sum(_unpacked(weight).numel() for weight in module.parameters())  # a tied weight once


def _unpacked(weight: Any) -> Any:
    """A tensor of the shape that a weight has where it is not packed (bitsandbytes)."""
    packing = getattr(weight, "quant_state", None)
    return weight if packing is None else torch.empty(packing.shape, device="meta")


def _weight_shape(module: Any) -> tuple[int, ...] | None:
    weight = getattr(original(module), "weight", None)
    return tuple(_unpacked(weight).shape) if torch.is_tensor(weight) else None


def _part(name: str, path: str, module: Any, output: str, layers: tuple[int, ...] = ()) -> Part:
    return Part(
        name=name,
        path=path,
        kind=type(module).__name__,
        weight=_weight_shape(module),
        parameters=_count(module),
        output=output,
        layers=layers,
    )


def _parts(module: Any, anatomy: Anatomy) -> Iterator[Part]:
    wide = f"[row, position, {anatomy.d_model}]"

    def whole(name: str, path: str | None, output: str) -> Iterator[Part]:
        if path is not None:
            yield _part(name, path, module.get_submodule(path), output)

    yield from whole("vision tower", anatomy.vision_tower, "vision states")
    yield from whole("projector", anatomy.projector, f"image features, {anatomy.d_model} wide")
    yield from whole("embeddings", anatomy.embeddings, wide)
    for block, layers in _layouts(module, anatomy):
        yield from _block_parts(module, anatomy, block, layers)
    yield from whole("final norm", anatomy.final_norm, wide)
    yield from whole("head", anatomy.head, f"[row, position, {anatomy.vocab}]")


def _layouts(module: Any, anatomy: Anatomy) -> list[tuple[Block, tuple[int, ...]]]:
    """The blocks that are made alike, classes of the sublayers included."""
    layouts: dict[tuple[Block, type, type], list[int]] = {}
    blocks = module.get_submodule(anatomy.blocks)
    for layer, (block, parts) in enumerate(zip(blocks, anatomy.parts, strict=True)):
        attention, mlp = (block.get_submodule(path) for path in (parts.attention, parts.mlp))
        layouts.setdefault((parts, type(attention), type(mlp)), []).append(layer)
    return [(parts, tuple(layers)) for (parts, _, _), layers in layouts.items()]


def _block_parts(
    module: Any, anatomy: Anatomy, parts: Block, layers: tuple[int, ...]
) -> Iterator[Part]:
    first = module.get_submodule(anatomy.blocks)[layers[0]]
    base = f"{anatomy.blocks}.{{L}}"
    wide = f"[row, position, {anatomy.d_model}]"
    yield _part("cross-attention block" if parts.cross else "block", base, first, wide, layers)
    heads = f"[row, position, {anatomy.n_heads}, {anatomy.head_dim}]"
    places = (
        ("attention", parts.attention, wide),
        ("head_out", parts.projection, heads),
        ("attn_out", parts.attn_out, wide),
        ("mlp", parts.mlp, wide),
        ("mlp_out", parts.mlp_out, wide),
    )
    for name, path, output in places:
        if path is not None:
            yield _part(name, f"{base}.{path}", first.get_submodule(path), output, layers)


def _special(module: Any, anatomy: Anatomy) -> Iterator[Special]:
    blocks = module.get_submodule(anatomy.blocks)
    text = module.config.get_text_config(decoder=True)
    if anatomy.cross_blocks:
        yield Special(
            "cross-attention",
            tuple(anatomy.cross_blocks),
            "read the image; do not run in a prompt without one",
        )
    if recurrent := anatomy.recurrent_blocks:
        yield Special(
            "recurrent state",
            tuple(recurrent),
            "no heads, no keys and values; attn_out is what the gated delta net gives",
        )
    if gated := [i for i, parts in enumerate(anatomy.parts) if parts.attn_gate or parts.mlp_gate]:
        gate = anatomy.parts[gated[0]]
        names = " and ".join(filter(None, (gate.attn_gate, gate.mlp_gate)))
        yield Special(
            "gates", tuple(gated), f"what attention and MLP add is scaled by tanh of {names}"
        )
    experts = [i for i, block in enumerate(blocks) if _is_mixture(block, anatomy.parts[i])]
    if experts:
        yield Special("mixture of experts", tuple(experts), "mlp_out is the sum over the experts")
    if behind := [i for i, parts in enumerate(anatomy.parts) if parts.behind_norm]:
        first = anatomy.parts[behind[0]]
        yield Special(
            "norms behind sublayers",
            tuple(behind),
            f"attn_out is the output of {first.attn_out}, mlp_out of {first.mlp_out}",
        )
    if anatomy.windowed:
        kinds = kinds_of(text) or ["sliding_attention"] * anatomy.n_layers
        for kind in dict.fromkeys(kind for kind in kinds if kind not in WHOLE):
            chunked = kind == "chunked_attention"
            local = "window_size" if kind == "local" else "sliding_window"
            size = getattr(text, "attention_chunk_size" if chunked else local, None)
            length = "some" if size is None else size
            seen = f"the {length} tokens of their chunk" if chunked else f"the last {length} tokens"
            yield Special(
                "chunked attention" if chunked else "sliding window",
                tuple(i for i, layer_kind in enumerate(kinds) if layer_kind == kind),
                f"attend to {seen} only",
            )


def _is_mixture(block: Any, parts: Block) -> bool:
    mlp = block.get_submodule(parts.mlp)
    names = [type(mlp).__name__, *(name for name, _ in mlp.named_children())]
    return any(mark in name.lower() for name in names for mark in EXPERTS)
