"""What is inside the sublayers of a block and between them, read and written inside a trace."""

from typing import Any

import torch

from interventions.architectures.spots import Spot
from interventions.architectures.wrapped import weightless
from interventions.errors import SiteError
from interventions.model.sites import check_runs, check_written, spot_of
from interventions.model.streams import Stream, in_order
from interventions.prompt.positions import Mode, Where


class InnerStream(Stream):
    """A component at the place that the block's :class:`~interventions.architectures.spots.Spot`
    names, indexed ``[layers, positions]``.
    """

    def _spot(self, layer: int) -> Spot:
        check_runs(self._model, layer, images=self._model.running_images)
        return spot_of(self._model, self._component, layer)

    def _part(self, layer: int) -> Any:
        return self._model.blocks[layer].get(self._spot(layer).path)

    def _whole(self, layer: int) -> tuple[Any, torch.Tensor]:
        """What the module is given or gives, and the tensor of it that is meant."""
        spot = self._spot(layer)
        part = self._part(layer)
        with in_order(f"{self._component} of block {layer}"):
            value = part.input if spot.side == "input" else part.output
        return value, value[spot.element] if isinstance(value, tuple) else value

    def live(self, layer: int) -> torch.Tensor:
        """Return the running value of one layer, [row, position, width]."""
        _, value = self._whole(layer)
        spot = self._spot(layer)
        if spot.heads_first:
            value = value.transpose(1, 2)
        if value.ndim == 2:  # mixtures of experts work on a flat list of tokens
            value = value.unflatten(0, (self._model.running_rows, -1))
        if value.ndim == 4:
            value = value.flatten(2)
        if self._model.anatomy.parts[layer].cross and len(value) != self._model.running_rows:
            value = value.reshape(self._model.running_rows, -1, value.shape[-1])  # tile by tile
        # Of gate and up side by side the gate is the first half.
        return value[..., : spot.axes[0]] if len(spot.axes) == 1 else value

    def replace(self, layer: int, hidden: torch.Tensor) -> None:
        """Make ``hidden`` [row, position, width] what the forward pass goes on with."""
        spot, part = self._spot(layer), self._part(layer)
        _, old = self._whole(layer)
        if spot.heads_first:
            hidden = hidden.unflatten(-1, spot.axes).transpose(1, 2)
        # As it lay in memory: other strides may round otherwise.
        new = torch.empty_like(old).copy_(hidden.reshape(old.shape))
        if spot.side == "input":
            part.input = new
        else:
            part.output = new

    def put(
        self,
        layer: int,
        positions: Where,
        value: torch.Tensor,
        *,
        mode: Mode = "set",
        checked: torch.dtype | None = None,
    ) -> None:
        """Write into a layer, unless it can only be read."""
        check_written(self._component)
        super().put(layer, positions, value, mode=mode, checked=checked)


class MidStream(InnerStream):
    """The residual stream between attention and MLP.

    A block goes on from one and the same tensor twice, into the MLP and around it: it is written
    in place, which is exact in every number format.
    """

    def replace(self, layer: int, hidden: torch.Tensor) -> None:
        """Make ``hidden`` [row, position, d_model] what both ways go on with."""
        if weightless(self._model) and not self._model.remote:
            raise SiteError(
                f"requests for {self._model.name} run in a process of their own on this server, "
                "which has copies of what is computed: resid_mid can be read there and not "
                "written. Write attn_out, or load the model here."
            )
        self._whole(layer)[1].copy_(hidden)
