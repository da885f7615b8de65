"""Reading and writing activations inside an nnsight trace, by layer and position.

A stream is indexed with ``[layers, positions]``. Inside ``with model.trace(prompt):`` reading
gives a copy and assigning overwrites what the rest of the forward pass sees; so
``stream[3, place] += v`` steers and ``stream[3, place] *= 0.5`` scales. As nnsight runs the block
alongside the forward pass, values must be touched in the order in which the model computes them,
block by block and, in a block, in that of this table; :func:`interventions.read` and
:func:`interventions.run` sort for you. So ``+=`` takes one layer;
``stream.write(layers, place, v, mode="add")`` takes several, and rows that differ in how many
positions they have.

==================  ======================================================================
component           what it is
==================  ======================================================================
``embeddings``      what enters the first block, image features in place; no layers
``image_features``  the same at image positions; in cross-attention models the projected
                    vision states [row, vision token, d_model]; no layers
``resid_pre``       input of the block
``q, k, v``         queries, keys and values of each head, behind their norm if they have one
                    and before rotary embeddings and the cache (in the order in which the
                    model computes them, which :func:`interventions.run` knows)
``q_rot, k_rot``    queries and keys as they are attended with; of these, keys are written
``attn_scores``     of each query head [query, head, key], before the softmax; read only
``attn_pattern``    the weights behind it
``head_out``        each query head's result before the output projection
``attn_out``        what attention adds to the residual stream (behind its norm, if it has
                    one, and before the gate of a cross-attention block)
``resid_mid``       the residual stream between attention and MLP
``mlp_in``          what the MLP is given: ``resid_mid`` behind its norm, where it has one
``router``          logits of the experts, in mixtures of them; read only
``mlp_pre``         what the activation function is applied to: the gate, where there is one;
                    read only
``mlp_post``        the neurons: what the MLP projects down
``mlp_out``         what the MLP adds to the residual stream (as ``attn_out``)
``resid_post``      output of the block: ``resid_pre + attn_out + mlp_out``
``logits``          output of the model; no layers
==================  ======================================================================
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from nnsight.intervention.interleaver import OutOfOrderError

from interventions.architectures.wrapped import Wrapped, weightless
from interventions.errors import PatchError, SiteError
from interventions.given import index_of
from interventions.given_arrays import tensor_of
from interventions.model.sites import Component, Layers, check_runs, layer_list, written_once
from interventions.model.vision_places import NAMED, space_of
from interventions.prompt.positions import Mode, Positions, Space, Where, read_at, write_at

COPIED_KEYS = (
    "requests for {} run in a process of their own on this server, which gives back what a block "
    "is given as copies, keys and values with it, so that later tokens would not attend to them. "
    "Use resid_post of the block below, or one forward pass, which keeps none: iv.run. Or load "
    "the model here."
)


def split_index(key: Any, most: int = 2) -> tuple[Any, ...]:
    """Split a subscript into layers, positions (and heads); missing ones are None."""
    parts = key if isinstance(key, tuple) else (key,)
    if len(parts) > most:
        names = "layers, positions" + (", heads" if most == 3 else "")
        raise SiteError(f"index this stream with [{names}], not {len(parts)} values.")
    return (*parts, *[None] * (most - len(parts)))


@contextmanager
def in_order(what: str) -> Iterator[None]:
    """Say what to do where a value is touched that the model has computed and gone past."""
    try:
        yield
    except OutOfOrderError:
        raise SiteError(
            f"{what} was touched too late: the forward pass had gone on. Inside a trace, read and "
            "write in the order of computation (earlier blocks first); += and *= take one layer. "
            'For several use stream.write(layers, positions, value, mode="add" or "scale"), or '
            "iv.run, which sorts."
        ) from None


class Stream:
    """One component of the blocks, indexed ``[layers, positions]`` inside a trace.

    Reading returns [layer, row, position, d_model]; an int layer drops the layer axis, one
    position per row drops the position axis.

    Raises
    ------
    SiteError
        For a layer or positions the running prompt does not have, or a block that does not run.
    PatchError
        For a value that does not fit, or holds NaN.
    """

    def __init__(self, model: Wrapped, component: Component) -> None:
        self._model = model
        self._component: Component = component

    def __repr__(self) -> str:
        return f"<{self._component}: {self._n_layers} layers x {self._model.d_model}>"

    @property
    def _n_layers(self) -> int:
        return self._model.n_layers

    def _check_space(self, layers: Sequence[int], positions: Any) -> None:
        """Refuse positions in the text where those of the tower are meant, and so on."""
        check_space(space_of(self._model, self._component, layers), positions)

    def live(self, layer: int) -> torch.Tensor:
        """Return the running value of one layer itself, [row, position, width]."""
        part = self._part(layer)
        with in_order(f"{self._component} of block {layer}"):
            value = part.input if self._reads_input else part.output
        value = value[0] if isinstance(value, tuple) else value
        if value.ndim == 2:  # mixtures of experts work on a flat list of tokens
            value = value.unflatten(0, (self._model.running_rows, -1))
        return value

    def replace(self, layer: int, hidden: torch.Tensor) -> None:
        """Make ``hidden`` [row, position, width] what the forward pass goes on with."""
        part = self._part(layer)
        if self._reads_input:
            part.input = hidden
            return
        value = part.output
        old = value[0] if isinstance(value, tuple) else value
        hidden = hidden.reshape(old.shape)
        part.output = (hidden, *value[1:]) if isinstance(value, tuple) else hidden

    @property
    def _reads_input(self) -> bool:
        return self._component == "resid_pre"

    def _part(self, layer: int) -> Any:
        model = self._model
        check_runs(model, layer, images=model.running_images)
        if self._reads_input and model.running_keys and weightless(model):
            raise SiteError(COPIED_KEYS.format(model.name))
        parts = model.anatomy.parts[layer]
        block = model.blocks[layer]
        if self._component == "attn_out":
            return block.get(parts.attn_out)
        return block.get(parts.mlp_out) if self._component == "mlp_out" else block

    def __getitem__(self, key: Any) -> Any:  # a tensor, to which nnsight adds .save()
        layers, positions = split_index(key)
        layers = index_of(layers, "layer")
        chosen = layer_list(layers, self._n_layers)
        self._check_space(chosen, positions)
        values = [read_at(self.live(layer), positions) for layer in chosen]
        return values[0] if isinstance(layers, int) else stacked(values)

    def __setitem__(self, key: Any, value: Any) -> None:
        layers, positions = split_index(key)
        self.write(layers, positions, value)

    def write(self, layers: Layers, positions: Where, value: Any, *, mode: Mode = "set") -> None:
        """Write into some layers; ``mode`` "add" and "scale" also take positions that differ in
        number between rows.

        Parameters
        ----------
        layers : int, slice or list of int
        positions : Positions, int, slice or None
        value : Tensor or number
            [layer, row, position, d_model], without the layer axis for an int layer.
        mode : {"set", "add", "scale"}
        """
        layers, value = index_of(layers, "layer"), tensor_of(value)
        chosen = written_once(layer_list(layers, self._n_layers), "layer")
        for layer, own in zip(chosen, per_layer(layers, value, len(chosen)), strict=True):
            self.put(layer, positions, own, mode=mode)

    def put(
        self,
        layer: int,
        positions: Where,
        value: torch.Tensor,
        *,
        mode: Mode = "set",
        checked: torch.dtype | None = None,
    ) -> None:
        """Write into a layer; ``checked``: see :func:`interventions.prompt.positions.write_at`."""
        self._check_space([layer], positions)
        self.replace(layer, write_at(self.live(layer), positions, value, mode, checked=checked))


def check_space(space: Space, positions: Any) -> None:
    """Refuse positions in the text where those of the tower are meant, and so on."""
    if isinstance(positions, Positions) and positions.of != space:
        raise SiteError(
            f"{positions.role!r} is at positions of {NAMED[positions.of]}, and this stream is of "
            f"{NAMED[space]}. Use prompt.at(role, of={space!r})."
        )


def stacked(values: list[torch.Tensor]) -> torch.Tensor:
    """Stack per-layer values, which may lie on several devices, on the first one's."""
    return torch.stack([value.to(values[0].device) for value in values])


def per_layer(layers: Layers, value: torch.Tensor, n: int) -> list[torch.Tensor]:
    """Split a value along its layer axis, or repeat one that has none."""
    if isinstance(layers, int) or value.ndim < 2:
        return [value] * n
    if value.shape[0] != n:
        raise PatchError(
            f"a value for {n} layers must have that many along its first axis; "
            f"its shape is {tuple(value.shape)}."
        )
    return list(value)


class EmbeddingStream:
    """What enters the first block, indexed ``[positions]`` inside a trace.

    Reading gives [row, position, d_model]. Image features stand in their places, and whatever the
    model scales or adds is done.
    """

    def __init__(self, model: Wrapped) -> None:
        self._model = model

    def _live(self) -> Any:
        with in_order("embeddings"):
            return self._model.blocks[0].input

    def __getitem__(self, positions: Any) -> Any:
        check_space("text", positions)
        return read_at(self._live(), positions)

    def __setitem__(self, positions: Any, value: Any) -> None:
        check_space("text", positions)
        self._model.blocks[0].input = write_at(self._live(), positions, value)


class ImageFeatureStream:
    """What the projector made of the images, indexed inside a trace.

    ``[prompt.at("image")]``, or another role of image tokens, gives [row, position, d_model] where
    they enter the sequence. In cross-attention models, which have no image positions,
    ``[tokens]`` of the projected vision states [row, vision token, d_model].
    """

    def __init__(self, model: Wrapped) -> None:
        self._model = model
        self._embeddings = EmbeddingStream(model)

    def _part(self, positions: Any) -> Any:
        model = self._model
        if not model.anatomy.is_vlm:
            raise SiteError(f"{model.name} is a text-only model and has no image features.")
        if not model.running_images:
            raise SiteError("the running prompt has no image. Pass images= to prompt().")
        if not model.anatomy.cross_blocks:
            if not isinstance(positions, Positions) or "image" not in positions.role:
                raise SiteError('index image_features with image positions: prompt.at("image").')
            return None
        if isinstance(positions, Positions):
            raise SiteError(
                f"{model.name} has no image positions; index image_features with a slice or list "
                "of vision tokens, such as [:]."
            )
        return model.nn.get(model.anatomy.projector or "")

    def __getitem__(self, positions: Any) -> Any:
        part = self._part(positions)
        if part is None:
            return self._embeddings[positions]
        return read_at(self._states(part.output), positions)

    def __setitem__(self, positions: Any, value: Any) -> None:
        part = self._part(positions)
        if part is None:
            self._embeddings[positions] = value
            return
        output = part.output
        part.output = write_at(self._states(output), positions, value).reshape(output.shape)

    def _states(self, output: torch.Tensor) -> torch.Tensor:
        return output.reshape(self._model.running_rows, -1, output.shape[-1])


class LogitsStream:
    """The model's logits, indexed ``[positions]`` inside a trace: [row, position, vocab].

    Also right when the forward pass computed the logits of the last positions only
    (``logits_to_keep``).
    """

    def __init__(self, model: Wrapped) -> None:
        self._model = model

    def _shifted(self, hidden: torch.Tensor, positions: Any) -> Any:
        check_space("text", positions)
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
        logits = self._model.nn.output.logits
        return read_at(logits, self._shifted(logits, positions))

    def __setitem__(self, positions: Any, value: Any) -> None:
        model: Any = self._model.nn
        output = model.output
        shifted = self._shifted(output.logits, positions)
        output.logits = write_at(output.logits, shifted, value, infinite=True)  # -inf forbids
        model.output = output
