"""Sets of heads across layers, as they are asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from interventions.errors import SiteError
from interventions.given import plain, several, shown, whole
from interventions.model.model import Model
from interventions.model.sites import Heads, layer_list
from interventions.prompt.positions import index_list

HeadSet = Mapping[int, Heads] | Sequence[tuple[int, int]]
HeadSets = Heads | HeadSet | Mapping[str, HeadSet]
ByLayer = dict[int, list[int] | None]
"""The heads of each layer in which something is done; None: all."""


def head_sets(model: Model, asked: HeadSets) -> tuple[str, dict[Any, ByLayer]]:
    """The dim of the sets of heads, and each of them by its label.

    Parameters
    ----------
    model : Model
    asked : optional
        As ``heads`` of :func:`interventions.knockout_curves`.

    Returns
    -------
    axis : {"head", "head_set", ""}
        "", where there is one set that has no name.
    sets : dict

    Raises
    ------
    SiteError
        If a set is empty, or names what the model does not have.
    """
    every = range(model.n_layers)
    n_heads = model.anatomy.n_heads
    given = _listed(asked)
    if given is None:
        return "", {None: dict.fromkeys(every)}
    if isinstance(given, Mapping):
        if not given:
            raise SiteError("heads= is empty, so nothing is cut. Leave it out for all heads.")
        if all(isinstance(plain(label), str) for label in given):
            return "head_set", {str(plain(n)): _head_set(model, own) for n, own in given.items()}
        return "", {None: _head_set(model, given)}
    if not isinstance(given, int | slice) and any(
        isinstance(entry, list | tuple) for entry in several(given, "heads=", error=SiteError)
    ):
        return "", {None: _head_set(model, given)}
    chosen = index_list(given, n_heads, "head")
    if len({*chosen}) < len(chosen):
        raise SiteError(f"heads name one twice: {chosen}.")
    return "head", {head: {layer: [head] for layer in every} for head in chosen}


def _listed(given: Any) -> Any:
    """A table of pairs as a list; anything else as it is."""
    given = plain(given)
    table = isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 2
    return given.tolist() if table else given


def _head_set(model: Model, given: Any) -> ByLayer:
    """Heads by layer, of a mapping or of pairs (layer, head)."""
    given = _listed(given)
    expected = "layers with their heads, {3: [0, 5]}, or pairs (layer, head)"
    by_layer: dict[int, list[int]] = {}
    whole_layers: list[int] = []
    if isinstance(given, Mapping):
        entries = list(given.items())
    else:
        entries = several(given, "a set of heads", error=SiteError, expected=expected)
    if not entries:
        raise SiteError("a set of heads is empty, so nothing is cut. Name some.")
    for entry in entries:
        pair = several(entry, "a head", error=SiteError, expected=expected)
        if len(pair) != 2:
            raise SiteError(f"a set of heads has {shown(entry)}. Expected {expected}.")
        number = whole(
            *(pair[0], "the layer of a head"),
            least=-model.n_layers,
            most=model.n_layers - 1,
            error=SiteError,
        )
        [layer] = layer_list(number, model.n_layers)
        if plain(pair[1]) is None:
            whole_layers.append(layer)
        else:
            by_layer.setdefault(layer, []).extend(
                index_list(pair[1], model.anatomy.n_heads, "head")
            )
    heads: ByLayer = {layer: sorted({*own}) for layer, own in by_layer.items()}
    return heads | dict.fromkeys(whole_layers)
