"""Reading and writing activations inside an nnsight trace, by layer and position.

A stream is indexed with ``[layers, positions]``. Inside ``with model.trace(prompt):`` reading
gives the live tensor and assigning overwrites what the rest of the forward pass sees. As nnsight
runs the block alongside the forward pass, values must be touched in the order in which the model
computes them; :func:`interventions.read` and :func:`interventions.run` sort for you.

======================  ==================================================================
component               what it is, for a block that adds to its input twice
======================  ==================================================================
``resid_pre``           input of the block
``attn_out``            what attention adds to the residual stream
``mlp_out``             what the MLP adds to the residual stream
``resid_post``          output of the block: ``resid_pre + attn_out + mlp_out``
``logits``              output of the head; has no layers
======================  ==================================================================
"""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import torch

from interventions.errors import PatchError, SiteError, did_you_mean
from interventions.positions import Positions

if TYPE_CHECKING:
    from interventions.model import Model

Layers = int | slice | Sequence[int]
Component = Literal["resid_pre", "attn_out", "mlp_out", "resid_post"]
COMPONENTS: tuple[Component, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def check_component(component: str) -> Component:
    """Return ``component`` if it names a stream with layers, else raise SiteError."""
    for known in COMPONENTS:
        if component == known:
            return known
    raise SiteError(f"no component {component!r}. {did_you_mean(component, COMPONENTS)}")


def layer_list(layers: Layers, n_layers: int) -> list[int]:
    """Block indices named by an int, slice or list.

    Raises
    ------
    SiteError
        If a layer does not exist, or none is named.
    """
    if isinstance(layers, slice):
        found = list(range(n_layers))[layers]
        asked = list(range(layers.start or 0, layers.stop if layers.stop is not None else n_layers))
        if asked and not -n_layers <= min(asked) <= max(asked) < n_layers:
            raise SiteError(f"layers {layers.start}:{layers.stop} reach outside 0:{n_layers}.")
    elif isinstance(layers, SupportsIndex):
        found = [operator.index(layers)]
    else:
        found = [operator.index(layer) for layer in layers]
    if not found:
        raise SiteError(
            f"no layer is named by {layers!r}; the model has layers 0 to {n_layers - 1}."
        )
    for layer in found:
        if not -n_layers <= layer < n_layers:
            raise SiteError(f"no layer {layer}: the model has layers 0 to {n_layers - 1}.")
    return [layer % n_layers for layer in found]


def split_index(key: Any) -> tuple[Any, Positions | int | slice | None]:
    """Split a subscript into layers and positions."""
    if isinstance(key, tuple):
        if len(key) != 2:
            raise SiteError(f"index a stream with [layers, positions], not {len(key)} values.")
        return key
    return key, None


def gather(hidden: torch.Tensor, positions: Positions | int | slice | None) -> torch.Tensor:
    """Take positions out of ``hidden`` [row, position, width]."""
    if positions is None:
        return hidden
    if not isinstance(positions, Positions):
        return hidden[:, positions]
    check_rows(hidden, positions)
    if positions.ragged:
        raise SiteError(
            f"role {positions.role!r} has between {int(positions.counts.min())} and "
            f"{int(positions.counts.max())} tokens per row, so it cannot be read as one tensor. "
            "Ask for one token per row, such as at(role, -1), or select() rows of equal length."
        )
    index = positions.index.to(hidden.device)
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    found = hidden[rows, index]
    return found[:, 0] if positions.single else found


def check_rows(hidden: torch.Tensor, positions: Positions) -> None:
    """Refuse positions of one prompt in a trace that runs another."""
    if tuple(hidden.shape[:2]) != (positions.n_rows, positions.length):
        raise SiteError(
            f"these positions ({positions.role!r}) belong to a prompt of {positions.n_rows} rows x "
            f"{positions.length} tokens, but the forward pass has {hidden.shape[0]} x "
            f"{hidden.shape[1]}. Use positions of the prompt that is traced; while generating, "
            "they hold for the prefill step only."
        )


def written(
    hidden: torch.Tensor, positions: Positions | int | slice | None, value: Any
) -> torch.Tensor:
    """Return a copy of ``hidden`` [row, position, width] with ``value`` at ``positions``.

    A value of one axis less than the place it goes to is spread over the positions of its row.

    Raises
    ------
    PatchError
        If the value's shape does not fit, or it holds a NaN.
    """
    value = torch.as_tensor(value).to(device=hidden.device, dtype=hidden.dtype)
    if bool(torch.isnan(value).any()):
        raise PatchError("the value to be written holds NaN. Check the run it was read from.")
    result = hidden.clone()
    if not isinstance(positions, Positions):
        place = slice(None) if positions is None else positions
        if value.ndim == 2 and isinstance(place, slice):
            value = value[:, None]  # one value per row, spread over its positions
        try:
            result[:, place] = value
        except RuntimeError as error:
            raise PatchError(f"the value does not fit where it is to go: {error}") from None
        return result
    check_rows(hidden, positions)
    n_rows, n = positions.index.shape
    width = hidden.shape[-1]
    if positions.single and value.ndim == 2:
        value = value[:, None]  # one position per row
    elif not positions.single and value.ndim == 2:
        value = value[:, None].expand(-1, n, -1)  # one value per row, spread over its positions
    try:
        value = value.expand(n_rows, n, width)
    except RuntimeError:
        raise PatchError(
            f"a value of shape {tuple(value.shape)} does not fit {n_rows} rows x {n} positions x "
            f"{width} at role {positions.role!r}. Expected [{n_rows}, {n}, {width}], or "
            f"[{n_rows}, {width}] to spread one value per row over its positions."
        ) from None
    mask = positions.mask.to(hidden.device)
    rows = torch.arange(n_rows, device=hidden.device)[:, None].expand(n_rows, n)
    result[rows[mask], positions.index.to(hidden.device)[mask]] = value[mask]
    return result


class Stream:
    """One component of the residual blocks, indexed ``[layers, positions]`` inside a trace.

    Reading returns [layer, row, position, d_model]; an int layer drops the layer axis, one
    position per row drops the position axis.

    Raises
    ------
    SiteError
        For a layer or positions the running prompt does not have.
    PatchError
        For a value that does not fit, or holds NaN.
    """

    def __init__(self, model: "Model", component: Component) -> None:
        self._model = model
        self._component = component

    def __repr__(self) -> str:
        return f"<{self._component}: {self._model.n_layers} layers x {self._model.d_model}>"

    def live(self, layer: int) -> torch.Tensor:
        """Return the running value of one layer, [row, position, d_model]."""
        block = self._model.blocks[layer]
        if self._component == "resid_pre":
            return block.input
        value = self._part(block).output
        return value[0] if isinstance(value, tuple) else value

    def replace(self, layer: int, hidden: torch.Tensor) -> None:
        """Make ``hidden`` [row, position, d_model] what the forward pass goes on with."""
        block = self._model.blocks[layer]
        if self._component == "resid_pre":
            block.input = hidden
            return
        part = self._part(block)
        value = part.output
        part.output = (hidden, *value[1:]) if isinstance(value, tuple) else hidden

    def _part(self, block: Any) -> Any:
        if self._component == "attn_out":
            return getattr(block, self._model.anatomy.attention)
        if self._component == "mlp_out":
            return getattr(block, self._model.anatomy.mlp)
        return block

    def __getitem__(self, key: Any) -> Any:  # a tensor, to which nnsight adds .save()
        layers, positions = split_index(key)
        found = [
            gather(self.live(layer), positions)
            for layer in layer_list(layers, self._model.n_layers)
        ]
        return found[0] if isinstance(layers, int) else torch.stack(found)

    def __setitem__(self, key: Any, value: Any) -> None:
        layers, positions = split_index(key)
        chosen = layer_list(layers, self._model.n_layers)
        per_layer = not isinstance(layers, int)
        if per_layer and torch.is_tensor(value) and value.ndim and value.shape[0] != len(chosen):
            raise PatchError(
                f"a value for {len(chosen)} layers must have that many along its first axis; "
                f"its shape is {tuple(value.shape)}."
            )
        for i, layer in enumerate(chosen):
            one = value[i] if per_layer and torch.is_tensor(value) and value.ndim else value
            self.replace(layer, written(self.live(layer), positions, one))


class LogitsStream:
    """The head's output, indexed ``[positions]`` inside a trace: [row, position, vocab].

    Also right when the forward pass computed the logits of the last positions only
    (``logits_to_keep``).
    """

    def __init__(self, model: "Model") -> None:
        self._model = model

    def _shifted(self, hidden: torch.Tensor, positions: Any) -> Any:
        if not isinstance(positions, Positions):
            return positions
        missing = positions.length - hidden.shape[1]
        index = positions.index - missing
        if missing < 0 or bool((index[positions.mask] < 0).any()):
            raise SiteError(
                f"logits of role {positions.role!r} were not computed: only the last "
                f"{hidden.shape[1]} positions were kept. Raise or drop logits_to_keep."
            )
        return Positions(index, positions.mask, hidden.shape[1], positions.single, positions.role)

    def __getitem__(self, positions: Any) -> Any:
        hidden = self._model.head.output
        return gather(hidden, self._shifted(hidden, positions))

    def __setitem__(self, positions: Any, value: Any) -> None:
        hidden = self._model.head.output
        self._model.head.output = written(hidden, self._shifted(hidden, positions), value)
