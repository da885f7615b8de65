"""Sparse autoencoders and transcoders: features are read at a site, changed, and written back.

What a dictionary does not reconstruct is kept: a vector becomes x + (f' - f) W_dec, which is
decode(f') plus the error x - decode(f), and with features unchanged it is x bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from interventions.errors import PatchError
from interventions.given import index_of
from interventions.given_arrays import tensor_of
from interventions.model.model import Model
from interventions.model.sites import Component, Site, of_head
from interventions.prompt.positions import Mode, Positions, index_list
from interventions.prompt.prompt import Prompt
from interventions.returnable import returnable
from interventions.running.coordinates import Coordinates, wide
from interventions.running.patches import Patch
from interventions.running.run import read

Activation = Literal["relu", "gated", "jumprelu", "topk"]
Normalised = Literal["none", "constant_norm_rescale", "layer_norm"]
BY_FEATURE = ("W_enc", "b_enc", "r_mag", "b_mag", "b_gate", "threshold", "norms")
"""Weights whose last axis is the feature."""
ENCODING = ("b_dec", *BY_FEATURE)
EPSILON = 1e-5
"""That SAELens adds to the deviation which ``layer_norm`` divides by."""


@returnable
@dataclass(frozen=True, eq=False)
class Dictionary:
    """A sparse autoencoder or transcoder at its place in a model, from :func:`load_sae`.

    Attributes
    ----------
    component : str
        What is written: the stream it reconstructs, or that a transcoder predicts.
    layer : int
    activation : {"relu", "gated", "jumprelu", "topk"}
    weights : dict of str to Tensor
        ``W_enc`` [d_in, feature], ``W_dec`` [feature, d_out], ``b_dec`` [d_out], and what the
        activation takes.
    source : str or None
        Of a transcoder, the stream that features are read off.
    k : int or None
        How many features a position has at most (``"topk"``).
    normalised : {"none", "constant_norm_rescale", "layer_norm"}
        What is done to vectors in front of the encoder, and undone behind the decoder.
    centred : bool
        ``b_dec`` is taken off vectors in front of the encoder.
    rescaled : bool
        Features are counted in lengths of their rows of ``W_dec``.
    about : dict
        What ``cfg.json`` says.
    """

    component: Component
    layer: int
    activation: Activation
    weights: Mapping[str, torch.Tensor]
    source: Component | None = None
    k: int | None = None
    normalised: Normalised = "none"
    centred: bool = True
    rescaled: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        of = f"{self.source} to {self.component}" if self.source else self.component
        sizes = f"{self.n_features} features of {self.d_in}"
        return f"<Dictionary ({self.activation}): {of} of block {self.layer}, {sizes}>"

    @property
    def d_in(self) -> int:
        """Width of the vectors that features are read off."""
        return self.weights["W_enc"].shape[0]

    @property
    def d_out(self) -> int:
        """Width of the vectors that it gives."""
        return self.weights["W_dec"].shape[1]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.weights["W_enc"].shape[1]

    def site(self, positions: Positions | None = None) -> Site:
        """Where features are read off."""
        return Site(self.source or self.component, self.layer, positions)

    def encode(self, hidden: torch.Tensor) -> torch.Tensor:
        """Activations [..., feature] of vectors [..., d_in], in float32 or wider."""
        hidden = tensor_of(hidden, "hidden")
        if not hidden.ndim or hidden.shape[-1] != self.d_in:
            raise PatchError(
                f"vectors of shape {tuple(hidden.shape)} for a dictionary that reads "
                f"[..., {self.d_in}]. Read them at dictionary.site(positions)."
            )
        given = self._normal(self._wide(hidden))
        own = {name: self.weights[name].to(given) for name in self.weights if name in ENCODING}
        if self.centred:
            given = given - own["b_dec"]
        if self.activation == "gated":
            gate = given @ own["W_enc"] + own["b_gate"] > 0
            size = given @ (own["W_enc"] * own["r_mag"].exp()) + own["b_mag"]
            return size.relu() * gate
        before = given @ own["W_enc"] + own["b_enc"]
        if self.activation == "jumprelu":
            return before.relu() * (before > own["threshold"])
        if self.activation == "topk":
            before = before * own["norms"] if self.rescaled else before
            assert self.k is not None
            most = before.topk(self.k, dim=-1)
            return torch.zeros_like(before).scatter_(-1, most.indices, most.values.relu())
        return before.relu()

    def reconstruct(self, hidden: torch.Tensor) -> torch.Tensor:
        """What it makes of vectors [..., d_in]: [..., d_out]."""
        features = self.encode(hidden)
        hidden = self._wide(tensor_of(hidden, "hidden"))
        given = self._undone(hidden, self._decoded(features) + self.weights["b_dec"].to(hidden))
        if self.normalised == "layer_norm" and self.source is None:
            given = given + hidden.mean(-1, keepdim=True)
        skip = self.weights.get("W_skip")
        return given if skip is None else given + hidden @ skip.to(hidden).T

    def features(self, features: int | slice | Sequence[int]) -> "Features":
        """Some features, as what a Patch can be ``within``."""
        chosen = self._chosen(features)
        if len(set(chosen)) < len(chosen):
            raise PatchError(f"features {chosen[:8]} name one twice.")
        at = torch.tensor(chosen)
        weights = {**self.weights, "W_dec": self.weights["W_dec"][at]}
        if self.activation == "topk":  # which features a position has hangs on all of them
            return Features(replace(self, weights=weights), at, tuple(chosen))
        weights |= {name: weights[name][..., at] for name in BY_FEATURE if name in weights}
        own = replace(self, weights=weights)
        return Features(own, torch.arange(len(chosen)), tuple(chosen))

    def patch(
        self,
        features: int | slice | Sequence[int],
        positions: Positions,
        value: Any,
        mode: Mode = "set",
    ) -> Patch:
        """Make the patch that sets some features, adds to them, or scales them (0: ablation).

        Parameters
        ----------
        features : int, slice or list of int
        positions : Positions
        value : Tensor or number
            [row, position, feature]; [row, feature] spreads one over the positions of a row;
            [feature] or a number hold for all.
        mode : {"set", "add", "scale"}
            Of activations, in the dictionary's own units.
        """
        within = self.features(features)
        return Patch(self.component, self.layer, positions, tensor_of(value), mode, within=within)

    def _chosen(self, features: int | slice | Sequence[int]) -> list[int]:
        asked = index_of(features, "feature")
        return index_list([asked] if isinstance(asked, int) else asked, self.n_features, "feature")

    def _wide(self, hidden: torch.Tensor) -> torch.Tensor:
        return wide(hidden).to(torch.promote_types(wide(hidden).dtype, self.weights["W_enc"].dtype))

    def _normal(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vectors as the encoder is given them."""
        if self.normalised == "constant_norm_rescale":
            return hidden * (self.d_in**0.5 / hidden.norm(dim=-1, keepdim=True))
        if self.normalised == "layer_norm":
            centred = hidden - hidden.mean(-1, keepdim=True)
            return centred / (centred.std(-1, keepdim=True) + EPSILON)
        return hidden

    def _decoded(self, features: torch.Tensor) -> torch.Tensor:
        """A sum of rows of ``W_dec``; ``features`` are as many as it has."""
        if self.rescaled:
            features = features / self.weights["W_dec"].to(features).norm(dim=-1)
        return features @ self.weights["W_dec"].to(features)

    def _undone(self, hidden: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """What the decoder gives, in the units of the stream; a transcoder gives those already."""
        if self.source is not None or self.normalised == "none":
            return given
        if self.normalised == "constant_norm_rescale":
            return given * (hidden.norm(dim=-1, keepdim=True) / self.d_in**0.5)
        return given * hidden.std(-1, keepdim=True)


@returnable
@dataclass(frozen=True, eq=False)
class Features(Coordinates):
    """Some features of a dictionary, as coordinates of a vector; see :meth:`Dictionary.features`.

    Only what these features need of the dictionary is here, and goes along with a request: of
    ``"topk"``, the whole encoder.

    Attributes
    ----------
    dictionary : Dictionary
        ``W_dec`` has these features alone; so has the encoder, unless it is one of ``"topk"``.
    at : Tensor [feature]
        Where they are among those that its encoder gives.
    names : tuple of int
        Which of the whole dictionary's they are.
    """

    dictionary: Dictionary
    at: torch.Tensor
    names: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<Features {list(self.names[:8])} of {self.dictionary.component}>"

    @property
    def width(self) -> int:
        """Width of the stream that is written."""
        return self.dictionary.d_out

    @property
    def size(self) -> int:
        """Number of features."""
        return len(self.names)

    @property
    def source(self) -> Component | None:
        """The stream that they are read off, where it is another."""
        return self.dictionary.source

    @property
    def source_width(self) -> int:
        """Its width."""
        return self.dictionary.d_in

    def coordinates(self, hidden: torch.Tensor) -> torch.Tensor:
        """Activations [..., feature] of vectors [..., d_in]."""
        return self.dictionary.encode(hidden)[..., self.at.to(hidden.device)]

    def moved(self, hidden: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """What a change [..., feature] of activations adds to a vector."""
        return self.dictionary._undone(wide(hidden).to(change), self.dictionary._decoded(change))


def feature_acts(
    model: Model,
    prompt: Prompt,
    dictionary: Dictionary,
    positions: Positions,
    *,
    features: int | slice | Sequence[int] | None = None,
) -> torch.Tensor:
    """Activations of a dictionary's features at tokens of a prompt, from one forward pass.

    Parameters
    ----------
    model : Model
    prompt : Prompt
    dictionary : Dictionary
        From :func:`interventions.load_sae`.
    positions : Positions
        As many tokens in every row, such as ``prompt.at("entity", -1)``.
    features : int, slice or list of int, optional
        Default: every one.

    Returns
    -------
    Tensor [row, position, feature]
        Without the position axis for one token per row. In float32 or wider; of a model on a
        server only the stream comes back, and is encoded here.

    Raises
    ------
    PatchError
        If the dictionary reads vectors of another width than the model's.
    SiteError
        If the model or the prompt does not have the place.

    Examples
    --------
    >>> sae = iv.load_sae("sae")
    >>> iv.feature_acts(llm, named, sae, named.at("last")).shape  # [row, feature]
    torch.Size([1, 96])
    """
    if not isinstance(dictionary, Dictionary):
        raise PatchError(f"{dictionary!r} is no dictionary. Expected one from iv.load_sae.")
    [hidden] = read(model, prompt, [dictionary.site(positions)])
    if of_head(dictionary.source or dictionary.component):
        hidden = hidden.flatten(-2)
    if hidden.shape[-1] != dictionary.d_in:
        raise PatchError(
            f"the dictionary reads vectors of width {dictionary.d_in}, but "
            f"{dictionary.site().component} of {model.name} is {hidden.shape[-1]} wide. Use one "
            "that was trained on this model."
        )
    acts = dictionary.encode(hidden)
    return acts if features is None else acts[..., dictionary._chosen(features)]
