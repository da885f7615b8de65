"""Streams of the vision tower's blocks and of its projector, read and written inside a trace.

They are ``model.vision.resid_post`` and so on, and sites and patches call them
``"vision.resid_post"``. Positions are those of :meth:`interventions.Prompt.at` with
``of="tower"``, or ``of="features"`` behind the projector; rows are the prompt's, whatever the
tower runs side by side.

==================  ======================================================================
component           what it is
==================  ======================================================================
``resid_pre``       input of the block
``attn_pattern``    weights behind the softmax [query, head, key]: keys are the tokens of the
                    row in the tower, with 0 between tiles, pictures and windows
``head_out``        each head's result before the output projection
``attn_out``        what attention gives (behind its norm, if it has one, and before a scale or
                    gate of the block)
``mlp_out``         what the MLP gives, the same
``resid_post``      output of the block
``projector_in``    what the projector is given: every token of the tower where it merges them,
                    else as many as it gives
``projector_out``   what it gives, before pictures are packed; its one layer is 0
==================  ======================================================================
"""

from typing import Any

import torch

from interventions.errors import SiteError
from interventions.model.head_streams import HeadStream
from interventions.model.sites import PROJECTOR, depth_of
from interventions.model.streams import Stream, in_order
from interventions.model.vision_places import check_used, space_of, tower_of
from interventions.prompt.picture_grids import Slots
from interventions.prompt.positions import Mode, Where


class VisionStream(Stream):
    """One component of the tower's blocks, or of the projector, indexed ``[layers, positions]``.

    Reading gives [layer, row, position, width], with rows filled up with zeros to the longest.
    """

    def __repr__(self) -> str:
        return f"<{self._component}>"

    @property
    def _n_layers(self) -> int:
        return depth_of(self._model, self._component)

    @property
    def _reads_input(self) -> bool:
        name = self._component.removeprefix("vision.")
        return name in ("resid_pre", "head_out", "attn_pattern", "projector_in")

    def slots(self) -> Slots:
        """How many tokens each of the running rows has."""
        slots = self._model.running_vision.get(space_of(self._model, self._component))
        if slots is None:
            raise SiteError(
                f"the running prompt shows {self._component} nothing whose rows are known: it has "
                "no image, or its layout is not known. prompt.image_grid(of='tower') says why."
            )
        return slots

    def _part(self, layer: int) -> Any:
        tower, name = tower_of(self._model), self._component.removeprefix("vision.")
        if self._component in PROJECTOR:
            return self._model.nn.get(tower.projector)
        block, parts = self._model.nn.get(tower.blocks[layer]), tower.parts[layer]
        path = {"attn_out": parts.attn_out, "mlp_out": parts.mlp_out, "head_out": parts.projection}
        return block.get(path[name]) if name in path else block

    def live(self, layer: int) -> torch.Tensor:
        """Return the running value of one layer, [row, position, width]."""
        part, slots = self._part(layer), self.slots()
        with in_order(f"{self._component} of block {layer}"):
            value = part.input if self._reads_input else part.output
        value = value[0] if isinstance(value, tuple) else value
        return in_rows(value, slots, self._component)

    def replace(self, layer: int, hidden: torch.Tensor) -> None:
        """Make ``hidden`` [row, position, width] what the forward pass goes on with."""
        part = self._part(layer)
        value = part.input if self._reads_input else part.output
        old = value[0] if isinstance(value, tuple) else value
        flat = hidden[mask_of(self.slots(), hidden.device)]
        # As it lay in memory: other strides may round otherwise.
        new = torch.empty_like(old).copy_(flat.reshape(old.shape))
        if self._reads_input:
            part.input = new
        else:
            part.output = (new, *value[1:]) if isinstance(value, tuple) else new

    def put(
        self,
        layer: int,
        positions: Where,
        value: torch.Tensor,
        *,
        mode: Mode = "set",
        checked: torch.dtype | None = None,
    ) -> None:
        """Write into a layer, unless nothing behind it is used."""
        check_used(self._model, self._component, [layer])
        super().put(layer, positions, value, mode=mode, checked=checked)


class VisionHeadStream(VisionStream, HeadStream):
    """Each head's result, indexed ``[layers, positions, heads]``."""

    @property
    def _width(self) -> int:
        return tower_of(self._model).head_dim

    def put(
        self,
        layer: int,
        positions: Where,
        value: torch.Tensor,
        *,
        mode: Mode = "set",
        checked: torch.dtype | None = None,
        heads: Any = None,
    ) -> None:
        """Write into some heads of one layer, unless nothing behind it is used."""
        check_used(self._model, self._component, [layer])
        HeadStream.put(self, layer, positions, value, mode=mode, checked=checked, heads=heads)


def mask_of(slots: Slots, device: torch.device) -> torch.Tensor:
    """True where a row has a token of its own, [row, position]."""
    counts = torch.tensor(slots.counts, device=device)
    return torch.arange(slots.length, device=device) < counts[:, None]


def in_rows(value: torch.Tensor, slots: Slots, what: str) -> torch.Tensor:
    """Put what runs one behind another, [..., width], into rows [row, position, width]."""
    flat = value.reshape(-1, value.shape[-1])
    if len(flat) != sum(slots.counts):
        raise SiteError(
            f"{what} has {len(flat)} tokens, but the rows of the prompt {slots.counts}. Report "
            "it with the model's name: its family's layout is not as it is known here."
        )
    if min(slots.counts) == slots.length:
        return flat.reshape(len(slots.counts), slots.length, -1)
    rows = flat.new_zeros(len(slots.counts), slots.length, flat.shape[-1])
    rows[mask_of(slots, flat.device)] = flat
    return rows
