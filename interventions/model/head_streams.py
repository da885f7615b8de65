"""Streams that are divided into heads, read and written inside a trace."""

from typing import Any

import torch

from interventions.architectures.wrapped import Wrapped
from interventions.errors import PatchError, SiteError
from interventions.given import index_of
from interventions.given_arrays import tensor_of
from interventions.model.inner_streams import InnerStream
from interventions.model.sites import (
    ATTENDING,
    Component,
    Heads,
    Layers,
    check_written,
    layer_list,
    n_heads_of,
    written_once,
)
from interventions.model.streams import Stream, per_layer, split_index, stacked
from interventions.prompt.positions import Mode, Where, index_list, read_at, write_at


def _heads_of(heads: Any) -> Heads:
    return None if heads is None else index_of(heads, "head")


class HeadStream(Stream):
    """A component of each head, indexed ``[layers, positions, heads]`` inside a trace.

    Reading returns [layer, row, position, head, width]; an int layer, one position per row and
    an int head each drop their axis. Heads that share keys and values (grouped-query attention)
    are still separate here, but for ``k``, ``v`` and ``k_rot``, which are of the heads that have
    keys and values.
    """

    def __init__(self, model: Wrapped, component: Component = "head_out") -> None:
        super().__init__(model, component)

    def __repr__(self) -> str:
        size = f"{self._n_layers} layers x {self._n_heads} x {self._width or 'keys'}"
        return f"<{self._component}: {size}>"

    @property
    def _n_heads(self) -> int:
        return n_heads_of(self._model, self._component)

    @property
    def _width(self) -> int:
        """Of a head; 0 where it depends on the prompt."""
        return self._model.anatomy.head_dim

    @property
    def _reads_input(self) -> bool:
        return True

    def _part(self, layer: int) -> Any:
        super()._part(layer)  # refuses a block that does not run
        parts = self._model.anatomy.parts[layer]
        if parts.projection is None:
            raise SiteError(
                f"block {layer} of {self._model.name} {parts.no_heads}, so heads cannot be told "
                "apart there. Use attn_out."
            )
        return self._model.blocks[layer].get(parts.projection)

    def _heads(self, heads: Heads) -> list[int]:
        return index_list(slice(None) if heads is None else heads, self._n_heads, "head")

    def __getitem__(self, key: Any) -> Any:
        layers, positions, heads = split_index(key, 3)
        layers, heads = index_of(layers, "layer"), _heads_of(heads)
        indices = layer_list(layers, self._n_layers)
        self._check_space(indices, positions)
        chosen = self._heads(heads)
        wanted = chosen[0] if isinstance(heads, int) else chosen
        split = (self._n_heads, -1)
        values = [
            read_at(self.live(layer), positions).unflatten(-1, split)[..., wanted, :]
            for layer in indices
        ]
        return values[0] if isinstance(layers, int) else stacked(values)

    def __setitem__(self, key: Any, value: Any) -> None:
        layers, positions, heads = split_index(key, 3)
        self.write(layers, positions, value, heads=heads)

    def write(
        self,
        layers: Layers,
        positions: Where,
        value: Any,
        *,
        mode: Mode = "set",
        heads: Heads = None,
    ) -> None:
        """Write into some heads of some layers; see :meth:`Stream.write`."""
        layers, heads, value = index_of(layers, "layer"), _heads_of(heads), tensor_of(value)
        chosen = written_once(self._heads(heads), "head")
        width = self._width or int(value.shape[-1] if value.ndim else 0)
        if value.ndim >= 2 and not isinstance(heads, int):
            if tuple(value.shape[-2:]) != (len(chosen), width):
                raise PatchError(
                    f"a value for {len(chosen)} heads must end in [{len(chosen)}, {width}]; its "
                    f"shape is {tuple(value.shape)}."
                )
            value = value.flatten(-2)
        indices = written_once(layer_list(layers, self._n_layers), "layer")
        for layer, own in zip(indices, per_layer(layers, value, len(indices)), strict=True):
            self.put(layer, positions, own, mode=mode, heads=heads)

    def put(
        self,
        layer: int,
        positions: Where,
        value: torch.Tensor,
        *,
        mode: Mode = "set",
        checked: torch.dtype | None = None,
        heads: Heads = None,
    ) -> None:
        """Write into some heads of one layer, whose values are behind one another."""
        check_written(self._component)
        self._check_space([layer], positions)
        chosen = self._heads(heads)
        split = self.live(layer).unflatten(-1, (self._n_heads, -1)).clone()
        old = split[:, :, chosen].flatten(2)
        new = write_at(old, positions, value, mode, checked=checked)
        split[:, :, chosen] = new.unflatten(-1, (len(chosen), -1))
        self.replace(layer, split.flatten(2))


class ProjectedStream(HeadStream, InnerStream):
    """Queries, keys or values: behind their projection and norm, before rotary embeddings."""

    def _part(self, layer: int) -> Any:
        # What is inside the attention's forward can be asked for later in this pass only if its
        # code is taken apart before it begins to run, which here it has not.
        attending = self._model.anatomy.parts[layer].spot(ATTENDING[0])
        if attending.path is not None:
            _ = self._model.blocks[layer].get(attending.path).source
        return InnerStream._part(self, layer)
