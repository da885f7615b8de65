"""The vision tower of a model, as one thing that has streams."""

from typing import Any

from interventions.architectures.wrapped import Wrapped
from interventions.model.sites import INSIDE, Component, not_in_the_tower, of_vision
from interventions.model.vision_patterns import VisionPatternStream
from interventions.model.vision_places import tower_of
from interventions.model.vision_streams import VisionHeadStream, VisionStream


class Vision:
    """The streams of a vision tower and its projector: ``model.vision``.

    Attributes
    ----------
    resid_pre, attn_out, mlp_out, resid_post, projector_in, projector_out : VisionStream
        Indexed ``[layers, positions]`` inside a trace.
    head_out, attn_pattern : VisionHeadStream
        Indexed ``[layers, positions, heads]``.
    """

    def __init__(self, model: Wrapped) -> None:
        self._model = model
        self.resid_pre = VisionStream(model, "vision.resid_pre")
        self.attn_pattern = VisionPatternStream(model, "vision.attn_pattern")
        self.head_out = VisionHeadStream(model, "vision.head_out")
        self.attn_out = VisionStream(model, "vision.attn_out")
        self.mlp_out = VisionStream(model, "vision.mlp_out")
        self.resid_post = VisionStream(model, "vision.resid_post")
        self.projector_in = VisionStream(model, "vision.projector_in")
        self.projector_out = VisionStream(model, "vision.projector_out")

    def __getattr__(self, name: str) -> Any:
        """Say of what is not here that there is none, and what to do."""
        if name in INSIDE:
            raise AttributeError(not_in_the_tower(name))
        raise AttributeError(f"the vision tower has no stream {name!r}")

    def __repr__(self) -> str:
        tower = tower_of(self._model)
        return f"<vision tower of {self._model.name}: {len(tower.blocks)} blocks x {tower.width}>"


def stream_of(model: Any, component: Component) -> Any:
    """The stream of a component, by the name that sites have for it."""
    owner = model.vision if of_vision(component) else model
    return getattr(owner, component.removeprefix("vision."))
