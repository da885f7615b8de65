"""Where the parts of a model are, found from its structure and config.

A decoder block must add an attention's and an MLP's output to its input, in whatever norm layout;
:mod:`interventions.architectures.families` holds the little that structure does not tell.
A model that cannot be understood so is refused with the reason.
"""

from dataclasses import replace
from typing import Any

from torch import nn

from interventions.architectures.anatomy import Anatomy
from interventions.architectures.blocks import (
    OTHERWISE,
    Block,
    block_of,
    head_dim,
    is_norm,
    of_first_block,
    with_equal_heads,
)
from interventions.architectures.families import family
from interventions.architectures.quantisation import dependent_rows
from interventions.architectures.spot_finding import Sizes, routers_of, spots_of, with_code_of
from interventions.architectures.tower_finding import find_tower
from interventions.errors import LoadError

PROJECTORS = ("projector", "connector", "embed_vision")
WHOLE = ("full_attention", "linear_attention", "global")
SCALED_RESIDUALS = ("residual_multiplier", "hidden_dropout_residual", "scale_depth")


def find_anatomy(module: Any) -> Anatomy:
    """Find the parts of a loaded (or meta) transformers model.

    Parameters
    ----------
    module : torch.nn.Module
        A transformers model with a language-model head.

    Raises
    ------
    LoadError
        If a part cannot be found: the part and what the model has instead are named.
    """
    try:
        return _find(module, type(module).__name__)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise LoadError(
            f"{type(module).__name__} is of an unknown build: {error}. {OTHERWISE}"
        ) from error


def _find(module: Any, name: str) -> Anatomy:
    paths = {id(part): path for path, part in module.named_modules()}
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "get_text_config"):
        raise LoadError(f"{name} is not a transformers model: {_what_it_holds(module)}.")
    if getattr(config, "is_encoder_decoder", False):
        raise LoadError(f"{name} is an encoder-decoder; only decoders of one stack are supported.")
    decoder, layers = _decoder(module, name)
    text: Any = config.get_text_config(decoder=True)
    for key in SCALED_RESIDUALS:
        if (factor := getattr(text, key, None)) not in (None, 1.0):
            raise LoadError(
                f"{name}: its blocks scale what they add to the residual stream ({key}={factor}), "
                f"so components would not add up. {OTHERWISE}"
            )
    parts = tuple(block_of(block, name, layer) for layer, block in enumerate(layers))
    head = module.get_output_embeddings()
    norms = [child for child in decoder.children() if is_norm(child)]
    if head is None or not norms:
        missing = "output head" if head is None else "final norm"
        raise LoadError(f"{name}: no {missing} was found, so logits cannot be read.")

    tower, projector = _vision(module)
    image_token_id = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    crosses = any(block.cross for block in parts)
    if getattr(config, "vision_config", None) is not None and tower is None:
        raise LoadError(
            f"{name} takes images, but no vision tower was found among "
            f"{', '.join(key for key, _ in getattr(module, 'model', module).named_children())}. "
            f"{OTHERWISE}"
        )
    if tower is not None and image_token_id is None and not crosses:
        raise LoadError(
            f"{name}: how its images enter is unknown; its config has no image_token_id, and no "
            f"block is a cross-attention block. {OTHERWISE}"
        )
    if crosses:
        image_token_id = None  # the image token is an ordinary one: no feature takes its place
    first = of_first_block(text)
    heads, known = first.num_attention_heads, family(config.model_type)
    dim = head_dim(layers, parts, first)
    parts = with_equal_heads(layers, parts, n_heads=heads, dim=dim)
    kv_heads = getattr(first, "num_key_value_heads", None) or heads
    sizes, routers = Sizes(text.hidden_size, heads, kv_heads, dim), routers_of(module)
    parts = tuple(
        with_code_of(block, replace(part, inside=spots_of(block, part, sizes, routers)))
        for block, part in zip(layers, parts, strict=True)
    )
    return Anatomy(
        model_type=config.model_type,
        decoder=paths[id(decoder)],
        blocks=paths[id(layers)],
        parts=parts,
        final_norm=paths[id(norms[-1])],
        head=paths[id(head)],
        embeddings=paths[id(module.get_input_embeddings())],
        vision_tower=paths.get(id(tower)),
        projector=paths.get(id(projector)),
        image_token_id=image_token_id if tower is not None else None,
        n_layers=len(layers),
        d_model=text.hidden_size,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=dim,
        vocab=text.vocab_size,
        added_between=hasattr(decoder, "_deepstack_process"),
        windowed=_windowed(text),
        softcap=getattr(text, "final_logit_softcapping", None),
        logit_scale=_logit_scale(text),
        three_axis_positions=_method(module, "get_rope_index") is not None,
        family=known.of(text),
        dependent_rows=dependent_rows(module),
        tower=tower
        and find_tower(module, tower, projector, paths, whole=known.projector_reads == "tower"),
        notes=_notes(decoder, parts),
    )


def _what_it_holds(module: nn.Module) -> str:
    """What a module that is none itself has of transformers, and how to hand that over."""
    for path, part in module.named_modules():
        if hasattr(getattr(part, "config", None), "get_text_config"):
            return f"it is a wrapper around one ({type(part).__name__}). Pass its .{path}"
    return "it has no config of theirs"


def _decoder(module: Any, name: str) -> tuple[Any, nn.ModuleList]:
    decoder = module
    while hasattr(decoder, "get_decoder") and decoder.get_decoder() is not decoder:
        decoder = decoder.get_decoder()
    if not (lists := _lists(decoder)) and isinstance(getattr(decoder, "model", None), nn.Module):
        decoder = decoder.model  # nested one deeper
        lists = _lists(decoder)
    depth = module.config.get_text_config(decoder=True).num_hidden_layers
    for layers in lists:
        if len(layers) == depth:
            return decoder, layers
    raise LoadError(
        f"{name}: no list of {depth} decoder blocks was found in {type(decoder).__name__} "
        f"(lists of {[len(layers) for layers in lists]} modules). Expected a transformers model "
        "whose get_decoder() holds its blocks in one ModuleList."
    )


def _lists(module: nn.Module) -> list[nn.ModuleList]:
    return [child for child in module.children() if isinstance(child, nn.ModuleList)]


def _vision(module: Any) -> tuple[nn.Module | None, nn.Module | None]:
    """The vision tower and the projector: towers have a patch embedding, projectors do not."""
    inner = getattr(module, "model", module)
    parts: dict[str, nn.Module] = {}
    for where in (module, inner):
        for key, child in where.named_children():
            projects = any(word in key for word in PROJECTORS)
            if any(word in key for word in ("vision", "visual")) and not projects:
                parts.setdefault("tower", child)
            elif projects:
                parts.setdefault("projector", child)
    tower = parts.get("tower")
    if tower is not None and "projector" not in parts:
        for key, child in tower.named_children():
            if "merger" in key and "list" not in key:
                parts["projector"] = child
    return tower, parts.get("projector")


def _method(module: Any, name: str) -> Any:
    """A method of the model or of the model inside it."""
    return getattr(module, name, None) or getattr(getattr(module, "model", None), name, None)


def kinds_of(text: Any) -> list[str] | None:
    """What each block attends to, by a config's name for it; None where all do alike."""
    return getattr(text, "layer_types", None) or getattr(text, "attention_layers", None)


def _windowed(text: Any) -> bool:
    kinds = kinds_of(text)
    if kinds is None:
        return getattr(text, "sliding_window", None) is not None
    return any(kind not in WHOLE for kind in kinds)


def _logit_scale(text: Any) -> float:
    if (divisor := getattr(text, "logits_scaling", None)) is not None:
        return 1.0 / divisor
    scale = getattr(text, "logit_scale", None)
    return 1.0 if scale is None else float(scale)


def _notes(decoder: Any, parts: tuple[Block, ...]) -> tuple[str, ...]:
    notes = []
    if any(block.behind_norm for block in parts):
        notes.append("attn_out and mlp_out are taken behind the norm that follows the sublayer")
    if any(block.scale for block in parts):
        notes.append("what a block gives is scaled, the residual stream included")
    if any(block.recurrent for block in parts):
        notes.append(
            "some blocks keep a recurrent state, and no keys and values: they have no heads and no "
            "edges between tokens"
        )
    if any(block.cross for block in parts):
        notes.append(
            "the image enters through cross-attention blocks, which do not run without one; there "
            "are no image positions"
        )
    if hasattr(decoder, "_deepstack_process"):
        notes.append(
            "image features are also added between the first blocks: there resid_pre of the next "
            "block is not resid_post of the one before"
        )
    return tuple(notes)
