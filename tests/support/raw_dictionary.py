"""Sparse autoencoders and transcoders as SAELens computes them, and folders in its format.

Written from its source (6.18), step by step and with what it keeps between encoding and decoding,
so that what the engine makes of a folder has a reference that shares nothing with it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from floors import noise
from safetensors.torch import save_file

EXTRA = {
    "standard": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
    "transcoder": ("b_enc",),
    "skip_transcoder": ("b_enc", "W_skip"),
    "jumprelu_transcoder": ("b_enc", "threshold"),
}
ARCHITECTURES = tuple(EXTRA)


def drawn_weights(architecture: str, d_in: int, d_sae: int, d_out: int) -> dict[str, torch.Tensor]:
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    for name in EXTRA[architecture]:
        shapes[name] = (d_out, d_in) if name == "W_skip" else (d_sae,)
    weights = {
        name: noise(shape, seed) / (1 if len(shape) == 1 else shape[0] ** 0.5)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].abs() / 2
    return weights


def written(
    folder: Path,
    architecture: str,
    d_in: int,
    /,
    d_sae: int = 24,
    d_out: int | None = None,
    *,
    hook_name: str = "blocks.1.hook_resid_post",
    weights: dict[str, torch.Tensor] | None = None,
    **settings: Any,
) -> Path:
    """Write a folder as ``SAE.save_model`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    transcoder = "transcoder" in architecture
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.18.0", "hook_name": hook_name},
    }
    if transcoder:
        config["d_out"] = d_out or d_in
        config["metadata"]["hook_name_out"] = "blocks.1.hook_mlp_out"
    if architecture == "topk":
        config |= {"k": 4, "rescale_acts_by_decoder_norm": False}
    metadata = {**config["metadata"], **settings.pop("metadata", {})}
    config |= {**settings, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(config))
    own = weights or drawn_weights(architecture, d_in, d_sae, d_out or d_in)
    save_file(own, folder / "sae_weights.safetensors")
    return folder


class Raw:
    """One dictionary: ``encode`` keeps what ``decode`` undoes, as in SAELens."""

    def __init__(
        self, architecture: str, weights: dict[str, torch.Tensor], **settings: Any
    ) -> None:
        self.architecture, self.weights, self.settings = architecture, weights, settings
        self.transcoder = "transcoder" in architecture

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        w, normalise = self.weights, self.settings.get("normalize_activations", "none")
        if normalise == "constant_norm_rescale":
            self.coefficient = x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)
            x = x * self.coefficient
        elif normalise == "layer_norm":
            self.mean = x.mean(dim=-1, keepdim=True)
            x = x - self.mean
            self.std = x.std(dim=-1, keepdim=True)
            x = x / (self.std + 1e-5)
        if not self.transcoder and self.settings.get("apply_b_dec_to_input", True):
            x = x - w["b_dec"]
        if self.architecture == "gated":
            active = (x @ w["W_enc"] + w["b_gate"] > 0).to(x)
            return active * torch.relu(x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
        before = x @ w["W_enc"] + w["b_enc"]
        if "jumprelu" in self.architecture:
            return torch.relu(before) * (before > w["threshold"]).to(x)
        if self.architecture == "topk":
            if self.settings.get("rescale_acts_by_decoder_norm"):
                before = before * w["W_dec"].norm(dim=-1)
            kept = torch.zeros_like(before)
            values, indices = torch.topk(before, k=self.settings.get("k", 4), dim=-1, sorted=False)
            return kept.scatter_(-1, indices, values.relu())
        return torch.relu(before)

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        w, normalise = self.weights, self.settings.get("normalize_activations", "none")
        if self.settings.get("rescale_acts_by_decoder_norm"):
            features = features / w["W_dec"].norm(dim=-1)
        out = features @ w["W_dec"] + w["b_dec"]
        if self.transcoder:
            return out
        if normalise == "constant_norm_rescale":
            return out / self.coefficient
        return out * self.std + self.mean if normalise == "layer_norm" else out

    def edited(self, x: torch.Tensor, old: torch.Tensor, edit: Any) -> torch.Tensor:
        """The output with edited features, and with the error of the unedited ones."""
        features = self.encode(x)
        error = old - self.decode(features)
        return self.decode(edit(features.clone())) + error
