"""What one decoder block is made of, found from its children."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from interventions.architectures.spots import Spot
from interventions.architectures.wrapping import original
from interventions.errors import LoadError

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "wo")
SANDWICHES = (
    # norms in a block -> the two whose outputs are added to the residual stream
    ({"pre_feedforward_layernorm"}, "post_attention_layernorm", "post_feedforward_layernorm"),
    ({"post_self_attn_layernorm"}, "post_self_attn_layernorm", "post_mlp_layernorm"),
)
WIDTHS = ("in_features", "nx", "infeatures")
"""Where a linear layer keeps the width of its input: torch's, transformers' Conv1D, some GPTQ."""
PER_LAYER = ("per_layer_input_gate", "per_layer_projection")
SCALE = "layer_scalar"
RECURRENT = "GatedDeltaNet"
UNKNOWN_HEADS = "has no attention output projection that was recognised"
OTHERWISE = (
    "Read and write it with nnsight alone (TransformersModel(module), by the paths of its "
    "modules), or use a model of another architecture: `interventions families` lists those that "
    "are tested."
)
"""What to do with a model that is not understood."""


@dataclass(frozen=True)
class Block:
    """Names, inside one decoder block, of its parts.

    Attributes
    ----------
    attention, mlp : str
        The two sublayers.
    attn_out, mlp_out : str
        The modules whose outputs are added to the residual stream: the sublayers themselves, or
        the norms behind them.
    projection : str or None
        The attention's output projection, whose input is the heads' results.
    recurrent : bool
        Its attention keeps a state in the place of keys and values (a gated delta net), so there
        are no edges between tokens.
    cross : bool
        A cross-attention block: it reads the image, and does not run without one.
    attn_gate, mlp_gate : str or None
        Parameters whose tanh scales what the sublayer adds.
    scale : str or None
        A number by which the block multiplies what it gives.
    no_heads : str
        Why heads cannot be told apart, where there is no projection.
    inside : tuple of Spot
        What is inside its sublayers and between them, in the order in which it is computed.
    n_given : int or None
        How many things it gives in a tuple, of which the first is the residual stream; 0: that
        alone; None if unknown, and then the block cannot be skipped.
    as_cached : bool
        Its attention function is given keys and values as they are in the cache.
    """

    attention: str
    mlp: str
    attn_out: str
    mlp_out: str
    projection: str | None
    recurrent: bool = False
    cross: bool = False
    attn_gate: str | None = None
    mlp_gate: str | None = None
    scale: str | None = None
    no_heads: str = UNKNOWN_HEADS
    inside: tuple[Spot, ...] = ()
    n_given: int | None = None
    as_cached: bool = False

    def spot(self, component: str) -> Spot:
        """Where a component that is inside the block is, or why there is none."""
        return next(spot for spot in self.inside if spot.component == component)

    @property
    def behind_norm(self) -> bool:
        """Whether ``attn_out`` and ``mlp_out`` are behind a norm of their own."""
        return self.attn_out != self.attention


def _kind(module: nn.Module) -> str:
    """The name of its class; that of the module inside, if it is an adapter's."""
    return type(original(module)).__name__


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by its name."""
    return "norm" in _kind(module).lower()


def block_of(block: nn.Module, name: str, layer: int) -> Block:
    """Understand one decoder block from its children."""
    children = dict(block.named_children())
    norms = {key for key, child in children.items() if is_norm(child)}
    attention = [
        key
        for key, child in children.items()
        if "ttention" in _kind(child) or RECURRENT in _kind(child)
    ]
    rest = [
        key
        for key, child in children.items()
        if key not in norms | {*attention}
        and not isinstance(original(child), nn.Dropout | nn.Identity)
    ]
    mlp = [key for key in rest if any(_has_weights(part) for part in children[key].modules())]
    if len(attention) == 1 and len(mlp) == 1 + len(PER_LAYER) and {*PER_LAYER} <= {*mlp}:
        raise LoadError(
            f"{name}: a third part of block {layer} ({PER_LAYER[0]}) adds something of the token "
            "itself to the residual stream, and later blocks attend to keys of earlier ones, so "
            f"components would not add up and no block could be run alone. {OTHERWISE}"
        )
    if len(attention) != 1 or len(mlp) != 1:
        raise LoadError(
            f"{name}: block {layer} is not one attention and one MLP that add to the residual "
            f"stream. Expected one of each; got attention {attention or 'none'} and "
            f"{mlp or 'no other part'} beside {', '.join(sorted(norms)) or 'no norms'}. "
            f"{OTHERWISE}"
        )
    attn_out, mlp_out = attention[0], mlp[0]
    for marks, behind_attention, behind_mlp in SANDWICHES:
        if marks | {behind_attention, behind_mlp} <= norms:
            attn_out, mlp_out = behind_attention, behind_mlp
    if norms == {"post_attention_layernorm", "post_feedforward_layernorm"}:
        attn_out, mlp_out = "post_attention_layernorm", "post_feedforward_layernorm"
    recurrent = RECURRENT in _kind(children[attention[0]])
    gates = [key for key, _ in block.named_parameters(recurse=False) if "gate" in key]
    return Block(
        attention=attention[0],
        mlp=mlp[0],
        attn_out=attn_out,
        mlp_out=mlp_out,
        projection=None if recurrent else _projection(children[attention[0]], attention[0]),
        recurrent=recurrent,
        cross="cross" in attention[0],
        attn_gate=next((key for key in gates if "attn_gate" in key), None),
        mlp_gate=next((key for key in gates if "mlp_gate" in key), None),
        scale=SCALE if SCALE in dict(block.named_buffers(recurse=False)) else None,
        no_heads="has no attention heads, but a recurrent state" if recurrent else UNKNOWN_HEADS,
    )


def _has_weights(part: nn.Module) -> bool:
    """Whether it multiplies by weights, be they packed into buffers."""
    return bool(part._parameters) or any(hasattr(part, key) for key in WIDTHS)


def _projection(attention: nn.Module, name: str) -> str | None:
    for key, child in original(attention).named_children():
        linear = original(child)
        if key in OUTPUT_PROJECTIONS and _has_weights(linear) and not list(linear.children()):
            return f"{name}.{key}"
    return None


def of_first_block(text: Any) -> Any:
    """The text config as it is for the first block: in some models sizes differ among blocks."""
    if getattr(text, "is_heterogeneous", False):
        return text.per_layer_config[0]
    return text


def with_equal_heads(
    layers: nn.ModuleList, parts: tuple[Block, ...], *, n_heads: int, dim: int
) -> tuple[Block, ...]:
    """Take away the heads of blocks in which they are wider or narrower than in the others."""
    checked = []
    for block, part in zip(layers, parts, strict=True):
        linear = None if part.projection is None else block.get_submodule(part.projection)
        width = getattr(original(linear), "in_features", None) if linear is not None else None
        if width is not None and not part.cross and width != n_heads * dim:
            why = f"has heads of another size ({width // n_heads}) than most blocks ({dim})"
            part = replace(part, projection=None, no_heads=why)
        checked.append(part)
    return tuple(checked)


def head_dim(layers: nn.ModuleList, parts: tuple[Block, ...], text: Any) -> int:
    """Width of what one head gives; not from a weight's shape, which packing changes."""
    heads = text.num_attention_heads
    with_heads = [i for i, part in enumerate(parts) if part.projection is not None]
    for i in with_heads[:1]:
        linear = original(layers[i].get_submodule(parts[i].projection or ""))
        for key in WIDTHS:
            width = getattr(linear, key, None)
            if isinstance(width, int) and width % heads == 0:
                return width // heads
    for key in ("v_head_dim", "head_dim"):
        if width := getattr(text, key, None):
            return width
    return text.hidden_size // heads
