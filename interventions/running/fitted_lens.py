"""Affine maps by which hidden states of each layer are read out; saved, and applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from interventions.errors import PatchError
from interventions.running.coordinates import wide

FittedKind = Literal["tuned", "jacobian"]
STORED = "lens"


@dataclass(frozen=True, eq=False)
class FittedLens:
    """Maps into the basis of the last layer, from :func:`tuned_lens` or :func:`jacobian_lens`.

    Attributes
    ----------
    kind : {"tuned", "jacobian"}
    layers : tuple of int
        Whose ``resid_post`` has a map. That of the last block is read as it is.
    weight : Tensor [layer, d_model, d_model]
        A state h becomes ``weight @ h + bias``.
    bias : Tensor [layer, d_model]
    n_layers : int
        Of the model.
    about : dict
        How it was fitted, in JSON types. Of a tuned lens, ``held_out`` has what
        :attr:`divergences` gives.
    """

    kind: FittedKind
    layers: tuple[int, ...]
    weight: torch.Tensor
    bias: torch.Tensor
    n_layers: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<FittedLens ({self.kind}): layers {list(self.layers)} of {self.n_layers}>"

    def of_layers(self, n: int, layers: Sequence[int] | None = None) -> list[int]:
        """Which layers ``n`` states along an axis are of: as said, its own, or all of the model's.

        Raises
        ------
        PatchError
            If there are not as many, or one has no map.
        """
        if layers is None:
            known = {len(self.layers): list(self.layers), self.n_layers: [*range(self.n_layers)]}
            if n not in known:
                raise PatchError(
                    f"hidden states of {n} layers, for a lens of {len(self.layers)}. Say which "
                    "layers they are of: layers=."
                )
            return known[n]
        chosen = [layer + self.n_layers if layer < 0 else layer for layer in layers]
        lacking = [i for i in chosen if i not in self.layers and i != self.n_layers - 1]
        if len(chosen) != n or lacking:
            raise PatchError(
                f"layers={list(layers)} for hidden states of {n} layers. Expected as many, of "
                f"those that were fitted: {[*self.layers, self.n_layers - 1]}."
            )
        return chosen

    def translated(self, hidden: torch.Tensor, layers: Sequence[int] | None = None) -> torch.Tensor:
        """States [layer, ..., d_model] in the basis of the last layer."""
        if not hidden.ndim or hidden.shape[-1] != self.weight.shape[-1]:
            raise PatchError(
                f"hidden states of shape {tuple(hidden.shape)} for a lens of states of width "
                f"{self.weight.shape[-1]}. Use one that was fitted to this model."
            )
        chosen = self.of_layers(len(hidden), layers)
        read = []
        for state, layer in zip(wide(hidden), chosen, strict=True):
            if layer not in self.layers:
                read.append(state)
                continue
            at = self.layers.index(layer)
            read.append(state @ self.weight[at].to(state).T + self.bias[at].to(state))
        return torch.stack(read)

    @property
    def divergences(self) -> Any:
        """KL of a tuned lens and of the logit lens to the final distribution, on held-out rows.

        Dataset ``kl`` (lens, layer), nats, with ``low`` and ``high``: 95 % interval by bootstrap
        over groups.
        """
        import xarray as xr

        if "held_out" not in self.about:
            raise PatchError(f"a {self.kind} lens was not fitted to a distribution.")
        told = self.about["held_out"]
        dims = ("lens", "layer")
        return xr.Dataset(
            {name: (dims, told[name]) for name in ("kl", "low", "high")},
            coords={"lens": ["tuned", "logit"], "layer": list(self.layers)},
        )

    def save(self, path: Path | str) -> None:
        """Write it to a safetensors file."""
        from interventions.tensor_files import save_tensors  # files are not a server's affair

        about = {
            **{"kind": self.kind, "layers": list(self.layers), "n_layers": self.n_layers},
            "about": dict(self.about),
        }
        save_tensors(path, STORED, {"weight": self.weight, "bias": self.bias}, about)

    @classmethod
    def load(cls, path: Path | str) -> "FittedLens":
        """Open what :meth:`save` wrote.

        Raises
        ------
        ResultsError
            If the file holds something else.
        """
        from interventions.tensor_files import load_tensors

        tensors, told = load_tensors(path, STORED)
        layers, kind = tuple(told["layers"]), told["kind"]
        weight, bias = tensors["weight"], tensors["bias"]
        return cls(kind, layers, weight, bias, told["n_layers"], told["about"])
