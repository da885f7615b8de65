"""What of a vision tower can be read and written with a prompt, and why the rest cannot."""

from collections.abc import Sequence

from interventions.architectures.tower import Tower
from interventions.architectures.wrapped import Wrapped
from interventions.errors import PatchError, SiteError
from interventions.prompt.positions import Space
from interventions.prompt.prompt import Prompt

NAMED: dict[str, str] = {
    "text": "the text",
    "tower": "the vision tower",
    "features": "what the projector gives",
}


def tower_of(model: Wrapped) -> Tower:
    """The blocks of a model's vision tower.

    Raises
    ------
    SiteError
        If it has none, or one that was not understood.
    """
    tower = model.anatomy.tower
    if tower is None:
        raise SiteError(f"{model.name} is a text-only model and has no vision tower.")
    if tower.why:
        raise SiteError(f"{tower.why}. Use nnsight at its modules: model.nn.get(path).")
    return tower


def space_of(model: Wrapped, component: str, layers: Sequence[int] = ()) -> Space:
    """Whose positions a component has in some blocks.

    Raises
    ------
    SiteError
        If the blocks are of two kinds: keys and values of cross-attention blocks are of pictures.
    """
    if component in ("k", "v") and layers:
        crossing = [layer for layer in layers if model.anatomy.parts[layer].cross]
        if crossing and len(crossing) < len(layers):
            raise SiteError(
                f"{component} of block {crossing[0]} of {model.name} is of the image, and of block "
                f"{next(i for i in layers if i not in crossing)} of the text. Name them apart."
            )
        return "features" if crossing else "text"
    if not component.startswith("vision."):
        return "text"
    if component == "vision.projector_out":
        return "features"
    reads = model.anatomy.family.projector_reads
    return reads if component == "vision.projector_in" else "tower"


def vision_axes(tower: Tower, component: str, n_keys: int) -> list[int]:
    """Sizes of a component at one layer, row and position: (width,), or (heads, width)."""
    if component == "vision.head_out":
        return [tower.n_heads, tower.head_dim]
    if component == "vision.attn_pattern":
        return [tower.n_heads, n_keys]
    if component == "vision.projector_in":
        return [tower.projector_width]
    return [tower.features_width if component == "vision.projector_out" else tower.width]


def check_vision(model: Wrapped, prompt: Prompt, component: str) -> None:
    """Refuse a tower that is not understood, or that a prompt shows nothing.

    Raises
    ------
    SiteError
        With the reason.
    """
    tower_of(model)
    if not prompt.has_images:
        raise SiteError(
            f"{component} was asked for, but the prompt has no image, so the tower does not run. "
            "Pass images= to prompt()."
        )
    if not prompt.vision:
        why = next((grid.tower_reason for own in prompt.grids for grid in own), "it has no grids")
        raise SiteError(
            f"which tokens of the tower are of which row is not known: {why}. Use nnsight at its "
            "modules: model.nn.get(path)."
        )


def check_used(model: Wrapped, component: str, layers: list[int]) -> None:
    """Refuse to write where nothing behind it is used.

    Raises
    ------
    PatchError
        Names the blocks that are used.
    """
    tower = tower_of(model)
    if component.startswith("vision.projector"):
        return
    if (layer := max(layers)) >= tower.n_used:
        raise PatchError(
            f"block {layer} of the tower gives nothing to the language model: of "
            f"{len(tower.blocks)} blocks features are taken behind block {tower.n_used - 1} "
            "(vision_feature_layer), so a write there has no effect. Write into blocks 0 to "
            f"{tower.n_used - 1}; the others can be read."
        )
