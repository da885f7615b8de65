"""Where the blocks of a vision tower and its projector are, found from its structure and config."""

from dataclasses import replace
from typing import Any

from torch import nn

from interventions.architectures.blocks import OUTPUT_PROJECTIONS, Block, block_of, is_norm
from interventions.architectures.tower import Tower
from interventions.architectures.wrapping import original
from interventions.errors import LoadError

PROJECTIONS = (*OUTPUT_PROJECTIONS, "proj", "projection_layer")
HEADS = ("num_attention_heads", "num_heads", "attention_heads")
UNPROJECTED = "has no attention output projection that was recognised"


def find_tower(
    module: Any, tower: Any, projector: Any, paths: dict[int, str], *, whole: bool
) -> Tower:
    """Find the blocks of a vision tower; where that fails, say why instead.

    Parameters
    ----------
    module, tower, projector : torch.nn.Module
        The model, its tower, and what is behind it.
    paths : dict of int to str
        Path of each module, by its id.
    whole : bool
        The projector is given every token of the tower.
    """
    try:
        return _find(module, tower, projector, paths, whole)
    except (LoadError, AttributeError, LookupError, TypeError, ValueError) as error:
        return Tower(why=f"its vision tower ({type(tower).__name__}) was not understood: {error}")


def _find(module: Any, tower: Any, projector: Any, paths: dict[int, str], whole: bool) -> Tower:
    blocks = [block for stack in _stacks(tower) for block in stack]
    if not blocks or projector is None:
        missing = "list of blocks with attention" if not blocks else "projector"
        raise LoadError(f"no {missing} was found")
    parts = tuple(_part(block, type(tower).__name__, i) for i, block in enumerate(blocks))
    attention = original(blocks[0].get_submodule(parts[0].attention))
    config = module.config.vision_config
    n_heads = next(n for key in HEADS if isinstance(n := getattr(config, key, None), int))
    projection = parts[0].projection
    if projection is None:
        raise LoadError(f"its attention {UNPROJECTED}")
    read, width = _sizes(blocks[0].get_submodule(projection))
    packed = hasattr(attention, "qkv")
    patch = _sides(getattr(config, "patch_size", None))
    view = _sides(getattr(config, "image_size", None))
    fixed = not packed and any(hasattr(part, "num_patches") for part in tower.modules())
    n_patches = None
    if fixed and patch and view:
        n_patches = (view[0] // patch[0]) * (view[1] // patch[1])
    return Tower(
        blocks=tuple(paths[id(block)] for block in blocks),
        parts=parts,
        width=width,
        n_heads=n_heads,
        head_dim=read // n_heads,
        n_used=_n_used(module.config, len(blocks)),
        packed=packed,
        projector=paths[id(projector)],
        projector_width=width if whole else _first_width(projector) or width,
        features_width=module.config.get_text_config(decoder=True).hidden_size,
        patch=patch,
        n_patches=n_patches,
    )


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width that a config gives as a number, or as two; None if it gives none."""
    given = [size, size] if isinstance(size, int) else size
    if not isinstance(given, list | tuple) or len(given) != 2:
        return None
    height, width = given
    whole = isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0
    return (height, width) if whole else None


def _stacks(tower: nn.Module) -> list[nn.ModuleList]:
    """Lists of blocks with attention: deep mergers and the like have none."""
    lists = [part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part)]
    return [stack for stack in lists if any(_attends(child) for child in stack[0].children())]


def _attends(child: nn.Module) -> bool:
    return "ttention" in type(original(child)).__name__ and not is_norm(child)


def _part(block: nn.Module, name: str, layer: int) -> Block:
    part = block_of(block, name, layer)
    children = dict(original(block.get_submodule(part.attention)).named_children())
    key = next((key for key in PROJECTIONS if key in children), None)
    projection = None if key is None else f"{part.attention}.{key}"
    return replace(part, projection=projection, no_heads=UNPROJECTED)


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """Widths of what a linear layer reads and gives, be it inside another module."""
    for part in original(linear).modules():
        read, given = (getattr(part, key, None) for key in ("in_features", "out_features"))
        if isinstance(read, int) and isinstance(given, int):
            return read, given
    raise LoadError(f"{type(linear).__name__} does not tell its width")


def _first_width(projector: nn.Module) -> int:
    """Width of what the first layer of a projector reads; 0 where none tells it."""
    for part in original(projector).modules():
        if isinstance(width := getattr(part, "in_features", None), int):
            return width
        weight = part._parameters.get("weight")
        if is_norm(part) and weight is not None:
            return int(weight.shape[-1])
    return 0


def _n_used(config: Any, n_blocks: int) -> int:
    """Blocks up to the last one whose output is taken, by ``vision_feature_layer``."""
    taken = getattr(config, "vision_feature_layer", None)
    if taken is None:
        return n_blocks
    taken = [taken] if isinstance(taken, int) else list(taken)
    return max(layer + n_blocks + 1 if layer < 0 else layer for layer in taken)
