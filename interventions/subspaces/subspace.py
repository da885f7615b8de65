"""A linear subspace of a stream: what it holds of a vector is swapped, moved or taken out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from interventions.errors import PatchError
from interventions.given import seed_of, whole
from interventions.given_arrays import tensor_of
from interventions.model.sites import Component, Layers
from interventions.prompt.positions import Positions
from interventions.returnable import returnable
from interventions.running.coordinates import Coordinates, wide
from interventions.running.patches import Patch

ORTHONORMAL = 1e-5
"""How far products of columns may be from 0 and 1 for a basis to be kept as it was given."""
DEPENDENT = 1e-6
"""A column whose share outside the span of those before it is smaller adds no direction."""
MOST_WIDTH = 2**20
STORED = "subspace"


@returnable
@dataclass(frozen=True, eq=False)
class Subspace(Coordinates):
    """A subspace that directions span, as an orthonormal basis.

    Attributes
    ----------
    basis : Tensor [d_model, k], or [d_model] for a line
        Directions. Orthonormal columns are kept; others are made so (Gram-Schmidt), which changes
        coordinates and not the subspace.
    about : dict
        Where it is from, in JSON types; saved with it.

    Raises
    ------
    PatchError
        If the basis is no matrix of numbers, or has columns that depend on each other.

    Examples
    --------
    >>> [here] = iv.read(llm, named, [iv.Site("resid_post", 2, named.at("entity", -1))])
    >>> [there] = iv.read(llm, other, [iv.Site("resid_post", 2, other.at("entity", -1))])
    >>> line = Subspace((there - here)[0])  # from one name to the other
    >>> place = named.at("entity", -1)
    >>> swapped = line.interchange("resid_post", 2, place, there)
    >>> iv.complete(llm, named, patches=[swapped], stop=" .").texts
    ['Brenn']
    """

    basis: torch.Tensor
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = tensor_of(self.basis, "the basis").detach()
        basis = wide(given[:, None] if given.ndim == 1 else given)
        if basis.ndim != 2 or not 0 < basis.shape[1] <= basis.shape[0]:
            raise PatchError(
                f"a basis of shape {tuple(given.shape)}. Expected [d_model, k], with one direction "
                "per column and no more of them than d_model."
            )
        if not bool(basis.isfinite().all()):
            raise PatchError("the basis holds NaN or infinite numbers.")
        object.__setattr__(self, "basis", basis if _orthonormal(basis) else _orthogonal(basis))

    def __repr__(self) -> str:
        return f"<Subspace: {self.size} of {self.width} dimensions>"

    @property
    def width(self) -> int:
        """Width of the stream it is in."""
        return self.basis.shape[0]

    @property
    def size(self) -> int:
        """Number of dimensions."""
        return self.basis.shape[1]

    def coordinates(self, hidden: torch.Tensor) -> torch.Tensor:
        """Coordinates [..., k] of vectors [..., d_model]."""
        hidden = wide(self._checked(hidden))
        return hidden @ self.basis.to(hidden)

    def moved(self, hidden: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """What a change [..., k] of coordinates adds to a vector [..., d_model]."""
        return change @ self.basis.to(change).T

    def projected(self, hidden: torch.Tensor) -> torch.Tensor:
        """The part of vectors [..., d_model] that lies in the subspace."""
        return self.moved(hidden, self.coordinates(hidden))

    def interchange(
        self, component: Component, layers: Layers, positions: Positions, source: torch.Tensor
    ) -> Patch:
        """Make the patch that gives vectors the coordinates that ``source`` has here.

        Interchange intervention in a subspace (Geiger et al., "Finding Alignments Between
        Interpretable Causal Variables and Distributed Neural Representations", CLeaR 2024):
        h becomes h + (s - h) B B^T.

        Parameters
        ----------
        component, layers, positions
            Where, as in :class:`interventions.Patch`.
        source : Tensor
            Whole vectors, [layer, row, position, d_model] with axes left out as in a Patch: what
            :func:`interventions.read` gave for another prompt, or another model of this width.
        """
        value = self.coordinates(tensor_of(source, "source"))
        return Patch(component, layers, positions, value, within=self)

    def project_out(self, component: Component, layers: Layers, positions: Positions) -> Patch:
        """Make the patch that takes the subspace out: h becomes h - h B B^T."""
        zero = torch.zeros(())
        return Patch(component, layers, positions, zero, "scale", within=self)

    @classmethod
    def random(cls, width: int, size: int, *, seed: int = 0) -> "Subspace":
        """Draw a subspace, each as likely as any other: the control of one that was learned."""
        width = whole(width, "width", least=1, most=MOST_WIDTH, error=PatchError)
        size = whole(size, "size", least=1, most=width, error=PatchError)
        generator = torch.Generator().manual_seed(seed_of(seed, error=PatchError))
        drawn = torch.randn(width, size, generator=generator, dtype=torch.float64)
        return cls(_orthogonal(drawn).float(), {"random": True, "seed": seed})

    def save(self, path: Path | str) -> None:
        """Write it to a safetensors file."""
        from interventions.tensor_files import save_tensors  # files are not a server's affair

        save_tensors(path, STORED, {"basis": self.basis}, dict(self.about))

    @classmethod
    def load(cls, path: Path | str) -> "Subspace":
        """Open what :meth:`save` wrote.

        Raises
        ------
        ResultsError
            If the file holds something else.
        """
        from interventions.tensor_files import load_tensors

        tensors, about = load_tensors(path, STORED)
        return cls(tensors["basis"], about)

    def _checked(self, hidden: torch.Tensor) -> torch.Tensor:
        if not hidden.ndim or hidden.shape[-1] != self.width:
            raise PatchError(
                f"vectors of shape {tuple(hidden.shape)} for a subspace of {self.width} dimensions."
                f" Expected [..., {self.width}]."
            )
        return hidden


def _orthonormal(basis: torch.Tensor) -> bool:
    products = basis.T @ basis
    off = products - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    return float(off.abs().max()) < ORTHONORMAL


def _orthogonal(directions: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of what the columns span, computed in float64."""
    exact = directions.double()
    lengths = exact.norm(dim=0)
    if not bool((lengths > 0).all()):
        raise PatchError("a direction of the basis is zero. Leave it out.")
    basis, inside = torch.linalg.qr(exact / lengths)
    if float(inside.diagonal().abs().min()) < DEPENDENT:
        at = int(inside.diagonal().abs().argmin())
        raise PatchError(
            f"column {at} of the basis lies in the span of those before it, so the directions span "
            f"fewer than {directions.shape[1]} dimensions. Leave it out."
        )
    return (basis * inside.diagonal().sign()).to(directions.dtype)
