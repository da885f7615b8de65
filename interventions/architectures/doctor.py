"""What the engine understands of a model, found without its weights: ``interventions doctor``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from interventions.architectures.abilities import Ability, abilities
from interventions.architectures.anatomy import Anatomy, find_anatomy
from interventions.architectures.blocks import Block
from interventions.architectures.families import tested
from interventions.errors import InterventionsError, LoadError
from interventions.rows import placeholder_of

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
    >>> examine("llava-hf/llava-1.5-7b-hf").placeholder      # doctest: +SKIP
    '<image>'
    """
    from interventions.architectures.llava_layout import is_original_llava

    place = str(source)
    with _reading(place):
        original = is_original_llava(place, revision=revision)
        if original:
            config, opened = _original_llava(place, revision)
        else:
            config, opened = _transformers(place, revision)
        module = _weightless(config)
    found = report(module, source=place, processor=opened[0], prompts_missing=opened[1])
    if original and opened[0] is None:
        return replace(found, image_token_id=None)  # which one it will be, its tokenizer says
    return found


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
    return Report(
        source=source,
        architecture=type(module).__name__,
        model_type=anatomy.model_type,
        tested=tested(anatomy.model_type),
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
        abilities=abilities(anatomy),
    )


@contextmanager
def _reading(place: str) -> Iterator[None]:
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        *(OSError, ValueError, ImportError, KeyError, AttributeError, TypeError),
        *(RuntimeError, ArithmeticError, StrictDataclassError),  # sizes that do not go together
    ) as error:
        raise LoadError(
            f"{place!r} cannot be examined: {error}\nExpected a Hugging Face repo id, or a folder "
            "with config.json and the tokenizer or processor files; weights are not needed."
        ) from error


Opened = tuple[Any | None, str | None]


def _transformers(place: str, revision: str | None) -> tuple[Any, Opened]:
    from transformers import AutoConfig, AutoTokenizer

    from interventions.architectures.processors import open_processor

    common: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(place, **common)
    try:
        if _sees(config):
            processor = open_processor(place, config, **common)
        else:
            processor = AutoTokenizer.from_pretrained(place, **common)
    except InterventionsError as error:
        return config, (None, str(error))
    except Exception as error:  # transformers raises all sorts; the anatomy does not need it
        return config, (None, f"its processor or tokenizer cannot be opened: {error}")
    if not getattr(getattr(processor, "tokenizer", processor), "is_fast", False):
        return config, (processor, "its tokenizer is not a fast one (it has no tokenizer.json)")
    return config, (processor, None)


def _original_llava(place: str, revision: str | None) -> tuple[Any, Opened]:
    """The config of a checkpoint in LLaVA's original layout, as transformers' LLaVA has it."""
    from transformers import AutoConfig, AutoTokenizer, LlavaConfig

    from interventions.architectures.llava_layout import LAYOUTS, _config_of, _image_token

    original = _config_of(place, revision)
    if (kind := original.get("mm_projector_type", "linear")) != "mlp2x_gelu":
        raise LoadError(
            f"{place}: its projector is {kind!r}; transformers' LLaVA has only 'mlp2x_gelu', two "
            "linear layers with a GELU between them."
        )
    tower = original["mm_vision_tower"]
    inside = Path(place) / tower
    vision = AutoConfig.from_pretrained(str(inside) if inside.is_dir() else tower)
    text = AutoConfig.for_model(
        LAYOUTS[original["model_type"]],
        **{k: v for k, v in original.items() if not k.startswith("mm_") and k != "model_type"},
    )
    opened: Opened
    image_token_id: int | None = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:  # as above
        opened = None, f"its tokenizer cannot be opened: {error}"
    else:
        token, _ = _image_token(tokenizer)  # load() makes the processor around it
        image_token_id = tokenizer.convert_tokens_to_ids(token)
        opened = SimpleNamespace(tokenizer=tokenizer, image_token=token), None
    config: Any = LlavaConfig(
        vision_config=getattr(vision, "vision_config", vision),
        text_config=text,
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(original.get("tie_word_embeddings", False)),
    )
    if image_token_id is not None:
        config.image_token_id = image_token_id
    return config, opened


def _sees(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _weightless(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if getattr(config, "is_encoder_decoder", False):
        raise LoadError(
            f"{config.model_type} is an encoder-decoder; only decoders of one stack are supported."
        )
    auto = AutoModelForImageTextToText if _sees(config) else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


def _count(module: Any) -> int:
    return sum(one.numel() for one in module.parameters())  # a tied weight once


def _part(name: str, path: str, module: Any, output: str, layers: tuple[int, ...] = ()) -> Part:
    weight = getattr(module, "weight", None)
    return Part(
        name=name,
        path=path,
        kind=type(module).__name__,
        weight=tuple(weight.shape) if torch.is_tensor(weight) else None,
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
    found: dict[tuple[Block, type, type], list[int]] = {}
    blocks = module.get_submodule(anatomy.blocks)
    for layer, (block, parts) in enumerate(zip(blocks, anatomy.parts, strict=True)):
        attention, mlp = (block.get_submodule(one) for one in (parts.attention, parts.mlp))
        found.setdefault((parts, type(attention), type(mlp)), []).append(layer)
    return [(parts, tuple(layers)) for (parts, _, _), layers in found.items()]


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
    if gated := [i for i, one in enumerate(anatomy.parts) if one.attn_gate or one.mlp_gate]:
        gate = anatomy.parts[gated[0]]
        names = " and ".join(filter(None, (gate.attn_gate, gate.mlp_gate)))
        yield Special(
            "gates", tuple(gated), f"what attention and MLP add is scaled by tanh of {names}"
        )
    experts = [i for i, block in enumerate(blocks) if _is_mixture(block, anatomy.parts[i])]
    if experts:
        yield Special("mixture of experts", tuple(experts), "mlp_out is the sum over the experts")
    if behind := [i for i, one in enumerate(anatomy.parts) if one.behind_norm]:
        one = anatomy.parts[behind[0]]
        yield Special(
            "norms behind sublayers",
            tuple(behind),
            f"attn_out is the output of {one.attn_out}, mlp_out of {one.mlp_out}",
        )
    if anatomy.windowed:
        kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * anatomy.n_layers
        for kind in dict.fromkeys(one for one in kinds if one != "full_attention"):
            chunked = kind == "chunked_attention"
            size = getattr(text, "attention_chunk_size" if chunked else "sliding_window", None)
            length = "some" if size is None else size
            seen = f"the {length} tokens of their chunk" if chunked else f"the last {length} tokens"
            yield Special(
                "chunked attention" if chunked else "sliding window",
                tuple(i for i, one in enumerate(kinds) if one == kind),
                f"attend to {seen} only",
            )


def _is_mixture(block: Any, parts: Block) -> bool:
    mlp = block.get_submodule(parts.mlp)
    names = [type(mlp).__name__, *(name for name, _ in mlp.named_children())]
    return any(mark in name.lower() for name in names for mark in EXPERTS)
